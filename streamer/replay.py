"""Recorded or past events played again in order of event time, as fast as whoever listens keeps up."""

from __future__ import annotations

import heapq
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

# What a gate answers when event time may go on without an end.
UNLIMITED_MS = 2**63 - 1


class Batch(NamedTuple):
    """Events of one kind that are played at once.

    Attributes
    ----------
    time_ms : event time up to which the batch reaches; batches are played in its order.
    kind : what is done with it, e.g. "predictions" or "labels".
    payload : the events, as the player of that kind takes them.
    rows : how many they are.
    """

    time_ms: int
    kind: str
    payload: Any
    rows: int = 1


Gate = Callable[[int], int]


class Replay:
    """Plays batches in the order of their time, each to the player of its kind.

    Event time is all it knows: it plays a batch as soon as the gate lets event time go that far. The
    same batches and players give the same calls in the same order, however long the gate holds.

    Parameters
    ----------
    batches : in order of `time_ms` (see `sliced` and `merged`).
    players : kind → called with the payload; returns when the events are handed over.
    gate : called with where event time stands, returns how far it may go, in epoch ms; its own
        `position_ms` or less holds event time where it is.
    poll_s : how often the gate is asked again while it holds.

    Attributes
    ----------
    position_ms : where event time stands: every event up to it has been played. None before the first.
    held : whether the gate holds event time now.
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        players: Mapping[str, Callable[[Any], object]],
        *,
        gate: Gate | None = None,
        poll_s: float = 0.05,
    ) -> None:
        self._batches = iter(batches)
        self._players = dict(players)
        self._gate = gate or _open
        self._poll_s = poll_s
        self._counts: Counter[str] = Counter()
        self.position_ms: int | None = None
        self.held = False

    @property
    def counts(self) -> dict[str, int]:
        """Rows played so far, by kind."""
        return dict(self._counts)

    def run(self, stopped: threading.Event | None = None) -> dict[str, int]:
        """Play to the end, or until `stopped` is set; return the rows played, by kind.

        Called again after a stop, it goes on where it was.

        Raises
        ------
        ValueError
            When a batch is older than the one before it, or there is no player of its kind.
        """
        halt = stopped or threading.Event()
        for batch in self._batches:
            if not self._wait(batch, halt):
                self._batches = _first(batch, self._batches)
                break
            self._play(batch)
        return self.counts

    def _wait(self, batch: Batch, halt: threading.Event) -> bool:
        """Wait until event time may reach the batch; False when told to stop."""
        now_ms = batch.time_ms if self.position_ms is None else self.position_ms
        if batch.time_ms < now_ms:
            raise ValueError(f"time_ms: got {batch.time_ms} after {now_ms}, wanted batches in order of time")
        while not halt.is_set():
            self.held = self._gate(now_ms) < batch.time_ms
            if not self.held:
                return True
            halt.wait(self._poll_s)
        return False

    def _play(self, batch: Batch) -> None:
        player = self._players.get(batch.kind)
        if player is None:
            raise ValueError(f"kind: got {batch.kind!r}, wanted one of {sorted(self._players)}")
        player(batch.payload)
        self._counts[batch.kind] += batch.rows
        self.position_ms = batch.time_ms


def sliced(kind: str, times_ms: Sequence[int], rows: Callable[[int, int], Any], *, slice_ms: int) -> Iterator[Batch]:
    """Cut events into slices of event time, a batch a slice that has any.

    Parameters
    ----------
    kind : as in `Batch`.
    times_ms : (events,) ascending event times.
    rows : returns the payload of the events [first, last), e.g. `lambda a, b: table[a:b]`.
    slice_ms : the length of a slice; a batch's time is its last event's.

    Raises
    ------
    ValueError
        When the times do not ascend.
    """
    times = np.asarray(times_ms, dtype=np.int64)
    if slice_ms < 1:
        raise ValueError(f"slice_ms: got {slice_ms}, wanted at least 1")
    if (np.diff(times) < 0).any():
        raise ValueError(f"times_ms: the {kind} are not in order of time; sort them first")
    slots = times // slice_ms
    edges = [0, *(np.flatnonzero(np.diff(slots)) + 1).tolist(), len(times)]
    for first, last in pairwise(edges):
        if last > first:
            yield Batch(int(times[last - 1]), kind, rows(first, last), last - first)


def merged(*streams: Iterable[Batch]) -> Iterator[Batch]:
    """Merge streams, each in order of time; at the same time, the earlier stream goes first."""
    return heapq.merge(*streams, key=lambda batch: batch.time_ms)


def keeping_up(watermark_ms: Callable[[], int | None], *, max_lead_ms: int) -> Gate:
    """Return a gate that lets event time run ahead of the worker's watermark by so much and no more.

    Parameters
    ----------
    watermark_ms : where the worker stands; None while it has seen nothing, when event time may go
        `max_lead_ms` past where the replay began.
    max_lead_ms : how far ahead event time may be; longer than labels take to come, or it waits for
        events that nobody plays.

    Notes
    -----
    A worker that stands where the replay stands has nothing left to catch up with: then the next
    batch goes, however long the hole before it.
    """
    began_ms: int | None = None

    def gate(position_ms: int) -> int:
        nonlocal began_ms
        if began_ms is None:
            began_ms = position_ms
        stands_ms = watermark_ms()
        if stands_ms is None:
            return began_ms + max_lead_ms
        return UNLIMITED_MS if stands_ms >= position_ms else max(began_ms, stands_ms) + max_lead_ms

    return gate


def rated(*, event_ms_per_s: float, clock_s: Callable[[], float]) -> Gate:
    """Return a gate that lets event time go at a steady rate of the clock.

    Parameters
    ----------
    event_ms_per_s : event time that passes in a second, in ms; 3,600,000 plays an hour a second.
    clock_s : seconds, e.g. `time.monotonic`.
    """
    began: tuple[int, float] | None = None

    def gate(position_ms: int) -> int:
        nonlocal began
        if began is None:
            began = (position_ms, clock_s())
        return began[0] + int((clock_s() - began[1]) * event_ms_per_s)

    return gate


def nearest(*gates: Gate) -> Gate:
    """Return a gate that goes as far as every one of these lets it."""
    return lambda position_ms: min(gate(position_ms) for gate in gates)


def _open(_: int) -> int:
    return UNLIMITED_MS


def _first(batch: Batch, others: Iterator[Batch]) -> Iterator[Batch]:
    yield batch
    yield from others
