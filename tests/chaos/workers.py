"""Workers under a supervisor that starts whoever ends again, and what may be done to them."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Literal, Self

from streamer.local.web import answers
from streamer.settings import Settings
from tests.integration.running import WorkerProcess

Role = Literal["all", "ingest", "evaluate"]

_LOOK_S = 0.1
_WELL_S = 8.0
_STOP_S = 30.0
# Who ends soon after its start is started again only after a while, twice as long each time, as supervisors do.
_SOON_S, _WAIT_S, _LONGEST_WAIT_S = 8.0, 1.0, 16.0


class Member:
    """One worker of a crew, and when it was started and may be again."""

    def __init__(self, settings: Settings, name: str, role: Role, clock_s: int) -> None:
        skewed = [sys.executable, "-m", "tests.chaos.clock", str(clock_s), "worker", "--role", role]
        self.role = role
        self.worker = WorkerProcess(
            settings,
            replica=name,
            role=role,
            commit_ms=settings.worker.commit_ms,
            command=skewed if clock_s else None,
        )
        self.started_s = time.monotonic()
        self._wait_s = 0.0

    def start(self) -> None:
        """Start it again."""
        now = time.monotonic()
        soon = now < self.started_s + self._wait_s + _SOON_S
        self._wait_s = min(max(2 * self._wait_s, _WAIT_S), _LONGEST_WAIT_S) if soon else 0.0
        self.started_s = now
        self.worker.start()

    @property
    def may_start(self) -> bool:
        """Whether its process is gone, and has been long enough."""
        return self.worker.process.poll() is not None and time.monotonic() >= self.started_s + self._wait_s


class Crew:
    """Some workers, supervised from `start` on.

    Parameters
    ----------
    roles : one a worker.
    clocks_s : by how much the clock of the worker of that number is fast (or slow: negative); right where not given.

    Attributes
    ----------
    ended : how often a worker ended by itself, as one does whose partitions were given to another.
    codes : the exit codes they ended with.
    """

    def __init__(self, settings: Settings, roles: list[Role], clocks_s: dict[int, int] | None = None) -> None:
        self._settings = settings
        self._roles = roles
        self._clocks_s = clocks_s or {}
        self._members: dict[str, Member] = {}
        self._made = 0
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self.ended = 0
        self.codes: set[int] = set()

    def __enter__(self) -> Self:
        for role in self._roles:
            self.add(role)
        self._supervisor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._supervisor.join()
        for member in self._members.values():
            with contextlib.suppress(ProcessLookupError):
                member.worker.process.send_signal(signal.SIGCONT)
            member.worker.kill()

    def names(self, *roles: Role) -> list[str]:
        """Return who is there, of these roles or of all."""
        with self._lock:
            return [name for name, member in self._members.items() if not roles or member.role in roles]

    def add(self, role: Role) -> str:
        """Have one more."""
        with self._lock:
            name = f"{role}-{self._made}"
            self._members[name] = Member(self._settings, name, role, self._clocks_s.get(self._made, 0))
            self._made += 1
            return name

    def remove(self, name: str) -> None:
        """Ask one to end, and do not start it again."""
        with self._lock:
            member = self._members.pop(name)
        _resume(member.worker.process)
        member.worker.process.terminate()
        try:
            member.worker.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            member.worker.kill()

    def kill(self, *names: str) -> None:
        """Kill -9; the supervisor starts them again at once."""
        with self._lock:
            for name in names:
                self._members[name].worker.kill()
            for name in names:
                self._members[name].start()

    def pause(self, name: str, seconds: float) -> None:
        """Stop a worker's process as it stands, and let it go on after a while; returns at once."""
        process = self._members[name].worker.process
        process.send_signal(signal.SIGSTOP)
        timer = threading.Timer(seconds, _resume, [process])
        timer.daemon = True
        timer.start()

    @contextmanager
    def without(self, *roles: Role) -> Iterator[None]:
        """Have nobody of these roles for a while, as somebody who stops them to mend something."""
        with self._lock:
            members = [member for member in self._members.values() if member.role in roles]
            for member in members:
                _resume(member.worker.process)
                member.worker.process.terminate()
            for member in members:
                try:
                    member.worker.process.wait(_STOP_S)
                except subprocess.TimeoutExpired:
                    member.worker.kill()
            yield
            for member in members:
                member.start()

    def await_well(self, name: str) -> None:
        """Wait until a worker says that it is well; not for ever, since it may be paused."""
        with self._lock:
            member = self._members.get(name)
        deadline = time.monotonic() + _WELL_S
        while (
            member is not None
            and not answers(f"http://127.0.0.1:{member.worker.port}/health")
            and time.monotonic() < deadline
        ):
            time.sleep(_LOOK_S)

    def logs(self) -> str:
        """Return the end of every worker's log."""
        return "\n".join(f"{name}:\n{member.worker.text()[-3000:]}" for name, member in self._members.items())

    def texts(self) -> dict[str, str]:
        """Return every present worker's log."""
        return {name: member.worker.text() for name, member in self._members.items()}

    def _supervise(self) -> None:
        while not self._stopping.wait(_LOOK_S):
            with self._lock:
                for member in self._members.values():
                    if member.may_start:
                        self.ended += 1
                        self.codes.add(member.worker.process.returncode)
                        member.start()


def role_of(name: str) -> Role:
    """Return the role that a worker's name begins with."""
    role: Role = name.split("-")[0]  # type: ignore[assignment]
    return role


def _resume(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGCONT)
