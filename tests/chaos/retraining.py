"""What answers requests during a storm: runs that accept, race, reject, fail, roll out and roll back, and people."""

from __future__ import annotations

import heapq
import time
from random import Random
from typing import Any

import msgspec
from confluent_kafka import Consumer, Producer, TopicPartition

from monitors.lifecycle import rollout_id_of
from streamer.commands import new_command
from streamer.events import Command, CommandKind, RetrainRequest, encode
from streamer.kafka.clients import consumer_config, producer_config
from streamer.kafka.partitioning import partition_of
from streamer.settings import Settings
from tests.chaos.background import Background
from tests.chaos.models import CHALLENGER, MODELS, PROMOTED

_POLL_S = 0.1
_FLUSH_S = 60.0
_EVERY_S = (0.1, 0.9)
# Somebody asks for a retraining by hand about so often.
_BY_HAND_S = 4.0

# Nobody takes on requests of this one: they are published again and expire.
LEFT_ALONE = "hasty"
_ASKED_FOR = tuple(name for name in MODELS if name != PROMOTED)


class Retraining(Background):
    """Reads requests and sends the commands that runs and people would; what it does is drawn from a seed.

    It waits for no answer, so some of what it wishes is refused: that has to be answered too.
    """

    def __init__(self, settings: Settings, seed: int) -> None:
        super().__init__("retraining")
        self._settings = settings
        self._random = Random(seed)
        self._due: list[tuple[float, int, Command]] = []
        self._sent = 0

    def _run(self) -> None:
        topic = self._settings.topic("retrain-requests")
        consumer = Consumer(consumer_config(self._settings, group_id="chaos-retraining", extra={"log_level": 0}))
        producer = Producer(
            producer_config(self._settings, {"linger.ms": 0, "message.timeout.ms": 600_000, "log_level": 0})
        )
        consumer.assign([TopicPartition(topic, index, 0) for index in range(self._settings.internal_partitions)])
        seen: set[str] = set()
        by_hand = time.monotonic() + _BY_HAND_S
        try:
            while not self._stopping.is_set():
                message = consumer.poll(_POLL_S)
                if message is not None and message.error() is None:
                    request = msgspec.json.decode(message.value() or b"", type=RetrainRequest)
                    if request.request_id not in seen and request.model not in (LEFT_ALONE, PROMOTED):
                        self._plan(request)
                    seen.add(request.request_id)
                if time.monotonic() > by_hand:
                    by_hand = time.monotonic() + _BY_HAND_S
                    model = self._random.choice(_ASKED_FOR)
                    self._wish(0.0, model, "request", reason="by hand")
                while self._due and self._due[0][0] <= time.monotonic():
                    self._append(producer, heapq.heappop(self._due)[2])
                producer.poll(0)
            if producer.flush(_FLUSH_S):
                raise RuntimeError("retraining: commands were not taken")
        finally:
            consumer.close()

    def _plan(self, request: RetrainRequest) -> None:
        """Draw what becomes of a request, and put the commands for it off until their time."""
        random, model, request_id = self._random, request.model, request.request_id
        rollout_id = rollout_id_of(request_id)
        steps: list[tuple[CommandKind, str, dict[str, Any]]] = [("accept", request_id, {"run_id": "first"})]
        if random.random() < 0.4:
            steps.append(("accept", request_id, {"run_id": "rival"}))
        how = random.choice(["reject", "fail", "roll back", "force", "forget"])
        steps.append(("train", request_id, {"run_id": "first"}))
        if how == "reject":
            steps.append(("reject", request_id, {}))
        elif how == "fail":
            steps.append(("fail", request_id, {"reason": "out of memory"}))
        else:
            steps += [
                ("validate", request_id, {"version": CHALLENGER, "evidence": {"accuracy": 0.8}}),
                ("start_rollout", rollout_id, {"request_id": request_id, "challenger": CHALLENGER}),
                ("set_step", rollout_id, {"step": 0}),
            ]
            if random.random() < 0.3:
                # Before the step has passed: refused, whatever else befalls.
                steps.append(("promote", rollout_id, {}))
            if how == "force":
                steps.append(("force_rollback", rollout_id, {"epoch": 1_000 + self._sent}))
            else:
                # What was forgotten is found and ended later: until then no other request is raised.
                steps.append(("rollback", rollout_id, {"reason": "worse"}))
        after = 0.0
        for kind, subject, payload in steps:
            after += random.uniform(*_EVERY_S) + (5.0 if how == "forget" and kind == "rollback" else 0.0)
            command = self._wish(after, model, kind, subject, **payload)
            if random.random() < 0.2:
                # Its sender had no answer, and sends it again.
                self._put_off(after + random.uniform(0.1, 3.0), command)

    def _wish(self, after_s: float, model: str, kind: CommandKind, subject: str = "", **payload: Any) -> Command:
        self._sent += 1
        command = new_command(
            kind,
            model=model,
            model_epoch=MODELS[model].model_epoch,
            subject=subject,
            payload=payload,
            actor="chaos",
            command_id=f"wish-{self._sent}",
        )
        self._put_off(after_s, command)
        return command

    def _put_off(self, after_s: float, command: Command) -> None:
        heapq.heappush(self._due, (time.monotonic() + after_s, len(self._due) + 1_000 * self._sent, command))

    def _append(self, producer: Producer, command: Command) -> None:
        producer.produce(
            self._settings.topic("commands"),
            encode(command),
            key=command.model.encode(),
            partition=partition_of(command.model, self._settings.internal_partitions),
        )
