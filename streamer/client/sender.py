"""What the sending thread does: events from the queue, or from the spool, to Kafka, and what to do while it is away."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import msgspec

from streamer.client.entry import Entry
from streamer.client.spool import Frame, Spool, SpoolFullError
from streamer.client.transport import Connection, NotReadyError, Transport

log = logging.getLogger(__name__)

# How many entries are handed over, or written to the spool, before acknowledgements are looked at again.
_TURN = 500
_FRAME_BYTES = 1_000_000
# How many events the client may hold. Beyond some ten thousand it gets no faster, and what waits here can be spooled.
_WINDOW = 50_000
# Kafka is away when it acknowledged nothing for so long while something waits for it.
_AWAY_S = 1.0
_RETRY_S = 0.5
_WARN_EVERY_S = 10.0

_T = TypeVar("_T")


class Counts(NamedTuple):
    """Where the events stand that the thread took over; replaced as a whole, so that any thread may read it.

    `gone` have left the memory, for Kafka or for the spool, less those that came back from the spool. `twice` are in
    memory and in the spool; `spooled` has them, `in_flight` has not.
    """

    gone: int = 0
    twice: int = 0
    in_flight: int = 0
    spooled: int = 0
    sent: int = 0
    failed: int = 0
    torn: int = 0


class _Held(msgspec.Struct, gc=False):
    """An entry in memory, and the frame of the spool that holds it too."""

    entry: Entry
    frame: Frame | None = None


class Sender:
    """Sends what is in a queue. All of it is the sending thread's but `counts`, which anybody may read.

    The order is that of the queue: first what is in memory, then what is in the spool, then the queue. With Kafka
    away, or half of `size` in memory, the queue goes to the spool; what Kafka's client holds goes there too, since a
    crash would lose it, and stays with the client. A client that gives messages up is replaced, and all that was
    not acknowledged is sent again in its order.

    Parameters
    ----------
    connect : makes the client; raises NotReadyError while Kafka is away.
    queue : callers append at its end.
    size : how many events may be in memory.
    taken : returns how many events were put into the queue so far.
    spool : None where there is none.
    connected : called once a client has been made.
    """

    def __init__(
        self,
        connect: Callable[[], Transport],
        queue: deque[Entry],
        *,
        size: int,
        taken: Callable[[], int],
        spool: Spool | None,
        connected: Callable[[], None],
    ) -> None:
        self.counts = Counts() if spool is None else Counts(spooled=spool.left, torn=spool.torn)
        self._connect = connect
        self._connected = connected
        self._queue = queue
        self._taken = taken
        self._spool = spool
        self._half = size // 2
        # A spool is of no use to events that are all with the client. An entry may be a quarter of the queue, and the
        # last one handed over goes beyond the window: together they stay below the half that sends the queue there.
        self._quarter = max(1, size // 4)
        self._window = min(_WINDOW, size if spool is None else self._quarter)
        self._ready: deque[_Held] = deque()
        self._awaited: dict[int, _Held] = {}
        self._number = 0
        self._gone = self._twice = self._sent = self._failed = 0
        self._in_flight = self._in_flight_alone = 0
        self._connection: Connection | None = None
        self._transport: Transport | None = None
        self._now = self._progress_at = time.monotonic()
        self._connect_at = self._spool_at = float("-inf")
        self._rested = True
        self._warned_at: dict[str, float] = {}

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do until something is put into the queue."""
        return not (self._queue or self._ready or self._awaited or self.counts.spooled)

    def turn(self) -> bool:
        """Do what can be done now; return whether something was handed over, so that more may follow at once."""
        self._now = time.monotonic()
        if self._rested:
            self._progress_at = self._now
        self._reap()
        transport = self._client()
        handed = transport is not None and self._hand_over(transport)
        silent_s = self._now - self._progress_at
        self._to_spool(away=silent_s > _AWAY_S)
        if silent_s > _WARN_EVERY_S:
            self.warn("Kafka has acknowledged nothing for %.0f s, events wait", silent_s)
        self._publish()
        self._rested = self.idle
        return handed

    def finish(self) -> None:
        """Spool what is not acknowledged, as far as there is a spool, and let go of everything."""
        self._now = time.monotonic()
        self._reap()
        if self._spool is not None:
            self._spool_at = float("-inf")
            self._copy_to_spool()
            self._queue_to_spool()
            self._publish()
            self._spool.close()
            self._spool = None
        if self._connection is not None:
            self._connection.abandon()
        if self._transport is not None:
            self._transport.close()

    def adopt(self, spool: Spool) -> None:
        """Use a spool from now on."""
        self._spool = spool

    def abandon(self) -> None:
        """In a forked child: leave everything to the parent."""
        if self._spool is not None:
            self._spool.abandon()

    def warn(self, message: str, *values: object) -> None:
        """Log a message at most once in ten seconds: a broker that is away must not fill the disk."""
        now = time.monotonic()
        if now - self._warned_at.get(message, float("-inf")) >= _WARN_EVERY_S:
            self._warned_at[message] = now
            log.warning("driftloop: " + message, *values)

    def _publish(self) -> None:
        spooled, torn = (0, self.counts.torn) if self._spool is None else (self._spool.left, self._spool.torn)
        self.counts = Counts(self._gone, self._twice, self._in_flight_alone, spooled, self._sent, self._failed, torn)

    def _client(self) -> Transport | None:
        """Return the client; while there is none, let another thread make it, which may take seconds."""
        if self._transport is not None or self.idle:
            return self._transport
        if self._connection is None:
            if self._now >= self._connect_at:
                self._connection = Connection(self._connect)
        elif self._connection.ended:
            connection, self._connection = self._connection, None
            self._transport = connection.transport
            if self._transport is None:
                self._connect_at = self._now + _RETRY_S
                self.warn("Kafka cannot be reached, events wait: %s", connection.error)
            else:
                self._connected()
        return self._transport

    def _hand_over(self, transport: Transport) -> bool:
        """Give the oldest entries to the client, as many as it may hold."""
        handed = 0
        while handed < _TURN and self._in_flight < self._window and self._fill():
            held = self._ready[0]
            try:
                transport.send(self._number, held.entry.topic, held.entry.key, held.entry.body, held.entry.headers)
            except NotReadyError as error:
                self.warn("Kafka does not take events, they wait: %s", error)
                return False
            except Exception as error:  # noqa: BLE001 - whatever it is, it costs this entry alone, counted
                self._ready.popleft()
                self._let_go(held)
                self._refuse(held, error)
                continue
            self._ready.popleft()
            self._awaited[self._number] = held
            self._number += 1
            self._in_flight += held.entry.events
            if held.frame is None:
                self._in_flight_alone += held.entry.events
            handed += 1
        return handed > 0

    def _fill(self) -> bool:
        """See that the oldest entry is ready: from the spool while that holds any, else from the queue."""
        if not self._ready and self._spool is not None and (found := self._spool.read()) is not None:
            frame, entries = found
            self._ready.extend(_Held(entry, frame) for entry in entries)
            self._gone -= frame.left
            self._twice += frame.left
        if not self._ready and self._queue:
            self._ready.append(_Held(self._queue.popleft()))
        return bool(self._ready)

    def _reap(self) -> None:
        if self._transport is None:
            return
        sent, refused, fault = self._transport.reap()
        for number in sent:
            self._sent += self._land(number).entry.events
        for number, reason in refused:
            self._refuse(self._land(number), reason)
        if sent or refused:
            self._progress_at = self._now
        if self._spool is not None:
            self._spool.forget()
        if fault is not None:
            self.warn("Kafka's client gave events up, a new one sends them again: %s", fault)
            self._start_again()

    def _land(self, number: int) -> _Held:
        """Take from what the client holds."""
        held = self._awaited.pop(number)
        self._in_flight -= held.entry.events
        if held.frame is None:
            self._in_flight_alone -= held.entry.events
        self._let_go(held)
        return held

    def _refuse(self, held: _Held, reason: Exception) -> None:
        self.warn("an event was given up: %s", reason)
        self._failed += held.entry.events

    def _let_go(self, held: _Held) -> None:
        self._gone += held.entry.events
        if held.frame is not None and self._spool is not None:
            self._twice -= held.entry.events
            self._spool.done(held.frame, held.entry.events)

    def _start_again(self) -> None:
        """Throw the client away, and put what it had back in front, in order."""
        if self._transport is not None:
            self._transport.close()
        self._transport, self._connect_at = None, self._now + _RETRY_S
        self._ready.extendleft(reversed(self._awaited.values()))
        self._awaited.clear()
        self._in_flight = self._in_flight_alone = 0

    def _to_spool(self, *, away: bool) -> None:
        """Write to the spool what should not be in memory alone any more."""
        if self._spool is None:
            return
        if away or self._spool.unread or self._taken() - self._gone > self._half:
            # First, so that the order in the file is the order they were logged in.
            self._copy_to_spool()
            self._queue_to_spool()

    def _copy_to_spool(self) -> None:
        """Write what the client holds, and what is ready for it; it stays in memory too."""
        if self._in_flight_alone:
            for held in self._keep([held for held in self._awaited.values() if held.frame is None]):
                self._in_flight_alone -= held.entry.events
        self._keep([held for held in self._ready if held.frame is None])

    def _keep(self, alone: list[_Held]) -> list[_Held]:
        """Write what is in memory alone; return what was written."""
        kept: list[_Held] = []
        waiting = deque(alone)
        while waiting:
            batch = self._next_frame(waiting, lambda held: held.entry)
            frame = self._append([held.entry for held in batch], read=True)
            if frame is None:
                break
            for held in batch:
                held.frame = frame
                self._twice += held.entry.events
            kept += batch
        return kept

    def _queue_to_spool(self) -> None:
        while self._queue:
            entries = self._next_frame(self._queue, lambda entry: entry)
            if self._append(entries) is None:
                self._queue.extendleft(reversed(entries))
                return
            self._gone += sum(entry.events for entry in entries)

    def _append(self, entries: list[Entry], *, read: bool = False) -> Frame | None:
        """Write entries to the spool; None when it takes none, and then it is left alone for a while."""
        if self._spool is None or self._now < self._spool_at:
            return None
        try:
            return self._spool.append(entries, read=read)
        except SpoolFullError as error:
            self.warn("the spool takes no more events: %s", error)
            self._spool_at = self._now + _AWAY_S
            return None

    def _next_frame(self, waiting: deque[_T], entry_of: Callable[[_T], Entry]) -> list[_T]:
        """Take as many from the left as one frame should hold: read again, it must leave room for what comes."""
        taken: list[_T] = []
        size = events = 0
        while waiting and len(taken) < _TURN and size < _FRAME_BYTES and events < self._quarter:
            taken.append(waiting.popleft())
            entry = entry_of(taken[-1])
            size += len(entry.body)
            events += entry.events
        return taken
