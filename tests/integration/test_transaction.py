"""The step both stages share, on a real broker: what a failing stage leaves behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

import pytest
from confluent_kafka import IsolationLevel, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec

from streamer.kafka.reader import read_to_end
from streamer.settings import Settings
from streamer.stage import Batch, Partition, Record, Standing, resume
from streamer.transaction import TransactionalStep

pytestmark = pytest.mark.integration


class Copying:
    """Publishes what it reads; fails once while it makes its results ready, after it has let go of what it read."""

    def __init__(self, target: str, stop: threading.Event, *, failing: bool, wanted: int) -> None:
        self._target = target
        self._stop = stop
        self._failing = failing
        self._wanted = wanted
        self._held: list[bytes] = []
        self._ready: list[bytes] = []
        self.published = 0

    def restore(self, standing: dict[Partition, Standing]) -> dict[Partition, int]:
        return {partition: resume(partition, *place) for partition, place in standing.items()}

    def fold(self, batch: Batch) -> None:
        self._held += batch.values

    def due(self) -> bool:
        return bool(self._held)

    def prepare(self) -> None:
        self._ready, self._held = self._held, []
        if self._failing and self._ready:
            self._ready, self._failing = [], False
            raise ConnectionError("the store does not answer")

    def results(self, positions: dict[Partition, int]) -> Iterable[Record]:
        self.published += len(self._ready)
        return [Record(self._target, value) for value in self._ready]

    def held_back(self) -> list[Partition]:
        return []

    def committed(self) -> None:
        if self.published >= self._wanted:
            self._stop.set()

    def idle(self) -> None:
        pass


def run(settings: Settings, *, failing: bool, wanted: int) -> None:
    stop = threading.Event()
    play(settings, Copying(settings.topic("partials"), stop, failing=failing, wanted=wanted), stop)


def play(settings: Settings, stage: Copying, stop: threading.Event) -> None:
    step = TransactionalStep(
        stage,
        name="copying",
        topics=[settings.topic("predictions")],
        group=f"{settings.namespace}-copying",
        replica=f"{settings.namespace}-copying-0",
        consumer_properties=settings.kafka.properties(),
        producer_properties=settings.kafka.properties(),
    )
    step.run(stop)


def test_a_stage_that_fails_with_half_a_batch_gone_commits_nothing_on_its_way_out(settings: Settings) -> None:
    producer = Producer({**settings.kafka.properties()})
    sent = [b"%d" % number for number in range(50)]
    for value in sent:
        producer.produce(settings.topic("predictions"), value)
    assert producer.flush(10) == 0
    with pytest.raises(ConnectionError):
        run(settings, failing=True, wanted=len(sent))
    run(settings, failing=False, wanted=len(sent))
    copied = [message.value() for message in read_to_end(settings, settings.topic("partials"))]
    assert sorted(copied) == sorted(sent)


class Breaking(Copying):
    """Fails in the middle of publishing."""

    def results(self, positions: dict[Partition, int]) -> Iterable[Record]:
        if self._ready:
            yield Record(self._target, self._ready[0], partition=0)
            # By then the broker has it.
            time.sleep(1.0)
            raise ConnectionError("half of it is published")


def test_what_a_failing_stage_had_begun_to_publish_holds_up_no_reader(settings: Settings) -> None:
    producer = Producer({**settings.kafka.properties()})
    producer.produce(settings.topic("predictions"), b"1")
    assert producer.flush(10) == 0
    stage = Breaking(settings.topic("partials"), threading.Event(), failing=False, wanted=1)
    with pytest.raises(ConnectionError):
        play(settings, stage, threading.Event())
    # No other start of this replica has aborted it, and its time-out has not come yet.
    assert ends(settings, IsolationLevel.READ_COMMITTED) == ends(settings, IsolationLevel.READ_UNCOMMITTED) > 0
    assert [message.value() for message in read_to_end(settings, settings.topic("partials"))] == []


def ends(settings: Settings, isolation: IsolationLevel) -> int:
    admin = AdminClient({**settings.kafka.properties()})
    place = TopicPartition(settings.topic("partials"), 0)
    found = admin.list_offsets({place: OffsetSpec.latest()}, isolation_level=isolation)
    return int(found[place].result().offset)
