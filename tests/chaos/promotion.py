"""A rollout that passes amid a storm: traffic as the deployments split it, labels, and wishes until it is promoted."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from monitors.lifecycle import rollout_id_of
from streamer.commands import new_command
from streamer.events import CommandKind, Deployment, LedgerEntry, RetrainRequest, encode
from streamer.kafka.clients import consumer_config, producer_config
from streamer.kafka.partitioning import partition_of
from streamer.settings import Settings
from tests.chaos.background import Background
from tests.chaos.models import CARRIERS, CHALLENGER, MODELS, PANE_MS, PROMOTED, T0, VERSION
from tests.chaos.stream import Answer, Document

_TICK_S = 0.1
_PANE_TICKS = 5
_RATE = 10
# A wish that was refused, for want of a verdict say, is made again after so long.
_AGAIN_S = 0.5
_FLUSH_S = 120.0
_BUCKETS = 1_000
_TOPICS = ("retrain-requests", "ledger", "deployments")


class Promotion(Background):
    """Sends predictions and labels of one model without end, and takes its one rollout up to the promotion.

    Each wish waits for its answer and is made anew, by another id, when it was refused; promotion is wished for from
    the last step's beginning, so it is refused until the verdict has passed.

    Attributes
    ----------
    answer : what must be counted of what was sent. done : the rollout stands as promoted in the ledger.
    """

    def __init__(self, settings: Settings, seed: int, say: Callable[[str], object]) -> None:
        super().__init__("promotion")
        self._settings = settings
        self._say = say
        self._random = Random(seed)
        self._config = MODELS[PROMOTED]
        self._deployment = Deployment(model=PROMOTED, model_epoch=self._config.model_epoch, epoch=0, champion=VERSION)
        self._split = self._deployment
        self._request_id = self._waiting_for = self._said = ""
        self._next_s = 0.0
        self._wishes = self._taken = self._sent = 0
        self._failed: list[KafkaError] = []
        self._promoted = threading.Event()
        self.answer = Answer()

    @property
    def done(self) -> bool:
        """Whether the rollout was promoted."""
        return self._promoted.is_set()

    @property
    def stands(self) -> str:
        """What has come of it, in words."""
        step = self._deployment.step
        return f"{self._taken} wishes of {self._wishes} taken, the deployment is at step {step}; last: {self._said}"

    def wait(self, patience_s: float) -> None:
        """Wait until the rollout is promoted, or has no more time."""
        deadline = time.monotonic() + patience_s
        while self.running and time.monotonic() < deadline:
            if self._promoted.wait(_TICK_S):
                return

    def _run(self) -> None:
        settings = self._settings
        consumer = Consumer(consumer_config(settings, group_id="chaos-promotion", extra={"log_level": 0}))
        properties = {"linger.ms": 5, "message.timeout.ms": 900_000, "log_level": 0}
        producer = Producer(producer_config(settings, properties))
        partitions = range(settings.internal_partitions)
        consumer.assign([TopicPartition(settings.topic(name), number, 0) for name in _TOPICS for number in partitions])
        try:
            tick = 0
            while not self._stopping.wait(_TICK_S):
                while (message := consumer.poll(0)) is not None:
                    if message.error() is None:
                        self._hear(message)
                if tick % _PANE_TICKS == 0:
                    # A pane has one split: one in which it changed would be left out.
                    self._split = self._deployment
                if not self.done:
                    self._wish(producer)
                    self._serve(producer, tick)
                    tick += 1
                producer.poll(0)
            if producer.flush(_FLUSH_S) or self._failed:
                raise RuntimeError(f"promotion: {len(producer)} messages not taken, {self._failed[:3]} refused")
        finally:
            consumer.close()

    def _hear(self, message: Message) -> None:
        key, body, topic = message.key(), message.value() or b"", message.topic()
        if key != PROMOTED.encode():
            return
        if topic == self._settings.topic("deployments"):
            self._deployment = msgspec.json.decode(body, type=Deployment)
        elif topic == self._settings.topic("retrain-requests"):
            self._request_id = self._request_id or msgspec.json.decode(body, type=RetrainRequest).request_id
        else:
            entry = msgspec.json.decode(body, type=LedgerEntry)
            if self._waiting_for and entry.command_id == self._waiting_for:
                self._waiting_for = ""
                self._said = f"{entry.command_kind} {entry.outcome} {entry.reason}"
                self._taken += entry.outcome != "refused"
                self._next_s = time.monotonic() + (_AGAIN_S if entry.outcome == "refused" else 0.0)
            if entry.subject_kind == "rollout" and entry.state == "promoted" and not entry.outcome:
                self._promoted.set()
                self._say(f"{PROMOTED} promoted, by wish {self._wishes}")

    def _wish(self, producer: Producer) -> None:
        """Make the next wish, once the last is answered; all but the first are about the request that came of it."""
        if self._waiting_for or time.monotonic() < self._next_s or (self._taken and not self._request_id):
            return
        kinds = self._way()
        if self._taken >= len(kinds):
            return
        kind, subject, payload = kinds[self._taken]
        self._wishes += 1
        command = new_command(
            kind,
            model=PROMOTED,
            model_epoch=self._config.model_epoch,
            subject=subject,
            payload=payload,
            actor="chaos",
            command_id=f"promotion-{self._wishes}",
        )
        self._waiting_for = command.command_id
        index = partition_of(PROMOTED, self._settings.internal_partitions)
        self._produce(producer, "commands", encode(command), PROMOTED, index)

    def _way(self) -> list[tuple[CommandKind, str, dict[str, Any]]]:
        request_id, rollout_id = self._request_id, rollout_id_of(self._request_id)
        steps = range(len(self._config.canary.steps))
        return [
            ("request", "", {"reason": "by hand"}),
            ("accept", request_id, {"run_id": "only"}),
            ("train", request_id, {"run_id": "only"}),
            ("validate", request_id, {"version": CHALLENGER, "evidence": {"accuracy": 0.8}}),
            ("start_rollout", rollout_id, {"request_id": request_id, "challenger": CHALLENGER}),
            *(("set_step", rollout_id, {"step": step}) for step in steps),
            ("promote", rollout_id, {}),
        ]

    def _serve(self, producer: Producer, tick: int) -> None:
        """Answer some entities as the deployment splits them, and label each answer at once."""
        random, split = self._random, self._split
        for _ in range(_RATE):
            self._sent += 1
            ts = T0 + tick * (PANE_MS // _PANE_TICKS) + random.randrange(PANE_MS // _PANE_TICKS)
            bucket, score = random.randrange(_BUCKETS), random.random()
            challenged = split.challenger is not None and bucket < 10 * split.percent
            version = (split.challenger or "") if challenged else split.champion
            id_ = f"{PROMOTED}-{self._sent}"
            prediction: Document = {
                "prediction_id": id_,
                "model": PROMOTED,
                "ts": ts,
                "version": version,
                "features": {
                    "hour": random.randrange(24),
                    "carrier": random.choice(CARRIERS),
                    "temp": random.gauss(60.0, 10.0),
                },
                "prediction": score > 0.5,
                "score": score,
            }
            if split.rollout_id is not None:
                prediction |= {"rollout_id": split.rollout_id, "bucket": bucket}
            truth = (score > 0.5) == (random.random() < 0.75)
            label: Document = {"prediction_id": id_, "model": PROMOTED, "ts": ts + 1_000, "label": truth}
            self._produce(producer, "predictions", json.dumps(prediction).encode(), id_)
            self._produce(producer, "labels", json.dumps(label).encode(), id_)
            self.answer.events[PROMOTED, version, "live"] += 1
            self.answer.labelled[PROMOTED, version, "live"] += 1
            self.answer.sent += 2

    def _produce(self, producer: Producer, topic: str, value: bytes, key: str, partition: int = -1) -> None:
        """Send a message, to the key's own partition where none is given."""
        producer.produce(self._settings.topic(topic), value, key, partition, on_delivery=self._delivered)

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self._failed.append(error)
