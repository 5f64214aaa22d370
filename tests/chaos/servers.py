"""What may happen to the broker and to Valkey: killed, paused, emptied, and what a crash takes with it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import psutil
import redis

from streamer.local.processes import Child
from streamer.local.stack import Stack
from streamer.settings import Settings
from tests.chaos.probe import Probe
from tests.chaos.server_clocks import set_ahead

# A crash waits so long for so much to be at stake, drawn anew each time.
_AT_STAKE_BYTES = (2_000, 30_000)
_PATIENCE_S = 8.0
_TURN_S = 0.005
_LOOK_S = 0.001
# How far a clock is set at once. The broker's is set twice: were it ahead by the ten minutes after which the state
# topic rolls a segment, that would be compacted, and the commits gone by which the verdict runs evaluate again.
_SET_MS = (5_000, 90_000)


class Servers:
    """The broker and Valkey of a stack, and the faults they can have."""

    def __init__(self, stack: Stack, settings: Settings, random: Random) -> None:
        self._stack = stack
        self._settings = settings
        self._random = random
        self._broker_ahead_ms = self._valkey_ahead_ms = 0

    def kill_broker(self, away_s: float = 0.0, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Kill -9, and start it again on its data after so long; what it had not flushed is in the page cache."""
        self._stack.kill("kafka")
        back_s = time.monotonic() + away_s
        meanwhile()
        time.sleep(max(0.0, back_s - time.monotonic()))
        self._stack.restart("kafka")

    def kill_valkey(self) -> int:
        """Crash Valkey and lose what no client can have been told is on disk; return how many bytes that were.

        A process that is killed loses nothing that it has written. What a crash of the machine can lose is
        the end of the append-only file, from anywhere after the last confirmed fsync: that is cut off.
        """
        with self._frozen() as written:
            self._child("valkey").kill()
        path = self._append_only_file()
        size = path.stat().st_size
        if written is None:
            written = size
        end = self._random.randint(written, size)
        with path.open("r+b") as file:
            file.truncate(end)
        self._stack.restart("valkey")
        return size - end

    def pause(self, part: str, seconds: float) -> None:
        """Stop the process as it stands, and let it go on."""
        process = self._child(part).process
        _stop(process)
        time.sleep(seconds)
        process.send_signal(signal.SIGCONT)

    def set_broker_ahead(self) -> float:
        """Set the broker's clock ahead, by more each time; return by how many seconds it now is.

        Not back: a log whose time runs back has its horizons in another order than it was sent in.
        """
        self._broker_ahead_ms += self._random.randrange(*_SET_MS)
        set_ahead(self._stack.root, "kafka", self._broker_ahead_ms)
        return self._broker_ahead_ms / 1000

    def set_valkey_wrong(self) -> float:
        """Set Valkey's clock ahead or back by minutes; return by how many seconds it is now ahead of the right time."""
        self._valkey_ahead_ms += self._random.choice([-1, 1]) * self._random.randrange(*_SET_MS)
        set_ahead(self._stack.root, "valkey", self._valkey_ahead_ms)
        return self._valkey_ahead_ms / 1000

    def flush_view(self) -> None:
        """Empty the live view."""
        redis.Redis.from_url(self._settings.redis.url).flushdb()

    def flush_join(self) -> None:
        """Empty the label-join store."""
        redis.Redis.from_url(self._settings.redis.join_url or self._settings.redis.url).flushdb()

    def _child(self, part: str) -> Child:
        return self._stack.part(part).children[0]

    @contextmanager
    def _frozen(self) -> Iterator[int | None]:
        """Stop Valkey while a probe waits for the disk; give how many bytes of the file may have been confirmed.

        None where all of it may, because the probe's number is answered or is not in the file yet.
        """
        process = self._child("valkey").process
        path, enough = self._append_only_file(), self._random.randint(*_AT_STAKE_BYTES)
        deadline = time.monotonic() + _PATIENCE_S
        with Probe(self._settings) as probe:
            while True:
                if probe.unanswered() is None:
                    size = path.stat().st_size
                    probe.ask()
                time.sleep(_TURN_S)
                late = time.monotonic() > deadline
                if path.stat().st_size - size < enough and not late:
                    continue
                _stop(process)
                asked, written = probe.unanswered(), path.read_bytes()
                at = -1 if asked is None else written.rfind(asked)
                if (at >= 0 and len(written) - at >= enough) or late:
                    break
                process.send_signal(signal.SIGCONT)
        yield at if at >= 0 else None

    def _append_only_file(self) -> Path:
        """Return the part of the append-only file that is written to."""
        return max(
            (self._stack.root / "valkey" / "appendonlydir").glob("*.incr.aof"),
            key=lambda path: int(path.name.split(".")[-3]),
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process as it stands; return once it does, so that it sends and writes nothing more."""
    process.send_signal(signal.SIGSTOP)
    while process.poll() is None and psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(_LOOK_S)


def resume_all(stack: Stack) -> None:
    """Let both go on, whatever happened to whoever stopped them."""
    for part in ("kafka", "valkey"):
        for child in stack.part(part).children:
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(signal.SIGCONT)
