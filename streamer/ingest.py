"""The first stage: raw topics in large batches, checked, joined with their labels, folded, sent on as increments."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import structlog

from streamer import deadletters, telemetry
from streamer.bulk_decode import BulkDecoder
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
from streamer.rows import Located, Rows
from streamer.settings import Settings
from streamer.transaction import Batch, Partition, Record, Standing, resume

log = structlog.get_logger(__name__)

RAW: tuple[Kind, ...] = ("predictions", "features", "labels")
# A model, how its events lie, and what was read of it, read by read.
Held = tuple[Model, Layout | None, list[Located]]

_PACK = msgspec.msgpack.Encoder()
# Well below what a producer sends and a topic takes.
MAX_PARTIAL_BYTES = 4_000_000


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
        self._predictions = settings.topic("predictions")
        self._decoder = BulkDecoder(catalog)
        self._folder = Folder(self._gather, catalog.reference)
        self._flushed_at = time.monotonic()
        self._progress: dict[Partition, int] = {}
        self._read_up_to: dict[Partition, int] = {}
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
        self._store.begin()
        return dict(self._progress)

    def fold(self, batch: Batch) -> None:
        """Check one batch of one raw topic's partition; what is sound is counted with the whole flush."""
        self._read_up_to[batch.partition] = batch.read_up_to_ms
        if not batch.values:
            return
        kind = self._kinds[batch.partition.topic]
        self._rows += len(batch.values)
        telemetry.EVENTS.labels(kind).inc(len(batch.values))
        groups, faults = self._decoder.decode(
            kind, batch.values, batch.record_times_ms, self._settings.worker.max_future_ms
        )
        topic, number = batch.partition
        for model, layout, rows, events in groups:
            whole = len(rows) == len(batch.values)
            located = Located(
                (topic, self._topic_ids[topic], number),
                events,
                batch.offsets if whole else [batch.offsets[row] for row in rows],
                batch.record_times_ms if whole else [batch.record_times_ms[row] for row in rows],
            )
            held = self._held[kind].setdefault((id(model), id(layout)), (model, layout, []))
            held[2].append(located)
        for row, (reason, field) in faults.items():
            self._bury(batch, row, reason, field)

    def due(self) -> bool:
        """Flush every `flush_ms`, or at `flush_rows`."""
        waited_ms = (time.monotonic() - self._flushed_at) * 1000
        worker = self._settings.worker
        return self._rows >= worker.flush_rows or waited_ms >= worker.flush_ms

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
        self._held: dict[str, dict[tuple[int, int], Held]] = {kind: {} for kind in RAW}
        self._slots: dict[Slot, Gathering] = {}
        self._marks: dict[tuple[str, str, int], ModelMark] = {}
        self._tallies: dict[str, dict[str, int]] = {}
        self._dead: list[Record] = []
        self._rows = 0

    def _gather(self, slot: Slot) -> Gathering:
        found = self._slots.get(slot)
        if found is None:
            found = self._slots[slot] = Gathering()
        return found

    def _count(self) -> None:
        """Join and fold what was gathered since the last flush: the more at once, the cheaper.

        Predictions come before the labels that may be theirs; of one partition, all stay in log order.
        """
        held = {kind: [Rows.of(*each) for each in self._held[kind].values()] for kind in RAW}
        for groups in self._held.values():
            groups.clear()
        self._count_predictions(held["predictions"])
        for rows in held["features"]:
            self._folder.features(rows)
            self._mark(rows)
        self._count_labels(held["labels"])

    def _bury(self, batch: Batch, row: int, reason: str, field: str) -> None:
        topic, number = batch.partition
        key, value, headers = deadletters.build(
            raw=batch.values[row],
            key=batch.keys[row],
            topic=topic,
            partition=number,
            offset=batch.offsets[row],
            row=None,
            reason=reason,
            field=field,
            mode=self._settings.dead_letters.mode,
        )
        self._dead.append(Record(self._dead_topic, value, key=key, headers=headers))
        telemetry.DEAD_LETTERS.labels(self._kinds[topic], known_field(field)).inc()

    def _mark(self, rows: Rows) -> None:
        """Note the model's largest live event time in each partition, and the time of its last record."""
        live = np.ones(len(rows), dtype=np.bool_)
        if rows.sources and rows.sources[0][0] == self._predictions:
            live = np.array([event.origin == "live" for event in rows.events])
        times_ms = np.array([event.ts for event in rows.events], dtype=np.int64)
        for index, source in enumerate(rows.sources):
            (here,) = np.nonzero(live & (rows.source == index))
            if not len(here):
                continue
            topic, _id, number = source
            key = (rows.model.name, topic, number)
            event_ms = int(times_ms[here].max())
            held = self._marks.get(key)
            if held is not None:
                event_ms = max(event_ms, held.event_time_ms)
            self._marks[key] = ModelMark(*key, event_ms, int(rows.record_times_ms[here[-1]]))

    def _count_predictions(self, held: Sequence[Rows]) -> None:
        """Join first: a repeated prediction counts nothing anywhere."""
        joined: list[tuple[int, Sequence[int], Given]] = []
        for index, rows in enumerate(held):
            self._mark(rows)
            chosen = joinable(rows)
            if chosen is None:
                joined.append((index, range(len(rows)), given_predictions(rows)))
            elif chosen:
                joined.append((index, chosen, given_predictions(rows.take(chosen))))
        repeated: dict[int, set[int]] = defaultdict(set)
        result = self._store.join_many([given for _index, _chosen, given in joined])
        if not all(result.counted):
            counted = iter(result.counted)
            for index, places, _given in joined:
                repeated[index] = {row for row, counts in zip(places, counted, strict=False) if not counts}
        self._contribute(result.contributions)
        for index, rows in enumerate(held):
            again = repeated[index]
            self._tally(rows.model.name, "repeated", len(again))
            self._folder.predictions(
                rows if not again else rows.take([row for row in range(len(rows)) if row not in again])
            )

    def _count_labels(self, held: Sequence[Rows]) -> None:
        given = []
        for rows in held:
            self._folder.label_positions(rows)
            if rows.model.config.labels.mode == "context":
                self._folder.contributions(rows.model, context_contributions(rows.model, rows.events))
            else:
                given.append(given_labels(rows))
        result = self._store.join_many(given)
        self._contribute(result.contributions)
        telemetry.PARKED_LABELS.inc(result.parked)

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
