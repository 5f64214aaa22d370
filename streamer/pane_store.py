"""One model's panes in evaluate's memory: what increments add to, and how a pane is kept in the state topic."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from monitors.canary import EXPOSURE_DTYPE, OUTCOME_DTYPE, merge_rows
from streamer.events import Increment, OffsetRange, Origin

IntArray = NDArray[np.int64]
_PART_BYTES = 200_000
# A flush's counts fit 32 bits; a pane's over its whole life may not.
_WIRE = "<i4"
_STORED = "<i8"


class PaneKey(NamedTuple):
    """A pane of a version: another pane width is another pane."""

    version: str
    origin: Origin
    pane_ms: int
    start_ms: int


@dataclass
class Tally:
    """Counts that came while the pane was open, or after it was complete."""

    events: int = 0
    errors: int = 0
    cells: dict[tuple[str, str], IntArray] = field(default_factory=dict)

    def add(self, increment: Increment) -> None:
        """Add an increment's counts; cells of another fingerprint are kept apart."""
        if increment.source != "labels":
            self.events += increment.events if increment.source == "predictions" else 0
            self.errors += increment.errors
        for name, pairs in increment.cells.items():
            identity = (increment.fingerprint, name)
            self.cells[identity] = _add_pairs(self.cells.get(identity), pairs, _WIRE)


@dataclass
class Pane:
    """Everything known of one pane of one version. Performance counts are signed."""

    on_time: Tally = field(default_factory=Tally)
    late: Tally = field(default_factory=Tally)
    sampled: int = 0
    labelled: int = 0
    performance: dict[str, NDArray[Any]] = field(default_factory=dict)
    exposures: dict[str, NDArray[Any]] = field(default_factory=dict)
    outcomes: dict[str, NDArray[Any]] = field(default_factory=dict)
    offsets: dict[tuple[str, str, int], tuple[int, int]] = field(default_factory=dict)
    looked: str = ""

    @property
    def events(self) -> int:
        """Events on time and late."""
        return self.on_time.events + self.late.events

    @property
    def nbytes(self) -> int:
        """About what storing the pane takes."""
        arrays = [*self.on_time.cells.values(), *self.late.cells.values()]
        for named in (self.performance, self.exposures, self.outcomes):
            arrays += named.values()
        return sum(array.nbytes for array in arrays)

    def add(self, increment: Increment, *, late: bool, dtype: str) -> None:
        """Add an increment; `late` says whether the pane was already complete."""
        (self.late if late else self.on_time).add(increment)
        self.sampled += increment.sampled
        self.labelled += increment.labelled
        for key, raw in increment.performance.items():
            vector = np.frombuffer(raw, dtype)
            self.performance[key] = self.performance[key] + vector if key in self.performance else vector.copy()
        _add_rows(self.exposures, increment.exposures, EXPOSURE_DTYPE)
        _add_rows(self.outcomes, increment.outcomes, OUTCOME_DTYPE)
        for place in increment.offsets:
            source = (place.topic, place.topic_id, place.partition)
            low, high = self.offsets.get(source, (place.first, place.last))
            self.offsets[source] = (min(low, place.first), max(high, place.last))

    def counts(self, fingerprint: str, feature: str, size: int, *, late: bool) -> IntArray:
        """Return a feature's (size,) counts: on time alone, or with the late ones."""
        total = np.zeros(size, dtype=np.int64)
        for tally in (self.on_time, self.late) if late else (self.on_time,):
            held = tally.cells.get((fingerprint, feature))
            if held is not None:
                total[: len(held)] += held
        return total


class _Part(msgspec.Struct, array_like=True):
    """One stored part of a pane: the first carries everything but most of the cells."""

    on_time: tuple[int, int]
    late: tuple[int, int]
    sampled: int
    labelled: int
    looked: str
    performance: dict[str, bytes]
    exposures: dict[str, bytes]
    outcomes: dict[str, bytes]
    offsets: list[tuple[str, str, int, int, int]]
    cells: list[tuple[bool, str, str, bytes]]


_ENCODE = msgspec.msgpack.Encoder()
_DECODE = msgspec.msgpack.Decoder(_Part)


