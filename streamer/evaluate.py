"""The second stage: increments and commands in, panes, looks, decisions and their effects out; one author a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import msgspec
import structlog

from streamer.catalog import Catalog
from streamer.decode import is_name
from streamer.evaluation import effects
from streamer.evaluation.author import Author
from streamer.evaluation.intake import Intake, read_flush
from streamer.evaluation.model_record import Watched
from streamer.evaluation.roster import Roster
from streamer.evaluation.shard import Shard, restore_shard
from streamer.evaluation.state_log import read_partitions
from streamer.events import UNREADABLE, Command
from streamer.explain import is_deep
from streamer.kafka.partitioning import partition_of
from streamer.settings import Settings
from streamer.stage import Batch, Partition, Record, Standing, StepFailed, resume

log = structlog.get_logger(__name__)

_COMMAND = msgspec.json.Decoder(Command)
_NAMING_VERSIONS = ("version", "challenger")
_A_NAME = "a name of 1 to 100 of a-z, 0-9, '.', '_' and '-'"
# What of it is kept and answered has to fit into messages of its own.
MAX_COMMAND_BYTES = 100_000


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
        self._roster = Roster(catalog, self._author)
        self._intake = Intake(catalog, self._author, self._roster, alive=alive)
        self._committed_at = time.monotonic()
        self._shown_at = self._looked_at = 0.0
        self._news = False
        self._buried_as_of = -1

    @property
    def topics(self) -> list[str]:
        """The topics this stage reads: both have the same partitions, and a replica owns the same of each."""
        return [self._partials, self._commands]

    def restore(self, standing: dict[Partition, Standing]) -> dict[Partition, int]:
        """Read the state of every owned partition back; it must name the offsets that are committed."""
        self._author.effects.clear()
        self._intake.changed_bytes = 0
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
        self._roster.count_faulted(self._shards.values())
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
                self._intake.changed_bytes += len(value)
                flush = read_flush(value, f"{self._partials}[{shard.index}] offset {offset}")
                if flush is not None:
                    self._news = self._news or bool(flush.increments)
                    self._intake.apply(shard, flush)
            else:
                self._answer(shard, value, offset)
        if batch.partition.topic == self._commands and batch.at_end:
            if not shard.commands_read:
                # The split is kept back until here: what was shown so far is shown again, with it.
                shard.commands_read = self._news = True
                for watched in shard.models.values():
                    watched.shown = False
            for watched, error in self._author.expire(shard, min(shard.position.now_ms, batch.read_up_to_ms)):
                self._roster.fault(shard, watched, error)

    def due(self) -> bool:
        """Commit at once for an effect, else every `commit_ms` or `commit_bytes` of changes."""
        worker = self._settings.worker
        waited_ms = (time.monotonic() - self._committed_at) * 1000
        full = self._intake.changed_bytes >= worker.commit_bytes
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
        self._intake.changed_bytes = 0
        for shard in self._shards.values():
            shard.settle()
        self._roster.count_faulted(self._shards.values())

    def idle(self) -> None:
        """Show what is new as soon as the last news are `view_ms` old; it may be a flush ahead of what is committed.

        Without news, look every `view_ms` whether the view is still there.
        """
        self._roster.begin_round()
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
            self._roster.fault(shard, watched, error)

    def _bury(self) -> None:
        """Forget the models that have been deleted; one that is merely unknown, or refused, is kept."""
        for shard in self._shards.values():
            for name in [name for name in shard.models if self._catalog.is_deleted(name)]:
                shard.bury(name)
                log.info("model_forgotten", model=name)

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
        act = partial(self._author.answer, shard, command)
        self._roster.guarded(shard, command.model, act, even_if_faulted=True)
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
        model = self._roster.model(command.model)
        if model is None:
            return "unknown model"
        return None if command.model_epoch in (0, model.epoch) else f"model_epoch is {model.epoch}"

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
