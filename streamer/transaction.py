"""The step both stages share: consume, fold in memory, then publish the results and commit their offsets at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer
from confluent_kafka import TopicPartition as KafkaPartition

from streamer import telemetry
from streamer.kafka.offsets import patiently
from streamer.kafka.topics import MAX_DEAD_LETTER_BYTES
from streamer.reading import Reading
from streamer.stage import Partition, Record, Stage, Standing, StepFailed

log = structlog.get_logger(__name__)

_TIMEOUT_S = 30.0
_ABORT_S = 5.0


class TransactionalStep:
    """Runs one stage: one consumer, one transactional producer, one thread.

    Every error ends `run` by raising. Nothing is repaired in place: a supervisor starts the process
    again, and what was not committed is read again.

    `kept_offsets` is asked where the group has no offset of a partition: never read, or let expire by Kafka.
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
        kept_offsets: Callable[[], Mapping[tuple[str, int], int]] = dict,
    ) -> None:
        self._stage = stage
        self._topics = list(topics)
        self._name = replica
        self._label = name
        self._full = batch
        self._poll_s = poll_s
        self._kept_offsets = kept_offsets
        self._reading = Reading(replica, batch)
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
        owned = list(self._reading.positions.items())
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
            self._reading.give_up()
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
        messages = self._consumer.consume(self._full, self._poll_s)
        if self._failure is not None:
            raise self._failure
        for batch in self._reading.batches(messages):
            self._stage.fold(batch)
            self._reading.positions[batch.partition] = batch.end
        self._stage.idle()
        if self._stage.due():
            self._step()

    def _step(self) -> None:
        """Publish what was folded and commit the offsets it came from, in one transaction.

        The next offset of every owned partition is sent each time: a transaction without a valid
        offset would not be fenced off if the group has meanwhile given our partitions to another.
        """
        if not self._reading.positions:
            return
        began = time.monotonic()
        self._stage.prepare()
        started = time.monotonic()
        telemetry.FLUSH_SECONDS.labels(self._label).observe(started - began)
        self._producer.begin_transaction()
        self._is_open = True
        for record in self._stage.results(dict(self._reading.positions)):
            self._produce(record)
        offsets = [KafkaPartition(p.topic, p.number, offset) for p, offset in self._reading.positions.items()]
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
        kept = self._kept_offsets() if any(entry.offset < 0 for entry in found) else {}
        standing: dict[Partition, Standing] = {}
        for entry in found:
            place = KafkaPartition(entry.topic, entry.partition)
            low, high = patiently(partial(consumer.get_watermark_offsets, place, _TIMEOUT_S), timeout_s=_TIMEOUT_S)
            committed = entry.offset if entry.offset >= 0 else kept.get((entry.topic, entry.partition))
            if entry.offset < 0 and committed is not None:
                log.warning("offset_expired", topic=entry.topic, partition=entry.partition, start=committed)
            standing[Partition(entry.topic, entry.partition)] = Standing(committed, low, high)
        self._reading.begin(self._stage.restore(standing))
        consumer.assign([KafkaPartition(p.topic, p.number, offset) for p, offset in self._reading.positions.items()])
        waiting = [KafkaPartition(*partition) for partition in self._stage.held_back()]
        if waiting:
            consumer.pause(waiting)
        log.info("assigned", replica=self._name, partitions=len(self._reading.positions), held_back=len(waiting))

    def _stable_offsets(self, consumer: Consumer, partitions: list[KafkaPartition]) -> list[KafkaPartition]:
        """Return the committed offsets once no transaction that could move them is still open."""
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            # Longer than a watchdog waits, where each answer takes as long as it may.
            self.beat()
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
        self._reading.give_up()

    def _on_lost(self, consumer: Consumer, partitions: list[KafkaPartition]) -> None:
        self._failure = StepFailed(f"{self._name}: partitions were taken away; another replica may own them now")
        self._reading.give_up()
