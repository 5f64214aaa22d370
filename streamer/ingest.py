"""The first stage: raw topics in large batches, checked, joined with their labels, folded, sent on as increments."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import structlog

from streamer import deadletters, telemetry
from streamer.catalog import Catalog, Model
from streamer.decode import decode, explain_future, explain_invalid, known_field
from streamer.events import Label, ModelMark, Partial, SourceProgress
from streamer.fold import Folder, Located
from streamer.increments import Gathering, Slot
from streamer.labelling import context_contributions, label_entry, prediction_entry, unusable
from streamer.labels import JoinStore
from streamer.partitioning import partition_of
from streamer.settings import Settings
from streamer.transaction import Batch, Partition, Record, Standing, resume

log = structlog.get_logger(__name__)

RAW = ("predictions", "features", "labels")
_PACK = msgspec.msgpack.Encoder()


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
        """Check, join and fold one batch of one raw topic's partition."""
        self._read_up_to[batch.partition] = batch.read_up_to_ms
        if not batch.values:
            return
        kind = self._kinds[batch.partition.topic]
        located = self._accept(kind, batch)
        self._rows += len(batch.values)
        telemetry.EVENTS.labels(kind).inc(len(batch.values))
        by_model: dict[str, list[int]] = defaultdict(list)
        for row, event in enumerate(located.events):
            by_model[event.model].append(row)
        models = {name: self._known(name) for name in by_model}
        if kind == "predictions":
            self._fold_predictions(located, by_model, models)
            self._mark(located, by_model, batch)
        elif kind == "features":
            for name, rows in by_model.items():
                self._folder.features(models[name], located, rows)
            self._mark(located, by_model, batch)
        else:
            self._fold_labels(located, by_model, models)

    def due(self) -> bool:
        """Flush every `flush_ms`, or at `flush_rows`."""
        waited_ms = (time.monotonic() - self._flushed_at) * 1000
        worker = self._settings.worker
        return self._rows >= worker.flush_rows or waited_ms >= worker.flush_ms

    def prepare(self) -> None:
        """Make the label joins durable: what the store forgot could not be joined again."""
        self._store.barrier()

    def results(self, positions: dict[Partition, int]) -> Iterable[Record]:
        """One message for every evaluate partition, with or without increments, and the dead letters."""
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
            yield Record(self._partials, _PACK.encode(partial), partition=partition)
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

    def _known(self, name: str) -> Model:
        model = self._catalog.model(name)
        if model is None:
            raise RuntimeError(f"model {name} left the catalog inside a batch")
        return model

    def _accept(self, kind: Any, batch: Batch) -> Located:
        """Decode a batch; what cannot be used becomes a dead letter that says why."""
        topic, number = batch.partition
        located = Located((topic, self._topic_ids[topic], number), [], [], [])
        for row, value in enumerate(batch.values):
            try:
                event = decode(value, kind)
            except (msgspec.DecodeError, ValueError, RecursionError):
                self._bury(batch, row, *explain_invalid(value, kind))
                continue
            record_ms = batch.record_times_ms[row]
            fault = self._refusal(event) or explain_future(event.ts, record_ms, self._settings.worker.max_future_ms)
            if fault is not None:
                self._bury(batch, row, *fault)
                continue
            located.events.append(event)
            located.offsets.append(batch.offsets[row])
            located.record_times_ms.append(record_ms)
        return located

    def _refusal(self, event: Any) -> tuple[str, str] | None:
        model = self._catalog.model(event.model)
        if model is None:
            return f"model: got {event.model!r}, which is not configured; driftloop models apply its file", "model"
        return unusable(model, event)

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

    def _mark(self, located: Located, by_model: dict[str, list[int]], batch: Batch) -> None:
        """Note each model's largest live event time, and the time of its last record."""
        for name, rows in by_model.items():
            live = [row for row in rows if getattr(located.events[row], "origin", "live") == "live"]
            if not live:
                continue
            key = (name, *batch.partition)
            event_ms = max(located.events[row].ts for row in live)
            held = self._marks.get(key)
            if held is not None:
                event_ms = max(event_ms, held.event_time_ms)
            self._marks[key] = ModelMark(name, *batch.partition, event_ms, located.record_times_ms[live[-1]])

    def _fold_predictions(self, located: Located, by_model: dict[str, list[int]], models: dict[str, Model]) -> None:
        """Join first: a repeated prediction counts nothing anywhere."""
        joined: list[tuple[int, Any]] = []
        repeated: set[int] = set()
        for name, rows in by_model.items():
            for row in rows:
                entry = prediction_entry(models[name], located, row)
                if entry is not None:
                    joined.append((row, entry))
        joined.sort(key=lambda pair: pair[0])
        if joined:
            result = self._store.join([entry for _row, entry in joined])
            repeated = {row for (row, _e), counted in zip(joined, result.counted, strict=True) if not counted}
            self._contribute(result.contributions)
        for name, rows in by_model.items():
            fresh = [row for row in rows if row not in repeated]
            self._tally(name, "repeated", len(rows) - len(fresh))
            self._folder.predictions(models[name], located, fresh)

    def _fold_labels(self, located: Located, by_model: dict[str, list[int]], models: dict[str, Model]) -> None:
        entries = []
        for name, rows in by_model.items():
            model = models[name]
            self._folder.label_positions(model, located, rows)
            labels: list[Label] = [located.events[row] for row in rows]
            if model.config.labels.mode == "context":
                self._folder.contributions(model, context_contributions(model, labels))
            else:
                entries += [(row, label_entry(model, located, row)) for row in rows]
        if not entries:
            return
        entries.sort(key=lambda pair: pair[0])
        result = self._store.join([entry for _row, entry in entries])
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
