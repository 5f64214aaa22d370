"""A bounded queue of events and the thread that sends them, so that no caller ever waits for Kafka."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from streamer.events import SCHEMA_HEADER, SCHEMA_VERSION
from streamer.transport import Headers, NotReadyError, Transport

log = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode
_HEADERS: Headers = [(SCHEMA_HEADER, SCHEMA_VERSION)]
_TURN = 1_000
_POLL_S = 0.02
_RETRY_S = 0.5
_WARN_EVERY_S = 10.0
_AT_EXIT_S = 2.0


class Entry(NamedTuple):
    """An event on its way: where to, by which key, and what."""

    topic: str
    key: str | None
    event: msgspec.Struct


class Stats(NamedTuple):
    """Where the events stand: waiting to be sent, sent and not yet acknowledged, and the counts since the start.

    `failed` events were given up by Kafka or by the client, `dropped` ones found the queue full.
    """

    queued: int
    in_flight: int
    sent: int
    failed: int
    dropped: int


class CloseReport(NamedTuple):
    """What became of every event: acknowledged, given up, dropped at a full queue, or not sent in time."""

    sent: int
    failed: int
    dropped: int
    unsent: int


class Outbox:
    """Events on their way to Kafka: at most `size` of them, queued or awaiting acknowledgement.

    Parameters
    ----------
    connect : makes the client, in the sending thread; raises NotReadyError while Kafka is away.
    size : how many events may be on their way; what comes beyond is dropped and counted.
    on_drop : told, from the sending thread, how many events were dropped since it was last told.
    """

    _thread: threading.Thread | None
    _queued: int
    _in_flight: int
    _sent: int
    _failed: int
    _dropped: int

    def __init__(
        self, connect: Callable[[], Transport], *, size: int, on_drop: Callable[[int], None] | None = None
    ) -> None:
        self._connect = connect
        self._size = size
        self._on_drop = on_drop
        self._inherited: list[Transport] = []
        self._transport: Transport | None = None
        self._start_over()
        _outboxes.add(self)

    def put(self, entries: Sequence[Entry]) -> int:
        """Queue what there is room for; return how many events were taken. Never waits for Kafka."""
        with self._changed:
            room = 0 if self._closed else self._size - self._queued - self._in_flight
            taken = min(len(entries), room)
            self._queue.extend(entries[:taken])
            self._queued += taken
            self._dropped += len(entries) - taken
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="driftloop-send", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return taken

    def stats(self) -> Stats:
        """Return where the events stand now."""
        with self._changed:
            return Stats(self._queued, self._in_flight, self._sent, self._failed, self._dropped)

    def flush(self, timeout_s: float) -> int:
        """Wait until nothing is on its way, or for `timeout_s`; return how many events still are."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while (left := self._queued + self._in_flight) and (wait_s := deadline - time.monotonic()) > 0:
                self._changed.wait(wait_s)
        return left

    def close(self, timeout_s: float) -> CloseReport:
        """Take no more events, send what is queued within `timeout_s`, and say what became of all; safe to repeat."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._closed = True
        if self._stopped.is_set():
            return self._report()
        self.flush(timeout_s)
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread is not None:
            # The thread may be in a call of the client's that has its own time-out; it ends by itself afterwards.
            self._thread.join(max(_POLL_S * 5, deadline - time.monotonic()))
        report = self._report()
        if report.unsent or report.failed or report.dropped:
            log.warning("driftloop: closed with events lost: %s", report)
        return report

    def _report(self) -> CloseReport:
        with self._changed:
            return CloseReport(self._sent, self._failed, self._dropped, self._queued + self._in_flight)

    def _start_over(self) -> None:
        """Begin empty: a forked child has neither its parent's thread nor its events, which the parent sends."""
        if self._transport is not None:
            # Kept, never used: collecting it would try to flush it over the parent's connections.
            self._inherited.append(self._transport)
        self._transport = None
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._thread = None
        self._queue: deque[Entry] = deque()
        self._queued = self._in_flight = self._sent = self._failed = self._dropped = self._told = 0
        self._closed = False
        self._warned_at = float("-inf")

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._turn()
            except Exception:  # whatever it was, it must not end the sending for good
                log.exception("driftloop: sending was disturbed")
                self._stopped.wait(_RETRY_S)
        if self._transport is not None:
            self._transport.close()

    def _turn(self) -> None:
        """Wait for something to do, send what is queued, count what was acknowledged."""
        with self._changed:
            if not self._queue and not self._stopped.is_set():
                self._changed.wait(_POLL_S if self._in_flight or self._dropped > self._told else None)
            waiting = bool(self._queue)
        if waiting:
            transport = self._connected()
            if transport is None:
                self._stopped.wait(_RETRY_S)
            else:
                self._hand_over(transport)
        self._reap()
        self._tell()

    def _connected(self) -> Transport | None:
        if self._transport is None:
            try:
                self._transport = self._connect()
            except NotReadyError as error:
                self._warn("Kafka cannot be reached, events wait: %s", error)
                return None
            # After the client's own, so run before it: the queue goes out while the client is still open.
            atexit.register(_close_at_exit, weakref.ref(self))
        return self._transport

    def _hand_over(self, transport: Transport) -> None:
        """Give the oldest events to the client; those it cannot take yet go back to the front of the queue."""
        with self._changed:
            entries = iter([self._queue.popleft() for _ in range(min(_TURN, len(self._queue)))])
        handed = failed = 0
        left: list[Entry] = []
        for entry in entries:
            try:
                key = None if entry.key is None else entry.key.encode()
                transport.send(entry.topic, key, _encode(entry.event), _HEADERS)
                handed += 1
            except NotReadyError as error:
                self._warn("Kafka does not take events, they wait: %s", error)
                left = [entry, *entries]
            except Exception as error:  # noqa: BLE001 - whatever it is, it costs this event alone, counted
                self._warn("an event was given up: %s", error)
                failed += 1
        with self._changed:
            self._queue.extendleft(reversed(left))
            self._queued -= handed + failed
            self._in_flight += handed
            self._failed += failed
            self._changed.notify_all()
        if left:
            self._stopped.wait(_RETRY_S)

    def _reap(self) -> None:
        if self._transport is None:
            return
        sent, failed, fault = self._transport.reap()
        if fault is not None:
            self._warn("an event was given up: %s", fault)
        if sent or failed:
            with self._changed:
                self._sent += sent
                self._failed += failed
                self._in_flight -= sent + failed
                self._changed.notify_all()

    def _tell(self) -> None:
        dropped = self._dropped - self._told
        if dropped:
            self._told += dropped
            self._warn("events were dropped, %s so far: more than %s were on their way", self._told, self._size)
            if self._on_drop is not None:
                self._on_drop(dropped)

    def _warn(self, message: str, *values: object) -> None:
        """Log at most one warning in ten seconds: a broker that is away must not fill the disk."""
        now = time.monotonic()
        if now - self._warned_at >= _WARN_EVERY_S:
            self._warned_at = now
            log.warning("driftloop: " + message, *values)


_outboxes: weakref.WeakSet[Outbox] = weakref.WeakSet()


def _close_at_exit(reference: weakref.ref[Outbox]) -> None:
    outbox = reference()
    if outbox is not None:
        outbox.close(_AT_EXIT_S)


def _after_fork() -> None:
    for outbox in list(_outboxes):
        outbox._start_over()


os.register_at_fork(after_in_child=_after_fork)
