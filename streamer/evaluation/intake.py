"""What ingest has counted, taken in: a flush's increments into panes, its marks into clocks, its progress into time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat

import msgspec
import structlog

from monitors.sketch import Pairs, read_many
from streamer import telemetry
from streamer.catalog import Catalog
from streamer.evaluation.author import Author
from streamer.evaluation.model_record import FAULTS, Watched
from streamer.evaluation.pane_store import PaneKey, Source, in_threes, known_once
from streamer.evaluation.roster import Roster
from streamer.evaluation.shard import Known, Shard
from streamer.evaluation.state_log import ShardPosition
from streamer.evaluation.waiting import Waiting
from streamer.events import UNREADABLE, Increment, ModelMark, Partial, SourceProgress
from streamer.stage import StepFailed

log = structlog.get_logger(__name__)

# Names are the senders', without end.
_MOST_TOLD = 1_000
_PARTIAL = msgspec.msgpack.Decoder(Partial)


class Intake:
    """Takes flushes in.

    Attributes
    ----------
    changed_bytes : of panes as they were when they first changed; whoever stores them sets it back.
    """

    def __init__(self, catalog: Catalog, author: Author, roster: Roster, *, alive: Callable[[], None]) -> None:
        self._catalog = catalog
        self._author = author
        self._roster = roster
        self._alive = alive
        self.changed_bytes = 0
        self._told_versions: set[tuple[str, str]] = set()
        self._told_epochs: set[tuple[str, int]] = set()
        self._told_unknown: set[str] = set()
        self._told_as_of = catalog.revision

    def apply(self, shard: Shard, flush: Partial) -> None:
        """Take in one flush of one ingest: counts first, then time, then what time has completed."""
        if shard.known_as_of != self._catalog.revision:
            shard.known_as_of = self._catalog.revision
            shard.known.clear()
        sources = list(map(known_once, flush.sources))
        self._add_all(shard, flush.increments, sources)
        for name, tallies in flush.tallies.items():
            if (known := self._known(shard, name)) is not None:
                for what, count in tallies.items():
                    _tally(known.watched, what, count)
        places = [(topic, number) for topic, _topic_id, number in sources]
        for mark in flush.marks:
            if (known := self._known(shard, mark.model)) is not None:
                try:
                    _observe(mark, places, shard.waiting, known.watched)
                except FAULTS as error:
                    self._roster.fault(shard, known.watched, error)
        position = shard.position
        for progress in flush.progress:
            _note_progress(position, progress)
        if not flush.partition_counts.items() <= position.counts.items():
            position.counts.update(flush.partition_counts)
            shard.waiting.wake(shard.models)
        if shard.configured_as_of != self._catalog.revision:
            shard.configured_as_of = self._catalog.revision
            shard.waiting.wake(shard.models)
        self._advance(shard)

    def _known(self, shard: Shard, name: str) -> Known | None:
        """Return a model; it is looked up once for as long as the catalog stays as it is."""
        known = shard.known.get(name)
        if known is None and (model := self._roster.model(name)) is not None:
            known = Known(shard.watched(model), int(model.config.time.retention), model.schema)
            shard.known[name] = known
        return known

    def _add_all(self, shard: Shard, increments: Sequence[Increment], sources: Sequence[Source]) -> None:
        # One by one only where something is wrong with some of them: then that model is told apart.
        read = read_many([increment.cells for increment in increments]) or repeat(None)
        unknown: dict[str, int] = {}
        for increment, pairs in zip(increments, read, strict=False):
            known = self._known(shard, increment.model)
            if known is None:
                unknown[increment.model] = unknown.get(increment.model, 0) + increment.events
                continue
            try:
                self._add(increment, sources, pairs, known)
            except FAULTS as error:
                self._roster.fault(shard, known.watched, error)
        for name, events in unknown.items():
            self._tell_of_unknown(name, events)

    def _advance(self, shard: Shard) -> None:
        """Look at what time has completed of the models that time can have completed something of."""
        read_up_to = {source: read for source, (_id, _end, read) in shard.position.progress.items()}
        latest = max(read_up_to.values(), default=0)
        act = partial(self._author.advance, shard, read_up_to)
        for name in shard.waiting.ready(latest):
            watched = shard.models.get(name)
            # What is kept of a model that is configured no more stands still.
            if watched is None or watched.record.clock.waits_until_ms is None or self._catalog.model(name) is None:
                continue
            self._roster.guarded(shard, name, act)
            # Looks of many panes at once, as after a long absence, are no silence.
            self._alive()
            shard.waiting.until(name, watched.record.clock.waits_until_ms, latest)

    def _add(self, increment: Increment, sources: Sequence[Source], pairs: Pairs | None, known: Known) -> None:
        watched, record, start_ms = known.watched, known.watched.record, increment.pane_start_ms
        clock = record.clock
        if increment.model_epoch != record.model_epoch:
            _tally(watched, "other_epoch", increment.events)
            telemetry.OTHER_EPOCH.labels(increment.model).inc(increment.events)
            self._tell_of_epoch(increment, record.model_epoch)
            return
        if start_ms < clock.watermark_ms - known.retention_ms:
            _tally(watched, "too_late", increment.events)
            telemetry.TOO_LATE.labels(increment.model).inc(increment.events)
            return
        late = increment.origin == "live" and clock.is_late(start_ms)
        if increment.source != "labels":
            if late:
                _tally(watched, "late", increment.events)
                telemetry.LATE.labels(increment.model).inc(increment.events)
            if not increment.fingerprint:
                self._tell_of_no_reference(increment.model, increment.version)
        key = PaneKey(increment.version, increment.origin, increment.pane_ms, start_ms)
        if key not in watched.dirty and key in watched.panes:
            self.changed_bytes += watched.panes[key].nbytes
        watched.add(key, increment, sources, late=late, schema=known.schema, pairs=pairs)

    def _tell_of_epoch(self, increment: Increment, held_epoch: int) -> None:
        told = (increment.model, increment.model_epoch)
        if told not in self._told_epochs:
            self._told_epochs.add(told)
            log.warning("other_epoch", model=told[0], model_epoch=told[1], counted=held_epoch)

    def _tell_of_no_reference(self, model: str, version: str) -> None:
        """Say once of a version that nothing is known to hold its events against."""
        if (model, version) in self._told_versions or len(self._told_versions) >= _MOST_TOLD:
            return
        if self._catalog.reference(model, version) is None:
            self._told_versions.add((model, version))
            log.warning("no_reference", model=model, version=version, counted="without cells, so its drift is unknown")

    def _tell_of_unknown(self, model: str, events: int) -> None:
        """Count what ingest counted of a model that is not known here, and say so: nobody counts it again.

        Of one that has been deleted nothing is to be counted.
        """
        if not events or self._catalog.is_deleted(model):
            return
        telemetry.UNKNOWN_MODEL.labels(model).inc(events)
        if self._told_as_of != self._catalog.revision:
            self._told_as_of = self._catalog.revision
            self._told_unknown.clear()
        if model not in self._told_unknown:
            self._told_unknown.add(model)
            log.error("events_of_unknown_model", model=model, events=events, remedy="driftloop models apply its file")


def read_flush(value: bytes, place: str) -> Partial | None:
    """Read one flush; None for what no ingest has written.

    Counts lie in no other message: one of ours that cannot be read must not be passed over. A stranger's holds
    none, and must not stop every model of its partition.

    Raises
    ------
    StepFailed
        An ingest has written it, of another release.
    """
    try:
        return _PARTIAL.decode(value)
    except UNREADABLE as error:
        reason = str(error)
    try:
        document = msgspec.msgpack.decode(value)
    except UNREADABLE:
        document = None
    if isinstance(document, dict) and "ingest" in document:
        raise StepFailed(
            f"{place}: written by ingest {document['ingest']!r}, but not as this release reads it ({reason}); run the "
            "same release of driftloop everywhere"
        )
    log.error("foreign_message", place=place, bytes=len(value), reason=reason)
    telemetry.FOREIGN_MESSAGES.inc()
    return None


def _note_progress(position: ShardPosition, progress: SourceProgress) -> None:
    source = (progress.topic, progress.partition)
    held = position.progress.get(source)
    if held is not None and held[0] == progress.topic_id and progress.start != held[1]:
        what = "overlap" if progress.start < held[1] else "lost_range"
        log.error(what, topic=progress.topic, partition=progress.partition, start=held[1], end=progress.start)
        telemetry.LOST_RANGE.labels(progress.topic).inc(abs(progress.start - held[1]))
    read_up_to = max(progress.read_up_to_ms, held[2] if held else 0)
    position.progress[source] = (progress.topic_id, progress.end, read_up_to)


def _observe(mark: ModelMark, places: Sequence[tuple[str, int]], waiting: Waiting, watched: Watched) -> None:
    record = watched.record
    if record.clock.observe_all([(places[at], event_ms, last_ms) for at, event_ms, last_ms in in_threes(mark.times)]):
        waiting.wake([record.name])
    record.newest_record_ms = max(record.newest_record_ms, *mark.times[2::3])
    watched.changed = True


def _tally(watched: Watched, what: str, count: int) -> None:
    tallies = watched.record.tallies
    tallies[what] = tallies.get(what, 0) + count
    watched.changed = True