def encode_pane(pane: Pane) -> list[bytes]:
    """Return a pane's parts, each small enough for one record."""
    cells = [
        (late, fingerprint, feature, _pairs(counts))
        for late, tally in ((False, pane.on_time), (True, pane.late))
        for (fingerprint, feature), counts in tally.cells.items()
    ]
    chunks: list[list[tuple[bool, str, str, bytes]]] = [[]]
    size = 0
    for cell in cells:
        size += len(cell[3])
        if size > _PART_BYTES and chunks[-1]:
            chunks.append([])
            size = len(cell[3])
        chunks[-1].append(cell)
    head = _Part(
        (pane.on_time.events, pane.on_time.errors),
        (pane.late.events, pane.late.errors),
        pane.sampled,
        pane.labelled,
        pane.looked,
        {key: vector.tobytes() for key, vector in pane.performance.items()},
        {key: rows.tobytes() for key, rows in pane.exposures.items()},
        {key: rows.tobytes() for key, rows in pane.outcomes.items()},
        [(*source, low, high) for source, (low, high) in pane.offsets.items()],
        chunks[0],
    )
    tail = [_Part((0, 0), (0, 0), 0, 0, "", {}, {}, {}, [], chunk) for chunk in chunks[1:]]
    return [_ENCODE.encode(part) for part in (head, *tail)]


def decode_part(pane: Pane, part: int, raw: bytes, dtype: str) -> None:
    """Put one stored part back into a pane that is being restored."""
    stored = _DECODE.decode(raw)
    if part == 0:
        pane.on_time.events, pane.on_time.errors = stored.on_time
        pane.late.events, pane.late.errors = stored.late
        pane.sampled, pane.labelled, pane.looked = stored.sampled, stored.labelled, stored.looked
        pane.performance = {key: np.frombuffer(raw, dtype).copy() for key, raw in stored.performance.items()}
        pane.exposures = {key: np.frombuffer(raw, EXPOSURE_DTYPE).copy() for key, raw in stored.exposures.items()}
        pane.outcomes = {key: np.frombuffer(raw, OUTCOME_DTYPE).copy() for key, raw in stored.outcomes.items()}
        pane.offsets = {(topic, tid, index): (low, high) for topic, tid, index, low, high in stored.offsets}
    for late, fingerprint, feature, pairs in stored.cells:
        tally = pane.late if late else pane.on_time
        tally.cells[fingerprint, feature] = _add_pairs(None, pairs, _STORED)


def offset_ranges(panes: Iterable[Pane], kinds: Callable[[str], bool]) -> list[OffsetRange]:
    """Return the offsets that hold these panes' events, one range a partition of the topics `kinds` accepts."""
    spans: dict[tuple[str, str, int], tuple[int, int]] = {}
    for pane in panes:
        for source, (first, last) in pane.offsets.items():
            if kinds(source[0]):
                low, high = spans.get(source, (first, last))
                spans[source] = (min(low, first), max(high, last))
    return [
        OffsetRange(topic=topic, topic_id=topic_id, partition=index, start=low, end=high + 1)
        for (topic, topic_id, index), (low, high) in sorted(spans.items())
    ]


def _pairs(counts: IntArray) -> bytes:
    (cells,) = np.nonzero(counts)
    return np.column_stack([cells, counts[cells]]).astype(_STORED).tobytes()


def _add_pairs(held: IntArray | None, raw: bytes, dtype: str) -> IntArray:
    """Add (cell, count) pairs."""
    pairs = np.frombuffer(raw, dtype).reshape(-1, 2)
    size = int(pairs[:, 0].max()) + 1 if len(pairs) else 0
    if held is None:
        held = np.zeros(size, dtype=np.int64)
    elif len(held) < size:
        held = np.concatenate([held, np.zeros(size - len(held), dtype=np.int64)])
    np.add.at(held, pairs[:, 0], pairs[:, 1])
    return held


def _add_rows(held: dict[str, NDArray[Any]], added: dict[str, bytes], dtype: Any) -> None:
    for rollout_id, raw in added.items():
        rows = np.frombuffer(raw, dtype)
        held[rollout_id] = merge_rows(held[rollout_id], rows) if rollout_id in held else rows.copy()
