"""The step both stages share: consume, fold in memory, then publish the results and commit their offsets at once."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, repeat
from operator import is_, itemgetter
from typing import Any, NamedTuple, Protocol, cast, overload

import structlog
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, KafkaError, KafkaException, Message, Producer
from confluent_kafka import TopicPartition as KafkaPartition

from streamer import telemetry
from streamer.log_offsets import patiently
from streamer.topics import MAX_DEAD_LETTER_BYTES

log = structlog.get_logger(__name__)

_TIMEOUT_S = 30.0
_ABORT_S = 5.0
_FETCH_MARGIN_MS = 500


class Partition(NamedTuple):
    """A partition of a topic."""

    topic: str
    number: int


class Record(NamedTuple):
    """A message to publish in a step's transaction."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    partition: int | None = None
    headers: list[tuple[str, bytes]] | None = None


@dataclass
class Batch:
    """The messages of one partition from one read, as columns in offset order, and where the partition then stands.

    `read_up_to_ms` is record time: everything appended before it has been read.
    """

    partition: Partition
    start: int
    end: int
    at_end: bool
    read_up_to_ms: int
    offsets: list[int] = field(default_factory=list)
    record_times_ms: list[int] = field(default_factory=list)
    keys: Sequence[bytes | None] = ()
    values: list[bytes] = field(default_factory=list)


class Standing(NamedTuple):
    """Where a partition stands when it is taken over: its committed offset, None if there is none, and its ends."""

    committed: int | None
    low: int
    high: int | None = None


def resume(partition: Partition, offset: int | None, low: int, high: int | None = None) -> int:
    """Return where to read on; what is not in the log between there and the offset is counted and said.

    A log that begins past the offset has lost a range to retention; one that ends before it has lost its end
    with a broker, and offsets that were read are given again.
    """
    if offset is None:
        log.debug("no_committed_offset", topic=partition.topic, partition=partition.number, start=low)
        return low
    if offset < low:
        log.error("lost_range", topic=partition.topic, partition=partition.number, start=offset, end=low)
        telemetry.LOST_RANGE.labels(partition.topic).inc(low - offset)
        return low
    if high is not None and offset > high:
        log.error("offset_beyond_end", topic=partition.topic, partition=partition.number, start=offset, end=high)
        telemetry.LOST_RANGE.labels(partition.topic).inc(offset - high)
        return high
    return offset


class Stage(Protocol):
    """What a stage does with what it reads; the step does the rest."""

    def restore(self, standing: dict[Partition, Standing]) -> dict[Partition, int]:
        """Take over these partitions (all that are owned); return the offset to go on from, for each."""

    def held_back(self) -> Collection[Partition]:
        """Give those of the partitions taken over that are not to be read for now; their offsets stay."""

    def fold(self, batch: Batch) -> None:
        """Take in a batch; nothing may leave the process."""

    def due(self) -> bool:
        """Tell whether what was folded should be published now."""

    def prepare(self) -> None:
        """Make durable, before the transaction opens, what its results rely on."""

    def results(self, positions: dict[Partition, int]) -> Iterable[Record]:
        """Give what one transaction publishes; `positions` are the offsets it commits."""

    def committed(self) -> None:
        """Be told that the last results and their offsets are committed."""

    def idle(self) -> None:
        """Do what has to be done between reads."""


class StepFailed(Exception):  # noqa: N818 - it names what happened, as KafkaException does
    """Kafka, the store or a contract failed: the process must end and be started again."""


