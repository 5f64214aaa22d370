"""The first stage: raw topics in large batches, checked, joined with their labels, folded, sent on as increments."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec
import numpy as np
import structlog

from streamer import deadletters, telemetry
from streamer.bulk_decode import BulkDecoder, Fault, predictions_again
from streamer.catalog import Catalog, Model
from streamer.decode import Kind, known_field
from streamer.events import ModelMark, Partial, SourceProgress
from streamer.fold import Folder
from streamer.increments import Gathering, Slot
from streamer.join_bulk import Given
from streamer.labelling import context_contributions, given_labels, given_predictions, joinable
from streamer.labels import JoinStore
from streamer.layouts import Layout
from streamer.partitioning import partition_of
from streamer.rows import EventRows, Located, Rows
from streamer.settings import Settings
from streamer.transaction import Batch, Partition, Record, Standing, resume

log = structlog.get_logger(__name__)

RAW: tuple[Kind, ...] = ("predictions", "features", "labels")
# A model, how its events lie, and what was read of it, read by read.
Held = tuple[Model, Layout | None, list[Located]]
# So many messages are dealt with at a time: what is made of them then still lies in the processor's cache.
_SLICE = 4_000
# With this many rows of a model at hand, waiting for more would not make them cheaper.
_MUCH = 256

# Dead letters are kept whole until the flush, and each may be as large as a message can be.
_MUCH_DEAD = 16_000_000

_PACK = msgspec.msgpack.Encoder()
# Well below what a producer sends and a topic takes.
MAX_PARTIAL_BYTES = 4_000_000


class Piece(NamedTuple):
    """Predictions that wait for the join to say which of them are repeated.

    Attributes
    ----------
    joined : the rows that are joined; None for all.
    counts : what they count if none is repeated; empty when that is not known yet.
    values : the messages they came in, where the events are not kept.
    """

    rows: Rows
    joined: list[int] | None
    given: Given
    counts: dict[Slot, Gathering]
    values: Sequence[bytes]


class Ingest:
    """The ingest stage of one worker (see `streamer.transaction.Stage`)."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        store: JoinStore,
        *,
        replica: str,
        topic_ids: Mapping[str, str],
        partition_counts: Mapping[str, int],
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._store = store
        self._replica = replica
        self._kinds = {settings.topic(kind): kind for kind in RAW}
        self._topic_ids = topic_ids
        self._counts = dict(partition_counts)
        self._partials = settings.topic("partials")
        self._dead_topic = settings.topic("dead-letters")
        self._decoder = BulkDecoder(catalog)
        self._folder = Folder(self._gather, catalog.reference)
        self._flushed_at = time.monotonic()
        self._progress: dict[Partition, int] = {}
        self._read_up_to: dict[Partition, int] = {}
        self._held_back: list[Partition] = []
        self._clear()

    @property
    def topics(self) -> list[str]:
        """The raw topics this stage reads."""
        return list(self._kinds)

    def restore(self, standing: dict[Partition, Standing]) -> dict[Partition, int]:
        """Ingest keeps nothing between flushes: it goes on from the committed offsets."""
        self._clear()
        self._progress = {partition: resume(partition, *place) for partition, place in standing.items()}
        self._read_up_to = {}
        self._await_join_store(standing)
        self._store.begin()
        return dict(self._progress)

    def held_back(self) -> Collection[Partition]:
        """Labels wait in their topic while the join store lacks the predictions they are of."""
        return self._held_back

    def _await_join_store(self, standing: Mapping[Partition, Standing]) -> None:
        """Go on without labels where the store has lost its records: what they find nothing of could not be mended."""
        new = all(place.committed is None for place in standing.values())
        whole = not standing or self._store.is_whole(new=new)
        labels = self._settings.topic("labels")
        self._held_back = [] if whole else [place for place in standing if place.topic == labels]
        telemetry.LABELS_HELD_BACK.set(len(self._held_back))
        if not whole:
            log.error(
                "join_store_lost",
                labels="wait in their topic",
                remedy="stop every ingest, run `driftloop replay --rebuild-join`, start them again",
            )

    def fold(self, batch: Batch) -> None:
        """Check, join and fold one batch of one raw topic's partition; some of it only with the whole flush."""
        self._read_up_to[batch.partition] = batch.read_up_to_ms
        if not batch.values:
            return
        kind = self._kinds[batch.partition.topic]
        self._rows += len(batch.values)
        telemetry.EVENTS.labels(kind).inc(len(batch.values))
        for start in range(0, len(batch.values), _SLICE):
            self._read(kind, batch, start, min(start + _SLICE, len(batch.values)))

    def _read(self, kind: Kind, batch: Batch, start: int, end: int) -> None:
        """Decode a part of a batch; count what is much now, while it is at hand, and the rest with the flush."""
        topic, number = batch.partition
        times_ms, offsets = batch.record_times_ms[start:end], batch.offsets[start:end]
        groups, faults = self._decoder.decode(
            kind, batch.values[start:end], times_ms, self._settings.worker.max_future_ms
        )
        for model, layout, rows, events in groups:
            whole = len(rows) == end - start
            located = Located(
                (topic, self._topic_ids[topic], number),
                events,
                offsets if whole else [offsets[row] for row in rows],
                times_ms if whole else [times_ms[row] for row in rows],
            )
            held = self._held[kind]
            if len(events) >= _MUCH:
                # What came before it must also be joined before it.
                self._take_held(kind, held.pop(model.name, []))
                values = batch.values[start:end] if whole else [batch.values[start + row] for row in rows]
                self._take(kind, EventRows.of(model, layout, [located]), values)
            else:
                groups_of = held.setdefault(model.name, [])
                if not groups_of or groups_of[-1][0] is not model or groups_of[-1][1] is not layout:
                    groups_of.append((model, layout, []))
                groups_of[-1][2].append(located)
        for row, fault in faults.items():
            self._bury(batch, start + row, fault)

    def due(self) -> bool:
        """Flush every `flush_ms`, at `flush_rows`, or when the dead letters are large."""
        waited_ms = (time.monotonic() - self._flushed_at) * 1000
        worker = self._settings.worker
        full = self._rows >= worker.flush_rows or self._dead_bytes >= _MUCH_DEAD
        return full or waited_ms >= worker.flush_ms

    def prepare(self) -> None:
        """Count what was gathered, and make its joins durable: what the store forgot could not be joined again."""
        self._count()
        self._store.barrier()

    def results(self, positions: dict[Partition, int]) -> Iterable[Record]:
        """One message (or what it takes) for every evaluate partition, increments or not, and the dead letters."""
        self._count()
        partitions = self._settings.internal_partitions
        by_partition: dict[int, list[tuple[Slot, Gathering]]] = defaultdict(list)
        for slot, gathering in self._slots.items():
            by_partition[partition_of(slot.model, partitions)].append((slot, gathering))
        marks: dict[int, list[ModelMark]] = defaultdict(list)
        for (model, _topic, _index), mark in self._marks.items():
            marks[partition_of(model, partitions)].append(mark)
        progress = [
            SourceProgress(
                p.topic, self._topic_ids[p.topic], p.number, self._progress[p], end, self._read_up_to.get(p, 0)
            )
            for p, end in positions.items()
        ]
        for partition in range(partitions):
            partial = Partial(
                ingest=self._replica,
                progress=progress,
                partition_counts=self._counts,
                increments=[gathering.increment(slot) for slot, gathering in by_partition[partition]],
                marks=marks[partition],
                tallies={m: t for m, t in self._tallies.items() if partition_of(m, partitions) == partition},
            )
            for value in _messages(partial):
                yield Record(self._partials, value, partition=partition)
        yield from self._dead
        self._progress = positions

    def committed(self) -> None:
        """Begin the next flush with nothing gathered."""
        self._clear()
        self._store.begin()
        self._flushed_at = time.monotonic()

    def idle(self) -> None:
        """Ingest has nothing to do between reads."""

    def _clear(self) -> None:
        self._held: dict[str, dict[str, list[Held]]] = {kind: {} for kind in RAW}
        self._pieces: list[Piece] = []
        self._given: list[Given] = []
        self._slots: dict[Slot, Gathering] = {}
        self._marks: dict[tuple[str, str, int], ModelMark] = {}
        self._tallies: dict[str, dict[str, int]] = {}
        self._dead: list[Record] = []
        self._dead_bytes = 0
        self._rows = 0

    def _gather(self, slot: Slot) -> Gathering:
        found = self._slots.get(slot)
        if found is None:
            found = self._slots[slot] = Gathering()
        return found

    def _count(self) -> None:
        """Join and count what was gathered since the last flush: the more is joined at once, the cheaper.

        Predictions come before the labels that may be theirs; of one partition, all stay in log order.
        """
        for kind in RAW:
            held, self._held[kind] = self._held[kind], {}
            for groups in held.values():
                self._take_held(kind, groups)
        pieces, self._pieces = self._pieces, []
        given, self._given = self._given, []
        results = self._store.join_many([piece.given for piece in pieces])
        for piece, result in zip(pieces, results, strict=True):
            self._contribute(result.contributions)
            self._count_fresh(piece, result.counted)
        for result in self._store.join_many(given):
            self._contribute(result.contributions)
            telemetry.PARKED_LABELS.inc(result.parked)

    def _take_held(self, kind: Kind, groups: Iterable[Held]) -> None:
        for group in groups:
            self._take(kind, EventRows.of(*group))

    def _take(self, kind: Kind, rows: Rows, values: Sequence[bytes] | None = None) -> None:
        """Count rows that need no join, and make the others ready for it; `values` are the messages they came in."""
        if kind == "predictions":
            self._mark(rows)
            self._take_predictions(rows, values)
        elif kind == "features":
            self._mark(rows)
            self._folder.features(rows)
        else:
            self._folder.label_positions(rows)
            if rows.model.config.labels.mode == "context":
                self._folder.contributions(rows.model, context_contributions(rows))
            else:
                self._given.append(given_labels(rows, buckets=self._store.buckets))

    def _take_predictions(self, rows: Rows, values: Sequence[bytes] | None) -> None:
        """Count predictions apart from the others until the join has said which of them are repeated."""
        joined = joinable(rows)
        if joined is not None and not joined:
            self._folder.predictions(rows)
            return
        given = given_predictions(rows if joined is None else rows.take(joined), buckets=self._store.buckets)
        if values is None:
            self._pieces.append(Piece(rows, joined, given, {}, ()))
            return
        counts: dict[Slot, Gathering] = defaultdict(Gathering)
        Folder(counts.__getitem__, self._catalog.reference).predictions(rows)
        # The events themselves are let go: what they need of memory is what the next ones find at hand.
        if isinstance(rows, EventRows):
            rows = replace(rows, events=[])
        self._pieces.append(Piece(rows, joined, given, counts, values))

    def _count_fresh(self, piece: Piece, counted: Sequence[bool]) -> None:
        """Count the predictions of a piece, without those that are repeated: they count nothing anywhere."""
        if piece.counts and all(counted):
            for slot, gathering in piece.counts.items():
                self._gather(slot).merge(gathering)
            return
        rows = piece.rows
        if isinstance(rows, EventRows) and piece.values and rows.layout is not None:
            rows = replace(rows, events=predictions_again(rows.layout, piece.values))
        joined = range(len(rows)) if piece.joined is None else piece.joined
        repeated = {row for row, counts in zip(joined, counted, strict=True) if not counts}
        self._tally(rows.model.name, "repeated", len(repeated))
        self._folder.predictions(rows.take([row for row in range(len(rows)) if row not in repeated]))

    def _bury(self, batch: Batch, at: int, fault: Fault, row: int | None = None) -> None:
        """Put a message aside, or one `row` of a message of many."""
        topic, number = batch.partition
        reason, field = fault
        key, value, headers = deadletters.build(
            raw=batch.values[at],
            key=batch.keys[at],
            topic=topic,
            partition=number,
            offset=batch.offsets[at],
            row=row,
            reason=reason,
            field=field,
            mode=self._settings.dead_letters.mode,
        )
        self._dead.append(Record(self._dead_topic, value, key=key, headers=headers))
        self._dead_bytes += len(value)
        telemetry.DEAD_LETTERS.labels(self._kinds[topic], known_field(field)).inc()

    def _mark(self, rows: Rows) -> None:
        """Note the model's largest live event time in each partition, and the time of its last record."""
        live = rows.origins.equal("live")
        times_ms, places = rows.times_ms, rows.places
        for index, source in enumerate(places.sources):
            (here,) = np.nonzero(live & (places.source == index))
            if not len(here):
                continue
            topic, _id, number = source
            key = (rows.model.name, topic, number)
            event_ms = int(times_ms[here].max())
            held = self._marks.get(key)
            if held is not None:
                event_ms = max(event_ms, held.event_time_ms)
            self._marks[key] = ModelMark(*key, event_ms, int(places.record_times_ms[here[-1]]))

    def _contribute(self, contributions: Iterable[Any]) -> None:
        by_model: dict[str, list[Any]] = defaultdict(list)
        for contribution in contributions:
            by_model[contribution.model].append(contribution)
        for name, rows in by_model.items():
            model = self._catalog.model(name)
            if model is not None:
                self._folder.contributions(model, rows)

    def _tally(self, model: str, what: str, count: int) -> None:
        if count:
            counts = self._tallies.setdefault(model, {})
            counts[what] = counts.get(what, 0) + count


def _messages(partial: Partial) -> Iterator[bytes]:
    """Encode a flush; one that is too large for a message goes in several, and only the last lets time pass.

    Counts add up, so it does not matter how they are cut; progress, marks and tallies are said once.
    """
    value = _PACK.encode(partial)
    if len(value) <= MAX_PARTIAL_BYTES or len(partial.increments) < 2:
        yield value
        return
    half = len(partial.increments) // 2
    yield from _messages(
        Partial(ingest=partial.ingest, progress=[], partition_counts={}, increments=partial.increments[:half])
    )
    yield from _messages(msgspec.structs.replace(partial, increments=partial.increments[half:]))
