"""A bounded queue of events in front of the thread that sends them, so that no caller ever waits for Kafka."""

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

from streamer.client.entry import Entry
from streamer.client.sender import Sender
from streamer.client.spool import Spool, SpoolError
from streamer.client.transport import Transport

log = logging.getLogger(__name__)

# How often the thread looks, while there is anything to look after. A caller wakes it only when there was nothing.
_POLL_S = 0.02
_RETRY_S = 0.5
_AT_EXIT_S = 2.0
# What of the time to close is kept for writing the rest to the spool.
_SPOOLING_SHARE, _SPOOLING_S = 0.2, 1.0


class Stats(NamedTuple):
    """Where the events stand: waiting to be sent, sent and not yet acknowledged, and the counts since the start.

    `queued` and `in_flight` ones are in memory alone; `spooled` ones are in the spool, on their way or not, where a
    crash does not lose them. `failed` events were refused by Kafka. `dropped` ones found the queue full, or were not
    whole in the spool that an earlier process left.
    """

    queued: int
    in_flight: int
    sent: int
    failed: int
    dropped: int
    spooled: int = 0


class CloseReport(NamedTuple):
    """What became of every event: acknowledged, refused, dropped at a full queue, or not sent in time.

    `unsent` events are lost; `spooled` ones are in the file, and the next client with that spool sends them.
    """

    sent: int
    failed: int
    dropped: int
    unsent: int
    spooled: int = 0