class TransactionalStep:
    """Runs one stage: one consumer, one transactional producer, one thread.

    Every error ends `run` by raising. Nothing is repaired in place: a supervisor starts the process
    again, and what was not committed is read again.
    """

    def __init__(
        self,
        stage: Stage,
        *,
        name: str,
        topics: Sequence[str],
        group: str,
        replica: str,
        consumer_properties: dict[str, str],
        producer_properties: dict[str, str],
        batch: int = 2500,
        poll_s: float = 0.1,
    ) -> None:
        self._stage = stage
        self._topics = list(topics)
        self._name = replica
        self._label = name
        self._batch = batch
        self._poll_s = poll_s
        self._next: dict[Partition, int] = {}
        self._at_end: dict[Partition, int] = {}
        self._appended: dict[Partition, int] = {}
        self._failure: BaseException | None = None
        self._is_open = False
        self._producer = Producer(
            {
                "compression.type": "lz4",
                "linger.ms": 5,
                "message.max.bytes": MAX_DEAD_LETTER_BYTES,
                **producer_properties,
                "transactional.id": replica,
                "transaction.timeout.ms": 10_000,
            }
        )
        self._consumer = Consumer(
            {
                "session.timeout.ms": 6_000,
                "heartbeat.interval.ms": 1_500,
                "fetch.wait.max.ms": 100,
                # By default it holds 64 MB ahead of what is read, and looks once a second whether there is room again.
                "queued.max.messages.kbytes": 16_384,
                "fetch.queue.backoff.ms": 20,
                **consumer_properties,
                "group.id": group,
                "group.instance.id": replica,
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "error",
                "partition.assignment.strategy": "range",
                "enable.partition.eof": True,
            }
        )
        self.beat_s = time.monotonic()
        self.transaction_s: float | None = None
        self._lags: set[Partition] = set()

    def lag(self) -> int:
        """Return how many records of the owned partitions are known to stand unread; one thread asks."""
        total = 0
        owned = list(self._next.items())
        for partition, offset in owned:
            _low, high = self._consumer.get_watermark_offsets(KafkaPartition(*partition), cached=True)
            unread = max(high - offset, 0)
            telemetry.LAG.labels(partition.topic, str(partition.number)).set(unread)
            total += unread
        now = {partition for partition, _offset in owned}
        # What another worker reads now would keep its last number here for good, and page somebody.
        for partition in self._lags - now:
            telemetry.LAG.remove(partition.topic, str(partition.number))
        self._lags = now
        return total

    def run(self, stop: threading.Event) -> None:
        """Consume until `stop`, then take a last step and leave.

        Raises
        ------
        StepFailed
            On any error of Kafka; the process must not go on.
        """
        try:
            self._producer.init_transactions(_TIMEOUT_S)
            self._consumer.subscribe(
                self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
            while not stop.is_set():
                self._once()
            self._step()
        except BaseException as error:
            # The consumer stays open. Closing gives the partitions up, and who gives them up takes a last step: after
            # a failure there must be none, since of what was folded a part may be gone. And closing can hang for good
            # when a topic has been deleted, with the interpreter's lock in hand (librdkafka's issues 4362 and 4884).
            # It would tell the group nothing: a static member comes back, or its session ends.
            self._next = {}
            self._abort()
            if isinstance(error, KafkaException):
                raise StepFailed(f"{self._name}: {error.args[0].str() if error.args else error}") from error
            raise
        self._consumer.close()

    def beat(self) -> None:
        """Note that the loop goes on: a stage with much to do in one turn says so as it goes along."""
        self.beat_s = time.monotonic()

    def _once(self) -> None:
        self.beat()
        messages = self._consumer.consume(self._batch, self._poll_s)
        if self._failure is not None:
            raise self._failure
        for batch in self._batches(messages):
            self._stage.fold(batch)
            self._next[batch.partition] = batch.end
        self._stage.idle()
        if self._stage.due():
            self._step()

    def _batches(self, messages: list[Message[bytes, bytes]]) -> Iterable[Batch]:
        """Sort one read by partition, and note who stands at the end of its log.

        A read that brings nothing still brings time: partitions standing at their end are given
        an empty batch, since progress is how time passes downstream.
        """
        # Taken before the read's errors are looked at; a record still on its way is covered by the margin.
        clock_ms = int(time.time() * 1000) - _FETCH_MARGIN_MS
        # A full read may have left records of any partition in the client's queue.
        drained = len(messages) < self._batch
        by_partition = _by_partition(self._sound(messages))
        for partition, start in list(self._next.items()):
            read = by_partition.get(partition, [])
            end = _number(read[-1].offset()) + 1 if read else start
            # The end lies past the last message when the log ends in a transaction's marker.
            at_end = drained and self._at_end.get(partition, -1) >= end
            if read:
                kind, appended = read[-1].timestamp()
                if kind != TIMESTAMP_NOT_AVAILABLE:
                    self._appended[partition] = max(self._appended.get(partition, 0), appended)
            elif not at_end:
                continue
            if at_end:
                end = max(end, self._at_end[partition])
                self._appended[partition] = max(self._appended.get(partition, 0), clock_ms)
            yield Batch(
                partition,
                start,
                end,
                at_end,
                self._appended.get(partition, 0),
                list(map(_offset, read)),
                list(map(_appended_at, map(Message.timestamp, read))),
                _Keys(read),
                _values(read),
            )

    def _sound(self, messages: list[Message[bytes, bytes]]) -> list[Message[bytes, bytes]]:
        """Note the ends of partitions among what was read, and leave the records."""
        errors = list(map(Message.error, messages))
        # By identity: librdkafka's errors cannot be compared with None.
        if all(map(is_, errors, repeat(None))):
            return messages
        sound = [message for message, error in zip(messages, errors, strict=True) if error is None]
        for message, error in zip(messages, errors, strict=True):
            if error is None:
                continue
            partition = Partition(message.topic() or "", _number(message.partition()))
            if error.code() == KafkaError._PARTITION_EOF:
                self._at_end[partition] = _number(message.offset())
            elif error.fatal() or not error.retriable():
                raise StepFailed(f"{self._name}: reading {partition.topic}[{partition.number}]: {error.str()}")
            else:
                log.warning("read_error", replica=self._name, topic=partition.topic, reason=error.str())
        return sound

    def _step(self) -> None:
        """Publish what was folded and commit the offsets it came from, in one transaction.

        The next offset of every owned partition is sent each time: a transaction without a valid
        offset would not be fenced off if the group has meanwhile given our partitions to another.
        """
        if not self._next:
            return
        began = time.monotonic()
        self._stage.prepare()
        started = time.monotonic()
        telemetry.FLUSH_SECONDS.labels(self._label).observe(started - began)
        self._producer.begin_transaction()
        self._is_open = True
        for record in self._stage.results(dict(self._next)):
            self._produce(record)
        offsets = [KafkaPartition(p.topic, p.number, offset) for p, offset in self._next.items()]
        self._producer.send_offsets_to_transaction(offsets, self._consumer.consumer_group_metadata(), _TIMEOUT_S)
        self._producer.commit_transaction(_TIMEOUT_S)
        self._is_open = False
        self.transaction_s = time.monotonic() - started
        telemetry.TRANSACTION_SECONDS.labels(self._label).observe(self.transaction_s)
        self._stage.committed()

    def _abort(self) -> None:
        """Abort the transaction that a failure has left open.

        The next start would do it too. Until then it holds up all readers, and a broker killed meanwhile may
        come back without it: its records have been seen to become visible with the next transaction's.
        """
        if not self._is_open:
            return
        try:
            self._producer.abort_transaction(_ABORT_S)
        except KafkaException as error:
            log.warning("not_aborted", replica=self._name, reason=str(error))

    def _produce(self, record: Record) -> None:
        while True:
            try:
                self._producer.produce(
                    record.topic,
                    record.value,
                    record.key,
                    -1 if record.partition is None else record.partition,
                    headers=list(record.headers or ()),
                    on_delivery=self._delivered,
                )
                return
            except BufferError:
                self._producer.poll(0.1)

    def _delivered(self, error: KafkaError | None, message: Message[bytes, bytes]) -> None:
        if error is not None:
            self._failure = StepFailed(f"{self._name}: publishing to {message.topic()}: {error.str()}")

    def _on_assign(self, consumer: Consumer, partitions: list[KafkaPartition]) -> None:
        """Take over: stable committed offsets first, then the stage's own state up to them, then read on."""
        try:
            self._take_over(consumer, partitions)
        except Exception as failure:  # noqa: BLE001 - a callback cannot raise through librdkafka; the loop raises it
            self._failure = failure

    def _take_over(self, consumer: Consumer, partitions: list[KafkaPartition]) -> None:
        found = self._stable_offsets(consumer, partitions) if partitions else []
        standing: dict[Partition, Standing] = {}
        for entry in found:
            place = KafkaPartition(entry.topic, entry.partition)
            low, high = patiently(partial(consumer.get_watermark_offsets, place, _TIMEOUT_S), timeout_s=_TIMEOUT_S)
            committed = entry.offset if entry.offset >= 0 else None
            standing[Partition(entry.topic, entry.partition)] = Standing(committed, low, high)
        self._next = self._stage.restore(standing)
        self._at_end.clear()
        self._appended.clear()
        consumer.assign([KafkaPartition(p.topic, p.number, offset) for p, offset in self._next.items()])
        waiting = [KafkaPartition(*partition) for partition in self._stage.held_back()]
        if waiting:
            consumer.pause(waiting)
        log.info("assigned", replica=self._name, partitions=len(self._next), held_back=len(waiting))

    def _stable_offsets(self, consumer: Consumer, partitions: list[KafkaPartition]) -> list[KafkaPartition]:
        """Return the committed offsets once no transaction that could move them is still open."""
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            try:
                found: list[KafkaPartition] = consumer.committed(partitions, timeout=_TIMEOUT_S)
                unstable = [entry for entry in found if entry.error is not None]
                if not unstable:
                    return found
                reason = str(unstable[0].error)
            except KafkaException as error:
                reason = str(error)
            if time.monotonic() > deadline:
                raise StepFailed(f"{self._name}: committed offsets did not become stable: {reason}")
            time.sleep(0.2)

    def _on_revoke(self, consumer: Consumer, partitions: list[KafkaPartition]) -> None:
        try:
            self._step()
        except Exception as failure:  # noqa: BLE001 - as above
            self._failure = failure
        self._next = {}

    def _on_lost(self, consumer: Consumer, partitions: list[KafkaPartition]) -> None:
        self._failure = StepFailed(f"{self._name}: partitions were taken away; another replica may own them now")
        self._next = {}


# Every record has an offset.
_offset = cast("Callable[[Message[bytes, bytes]], int]", Message.offset)


_appended_at = itemgetter(1)


class _Keys(Sequence[bytes | None]):
    """The keys of some messages; hardly any is asked for."""

    def __init__(self, messages: list[Message[bytes, bytes]]) -> None:
        self._messages = messages

    def __len__(self) -> int:
        return len(self._messages)

    @overload
    def __getitem__(self, at: int) -> bytes | None: ...
    @overload
    def __getitem__(self, at: slice) -> list[bytes | None]: ...
    def __getitem__(self, at: int | slice) -> bytes | list[bytes | None] | None:
        if isinstance(at, slice):
            return [message.key() for message in self._messages[at]]
        return self._messages[at].key()


def _values(messages: list[Message[bytes, bytes]]) -> list[bytes]:
    """Return what messages hold; one without a value, which deletes, is empty."""
    values = list(map(Message.value, messages))
    return cast("list[bytes]", values) if all(values) else [value or b"" for value in values]


def _by_partition(messages: list[Message[bytes, bytes]]) -> dict[tuple[str | None, int | None], list[Any]]:
    """Sort messages by their partition; they come in runs."""
    found: dict[tuple[str | None, int | None], list[Any]] = defaultdict(list)
    at = 0
    places = zip(map(Message.topic, messages), map(Message.partition, messages), strict=True)
    for place, run in groupby(places):
        end = at + len(list(run))
        found[place] += messages[at:end]
        at = end
    return found


def _number(value: int | None) -> int:
    """Return an offset or partition that a consumed message always has."""
    if value is None:
        raise StepFailed("a consumed message came without its offset or partition")
    return value
