"""The first stage: raw topics in large batches, checked, joined with their labels, folded, sent on as increments."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain, groupby, repeat
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from streamer import telemetry
from streamer.catalog import Catalog
from streamer.counting.fold import Counted, Folder, sampled_rows
from streamer.counting.increments import Binned
from streamer.counting.labelling import context_contributions, given_features, given_labels, given_predictions, joins
from streamer.counting.rows import EventRows, Places, Rows
from streamer.decode import Kind
from streamer.decoding.arrow_schema import BEGIN
from streamer.decoding.bulk_decode import BulkDecoder, Fault
from streamer.events import Partial, SourceProgress
from streamer.explain import known_field
from streamer.join.bulk import Given
from streamer.join.labels import JoinStore
from streamer.join.sync_rhythm import SyncRhythm
from streamer.letters import deadletters
from streamer.letters.notices import Notices
from streamer.partials import messages
from streamer.settings import Settings
from streamer.stage import Batch, Partition, Record, Standing, resume

if TYPE_CHECKING:
    from streamer.decoding.arrow_checks import Buried

log = structlog.get_logger(__name__)

RAW: tuple[Kind, ...] = ("predictions", "features", "labels")
# So many messages are dealt with at a time: what is made of them then still lies in the processor's cache.
_SLICE = 4_000

# Dead letters are kept whole until the flush, and each may be as large as a message can be.
_MUCH_DEAD = 16_000_000


class Piece(NamedTuple):
    """Predictions that wait for the join to say which of them are repeated.

    Attributes
    ----------
    joined : the rows that are joined.
    """

    binned: Binned
    joined: NDArray[np.int64]
    given: Given


class Read(NamedTuple):
    """What one read brought of one topic, partition after partition.

    Attributes
    ----------
    firsts : where each batch begins among `values` and `places`.
    """

    kind: Kind
    batches: Sequence[Batch]
    values: list[bytes]
    places: Places
    firsts: NDArray[np.int64]


class Flush(NamedTuple):
    """What is published of everything that was read since the last flush, but for how far it was read."""

    counted: Counted
    tallies: dict[str, dict[str, int]]


class Ingest:
    """The ingest stage of one worker (see `streamer.stage.Stage`)."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        store: JoinStore,
        *,
        replica: str,
        topic_ids: Mapping[str, str],
        partition_counts: Callable[[], Mapping[str, int]],
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._store = store
        self._replica = replica
        self._kinds = {settings.topic(kind): kind for kind in RAW}
        self._topic_ids = topic_ids
        self._ask_counts = partition_counts
        self._counts: dict[str, int] = {}
        self._partials = settings.topic("partials")
        self._dead_topic = settings.topic("dead-letters")
        self._decoder = BulkDecoder(catalog)
        self._folder = Folder(catalog)
        self._flushed_at = time.monotonic()
        self._rhythm = SyncRhythm()
        self._notices = Notices()
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
        # Every replica is given its partitions anew when a topic has got more of them.
        self._counts = dict(self._ask_counts())
        self._progress = {partition: resume(partition, *place) for partition, place in standing.items()}
        self._read_up_to = {}
        self._await_join_store(standing)
        self._store.begin()
        return dict(self._progress)

    def held_back(self) -> Collection[Partition]:
        """Labels, and feature logs that are joined, wait in their topics while the join store is lost."""
        return self._held_back

    def _await_join_store(self, standing: Mapping[Partition, Standing]) -> None:
        """Go on without labels where the store has lost its records: what they find nothing of could not be mended."""
        new = all(place.committed is None for place in standing.values())
        whole = not standing or self._store.is_whole(new=new)
        waiting = [self._settings.topic("labels")]
        if any(model.logged_slices for model in self._catalog.models()):
            waiting.append(self._settings.topic("features"))
        self._held_back = [] if whole else [place for place in standing if place.topic in waiting]
        telemetry.LABELS_HELD_BACK.set(len(self._held_back))
        if not whole:
            log.error(
                "join_store_lost",
                waiting=" and ".join(waiting),
                remedy="stop every ingest, run `driftloop replay --rebuild-join`, start them again",
            )

    def fold(self, batch: Batch) -> None:
        """Take in one batch of one raw topic's partition; `idle` looks at all of a read at once."""
        self._read_up_to[batch.partition] = batch.read_up_to_ms
        if batch.values:
            self._unread[self._kinds[batch.partition.topic]].append(batch)
            self._rows += len(batch.values)

    def idle(self) -> None:
        """Check and bin what the last read brought, of all partitions together, while it is at hand."""
        for kind in RAW:
            batches, self._unread[kind] = self._unread[kind], []
            if batches:
                self._read(kind, batches)

    def _read(self, kind: Kind, batches: Sequence[Batch]) -> None:
        lengths = [len(batch.values) for batch in batches]
        values = batches[0].values if len(batches) == 1 else list(chain.from_iterable(b.values for b in batches))
        places = Places(
            [(topic, self._topic_ids[topic], number) for topic, number in (batch.partition for batch in batches)],
            np.repeat(np.arange(len(batches)), lengths),
            np.array(list(chain.from_iterable(batch.offsets for batch in batches)), dtype=np.int64),
            np.array(list(chain.from_iterable(batch.record_times_ms for batch in batches)), dtype=np.int64),
        )
        read = Read(kind, batches, values, places, np.cumsum([0, *lengths]))
        # Messages of many events apart from the others, all in the order they came in.
        start = 0
        for many, run in groupby(map(bytes.startswith, values, repeat(BEGIN))):
            end = start + len(list(run))
            for first in range(start, end, 1 if many else _SLICE):
                if many:
                    self._read_many(read, first)
                else:
                    self._read_slice(read, first, min(first + _SLICE, end))
            start = end

    def _read_slice(self, read: Read, start: int, end: int) -> None:
        telemetry.EVENTS.labels(read.kind).inc(end - start)
        here = read.places.take(np.arange(start, end))
        limit_ms = self._settings.worker.max_future_ms
        decoded, faults = self._decoder.decode(read.kind, read.values[start:end], here.record_times_ms, limit_ms)
        if decoded.events:
            found = here if decoded.rows is None else here.take(decoded.rows)
            rows = EventRows(decoded.models, decoded.model_of, decoded.layouts, decoded.events, found)
            self._take(read.kind, rows)
        for row, fault in faults.items():
            self._bury(read, start + row, fault)

    def _read_many(self, read: Read, at: int) -> None:
        """Read a message of many events."""
        # Where nobody sends any, a worker does without Arrow: a quarter of its memory at rest.
        from streamer.decoding.arrow_batches import read as read_batch
        from streamer.decoding.arrow_checks import sorted_out
        from streamer.decoding.arrow_stream import Malformed

        place = read.places.take(np.array([at]))
        try:
            events = read_batch(read.values[at], read.kind)
            rows, buried = sorted_out(events, self._catalog, place, self._settings.worker.max_future_ms)
        except Malformed as malformed:
            telemetry.EVENTS.labels(read.kind).inc()
            self._bury(read, at, malformed.fault)
            return
        self._rows += len(events)
        telemetry.EVENTS.labels(read.kind).inc(len(events))
        if len(rows):
            self._take(read.kind, rows)
        for each in buried:
            self._bury(read, at, each.fault, each)

    def due(self) -> bool:
        """Flush every `flush_ms` or with the join store's disk, at `flush_rows`, or when the dead letters are large."""
        now_s = time.monotonic()
        worker = self._settings.worker
        full = self._rows >= worker.flush_rows or self._dead_bytes >= _MUCH_DEAD
        return full or ((now_s - self._flushed_at) * 1000 >= worker.flush_ms and self._rhythm.is_time(now_s))

    def prepare(self) -> None:
        """Join and count what was read, and make its joins durable: what the store forgot could not be joined again."""
        began_s = time.monotonic()
        self._count()
        joined_s = time.monotonic()
        self._store.barrier()
        self._rhythm.note(began_s, joined_s, time.monotonic())

    def results(self, positions: dict[Partition, int]) -> Iterable[Record]:
        """One message (or what it takes) for every evaluate partition, increments or not, and the dead letters."""
        counted, tallies = self._count()
        progress = [
            SourceProgress(
                p.topic, self._topic_ids[p.topic], p.number, self._progress[p], end, self._read_up_to.get(p, 0)
            )
            for p, end in positions.items()
        ]
        whole = Partial(ingest=self._replica, progress=progress, partition_counts=self._counts, sources=counted.sources)
        for partition, value in messages(whole, counted, tallies, self._settings.internal_partitions):
            yield Record(self._partials, value, partition=partition)
        yield from self._dead
        self._progress = positions

    def committed(self) -> None:
        """Begin the next flush with nothing gathered."""
        self._notices.tell()
        self._clear()
        self._store.begin()
        self._flushed_at = time.monotonic()

    def _clear(self) -> None:
        self._folder.clear()
        self._unread: dict[Kind, list[Batch]] = {kind: [] for kind in RAW}
        self._pieces: list[Piece] = []
        self._given: list[Given] = []
        self._flush: Flush | None = None
        self._dead: list[Record] = []
        self._dead_bytes = 0
        self._rows = 0

    def _count(self) -> Flush:
        """Join and count what was gathered since the last flush, once: the more is joined at once, the cheaper.

        Predictions come before the labels that may be theirs; of one partition, all stay in log order.
        """
        if self._flush is not None:
            return self._flush
        self.idle()
        tallies: dict[str, dict[str, int]] = {}
        results = self._store.join_many([piece.given for piece in self._pieces])
        for piece, result in zip(self._pieces, results, strict=True):
            self._folder.contributions(result.contributions)
            self._folder.keep(self._fresh(piece, result.counted, tallies))
        for result in self._store.join_many(self._given):
            self._folder.contributions(result.contributions)
            telemetry.PARKED_LABELS.inc(result.parked)
        self._flush = Flush(self._folder.counted(), tallies)
        return self._flush

    def _take(self, kind: Kind, rows: Rows) -> None:
        """Bin rows, and make those ready that the join is for."""
        if kind == "predictions":
            binned = self._folder.bin_predictions(rows)
            (joined,) = np.nonzero(binned.sampled & joins(rows))
            if not len(joined):
                self._folder.keep(binned)
                return
            chosen = rows if len(joined) == len(rows) else rows.take(joined)
            self._pieces.append(Piece(binned, joined, given_predictions(chosen, buckets=self._store.buckets)))
        elif kind == "features":
            self._folder.features(rows)
            given = given_features(rows, buckets=self._store.buckets)
            if given is not None:
                self._given.append(given)
        else:
            self._folder.label_positions(rows)
            ours = joins(rows)
            if not ours.all():
                self._folder.contributions(context_contributions(rows.take(np.flatnonzero(~ours))))
                rows = rows.take(np.flatnonzero(ours))
            if (sampled := sampled_rows(rows)) is not None:
                rows = rows.take(np.flatnonzero(sampled))
            if len(rows):
                self._given.append(given_labels(rows, buckets=self._store.buckets))

    def _fresh(self, piece: Piece, counted: Sequence[bool], tallies: dict[str, dict[str, int]]) -> Binned:
        """Return the predictions of a piece without those that are repeated: they count nothing anywhere."""
        if all(counted):
            return piece.binned
        kept = np.ones(len(piece.binned), dtype=np.bool_)
        kept[piece.joined] = counted
        for number in piece.binned.stream[~kept].tolist():
            tally = tallies.setdefault(self._folder.stream(number).model.name, {"repeated": 0})
            tally["repeated"] += 1
        return piece.binned.only(kept)

    def _bury(self, read: Read, at: int, fault: Fault, row: Buried | None = None) -> None:
        """Put a message aside, or one `row` of a message of many."""
        number = int(read.places.source[at])
        batch, place = read.batches[number], at - int(read.firsts[number])
        reason, field = fault
        raw = batch.values[place] if row is None else row.raw
        key, value, headers = deadletters.build(
            raw=raw or b"",
            key=batch.keys[place],
            topic=batch.partition.topic,
            partition=batch.partition.number,
            offset=batch.offsets[place],
            row=None if row is None else row.row,
            reason=reason,
            field=field,
            mode="redacted" if raw is None else self._settings.dead_letters.mode,
        )
        self._dead.append(Record(self._dead_topic, value, key=key, headers=headers))
        self._dead_bytes += len(value)
        telemetry.DEAD_LETTERS.labels(read.kind, known_field(field)).inc()
        self._notices.add(batch.partition.topic, batch.partition.number, batch.offsets[place], reason, field)
