"""Child processes that end with their parent: each leads a session of its own, and a guardian knows them all."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

# Every child's environment carries the stack it belongs to, so that what it starts can be found too.
MARKER = "DRIFTLOOP_STACK"
# psutil derives the start of a process from the boot time, which a clock adjustment may move a little.
_CLOCK_SLACK_S = 2.0
_POLL_S = 0.05
# A child becomes its command only once the guardian knows it: were the owner to die in between, `read` would fail.
_START_WHEN_TOLD = 'read -r told && exec "$@" </dev/null'


class StackError(Exception):
    """A part of the local stack did not start or stop; the message names it and shows the end of its log."""


@dataclass(frozen=True)
class Identity:
    """A process that cannot be mistaken for a later one with the same pid.

    Attributes
    ----------
    name : what the process is, for messages.
    pid : its id, and the id of the process group it leads.
    created : when it started, seconds since 1970.
    signal : what asks it to end.
    """

    name: str
    pid: int
    created: float
    signal: int = signal.SIGTERM

    def alive(self) -> bool:
        """Whether this very process still runs (one that has ended but was not waited for does not)."""
        process = self._process()
        return process is not None and process.status() != psutil.STATUS_ZOMBIE

    def _process(self) -> psutil.Process | None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.created) < _CLOCK_SLACK_S:
                return process
        return None

    def family(self) -> list[psutil.Process]:
        """Return the process and all that descend from it; empty when it is gone."""
        process = self._process()
        if process is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            return [process, *process.children(recursive=True)]
        return []


def identify(name: str, pid: int, stop_signal: int = signal.SIGTERM) -> Identity:
    """Return the identity of a process that runs now."""
    try:
        created = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        created = 0.0
    return Identity(name, pid, created, stop_signal)


def end(identities: Iterable[Identity], marker: str, *, grace_s: float) -> None:
    """Ask processes to end, then make them, their descendants, and whatever carries the marker.

    Parameters
    ----------
    identities : leaders of process groups.
    marker : the value of the environment variable `MARKER` in the processes to end.
    grace_s : seconds between asking and making.
    """
    known = list(identities)
    victims = {process for identity in known for process in identity.family()} | marked(marker)
    for identity in known:
        if identity.alive():
            _signal_group(identity.pid, identity.signal)
    deadline = time.monotonic() + grace_s
    while any(_running(process) for process in victims) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    for identity in known:
        if identity.alive():
            _signal_group(identity.pid, signal.SIGKILL)
    # A process that started another one while being asked is found on the second look.
    for _ in range(2):
        for process in victims | marked(marker):
            with contextlib.suppress(psutil.NoSuchProcess):
                if _running(process):
                    process.kill()
        time.sleep(_POLL_S)


def marked(marker: str) -> set[psutil.Process]:
    """Return every process whose environment carries the marker; those of other users cannot be read."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARKER) == marker and process.pid != os.getpid():
                found.add(process)
    return found


def _running(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


class Child:
    """A process this one started, its log file, and how to end it."""

    def __init__(self, process: subprocess.Popen[bytes], identity: Identity, log: Path) -> None:
        self.process = process
        self.identity = identity
        self.log = log

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def tail(self, lines: int = 15) -> str:
        """Return the end of the log, for messages."""
        if not self.log.is_file():
            return f"({self.log} does not exist)"
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 16_384))
            text = file.read().decode(errors="replace")
        kept = "\n".join(text.splitlines()[-lines:])
        return f"the end of {self.log}:\n{kept}" if kept.strip() else f"{self.log} is empty"

    def wait_until(self, ready: Callable[[], bool], *, within_s: float) -> None:
        """Wait until the process is ready.

        Raises
        ------
        StackError
            When it ends first, or takes longer than `within_s` seconds.
        """
        deadline = time.monotonic() + within_s
        while not ready():
            if not self.running:
                code = self.process.returncode
                raise StackError(f"{self.identity.name}: ended with code {code} while starting; {self.tail()}")
            if time.monotonic() > deadline:
                raise StackError(f"{self.identity.name}: not ready after {within_s:.0f} s; {self.tail()}")
            time.sleep(_POLL_S)

    def stop(self, *, grace_s: float) -> None:
        """Ask the leader to end; when it has not after `grace_s` seconds, kill it; what is left of its group too."""
        self._end(self.identity.signal, grace_s)

    def kill(self) -> None:
        """End the process, its group and its descendants at once, as a crash would."""
        self._end(signal.SIGKILL, 0.0)

    def _end(self, number: int, grace_s: float) -> None:
        if not self.running:
            # Its pid may by now be another's.
            return
        family = self.identity.family()
        self.process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(grace_s)
        _signal_group(self.identity.pid, signal.SIGKILL)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