class Outbox:
    """Events on their way to Kafka: at most `size` of them in memory, queued or awaiting acknowledgement.

    Parameters
    ----------
    connect : makes the client, in a thread of its own; raises NotReadyError while Kafka is away.
    size : how many events may be in memory; what comes beyond is dropped and counted.
    on_drop : told, from the sending thread, how many events were dropped since it was last told.
    open_spool : opens the file that events go to while Kafka is away; None keeps them in memory alone.

    Raises
    ------
    streamer.client.spool.SpoolError
        When the spool cannot be used.
    """

    _thread: threading.Thread | None
    _sender: Sender
    _taken: int
    _dropped: int
    _resting: bool

    def __init__(
        self,
        connect: Callable[[], Transport],
        *,
        size: int,
        on_drop: Callable[[int], None] | None = None,
        open_spool: Callable[[], Spool] | None = None,
    ) -> None:
        self._connect = connect
        self._size = size
        self._on_drop = on_drop
        self._open_spool = open_spool
        self._inherited: list[Sender] = []
        self._start_over(None if open_spool is None else open_spool())
        _outboxes.add(self)
        if self._sender.counts.spooled:
            with self._putting:
                self._start()

    def put(self, entries: Sequence[Entry]) -> int:
        """Queue what there is room for; return how many entries were taken. Never waits for Kafka, nor for a disk."""
        # Callers take turns with each other alone: the sending thread, which may hold the interpreter for
        # milliseconds, never has this lock.
        with self._putting:
            room = 0 if self._closed else self._size - (self._taken - self._sender.counts.gone)
            taken = 0
            for entry in entries:
                if entry.events > room:
                    break
                room -= entry.events
                self._queue.append(entry)
                self._taken += entry.events
                taken += 1
            if taken < len(entries):
                self._dropped += sum(entry.events for entry in entries[taken:])
            if self._thread is None and not self._closed:
                self._start()
        if self._resting:
            # The first to see it wakes the thread: until it runs, the others need not.
            self._resting = False
            self._wake.set()
        return taken

    def stats(self) -> Stats:
        """Return where the events stand now."""
        counts = self._sender.counts
        queued = self._taken - counts.gone - counts.twice - counts.in_flight
        return Stats(queued, counts.in_flight, counts.sent, counts.failed, self._dropped + counts.torn, counts.spooled)

    def flush(self, timeout_s: float) -> int:
        """Wait until nothing is on its way, or for `timeout_s`; return how many events still are."""
        deadline = time.monotonic() + timeout_s
        while (left := self._left()) and time.monotonic() < deadline and not self._ended.is_set():
            self._ended.wait(min(_POLL_S / 2, max(0.0, deadline - time.monotonic())))
        return left

    def close(self, timeout_s: float) -> CloseReport:
        """Take no more events, send what is queued within `timeout_s`, and say what became of all; safe to repeat."""
        deadline = time.monotonic() + timeout_s
        with self._putting:
            self._closed = True
            # Never used: there is only the spool to let go of.
            if self._thread is None and not self._ended.is_set():
                self._sender.finish()
                self._ended.set()
        if self._ended.is_set():
            return self._report()
        spooling_s = 0.0 if self._open_spool is None else min(_SPOOLING_S, timeout_s * _SPOOLING_SHARE)
        self.flush(timeout_s - spooling_s)
        self._stopped.set()
        self._wake.set()
        # The thread may be in a call of the client's that has its own time-out; it ends by itself afterwards.
        self._ended.wait(max(_POLL_S * 5, deadline - time.monotonic()))
        report = self._report()
        if report.unsent or report.failed or report.dropped:
            log.warning("driftloop: closed with events lost: %s", report)
        elif report.spooled:
            log.warning("driftloop: closed with events in the spool, which the next client sends: %s", report)
        return report

    def _lost(self) -> int:
        return self._dropped + self._sender.counts.torn

    def _left(self) -> int:
        counts = self._sender.counts
        return self._taken - counts.gone - counts.twice + counts.spooled

    def _report(self) -> CloseReport:
        stats = self.stats()
        return CloseReport(stats.sent, stats.failed, stats.dropped, stats.queued + stats.in_flight, stats.spooled)

    def _start_over(self, spool: Spool | None) -> None:
        """Begin with an empty queue."""
        self._putting = threading.Lock()
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._ended = threading.Event()
        self._thread = None
        self._queue: deque[Entry] = deque()
        self._taken = self._dropped = self._told = 0
        self._closed = self._resting = False
        self._spool_missing = self._open_spool is not None and spool is None
        self._sender = Sender(
            self._connect,
            self._queue,
            size=self._size,
            taken=lambda: self._taken,
            spool=spool,
            connected=_close_outboxes_first_at_exit,
        )

    def _start_over_in_child(self) -> None:
        """Begin empty: a forked child has neither its parent's thread nor its events, which the parent sends."""
        # Kept, never used: collecting its client would try to flush it over the parent's connections.
        self._inherited.append(self._sender)
        self._sender.abandon()
        self._start_over(None)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="driftloop-send", daemon=True)
        self._thread.start()
        _close_outboxes_first_at_exit()

    def _run(self) -> None:
        if self._spool_missing and self._open_spool is not None:
            try:
                self._sender.adopt(self._open_spool())
            except SpoolError as error:
                log.error("driftloop: this forked process has no spool: %s (make the client after the fork)", error)
        while not self._stopped.is_set():
            try:
                if not self._sender.turn():
                    self._rest()
                self._tell()
            except Exception:  # whatever it was, it must not end the sending for good
                log.exception("driftloop: sending was disturbed")
                self._stopped.wait(_RETRY_S)
        try:
            self._sender.finish()
        finally:
            self._ended.set()

    def _rest(self) -> None:
        """Wait a little; with nothing on its way, until there is."""
        if not self._sender.idle or self._lost() > self._told:
            self._wake.wait(_POLL_S)
        else:
            self._resting = True
            # What was queued before callers could see that the thread rests would not wake it.
            if not self._queue:
                self._wake.wait()
            self._resting = False
        self._wake.clear()

    def _tell(self) -> None:
        dropped = self._lost() - self._told
        if dropped:
            self._told += dropped
            self._sender.warn("%s events were dropped so far: more than %s waited", self._told, self._size)
            if self._on_drop is not None:
                self._on_drop(dropped)


_outboxes: weakref.WeakSet[Outbox] = weakref.WeakSet()


def _close_outboxes_first_at_exit() -> None:
    """See that the outboxes are closed at exit before a client that registered itself: it is what sends the rest."""
    atexit.unregister(_close_at_exit)
    atexit.register(_close_at_exit)


def _close_at_exit() -> None:
    deadline = time.monotonic() + _AT_EXIT_S
    for outbox in list(_outboxes):
        outbox.close(max(0.0, deadline - time.monotonic()))


def _after_fork() -> None:
    for outbox in list(_outboxes):
        outbox._start_over_in_child()


os.register_at_fork(after_in_child=_after_fork)
