"""Workers under a supervisor that starts whoever ends again, and what may be done to them."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
import time
from types import TracebackType
from typing import Self

from streamer.local.web import answers
from streamer.settings import Settings
from tests.integration.running import WorkerProcess

_LOOK_S = 0.1
_WELL_S = 15.0


class Crew:
    """Some workers, supervised from `start` on.

    Attributes
    ----------
    ended : how often a worker ended by itself, as one does whose partitions were given to another.
    """

    def __init__(self, settings: Settings, count: int) -> None:
        self._settings = settings
        self._count = count
        self._workers: list[WorkerProcess] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self.ended = 0

    def __enter__(self) -> Self:
        commit_ms = self._settings.worker.commit_ms
        for ordinal in range(self._count):
            self._workers.append(WorkerProcess(self._settings, replica=str(ordinal), commit_ms=commit_ms))
        self._supervisor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._supervisor.join()
        for worker in self._workers:
            worker.kill()

    def await_well(self, ordinal: int) -> None:
        """Wait until a worker says that it is well; not for ever, since it may be paused."""
        url = f"http://127.0.0.1:{self._workers[ordinal].port}/health"
        deadline = time.monotonic() + _WELL_S
        while not answers(url) and time.monotonic() < deadline:
            time.sleep(_LOOK_S)

    def kill(self, ordinal: int) -> None:
        """Kill -9, and start again at once."""
        with self._lock:
            self._workers[ordinal].kill()
            self._workers[ordinal].start()

    def pause(self, ordinal: int, seconds: float) -> None:
        """Stop a worker's process as it stands, and let it go on after a while; returns at once."""
        process = self._workers[ordinal].process
        process.send_signal(signal.SIGSTOP)
        timer = threading.Timer(seconds, _resume, [process])
        timer.daemon = True
        timer.start()

    def logs(self) -> str:
        """Return the end of every worker's log."""
        return "\n".join(f"worker {worker.replica}:\n{worker.text()[-3000:]}" for worker in self._workers)

    def _supervise(self) -> None:
        while not self._stopping.wait(_LOOK_S):
            with self._lock:
                for worker in self._workers:
                    if worker.process.poll() is not None:
                        self.ended += 1
                        worker.start()


def _resume(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGCONT)
