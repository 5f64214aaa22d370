"""What ingest has counted, taken in: a flush's increments into panes, its marks into clocks, its progress into time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat

import msgspec
import structlog

from monitors.sketch import decode_many
from streamer import telemetry
from streamer.catalog import Catalog, Model
from streamer.evaluation.author import Author
from streamer.evaluation.model_record import FAULTS, Watched
from streamer.evaluation.pane_store import Pairs, PaneKey, Source, in_threes, known_once
from streamer.evaluation.roster import Roster
from streamer.evaluation.shard import Shard
from streamer.evaluation.state_log import ShardPosition
from streamer.evaluation.waiting import Waiting
from streamer.events import UNREADABLE, Increment, ModelMark, Partial, SourceProgress
from streamer.stage import StepFailed

log = structlog.get_logger(__name__)

# Names are the senders', without end.
_MOST_TOLD = 1_000
_PARTIAL = msgspec.msgpack.Decoder(Partial)


@dataclass(slots=True)
class _News:
    """What a flush has of one model."""

    increments: list[tuple[Increment, Pairs | None]] = field(default_factory=list)
    marks: list[ModelMark] = field(default_factory=list)
    tallies: Mapping[str, int] = field(default_factory=dict)


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
        sources = list(map(known_once, flush.sources))
        places = [(topic, number) for topic, _topic_id, number in sources]
        for name, news in _by_model(flush).items():
            model = self._roster.model(name)
            if model is None:
                self._tell_of_unknown(name, news)
                continue
            watched = shard.watched(model)
            for increment, pairs in news.increments:
                try:
                    self._add(increment, sources, pairs, model, watched)
                except FAULTS as error:
                    self._roster.fault(shard, watched, error)
            for what, count in news.tallies.items():
                _tally(watched, what, count)
            for mark in news.marks:
                try:
                    _observe(mark, places, shard.waiting, watched)
                except FAULTS as error:
                    self._roster.fault(shard, watched, error)
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

    def _add(
        self, increment: Increment, sources: Sequence[Source], pairs: Pairs | None, model: Model, watched: Watched
    ) -> None:
        record, clock = watched.record, watched.record.clock
        if increment.model_epoch != record.model_epoch:
            _tally(watched, "other_epoch", increment.events)
            telemetry.OTHER_EPOCH.labels(model.name).inc(increment.events)
            self._tell_of_epoch(increment, record.model_epoch)
            return
        if increment.pane_start_ms < clock.watermark_ms - model.config.time.retention:
            _tally(watched, "too_late", increment.events)
            telemetry.TOO_LATE.labels(model.name).inc(increment.events)
            return
        late = clock.is_late(increment.pane_start_ms) and increment.origin == "live"
        if increment.source != "labels":
            if late:
                _tally(watched, "late", increment.events)
                telemetry.LATE.labels(model.name).inc(increment.events)
            if not increment.fingerprint:
                self._tell_of_no_reference(model.name, increment.version)
        key = PaneKey(increment.version, increment.origin, increment.pane_ms, increment.pane_start_ms)
        if key not in watched.dirty and key in watched.panes:
            self.changed_bytes += watched.panes[key].nbytes
        watched.add(key, increment, sources, late=late, dtype=model.schema.dtype, pairs=pairs)

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

    def _tell_of_unknown(self, model: str, news: _News) -> None:
        """Count what ingest counted of a model that is not known here, and say so: nobody counts it again.

        Of one that has been deleted nothing is to be counted.
        """
        events = sum(increment.events for increment, _pairs in news.increments)
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


def _by_model(flush: Partial) -> dict[str, _News]:
    found: dict[str, _News] = {}
    # One by one only where something is wrong with some of them: then that model is told apart.
    read = decode_many([increment.cells for increment in flush.increments]) or repeat(None)
    for increment, pairs in zip(flush.increments, read, strict=False):
        news = found.get(increment.model)
        if news is None:
            news = found[increment.model] = _News()
        news.increments.append((increment, pairs))
    for mark in flush.marks:
        found.setdefault(mark.model, _News()).marks.append(mark)
    for name, tallies in flush.tallies.items():
        found.setdefault(name, _News()).tallies = tallies
    return found


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
    if record.clock.observe_all((places[at], event_ms, record_ms) for at, event_ms, record_ms in in_threes(mark.times)):
        waiting.wake([record.name])
    record.newest_record_ms = max(record.newest_record_ms, *mark.times[2::3])
    watched.changed = True


def _tally(watched: Watched, what: str, count: int) -> None:
    tallies = watched.record.tallies
    tallies[what] = tallies.get(what, 0) + count
    watched.changed = True
