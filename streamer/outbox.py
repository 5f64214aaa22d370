"""A bounded queue of events and the thread that sends them through kafka-python, so that no caller ever waits."""

from __future__ import annotations

import atexit
import logging
import os
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError
from kafka.future import Future
from kafka.partitioner import Partitioner

from streamer.events import SCHEMA_HEADER, SCHEMA_VERSION
from streamer.partitioning import murmur2

log = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode
_HEADERS = [(SCHEMA_HEADER, SCHEMA_VERSION)]
_TURN = 1_000
_POLL_S = 0.02
_RETRY_S = 0.5
_WARN_EVERY_S = 10.0
_AT_EXIT_S = 2.0


class Entry(NamedTuple):
    """What is sent as one message: an event to encode, or bytes that hold `events` of them."""

    topic: str
    key: str | None
    body: msgspec.Struct | bytes
    events: int = 1
    headers: list[tuple[str, bytes]] = _HEADERS


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


class JavaPartitioner(Partitioner):  # type: ignore[misc]
    """Puts a key where Kafka's Java clients put it, with less work than kafka-python's own."""

    def partition(
        self,
        topic: str,
        key: object,
        serialized_key: bytes | None,
        value: object,
        serialized_value: object,
        cluster: Any,
    ) -> int:
        """Return the partition of a key; without a key, any."""
        count = len(cluster.partitions_for_topic(topic))
        if serialized_key is None:
            return random.randrange(count)
        return (murmur2(serialized_key) & 0x7FFFFFFF) % count


class _Producer(KafkaProducer):  # type: ignore[misc]
    """A producer whose `close` always ends its thread: the original stops at a flush that times out."""

    def flush(self, timeout: float | None = None) -> None:
        try:
            super().flush(timeout)
        except KafkaTimeoutError as error:
            log.debug("driftloop: %s", error)


class Outbox:
    """Events on their way to Kafka: at most `size` of them, queued or awaiting acknowledgement.

    Parameters
    ----------
    options : kafka-python's keyword arguments for its producer.
    size : how many events may be on their way; what comes beyond is dropped and counted.
    on_drop : told, from the sending thread, how many events were dropped since it was last told.
    """

    _thread: threading.Thread | None
    _queued: int
    _in_flight: int
    _sent: int
    _failed: int
    _dropped: int

    def __init__(self, options: Mapping[str, Any], *, size: int, on_drop: Callable[[int], None] | None) -> None:
        self._options = dict(options)
        self._size = size
        self._on_drop = on_drop
        self._inherited: list[KafkaProducer] = []
        self._producer: KafkaProducer | None = None
        self._start_over()
        _outboxes.add(self)

    def put(self, entries: Sequence[Entry]) -> int:
        """Queue what there is room for; return how many events were taken. Never waits for Kafka."""
        taken = 0
        with self._changed:
            room = 0 if self._closed else self._size - self._queued - self._in_flight
            for entry in entries:
                if entry.events > room:
                    self._dropped += entry.events
                    continue
                self._queue.append(entry)
                room -= entry.events
                taken += entry.events
            self._queued += taken
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
            # The thread may be in a call of kafka-python's that has its own time-out; it ends by itself afterwards.
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
        if self._producer is not None:
            # Kept, never used: collecting it would try to flush it.
            self._inherited.append(self._producer)
        self._producer = None
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._thread = None
        self._queue: deque[Entry] = deque()
        self._awaited: deque[tuple[Future, int]] = deque()
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
        if self._producer is not None:
            self._producer.close(timeout=0)

    def _turn(self) -> None:
        """Wait for something to do, send what is queued, count what was acknowledged."""
        with self._changed:
            if not self._queue and not self._stopped.is_set():
                self._changed.wait(_POLL_S if self._awaited or self._dropped > self._told else None)
            entries = [self._queue.popleft() for _ in range(min(_TURN, len(self._queue)))]
        producer = self._connected() if entries else self._producer
        for number, entry in enumerate(entries):
            if producer is None or self._stopped.is_set() or not self._send(producer, entry):
                with self._changed:
                    self._queue.extendleft(reversed(entries[number:]))
                self._stopped.wait(_RETRY_S)
                break
        self._reap()
        self._tell()

    def _connected(self) -> KafkaProducer | None:
        if self._producer is None:
            try:
                self._producer = _Producer(**self._options)
            except (KafkaError, OSError, ValueError, RuntimeError) as error:
                self._warn("Kafka cannot be reached, events wait: %s", error)
                return None
            # Registered after kafka-python's own, so run before it: the queue goes out while Kafka is still open.
            atexit.register(_close_at_exit, weakref.ref(self))
        return self._producer

    def _send(self, producer: KafkaProducer, entry: Entry) -> bool:
        """Hand one message to kafka-python; False when it has to be tried again."""
        try:
            body = entry.body if isinstance(entry.body, bytes) else _encode(entry.body)
            key = None if entry.key is None else entry.key.encode()
            future = producer.send(entry.topic, body, key=key, headers=entry.headers)
        except KafkaTimeoutError as error:
            self._warn("Kafka does not say where %s is, events wait: %s", entry.topic, error)
            return False
        except Exception as error:  # noqa: BLE001 - whatever it is, it costs this message alone, counted
            self._settle(entry.events, error)
            return True
        self._awaited.append((future, entry.events))
        with self._changed:
            self._queued -= entry.events
            self._in_flight += entry.events
        return True

    def _settle(self, events: int, error: Exception) -> None:
        """Count events that were never handed over."""
        self._warn("an event was given up: %s", error)
        with self._changed:
            self._queued -= events
            self._failed += events
            self._changed.notify_all()

    def _reap(self) -> None:
        """Count what was acknowledged or given up, oldest first."""
        sent = failed = 0
        while self._awaited and self._awaited[0][0].is_done:
            future, events = self._awaited.popleft()
            if future.failed():
                failed += events
                self._warn("an event was given up: %s", future.exception)
            else:
                sent += events
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
