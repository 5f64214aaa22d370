"""What may happen to the broker and to Valkey: killed, paused, emptied, and what a crash takes with it."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self

import redis

from streamer.local.processes import Child
from streamer.local.stack import Stack
from streamer.settings import Settings
from tests.chaos.server_clocks import set_ahead

_FREEZES = 25
# A crash with less than this at stake is put off a little.
_AT_STAKE_BYTES = 2_000
# For answers that were already on their way when the server was stopped, however busy the machine: one that the probe
# has not read by then would count as not given, and what a worker was told is on disk would be cut off.
_ON_THEIR_WAY_S = 0.5
_KEY = "chaos:probe"
# How far a clock is set at once. The broker's is set twice: were it ahead by the ten minutes after which the state
# topic rolls a segment, that would be compacted, and the commits gone by which the verdict runs evaluate again.
_SET_MS = (5_000, 90_000)


class Probe:
    """Asks Valkey without end to write a number and to say when it is on disk: nobody can have been told more.

    The server tells all who wait for the disk in one go. So while the newest number that it has taken is
    not answered, nothing that was written after it has been confirmed to anyone, and a crash of the machine
    may lose it; everything before it may have been confirmed.
    """

    def __init__(self, settings: Settings) -> None:
        self._url = settings.redis.url
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)
        self.asked = b""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()

    def _run(self) -> None:
        client: Any = redis.Redis.from_url(self._url, socket_connect_timeout=2, socket_timeout=15, retry=None)
        while not self._stopping.is_set():
            self.asked = uuid.uuid4().hex.encode()
            try:
                pipeline = client.pipeline(transaction=False)
                pipeline.set(_KEY, self.asked)
                pipeline.waitaof(1, 0, 10_000)
                pipeline.execute()
            except redis.RedisError:
                time.sleep(0.05)
        client.close()


class Servers:
    """The broker and Valkey of a stack, and the faults they can have."""

    def __init__(self, stack: Stack, settings: Settings, probe: Probe, random: Random) -> None:
        self._stack = stack
        self._settings = settings
        self._probe = probe
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
        process.send_signal(signal.SIGSTOP)
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
        """Stop Valkey while the probe waits for the disk; give how many bytes of the file may have been confirmed."""
        process = self._child("valkey").process
        at = -1
        for attempt in range(_FREEZES):
            process.send_signal(signal.SIGSTOP)
            time.sleep(_ON_THEIR_WAY_S)
            written = self._append_only_file().read_bytes()
            at = written.rfind(self._probe.asked)
            if (at >= 0 and len(written) - at >= _AT_STAKE_BYTES) or attempt == _FREEZES - 1:
                break
            process.send_signal(signal.SIGCONT)
            time.sleep(self._random.uniform(0.05, 0.3))
        yield at if at >= 0 else None

    def _append_only_file(self) -> Path:
        """Return the part of the append-only file that is written to."""
        return max(
            (self._stack.root / "valkey" / "appendonlydir").glob("*.incr.aof"),
            key=lambda path: int(path.name.split(".")[-3]),
        )


def resume_all(stack: Stack) -> None:
    """Let both go on, whatever happened to whoever stopped them."""
    for part in ("kafka", "valkey"):
        for child in stack.part(part).children:
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(signal.SIGCONT)
