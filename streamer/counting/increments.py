"""What a flush counts, by stream and pane: rows of all models to increments, in a few passes over arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitors.arms import fold_exposures
from monitors.cells import NO_CELL
from monitors.sketch import PAIRS, pair_form
from streamer.counting.columns import Block, Coded, Distinct, IntArray, distinct
from streamer.counting.rows import Places, Source
from streamer.counting.streams import Head
from streamer.events import Increment, ModelMark

# So many cells of all slots stay in the processor's cache while a flush is counted block by block. With more, its
# values are counted together, or sorted: that is cheaper where they are fewer than the cells to go through.
_DENSE = 50_000
_Keys = NDArray[Any]


class Routed(NamedTuple):
    """Of predictions that were routed by a rollout: which one, their bucket (−1: none) and their latency."""

    rollouts: Coded
    buckets: IntArray
    latencies_ms: NDArray[np.float64]


@dataclass
class Binned:
    """Rows of one source, each with its stream and pane, and the cells of its features.

    Attributes
    ----------
    failed, sampled : which have an error, and which wait for a label; only predictions do.
    routed : None where no row was.
    """

    stream: IntArray
    pane: IntArray
    times_ms: IntArray
    places: Places
    blocks: list[Block]
    failed: NDArray[np.bool_]
    sampled: NDArray[np.bool_]
    routed: Routed | None = None

    def __len__(self) -> int:
        return len(self.stream)

    def only(self, kept: NDArray[np.bool_]) -> Binned:
        """Return the rows that are kept."""
        routed = self.routed
        if routed is not None:
            rollouts = Coded(routed.rollouts.values, routed.rollouts.codes[kept])
            routed = Routed(rollouts, routed.buckets[kept], routed.latencies_ms[kept])
        return replace(
            self,
            stream=self.stream[kept],
            pane=self.pane[kept],
            times_ms=self.times_ms[kept],
            places=self.places.take(np.flatnonzero(kept)),
            blocks=[
                Block(cells[np.repeat(kept, widths)], widths if isinstance(widths, int) else widths[kept])
                for cells, widths in self.blocks
            ],
            failed=self.failed[kept],
            sampled=self.sampled[kept],
            routed=routed,
        )


@dataclass
class Slots:
    """The increments of a flush, by stream and pane.

    Attributes
    ----------
    heads : what the numbers of streams mean.
    sources : the partitions of the flush, each with its index.
    """

    heads: Sequence[Head]
    sources: dict[Source, int] = field(default_factory=dict)
    made: dict[tuple[int, int], Increment] = field(default_factory=dict)

    def groups(self, stream: IntArray, pane: IntArray) -> tuple[IntArray, list[Increment], IntArray]:
        """Sort rows by their slots.

        Returns
        -------
        slot : (rows,) each row's index among the slots that occur.
        increments : (slots,) what is counted of each.
        streams : (slots,) the stream of each.
        """
        found = distinct_pairs(stream, pane)
        some_row = np.zeros(len(found.values), dtype=np.int64)
        some_row[found.codes] = np.arange(len(found.codes))
        streams = stream[some_row]
        keys = zip(streams.tolist(), pane[some_row].tolist(), strict=True)
        return found.codes, [self.at(*key) for key in keys], streams

    def at(self, stream: int, pane: int) -> Increment:
        """Return the increment of a stream's pane."""
        made = self.made.get((stream, pane))
        if made is None:
            key, pane_ms, fingerprint, _cells = self.heads[stream]
            made = self.made[stream, pane] = Increment(*key, pane * pane_ms, pane_ms, fingerprint)
        return made


