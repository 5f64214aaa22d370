"""The second stage: increments and commands in, panes, looks, decisions and their effects out; one author a model."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import repeat

import msgspec
import structlog

from monitors import lifecycle
from monitors.sketch import decode_many
from streamer import telemetry
from streamer.catalog import Catalog, Model
from streamer.decode import is_name
from streamer.evaluation import effects
from streamer.evaluation.author import Author
from streamer.evaluation.model_record import FAULTS, Watched
from streamer.evaluation.pane_store import Pairs, PaneKey, Source, in_threes, known_once
from streamer.evaluation.shard import Shard, restore_shard
from streamer.evaluation.state_log import ShardPosition, read_partitions
from streamer.events import UNREADABLE, Command, Increment, ModelMark, Partial, SourceProgress
from streamer.explain import is_deep
from streamer.kafka.partitioning import partition_of
from streamer.settings import Settings
from streamer.stage import Batch, Partition, Record, Standing, StepFailed, resume

log = structlog.get_logger(__name__)

# Names are the senders', without end.
_MOST_TOLD = 1_000
_PARTIAL = msgspec.msgpack.Decoder(Partial)
_CATALOG_S = 5.0
_COMMAND = msgspec.json.Decoder(Command)
_NAMING_VERSIONS = ("version", "challenger")
_A_NAME = "a name of 1 to 100 of a-z, 0-9, '.', '_' and '-'"
# What of it is kept and answered has to fit into messages of its own.
MAX_COMMAND_BYTES = 100_000


Act = Callable[[Model, Watched], None]


class Evaluate:
    """The evaluate stage of one worker (see `streamer.stage.Stage`).

    Everything a decision rests on, time included, comes from the two input topics.
    """

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        *,
        consumer_properties: dict[str, str],
        show: Callable[[Iterable[Shard]], Iterable[tuple[Shard, Watched, Exception]]],
        topic_ids: Mapping[str, str] | None = None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._properties = consumer_properties
        self._show = show
        self._topic_ids = topic_ids or {}
        self._alive = alive
        self._partials = settings.topic("partials")
        self._commands = settings.topic("commands")
        self._state = settings.topic("state")
        self._shards: dict[int, Shard] = {}
        self._author = Author(settings, catalog)
        self._committed_at = time.monotonic()
        # Of panes as they were when they first changed, and of what has come since.
        self._changed_bytes = 0
        self._shown_at = self._looked_at = 0.0
        self._news = False
        self._absent: set[str] = set()
        self._absent_as_of = catalog.revision
        self._buried_as_of = -1
        self._patience_s = _CATALOG_S
        self._told_versions: set[tuple[str, str]] = set()
        self._told_epochs: set[tuple[str, int]] = set()
        self._told_unknown: set[str] = set()

    @property
    def topics(self) -> list[str]:
        """The topics this stage reads: both have the same partitions, and a replica owns the same of each."""
        return [self._partials, self._commands]

    def restore(self, standing: dict[Partition, Standing]) -> dict[Partition, int]:
        """Read the state of every owned partition back; it must name the offsets that are committed."""
        self._author.effects.clear()
        self._changed_bytes = 0
        self._shards = {}
        self._buried_as_of = -1
        starts: dict[Partition, int] = {}
        owned = sorted({partition.number for partition in standing})
        began = time.monotonic()
        stored = read_partitions(self._properties, self._state, owned, alive=self._alive)
        read_s = time.monotonic() - began
        for index in owned:
            self._alive()
            shard = self._shards[index] = restore_shard(index, stored.pop(index))
            for topic in self.topics:
                partition = Partition(topic, index)
                if partition not in standing:
                    raise StepFailed(
                        f"{topic}[{index}] is not assigned with its sibling; both must have the same count"
                    )
                place = standing[partition]
                agreed = self._agreed(shard, partition, standing)
                starts[partition] = resume(partition, agreed, place.low, place.high)
        self._count_faulted()
        log.info(
            "restored",
            partitions=len(self._shards),
            models=sum(len(shard.models) for shard in self._shards.values()),
            read_s=round(read_s, 3),
            decode_s=round(time.monotonic() - began - read_s, 3),
        )
        return starts

    def held_back(self) -> tuple[Partition, ...]:
        """All that is owned is read."""
        return ()

    def fold(self, batch: Batch) -> None:
        """Apply increments or answer commands, in the order of the log."""
        shard = self._shards[batch.partition.number]
        for value, record_ms, offset in zip(batch.values, batch.record_times_ms, batch.offsets, strict=True):
            shard.position.now_ms = max(shard.position.now_ms, record_ms)
            if batch.partition.topic == self._partials:
                self._changed_bytes += len(value)
                flush = _flush(value, f"{self._partials}[{shard.index}] offset {offset}")
                if flush is not None:
                    self._apply(shard, flush)
            else:
                self._answer(shard, value, offset)
        if batch.partition.topic == self._commands and batch.at_end:
            if not shard.commands_read:
                # The split is kept back until here: what was shown so far is shown again, with it.
                shard.commands_read = self._news = True
                for watched in shard.models.values():
                    watched.shown = False
            for watched, error in self._author.expire(shard, min(shard.position.now_ms, batch.read_up_to_ms)):
                self._fault(shard, watched, error)

    def due(self) -> bool:
        """Commit at once for an effect, else every `commit_ms` or `commit_bytes` of changes."""
        worker = self._settings.worker
        waited_ms = (time.monotonic() - self._committed_at) * 1000
        full = self._changed_bytes >= worker.commit_bytes
        return bool(self._author.effects) or full or waited_ms >= worker.commit_ms

    def prepare(self) -> None:
        """Nothing outside Kafka is relied on."""

    def results(self, positions: dict[Partition, int]) -> Iterator[Record]:
        """Effects, each changed pane once, each changed model's record, and the position they stand at."""
        yield from self._author.effects
        for shard in self._shards.values():
            for topic in self.topics:
                shard.position.applied[topic] = positions[Partition(topic, shard.index)]
            yield from shard.changes(self._state)

    def committed(self) -> None:
        """Forget what has been published."""
        self._author.effects.clear()
        self._committed_at = time.monotonic()
        self._changed_bytes = 0
        for shard in self._shards.values():
            shard.settle()
        self._count_faulted()

    def idle(self) -> None:
        """Show what is new as soon as the last news are `view_ms` old; it may be a flush ahead of what is committed.

        Without news, look every `view_ms` whether the view is still there.
        """
        self._patience_s = _CATALOG_S
        if self._buried_as_of != self._catalog.revision:
            self._buried_as_of = self._catalog.revision
            self._bury()
        now_s, every_s = time.monotonic(), self._settings.worker.view_ms / 1000
        if now_s < self._shown_at + every_s or not (self._news or now_s >= self._looked_at + every_s):
            return
        self._looked_at = now_s
        if self._news:
            self._shown_at, self._news = now_s, False
        for shard, watched, error in self._show(self._shards.values()):
            self._fault(shard, watched, error)

    def _bury(self) -> None:
        """Forget the models that have been deleted; one that is merely unknown, or refused, is kept."""
        for shard in self._shards.values():
            for name in [name for name in shard.models if self._catalog.is_deleted(name)]:
                shard.bury(name)
                log.info("model_forgotten", model=name)

    def _apply(self, shard: Shard, flush: Partial) -> None:
        """Take in one flush of one ingest: counts first, then time, then what time has completed."""
        self._news = self._news or bool(flush.increments)
        sources = list(map(known_once, flush.sources))
        acts: dict[str, list[Act]] = defaultdict(list)
        # One by one only where something is wrong with some of them: then that model is told apart.
        read = decode_many([increment.cells for increment in flush.increments]) or repeat(None)
        for increment, pairs in zip(flush.increments, read, strict=False):
            acts[increment.model].append(partial(self._add, increment, sources, pairs))
        for mark in flush.marks:
            acts[mark.model].append(partial(_observe, mark, sources))
        for name, tallies in flush.tallies.items():
            acts[name].append(partial(_tally_all, tallies))
        for name, of_model in acts.items():
            if not self._guarded(shard, name, of_model, even_if_faulted=True):
                self._tell_of_unknown(name, flush)
        position = shard.position
        for progress in flush.progress:
            _note_progress(position, progress)
        if not flush.partition_counts.items() <= position.counts.items():
            position.counts.update(flush.partition_counts)
            shard.waiting.wake(shard.models)
        if shard.configured_as_of != self._catalog.revision:
            shard.configured_as_of = self._catalog.revision
            shard.waiting.wake(shard.models)
        shard.waiting.wake(mark.model for mark in flush.marks)
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
            self._guarded(shard, name, [act])
            # Looks of many panes at once, as after a long absence, are no silence.
            self._alive()
            shard.waiting.until(name, watched.record.clock.waits_until_ms, latest)

    def _add(
        self, increment: Increment, sources: Sequence[Source], pairs: Pairs | None, model: Model, watched: Watched
    ) -> None:
        held_epoch = watched.record.model_epoch
        if increment.model_epoch != held_epoch:
            _tally(watched, "other_epoch", increment.events)
            telemetry.OTHER_EPOCH.labels(model.name).inc(increment.events)
            if (model.name, increment.model_epoch) not in self._told_epochs:
                self._told_epochs.add((model.name, increment.model_epoch))
                log.warning("other_epoch", model=model.name, model_epoch=increment.model_epoch, counted=held_epoch)
            return
        floor_ms = watched.record.clock.watermark_ms - int(model.config.time.retention)
        if increment.pane_start_ms < floor_ms:
            _tally(watched, "too_late", increment.events)
            telemetry.TOO_LATE.labels(model.name).inc(increment.events)
            return
        late = watched.record.clock.is_late(increment.pane_start_ms) and increment.origin == "live"
        if late and increment.source != "labels":
            _tally(watched, "late", increment.events)
            telemetry.LATE.labels(model.name).inc(increment.events)
        if not increment.fingerprint and increment.source != "labels":
            self._tell_of_no_reference(model.name, increment.version)
        key = PaneKey(increment.version, increment.origin, increment.pane_ms, increment.pane_start_ms)
        if key not in watched.dirty and key in watched.panes:
            self._changed_bytes += watched.panes[key].nbytes
        watched.add(key, increment, sources, late=late, dtype=model.schema.dtype, pairs=pairs)

    def _tell_of_no_reference(self, model: str, version: str) -> None:
        """Say once of a version that nothing is known to hold its events against."""
        if (model, version) in self._told_versions or len(self._told_versions) >= _MOST_TOLD:
            return
        if self._catalog.reference(model, version) is None:
            self._told_versions.add((model, version))
            log.warning("no_reference", model=model, version=version, counted="without cells, so its drift is unknown")

    def _tell_of_unknown(self, model: str, flush: Partial) -> None:
        """Count what ingest counted of a model that is not known here, and say so: nobody counts it again.

        Of one that has been deleted nothing is to be counted.
        """
        events = sum(increment.events for increment in flush.increments if increment.model == model)
        if not events or self._catalog.is_deleted(model):
            return
        telemetry.UNKNOWN_MODEL.labels(model).inc(events)
        if model not in self._told_unknown:
            self._told_unknown.add(model)
            log.error("events_of_unknown_model", model=model, events=events, remedy="driftloop models apply its file")

    def _answer(self, shard: Shard, raw: bytes, offset: int) -> None:
        """Answer one command; only evaluate changes a model's state, and every answer is in the ledger.

        What is no command has nobody to answer: it gets a line in the log.
        """
        try:
            command = _COMMAND.decode(raw)
            if is_deep(raw):
                raise ValueError("nested too deeply")
        except UNREADABLE as error:
            log.error("command_refused", topic=self._commands, partition=shard.index, offset=offset, reason=str(error))
            return
        if command.kind == "tick":
            return
        self._news = True
        reason = self._misdirected(shard, command)
        if len(raw) > MAX_COMMAND_BYTES:
            reason = f"command: got {len(raw)} bytes, wanted at most {MAX_COMMAND_BYTES}"
        if reason is not None:
            log.warning("command_refused", command_id=command.command_id, model=command.model[:100], reason=reason)
            # Where its sender waits for it.
            home = partition_of(command.model, self._settings.internal_partitions)
            answer = effects.refusal(self._settings, home, command, reason, shard.position.now_ms)
            self._author.effects.append(answer)
            return
        self._guarded(shard, command.model, [partial(self._author.answer, shard, command)], even_if_faulted=True)
        # A fault that was cleared lets panes complete that had to wait for it.
        shard.waiting.wake([command.model])

    def _misdirected(self, shard: Shard, command: Command) -> str | None:
        """Return why a command is not for any model kept here, or names what can be no version; None if it is sound."""
        if not is_name(command.model):
            return f"model: wanted {_A_NAME}"
        for field in _NAMING_VERSIONS:
            # Else a version would be kept that no event can bear, and its model's record could not be read back.
            version = command.payload.get(field)
            if isinstance(version, str) and not is_name(version):
                return f"payload.{field}: got {version[:100]!r}, wanted {_A_NAME}"
        home = partition_of(command.model, self._settings.internal_partitions)
        if home != shard.index:
            return (
                f"partition: got {shard.index}, but commands of this model belong to {home} of {self._commands}, "
                "murmur2 of the model's name; nothing was done"
            )
        model = self._model(command.model)
        if model is None:
            return "unknown model"
        return None if command.model_epoch in (0, model.epoch) else f"model_epoch is {model.epoch}"

    def _model(self, name: str) -> Model | None:
        """Return a model; one this worker has not heard of yet is waited for, as its configuration may be on its way.

        A stage that waits is silent, so whatever the log names, one round waits `_CATALOG_S` in all (what
        was in the log before the wait has had it too), and a name waited for in vain is not waited for
        again until the catalog changes.
        """
        if self._absent_as_of != self._catalog.revision:
            self._absent_as_of = self._catalog.revision
            self._absent.clear()
            self._told_unknown.clear()
        model = self._catalog.model(name)
        if model is not None or name in self._absent:
            return model
        began = time.monotonic()
        model = self._catalog.await_model(name, max(self._patience_s, 0.0))
        self._patience_s -= time.monotonic() - began
        if model is None:
            self._absent.add(name)
            log.warning("model_unknown", model=name)
        return model

    def _guarded(
        self,
        shard: Shard,
        name: str,
        acts: Iterable[Act],
        *,
        even_if_faulted: bool = False,
    ) -> bool:
        """Do things to a model; an error in one marks that model, and does not follow its partition around.

        A faulted model is counted on; its looks stop.

        Returns
        -------
        Whether there is such a model.
        """
        model = self._model(name)
        if model is None:
            return False
        watched = shard.watched(model)
        if watched.record.life.faulted is not None and not even_if_faulted:
            return True
        for act in acts:
            try:
                act(model, watched)
            except FAULTS as error:
                self._fault(shard, watched, error)
        return True

    def _fault(self, shard: Shard, watched: Watched, error: Exception) -> None:
        """Mark a model faulted; the first error stays its reason."""
        log.error("model_faulted", model=watched.record.name, reason=str(error), exc_info=error)
        reason = f"{type(error).__name__}: {error}"
        watched.record.life, transitions = lifecycle.fault(watched.record.life, reason=reason)
        if transitions:
            self._author.note(shard, watched, transitions)

    def _count_faulted(self) -> None:
        """Say how many models are faulted or stale; one that is configured no more could not be mended, and is none."""
        records = [watched.record for shard in self._shards.values() for watched in shard.models.values()]
        known = [record for record in records if self._catalog.model(record.name) is not None]
        telemetry.FAULTED_MODELS.set(sum(record.life.faulted is not None for record in known))
        telemetry.STALE_MODELS.set(sum(record.stale for record in known))

    def _agreed(self, shard: Shard, partition: Partition, standing: Mapping[Partition, Standing]) -> int | None:
        """Return the offset that group and state agree on; the state's alone where the group's has expired."""
        committed = standing[partition].committed
        topic, topic_id = partition.topic, self._topic_ids.get(partition.topic, "")
        held_id = shard.position.topic_ids.get(topic, topic_id)
        shard.position.topic_ids[topic] = topic_id
        if held_id != topic_id:
            # Another topic, whatever its name: nothing of it has been read.
            log.error("topic_made_anew", topic=topic, partition=partition.number, was=held_id, is_now=topic_id)
            return None
        applied = shard.position.applied.get(topic)
        if committed is not None and applied is not None and committed != applied:
            raise StepFailed(
                f"{partition.topic}[{partition.number}]: the group has committed {committed}, the state stands at "
                f"{applied}; another program has moved one of them. Move the group's offset back to {applied}"
            )
        if committed is not None and applied is None and committed > standing[partition].low:
            raise StepFailed(
                f"{partition.topic}[{partition.number}]: the group has committed {committed}, but the state topic "
                "is empty; it was deleted or made anew. Reset the group to the beginning to count again"
            )
        return applied if committed is None else committed


def _flush(value: bytes, place: str) -> Partial | None:
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


def _observe(mark: ModelMark, sources: Sequence[Source], model: Model, watched: Watched) -> None:
    seen = [
        ((sources[at][0], sources[at][2]), event_ms, record_ms) for at, event_ms, record_ms in in_threes(mark.times)
    ]
    watched.record.clock.observe_all(seen)
    watched.record.newest_record_ms = max(watched.record.newest_record_ms, *mark.times[2::3])
    watched.changed = True


def _tally_all(tallies: Mapping[str, int], model: Model, watched: Watched) -> None:
    for what, count in tallies.items():
        _tally(watched, what, count)


def _tally(watched: Watched, what: str, count: int) -> None:
    tallies = watched.record.tallies
    tallies[what] = tallies.get(what, 0) + count
    watched.changed = True
