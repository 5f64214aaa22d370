"""One model's panes in evaluate's memory: what increments add to, and how a pane is kept in the state topic."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from monitors.arms import EXPOSURE_DTYPE, OUTCOME_DTYPE, merge_rows
from monitors.performance import PerformanceSchema
from monitors.profile import ReferenceProfile
from monitors.sketch import HistogramSketch, Pairs
from streamer.evaluation.compression import compress, decompress
from streamer.events import Increment, OffsetRange, Origin

IntArray = NDArray[np.int64]
Source = tuple[str, str, int]
_PART_BYTES = 200_000
# The offsets of so many increments are put off at most.
_MOST_LATER = 16
# Every pane names the same few partitions: they are kept once.
_SOURCES: dict[Source, Source] = {}


class PaneKey(NamedTuple):
    """A pane of a version: another pane width is another pane."""

    version: str
    origin: Origin
    pane_ms: int
    start_ms: int


@dataclass(slots=True)
class Tally:
    """Counts that came while the pane was open, or after it was complete; `cells` by the reference they are over."""

    events: int = 0
    errors: int = 0
    cells: dict[str, HistogramSketch] = field(default_factory=dict)

    def add(self, increment: Increment, pairs: Pairs | None = None) -> None:
        """Add an increment's counts; cells of another fingerprint are kept apart."""
        if increment.source != "labels":
            self.events += increment.events if increment.source == "predictions" else 0
            self.errors += increment.errors
        if increment.cells:
            held = self.cells.get(increment.fingerprint)
            if held is None:
                held = self.cells[increment.fingerprint] = HistogramSketch.empty(increment.fingerprint)
            if pairs is None:
                held.add_pairs(increment.cells)
            else:
                held.add_later(pairs)


@dataclass(slots=True)
class Pane:
    """Everything known of one pane of one version. Performance counts are signed."""

    on_time: Tally = field(default_factory=Tally)
    late: Tally = field(default_factory=Tally)
    sampled: int = 0
    labelled: int = 0
    performance: dict[str, NDArray[Any]] = field(default_factory=dict)
    exposures: dict[str, NDArray[Any]] = field(default_factory=dict)
    outcomes: dict[str, NDArray[Any]] = field(default_factory=dict)
    looked: str = ""
    _offsets: dict[Source, tuple[int, int]] = field(default_factory=dict)
    # As counts are: put off until somebody asks.
    _offsets_later: list[tuple[Sequence[Source], list[int]]] = field(default_factory=list)

    @property
    def offsets(self) -> dict[Source, tuple[int, int]]:
        """The first and the last offset of its events, by partition."""
        self._settle()
        return self._offsets

    def _settle(self) -> None:
        later, self._offsets_later = self._offsets_later, []
        for sources, offsets in later:
            for at, first, last in in_threes(offsets):
                source = sources[at]
                held = self._offsets.get(source)
                if held is None:
                    self._offsets[source] = (first, last)
                elif first < held[0] or last > held[1]:
                    self._offsets[source] = (min(held[0], first), max(held[1], last))

    @property
    def events(self) -> int:
        """Events on time and late."""
        return self.on_time.events + self.late.events

    @property
    def nbytes(self) -> int:
        """About what storing the pane takes."""
        cells = sum(sketch.nbytes for tally in (self.on_time, self.late) for sketch in tally.cells.values())
        named = (self.performance, self.exposures, self.outcomes)
        return cells + sum(array.nbytes for arrays in named for array in arrays.values())

    def add(
        self,
        increment: Increment,
        sources: Sequence[Source],
        *,
        late: bool,
        schema: PerformanceSchema,
        pairs: Pairs | None = None,
    ) -> None:
        """Add an increment.

        Parameters
        ----------
        sources : those of its flush.
        late : whether the pane was already complete.
        schema : what the model's performance vectors are of.
        pairs : its cells, where they have been read already.
        """
        (self.late if late else self.on_time).add(increment, pairs)
        self.sampled += increment.sampled
        self.labelled += increment.labelled
        for key, raw in increment.performance.items():
            vector = np.frombuffer(raw, schema.dtype)
            self.performance[key] = self.performance[key] + vector if key in self.performance else vector.copy()
        _add_rows(self.exposures, increment.exposures, EXPOSURE_DTYPE)
        _add_rows(self.outcomes, increment.outcomes, OUTCOME_DTYPE)
        if increment.offsets:
            self._note_offsets(sources, increment.offsets)

    def _note_offsets(self, sources: Sequence[Source], offsets: list[int]) -> None:
        places = offsets[::3]
        if len(offsets) % 3 or min(places) < 0 or max(places) >= len(sources):
            raise ValueError(
                f"increment.offsets: got {offsets[:12]}, wanted three by three: one of {len(sources)} sources, the "
                "first and the last offset"
            )
        self._offsets_later.append((sources, offsets))
        if len(self._offsets_later) >= _MOST_LATER:
            self._settle()

    def counts(self, profile: ReferenceProfile, *, late: bool) -> IntArray:
        """Return (cells of all features,) counts in the profile's layout: on time alone, or with the late ones."""
        tallies = (self.on_time, self.late) if late else (self.on_time,)
        held = [tally.cells[profile.fingerprint] for tally in tallies if profile.fingerprint in tally.cells]
        if not held:
            return np.zeros(profile.layout.size, dtype=np.int64)
        total = held[0].whole(profile.layout.size)
        for other in held[1:]:
            total += other.whole(profile.layout.size)
        return total


