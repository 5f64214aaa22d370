"""The watchdog: ends a process that hangs, even where the interpreter itself stands still."""

from __future__ import annotations

import faulthandler
import threading


class Watchdog:
    """Ends the process with exit code 1, and writes where each thread stands, unless it is put off in time.

    It needs nothing of the interpreter: a native call that hangs while it holds the interpreter's lock stops all
    of Python's threads, timers and signal handlers, and with them whatever else was to notice.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_final = False

    def put_off(self, by_s: float) -> None:
        """End the process `by_s` from now, unless told again by then; nothing once it is to leave."""
        with self._lock:
            if not self._is_final:
                faulthandler.dump_traceback_later(by_s, exit=True)

    def leave_within(self, within_s: float) -> None:
        """End the process `within_s` from now, whatever still hangs then; only the first call counts."""
        with self._lock:
            if not self._is_final:
                self._is_final = True
                faulthandler.dump_traceback_later(within_s, exit=True)