def distinct_pairs(first: IntArray, second: IntArray) -> Distinct:
    """Return the distinct pairs of two columns of whole numbers, the first ≥ 0; the values are keys of no meaning."""
    if not len(first):
        return Distinct(first, first)
    # Panes lie close together within a stream, and may lie far apart between streams of other pane lengths.
    low = np.full(int(first.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(low, first, second)
    near = second - low[first]
    return distinct(first * (int(near.max()) + 1) + near)


def count(slots: Slots, pieces: Sequence[Binned]) -> None:
    """Count the rows of some pieces of one source: how many, their cells, where they stand in the log, their buckets.

    Parameters
    ----------
    pieces : in any order; a slot is counted once, with all the pieces it has rows in.
    """
    pieces = [piece for piece in pieces if len(piece)]
    if not pieces:
        return
    stream = np.concatenate([piece.stream for piece in pieces])
    slot, increments, streams = slots.groups(stream, np.concatenate([piece.pane for piece in pieces]))
    _count_flags(slot, increments, pieces)
    slot_of = np.split(slot, np.cumsum([len(piece) for piece in pieces])[:-1])
    _count_cells(slot_of, increments, [slots.heads[number].cells for number in streams.tolist()], pieces)
    _note_offsets(slot, increments, [piece.places for piece in pieces], slots.sources)
    _count_exposures(slot_of, increments, pieces)


def _count_flags(slot: IntArray, increments: Sequence[Increment], pieces: Sequence[Binned]) -> None:
    n_failed, n_sampled = (
        np.bincount(slot[np.concatenate(flags)], minlength=len(increments)).tolist()
        for flags in ([piece.failed for piece in pieces], [piece.sampled for piece in pieces])
    )
    counted = zip(increments, np.bincount(slot).tolist(), n_failed, n_sampled, strict=True)
    for increment, events, errors, waiting in counted:
        increment.events, increment.errors, increment.sampled = events, errors, waiting


def _count_cells(
    slot_of: Sequence[IntArray], increments: Sequence[Increment], sizes: Sequence[int], pieces: Sequence[Binned]
) -> None:
    """Count the cells of every slot in one vector over the cells of all of them."""
    ends = np.cumsum(np.array(sizes, dtype=np.int64))
    total = int(ends[-1])
    # Keys half as wide are sorted in half the time.
    starts = (ends - np.array(sizes, dtype=np.int64)).astype(np.int32 if total < 2**31 else np.int64)
    keys = (_keys(starts, slot, block) for slot, piece in zip(slot_of, pieces, strict=True) for block in piece.blocks)
    if total <= _DENSE:
        # Block by block, while its keys are in the processor's cache.
        counted = np.zeros(total, dtype=np.int64)
        for some in keys:
            counted += np.bincount(some, minlength=total)
        cells = np.flatnonzero(counted)
        counts = counted[cells]
    else:
        cells, counts = _counted(np.concatenate([*keys, np.zeros(0, dtype=starts.dtype)]), total)
    bounds = np.searchsorted(cells, np.append(starts, total))
    cells = cells - np.repeat(starts, np.diff(bounds))
    # One form for all: evaluate reads them together. A flush has fewer rows than fill 32 bits.
    form = pair_form(cells, counts)
    pairs = np.empty(len(cells), dtype=PAIRS[form])
    pairs["cell"], pairs["count"] = cells, counts
    raw, at = pairs.tobytes(), (bounds * pairs.itemsize).tolist()
    for increment, (start, end) in zip(increments, pairwise(at), strict=True):
        increment.cells = form + raw[start:end] if end > start else b""


def _counted(keys: _Keys, total: int) -> tuple[_Keys, IntArray]:
    """Return the keys below `total` that occur, rising, and how often each does."""
    if total <= 2 * len(keys):
        counted = np.bincount(keys, minlength=total)
        found = np.flatnonzero(counted)
        return found, counted[found]
    keys.sort()
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[first], np.diff(first, append=len(keys))


def _keys(starts: _Keys, slot: IntArray, block: Block) -> _Keys:
    """Return where the cells of a block lie in the vector over all slots' cells."""
    cells = block.cells
    if slot[0] == slot[-1] and (slot == slot[0]).all():
        keys: _Keys = cells.astype(starts.dtype)
        keys += starts[slot[0]]
    else:
        keys = np.repeat(starts[slot], block.widths)
        keys += cells
    watched = cells != NO_CELL
    return keys if watched.all() else keys[watched]


def _note_offsets(
    slot: IntArray, increments: Sequence[Increment], places: Sequence[Places], sources: dict[Source, int]
) -> None:
    """Note of each slot the first and the last offset of every partition it has rows of."""
    source = _numbered_sources(places, sources)
    offsets = np.concatenate([place.offsets for place in places])
    found = distinct(slot * len(sources) + source)
    first = np.full(len(found.values), np.iinfo(np.int64).max)
    last = np.full(len(found.values), -1, dtype=np.int64)
    np.minimum.at(first, found.codes, offsets)
    np.maximum.at(last, found.codes, offsets)
    at, place = np.divmod(found.values, len(sources))
    for increment, noted in zip(increments, _by_owner(at, len(increments), place, first, last), strict=True):
        increment.offsets += noted


def _by_owner(owner: IntArray, owners: int, *columns: IntArray) -> Iterator[list[int]]:
    """Give of each owner its rows, one number after the other; `owner` rises."""
    flat = np.stack(columns, axis=1).reshape(-1).tolist()
    bounds = (np.searchsorted(owner, np.arange(owners + 1)) * len(columns)).tolist()
    return (flat[start:end] for start, end in pairwise(bounds))


def _numbered_sources(places: Sequence[Places], sources: dict[Source, int]) -> IntArray:
    """Return the index of every row's partition among `sources`, which take in those that are new."""
    of_row = []
    for place in places:
        numbers = [sources.setdefault(source, len(sources)) for source in place.sources]
        of_row.append(np.array(numbers, dtype=np.int64)[place.source])
    return np.concatenate(of_row)


def _count_exposures(slot_of: Sequence[IntArray], increments: Sequence[Increment], pieces: Sequence[Binned]) -> None:
    """Count the predictions of each rollout by bucket, where there are any."""
    given = [(slot, piece.routed, piece.failed) for slot, piece in zip(slot_of, pieces, strict=True)]
    parts = [(slot, routed, failed) for slot, routed, failed in given if routed is not None]
    if not parts:
        return
    slots, routes, faults = zip(*parts, strict=True)
    slot, failed = np.concatenate(slots), np.concatenate(faults)
    buckets = np.concatenate([routed.buckets for routed in routes])
    latencies_ms = np.concatenate([routed.latencies_ms for routed in routes])
    rollouts = Coded.of([rollout for routed in routes for rollout in routed.rollouts.tolist()])
    for rows, at, rollout in rollout_groups(slot, rollouts, buckets):
        folded = fold_exposures(buckets[rows], failed[rows], latencies_ms[rows])
        increments[at].exposures[rollout] = folded.tobytes()


def rollout_groups(slot: IntArray, rollouts: Coded, buckets: IntArray) -> Iterator[tuple[IntArray, int, str]]:
    """Give the rows of each slot and rollout that have a bucket."""
    (routed,) = np.nonzero(~rollouts.equal(None) & (buckets >= 0))
    found = distinct(slot[routed] * len(rollouts.values) + rollouts.codes[routed])
    for number, key in enumerate(found.values.tolist()):
        at, rollout = divmod(key, len(rollouts.values))
        yield routed[found.codes == number], at, rollouts.values[rollout]


def marks(heads: Sequence[Head], pieces: Sequence[Binned], sources: dict[Source, int]) -> list[ModelMark]:
    """Return each model's largest live event time in each partition, and the time of its last record there.

    Parameters
    ----------
    sources : the partitions of the flush, each with its index; those that are new are added.
    """
    pieces = [piece for piece in pieces if len(piece)]
    if not pieces:
        return []
    stream = distinct(np.concatenate([piece.stream for piece in pieces]))
    known = [heads[number].key for number in stream.values.tolist()]
    (live,) = np.nonzero(
        np.array([origin == "live" for _model, _epoch, _version, origin, _source in known])[stream.codes]
    )
    models = Coded.of([model for model, *_rest in known])
    source = _numbered_sources([piece.places for piece in pieces], sources)
    found = distinct((models.codes[stream.codes] * len(sources) + source)[live])
    event_ms = np.zeros(len(found.values), dtype=np.int64)
    np.maximum.at(event_ms, found.codes, np.concatenate([piece.times_ms for piece in pieces])[live])
    # Of several values for one place the last one stays.
    record_ms = event_ms.copy()
    record_ms[found.codes] = np.concatenate([piece.places.record_times_ms for piece in pieces])[live]
    model, place = np.divmod(found.values, len(sources))
    times = _by_owner(model, len(models.values), place, event_ms, record_ms)
    return [ModelMark(name, of_model) for name, of_model in zip(models.values, times, strict=True) if of_model]
