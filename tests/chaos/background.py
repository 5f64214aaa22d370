"""What goes on beside a storm: something done over and over in a thread of its own, until the storm is over."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Background(ABC):
    """Runs while it is entered; leaving waits until it has ended, and raises what it failed with."""

    def __init__(self, name: str) -> None:
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._guarded, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure

    @property
    def running(self) -> bool:
        """Whether it goes on: it has neither ended nor failed."""
        return self._thread.is_alive()

    @abstractmethod
    def _run(self) -> None:
        """Do it, until `_stopping` is set."""

    def _guarded(self) -> None:
        try:
            self._run()
        except BaseException as failure:  # noqa: BLE001 - a thread's failure is the run's: it is raised there
            self._failure = failure