class Launcher:
    """Starts children, each in its own session, and tells the guardian of each."""

    def __init__(self, marker: str, guardian_log: Path) -> None:
        self.marker = marker
        self._guardian_log = guardian_log
        self._guardian: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._known: dict[int, Child] = {}
        self._aborted = False
        self.on_change: Callable[[], None] = lambda: None

    def open(self) -> None:
        """Start the guardian: when this process is gone, however it went, it ends every child within 10 s."""
        self._aborted = False
        with self._guardian_log.open("ab") as log:
            self._guardian = subprocess.Popen(
                [sys.executable, "-m", "streamer.local.guardian", str(os.getpid()), self.marker],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def abort(self) -> None:
        """Start nothing more, and end at once what runs."""
        with self._lock:
            self._aborted = True
            children = list(self._known.values())
        for child in children:
            child.kill()

    def close(self) -> None:
        """Let the guardian end what is left, and go."""
        guardian, self._guardian = self._guardian, None
        if guardian is None or guardian.stdin is None:
            return
        guardian.stdin.close()
        guardian.wait()

    def spawn(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str | None] | None = None,
        stop_signal: int = signal.SIGTERM,
        user: str | None = None,
    ) -> Child:
        """Start a child that writes to a log file.

        Parameters
        ----------
        name : what it is, for messages.
        argv : the command.
        log : appended to, standard error included.
        env : what its environment has beyond this process's own; None takes a variable away.
        stop_signal : what asks it to end.
        user : run as this user (only root can).

        Raises
        ------
        StackError
            When the guardian is gone or the stack is being stopped.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        merged = {**os.environ, **(env or {}), MARKER: self.marker}
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["/bin/sh", "-c", _START_WHEN_TOLD, name, *argv],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={variable: value for variable, value in merged.items() if value is not None},
                user=user,
                start_new_session=True,
            )
        child = Child(process, identify(name, process.pid, stop_signal), log)
        self._report(child)
        _tell(process, b"start\n")
        self.on_change()
        return child

    def run(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        within_s: float,
        env: Mapping[str, str | None] | None = None,
    ) -> None:
        """Run a child to its end.

        Raises
        ------
        StackError
            When it fails, or takes longer than `within_s` seconds.
        """
        child = self.spawn(name, argv, log=log, env=env)
        try:
            code = child.process.wait(within_s)
        except subprocess.TimeoutExpired as error:
            child.kill()
            raise StackError(f"{name}: not done after {within_s:.0f} s; {child.tail()}") from error
        if code != 0:
            raise StackError(f"{name}: failed with code {code}; {child.tail()}")

    def identities(self) -> list[Identity]:
        """Return the guardian and the children that run now."""
        with self._lock:
            children = [child.identity for child in self._known.values() if child.running]
        guardian = [] if self._guardian is None else [identify("guardian", self._guardian.pid)]
        return guardian + children

    def _report(self, child: Child) -> None:
        """Tell the guardian of a child before it may start."""
        with self._lock:
            self._known = {pid: other for pid, other in self._known.items() if other.running}
            self._known[child.identity.pid] = child
            if self._aborted or self._guardian is None:
                reason = "the stack is being stopped" if self._aborted else "the stack was not started"
            elif _tell(self._guardian, json.dumps(asdict(child.identity)).encode() + b"\n", more=True):
                return
            else:
                reason = f"the guardian process is gone, see {self._guardian_log}; start the stack again"
        child.kill()
        raise StackError(f"{child.identity.name}: not started: {reason}")


def _tell(process: subprocess.Popen[bytes], message: bytes, *, more: bool = False) -> bool:
    """Write to a process; close its input unless there is more to come; return whether it was there to read."""
    if process.stdin is None:
        return False
    try:
        process.stdin.write(message)
        process.stdin.flush()
        if not more:
            process.stdin.close()
    except OSError:
        return False
    return True
