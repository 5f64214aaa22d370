"""The step both stages share, on a real broker: what a failing stage leaves behind."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import pytest
from confluent_kafka import Producer

from streamer.settings import Settings
from streamer.topic_reader import read_to_end
from streamer.transaction import Batch, Partition, Record, Standing, TransactionalStep, resume

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

    def committed(self) -> None:
        if self.published >= self._wanted:
            self._stop.set()

    def idle(self) -> None:
        pass


def run(settings: Settings, *, failing: bool, wanted: int) -> None:
    stop = threading.Event()
    stage = Copying(settings.topic("partials"), stop, failing=failing, wanted=wanted)
    step = TransactionalStep(
        stage,
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
