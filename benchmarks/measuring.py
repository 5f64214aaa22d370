"""What every subject needs: servers with workers, models in their topics, CPU time, and waiting with an end."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import psutil
import redis
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from benchmarks import traffic
from streamer.events import Prediction
from streamer.kafka import clients as kafka_clients
from streamer.local.stack import Stack
from streamer.local.worker import DEFAULT_COMMAND
from streamer.models import ModelConfig
from streamer.settings import Settings
from streamer.state import Keys
from streamer.view import LiveView

PATIENCE_S = 600.0
_LOOK_S = 0.05
_SETTLE_S = 30.0
_SERVERS = frozenset({"kafka", "valkey", "worker"})

Wait = Callable[[], bool]


class MeasurementError(RuntimeError):
    """What is measured has not come to its end in time; the message says what was waited for."""


@contextlib.contextmanager
def running(
    settings: Settings | None = None, *, commands: Sequence[Sequence[str]] = (DEFAULT_COMMAND,)
) -> Iterator[Stack]:
    """Run a Kafka, a Valkey and workers of their own, with nothing in them, and stop them whatever happens.

    Where a measurement fails, what its workers said last is told.
    """
    with (
        tempfile.TemporaryDirectory(prefix="driftloop-bench-") as directory,
        Stack(Path(directory), parts=_SERVERS, settings=settings or Settings(), worker_commands=commands) as stack,
    ):
        try:
            yield stack
        except MeasurementError:
            for child in stack.part("worker").children:
                say(child.tail())
            raise


def workers(stack: Stack) -> list[psutil.Process]:
    """Return the processes of a stack's workers."""
    return [psutil.Process(child.identity.pid) for child in stack.part("worker").children]


def live_view(settings: Settings) -> LiveView:
    """Return a reader of the live view."""
    return LiveView(redis.Redis.from_url(settings.redis.url), Keys(settings.namespace))


def publish_models(settings: Settings, configs: Sequence[ModelConfig], created_ms: int) -> None:
    """Write models that have the same features, each with its reference, to their topics."""
    producer = Producer(kafka_clients.producer_config(settings, {"log_level": 0}))
    profile = traffic.reference(configs[0], created_ms=created_ms)
    for config in configs:
        for part, value in dataclasses.replace(profile, model=config.name).to_parts().items():
            send(producer, settings.topic("references"), value, f"{config.name}/{traffic.VERSION}/{part}")
        send(producer, settings.topic("models"), config.to_json(), config.name)
    producer.flush()


def send(producer: Producer, topic: str, value: bytes, key: str | None) -> None:
    """Produce a message, waiting where the producer's queue is full."""
    while True:
        try:
            producer.produce(topic, value, key)
            return
        except BufferError:
            producer.poll(0.1)


class Backlog:
    """Messages written in one transaction: a worker, already well and at rest, sees all of them at once or none."""

    def __init__(self, settings: Settings, kind: str) -> None:
        self._topic = settings.topic(kind)
        self._producer = Producer(
            {
                **kafka_clients.producer_config(settings),
                "transactional.id": f"benchmarks-{kind}",
                "transaction.timeout.ms": 600_000,
                "linger.ms": 100,
                # Servers end before this producer does; nobody need be told.
                "log_level": 0,
            }
        )
        self._producer.init_transactions()
        self._producer.begin_transaction()
        self.messages = 0
        self.bytes = 0

    def write(self, messages: Iterable[traffic.Message | traffic.Batch]) -> None:
        """Write messages that nobody can read yet."""
        for key, value in messages:
            self.messages += 1
            self.bytes += len(value)
            send(self._producer, self._topic, value, key)
            if self.messages % 1_000 == 0:
                self._producer.poll(0)
        self._producer.flush()

    def release(self) -> None:
        """Let them be read."""
        self._producer.commit_transaction()


def yardstick() -> float:
    """Return how many predictions this process decodes a CPU second: how fast the machine is just now."""
    values = [value for _key, value in traffic.predictions(5_000, 1, start_ms=10**12)]
    decode = msgspec.json.Decoder(Prediction).decode
    taken = []
    for _ in range(9):
        began = time.process_time()
        for value in values:
            decode(value)
        taken.append(time.process_time() - began)
    return len(values) / statistics.median(taken)


def counted(view: LiveView) -> int:
    """Return how many predictions the live view shows, over all models."""
    return sum(summary.n or 0 for summary in view.models())


def until_committed(settings: Settings) -> None:
    """Wait until ingest has committed all there is, and evaluate all that ingest had published by then."""
    prefix = settings.namespace or "driftloop"
    admin = AdminClient({**kafka_clients.admin_config(settings), "log_level": 0})
    raw = [settings.topic(kind) for kind in ("predictions", "labels")]
    ends = ends_of(settings, raw)
    until(lambda: _reached(admin, f"{prefix}-ingest", ends), "ingest has not committed")
    ends = ends_of(settings, [settings.topic("partials")])
    until(lambda: _reached(admin, f"{prefix}-evaluate", ends), "evaluate has not committed")


def ends_of(settings: Settings, topics: Iterable[str]) -> dict[tuple[str, int], int]:
    """Return the end of every partition that is not empty."""
    consumer = Consumer(kafka_clients.consumer_config(settings, group_id="benchmarks"))
    try:
        found = consumer.list_topics(timeout=30).topics
        places = [(topic, number) for topic in topics for number in found[topic].partitions]
        ends = {place: consumer.get_watermark_offsets(TopicPartition(*place), timeout=30)[1] for place in places}
    finally:
        consumer.close()
    return {place: end for place, end in ends.items() if end}


def _reached(admin: AdminClient, group: str, ends: dict[tuple[str, int], int]) -> bool:
    found = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result()
    offsets = {(place.topic, place.partition): place.offset for place in found.topic_partitions or []}
    # The last offsets of a partition may be the markers of a transaction, which nobody reads.
    return all(offsets.get(place, -1) >= end - 1 for place, end in ends.items())


def until(reached: Wait, otherwise: str, *, within_s: float = PATIENCE_S, look_s: float = _LOOK_S) -> None:
    """Wait until something is reached.

    Raises
    ------
    MeasurementError
        After `within_s` seconds; it says `otherwise`.
    """
    deadline = time.monotonic() + within_s
    while not reached():
        if time.monotonic() > deadline:
            raise MeasurementError(f"{otherwise} after {within_s:.0f} s")
        time.sleep(look_s)


def until_at_rest(processes: Sequence[psutil.Process]) -> None:
    """Wait until what workers do once, at their start or with a new model, is behind them."""
    deadline = time.monotonic() + _SETTLE_S
    while time.monotonic() < deadline:
        before = cpu_s(processes)
        time.sleep(2.0)
        if cpu_s(processes) - before < 0.1 * len(processes):
            return


def cpu_s(processes: Sequence[psutil.Process]) -> float:
    """Return the user and system time that processes have taken.

    Raises
    ------
    MeasurementError
        When one of them has ended.
    """
    with _there():
        times = [process.cpu_times() for process in processes]
    return float(sum(each.user + each.system for each in times))


def rss_bytes(processes: Sequence[psutil.Process]) -> int:
    """Return the resident memory of processes; MeasurementError when one of them has ended."""
    with _there():
        return sum(int(process.memory_info().rss) for process in processes)


@contextlib.contextmanager
def _there() -> Iterator[None]:
    try:
        yield
    except psutil.NoSuchProcess as error:
        raise MeasurementError(f"process {error.pid} has ended while it was measured") from error


def say(text: str) -> None:
    """Tell how far a long measurement is, apart from its results."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
