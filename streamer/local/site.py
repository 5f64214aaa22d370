"""What the parts of a stack share: where things lie, how children start, which ports are theirs."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from streamer.local.ports import Ports
from streamer.local.processes import Child, Launcher, StackError
from streamer.settings import Settings

_ATTEMPTS = 3
_PORT_TAKEN = ("address already in use", "address in use", "failed to bind", "bind failed")


@dataclass(frozen=True)
class Site:
    """One stack's place on this machine."""

    root: Path
    launcher: Launcher
    ports: Ports
    settings: Settings

    def directory(self, name: str) -> Path:
        """Return a directory under the root, made if need be."""
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def log(self, name: str) -> Path:
        """Return the log file of that name."""
        return self.directory("logs") / f"{name}.log"


class Part(Protocol):
    """One part of the stack: started and stopped as a whole, perhaps several processes."""

    @property
    def children(self) -> list[Child]:
        """The processes of the part that were started last."""

    def start(self) -> None:
        """Start, and return when it is ready; StackError when it does not get there."""

    def stop(self) -> None:
        """Stop in good order; what does not stop in time is killed."""

    def configure(self, settings: Settings) -> Settings:
        """Return the settings with the addresses of this part."""


class PortTakenError(StackError):
    """Somebody else took a port between its choice and its use."""


@contextlib.contextmanager
def noticing_taken_ports(child: Child) -> Iterator[None]:
    """Tell a failure to start for want of a port from others, by the words in the child's log."""
    try:
        yield
    except StackError as error:
        if any(words in child.tail(40).lower() for words in _PORT_TAKEN):
            raise PortTakenError(str(error)) from error
        raise


def attempts(site: Site, *port_names: str) -> Iterator[contextlib.AbstractContextManager[None]]:
    """Yield attempts at a start: each but the last swallows `PortTakenError` and lets the next have other ports."""
    done = False

    @contextlib.contextmanager
    def attempt(last: bool) -> Iterator[None]:
        nonlocal done
        try:
            yield
            done = True
        except PortTakenError:
            if last:
                raise
            site.ports.forget(*port_names)

    for number in range(1, _ATTEMPTS + 1):
        yield attempt(number == _ATTEMPTS)
        if done:
            return


def cache_directory() -> Path:
    """Return where downloads and templates are kept between stacks: DRIFTLOOP_CACHE, else ~/.cache/driftloop."""
    named = os.environ.get("DRIFTLOOP_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = Path(named) if named else home / "driftloop"
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file lock, so that stacks starting at once fill the cache one after the other."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