class _Stored(msgspec.Struct, array_like=True):
    """A pane as it is stored."""

    on_time: tuple[int, int]
    late: tuple[int, int]
    sampled: int
    labelled: int
    looked: str
    performance: dict[str, bytes]
    exposures: dict[str, bytes]
    outcomes: dict[str, bytes]
    offsets: list[tuple[str, str, int, int, int]]
    cells: list[tuple[bool, str, bytes]]
    # Of the performance vectors: counts, or for a regression sums.
    dtype: str


_ENCODE = msgspec.msgpack.Encoder()
_DECODE = msgspec.msgpack.Decoder(_Stored)
# In front of a pane's first part: how many parts it has.
_PARTS = struct.Struct("<H")


def encode_pane(pane: Pane) -> list[bytes]:
    """Return a pane's parts, each small enough for one record."""
    stored = _Stored(
        (pane.on_time.events, pane.on_time.errors),
        (pane.late.events, pane.late.errors),
        pane.sampled,
        pane.labelled,
        pane.looked,
        {key: vector.tobytes() for key, vector in pane.performance.items()},
        {key: rows.tobytes() for key, rows in pane.exposures.items()},
        {key: rows.tobytes() for key, rows in pane.outcomes.items()},
        [(*source, low, high) for source, (low, high) in pane.offsets.items()],
        [
            (late, fingerprint, sketch.pack())
            for late, tally in ((False, pane.on_time), (True, pane.late))
            for fingerprint, sketch in tally.cells.items()
        ],
        next((vector.dtype.str for vector in pane.performance.values()), ""),
    )
    raw = compress(_ENCODE.encode(stored))
    chunks = [raw[at : at + _PART_BYTES] for at in range(0, len(raw), _PART_BYTES)]
    return [_PARTS.pack(len(chunks)) + chunks[0], *chunks[1:]]


def decode_pane(parts: Mapping[int, bytes]) -> Pane:
    """Read a pane back.

    Parameters
    ----------
    parts : part's number → what was stored of it; parts past the pane's own, left by a larger one, are passed over.

    Raises
    ------
    ValueError
        A part is missing.
    """
    number = _PARTS.unpack_from(parts.get(0, b"\0\0"))[0]
    if not number or any(part not in parts for part in range(number)):
        raise ValueError(f"stored pane: got parts {sorted(parts)}, wanted all of {number or 'its first'}")
    chunks = [parts[part] for part in range(number)]
    stored = _DECODE.decode(decompress(chunks[0][_PARTS.size :] + b"".join(chunks[1:])))
    pane = Pane(
        Tally(*stored.on_time),
        Tally(*stored.late),
        stored.sampled,
        stored.labelled,
        {key: np.frombuffer(raw, stored.dtype).copy() for key, raw in stored.performance.items()},
        {key: np.frombuffer(raw, EXPOSURE_DTYPE).copy() for key, raw in stored.exposures.items()},
        {key: np.frombuffer(raw, OUTCOME_DTYPE).copy() for key, raw in stored.outcomes.items()},
        stored.looked,
        {known_once((topic, tid, index)): (low, high) for topic, tid, index, low, high in stored.offsets},
    )
    for late, fingerprint, packed in stored.cells:
        (pane.late if late else pane.on_time).cells[fingerprint] = HistogramSketch.unpack(fingerprint, packed)
    return pane


def offset_ranges(panes: Iterable[Pane], kinds: Callable[[str], bool]) -> list[OffsetRange]:
    """Return the offsets that hold these panes' events, one range a partition of the topics `kinds` accepts."""
    spans: dict[Source, tuple[int, int]] = {}
    for pane in panes:
        for source, (first, last) in pane.offsets.items():
            if kinds(source[0]):
                low, high = spans.get(source, (first, last))
                spans[source] = (min(low, first), max(high, last))
    return [
        OffsetRange(topic=topic, topic_id=topic_id, partition=index, start=low, end=high + 1)
        for (topic, topic_id, index), (low, high) in sorted(spans.items())
    ]


def known_once(source: Source) -> Source:
    """Return the one tuple that is kept of a partition."""
    return _SOURCES.setdefault(source, source)


def in_threes(numbers: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Give numbers three by three; ValueError where some are left over."""
    return zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)


def _add_rows(held: dict[str, NDArray[Any]], added: dict[str, bytes], dtype: Any) -> None:
    for rollout_id, raw in added.items():
        rows = np.frombuffer(raw, dtype)
        held[rollout_id] = merge_rows(held[rollout_id], rows) if rollout_id in held else rows.copy()
