"""The stream worker, started again whenever it ends with an error."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from streamer.local.ports import HOST
from streamer.local.processes import Child, StackError
from streamer.local.site import Site
from streamer.local.web import answers
from streamer.settings import Settings

DEFAULT_COMMAND = (sys.executable, "-m", "streamer.cli", "worker")

_READY_S = 90.0
_STOP_S = 20.0
_SHORTEST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 5.0
# A worker that ran this long was well; its next restart need not wait.
_WELL_AFTER_S = 30.0
_LOOK_S = 0.1


class Workers:
    """The workers of a local stack: one supervisor thread a command."""

    def __init__(
        self, site: Site, commands: Sequence[Sequence[str]], surroundings: Callable[[], Mapping[str, str]]
    ) -> None:
        self._site = site
        self._commands = [list(command) for command in commands]
        self._surroundings = surroundings
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._running: dict[int, Child] = {}

    @property
    def children(self) -> list[Child]:
        """The workers' processes, as they are now."""
        return [child for _, child in sorted(self._running.items())]

    def start(self) -> None:
        """Start every worker and wait until each says on /health that it is well."""
        self._stopping.clear()
        self._threads = [
            threading.Thread(target=self._supervise, args=(ordinal,), name=f"worker-{ordinal}", daemon=True)
            for ordinal in range(len(self._commands))
        ]
        for thread in self._threads:
            thread.start()
        deadline = time.monotonic() + _READY_S
        for ordinal in range(len(self._commands)):
            self._wait(ordinal, deadline)

    def stop(self) -> None:
        """Let the workers end their last step and go; those that do not are killed."""
        self._stopping.set()
        for child in self.children:
            child.stop(grace_s=_STOP_S)
        for thread in self._threads:
            thread.join()
        self._running.clear()

    def configure(self, settings: Settings) -> Settings:
        """Return the settings with the first worker's web address and data directory."""
        update = {"web_host": HOST, "web_port": self._port(0), "data_dir": self._site.root / "worker" / "0"}
        return settings.model_copy(update={"worker": settings.worker.model_copy(update=update)})

    def _port(self, ordinal: int) -> int:
        return self._site.ports.all().get(f"worker-{ordinal}", 0)

    def _supervise(self, ordinal: int) -> None:
        pause = _SHORTEST_PAUSE_S
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                child = self._spawn(ordinal)
            except StackError:
                # The stack is being taken down; `start` reports the worker that never came up.
                return
            code = child.process.wait()
            if code == 0:
                return
            pause = _SHORTEST_PAUSE_S if time.monotonic() - started > _WELL_AFTER_S else pause
            self._stopping.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _spawn(self, ordinal: int) -> Child:
        data = self._site.directory(f"worker/{ordinal}")
        env = {
            **self._surroundings(),
            "DRIFTLOOP_WORKER__REPLICA": str(ordinal),
            "DRIFTLOOP_WORKER__WEB_PORT": str(self._site.ports.get(f"worker-{ordinal}")),
            "DRIFTLOOP_WORKER__DATA_DIR": str(data),
        }
        name = f"worker-{ordinal}"
        child = self._site.launcher.spawn(name, self._commands[ordinal], log=self._site.log(name), env=env)
        self._running[ordinal] = child
        if self._stopping.is_set():
            child.stop(grace_s=_STOP_S)
        return child

    def _wait(self, ordinal: int, deadline: float) -> None:
        while not self._well(ordinal):
            thread = self._threads[ordinal]
            if time.monotonic() > deadline or not thread.is_alive():
                child = self._running.get(ordinal)
                seen = child.tail() if child else "it was never started"
                why = f"not well after {_READY_S:.0f} s" if thread.is_alive() else "ended while starting"
                raise StackError(f"worker-{ordinal}: {why}; {seen}")
            time.sleep(_LOOK_S)

    def _well(self, ordinal: int) -> bool:
        port = self._port(ordinal)
        return port != 0 and answers(f"http://{HOST}:{port}/health")
