"""The recount against a real worker: equal after kills, garbage, corrections and repeats; and it sees a lie."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from confluent_kafka import Producer

from streamer.audit import recount
from streamer.events import ARROW_STREAM, CONTENT_TYPE_HEADER
from streamer.letters.deadletters import list_letters
from streamer.settings import Settings
from tests.integration.events import MODEL, T0, publish, send_events
from tests.integration.running import WorkerProcess, wait_for
from tests.streamer.arrows import arrow_of

pytestmark = pytest.mark.integration

# Its time is no number: none of its rows can be used.
BROKEN = arrow_of([{"prediction_id": "p", "model": "churn", "ts": "now", "prediction": True}])


class Sender:
    """Sends events one a message, or some tens of them as one Arrow message, by chance."""

    def __init__(self, settings: Settings, random: Random) -> None:
        self._settings = settings
        self._random = random
        self._producer = Producer({**settings.kafka.properties()})
        self._waiting: dict[str, list[dict[str, Any]]] = {"predictions": [], "labels": []}

    def send(self, topic: str, event: dict[str, Any]) -> None:
        self._producer.poll(0)
        waiting = self._waiting[topic]
        if self._random.random() < 0.5:
            self._produce(topic, json.dumps(event).encode())
            return
        waiting.append(event)
        if len(waiting) > self._random.randrange(20, 90):
            self._send_batch(topic)

    def send_bytes(self, topic: str, value: bytes) -> None:
        self._produce(topic, value)

    def flush(self) -> None:
        for topic, waiting in self._waiting.items():
            if waiting:
                self._send_batch(topic)
        assert self._producer.flush(30) == 0

    def _send_batch(self, topic: str) -> None:
        value = arrow_of(self._waiting[topic], self._random)
        self._waiting[topic].clear()
        self._produce(topic, value, [(CONTENT_TYPE_HEADER, ARROW_STREAM)])

    def _produce(self, topic: str, value: bytes, headers: Any = None) -> None:
        partition = self._random.randrange(4)
        self._producer.produce(self._settings.topic(topic), value, partition=partition, headers=headers or [])


def send_oddities(settings: Settings, sent: int) -> int:
    """Corrections, deletions and repeats of what `send_events` sent, in the wrong partitions too, and garbage.

    Half of it in Arrow messages, of which some rows are garbage too.
    """
    random = Random(0)
    sender = Sender(settings, random)
    garbage = 0
    for number in range(sent):
        id_ = f"00000000-0000-0000-0000-{number:012x}"
        label = {"prediction_id": id_, "model": "churn", "ts": T0 + number, "revision": random.randrange(3)}
        label |= {"deleted": True} if random.random() < 0.3 else {"label": random.random() < 0.5}
        sender.send("labels", label)
        if random.random() < 0.2:
            repeated = {"prediction_id": id_, "model": "churn", "ts": T0 + number, "version": "1", "prediction": True}
            sender.send("predictions", repeated | {"features": {"age": "40", "plan": None}, "origin": "shadow"})
        if random.random() < 0.1:
            garbage += 1
            sender.send("predictions", {"prediction_id": id_, "model": "nobody", "ts": T0, "prediction": True})
        if random.random() < 0.1:
            garbage += 1
            sender.send_bytes("predictions", random.choice([b"{", b"", b"\xff\xff\xff\xff\x00", BROKEN]))
    sender.flush()
    return garbage


def test_a_killed_worker_has_counted_what_the_recount_counts(settings: Settings) -> None:
    publish(settings, MODEL, "1")
    worker = WorkerProcess(settings)
    try:
        sent = send_events(settings, panes=4, per_pane=400, shift_from=99)
        wait_for(lambda: recount.run(settings).events, lambda events: events > 0, 60)
        worker.kill()
        garbage = send_oddities(settings, sent)
        worker.start()
        wait_for(lambda: recount.run(settings).labels, lambda labels: labels > sent, 60)
        worker.kill()
        worker.start()
        wait_for(lambda: recount.run(settings), lambda found: found.labels == 2 * sent, 60)
        assert wait_for(lambda: len(list_letters(settings, 10_000)), lambda found: found >= garbage, 30) == garbage
        report = recount.run(settings)
    finally:
        worker.kill()
    assert report.differences == []
    assert report.equal
    assert report.log_is_whole
    assert report.refused == garbage
    assert report.compared > 20

    catalog = recount.read_catalog(settings)
    counted = recount.recount(settings, catalog)
    key = next(key for key in counted.panes if key.kind == "cells")
    wrong = {**counted.panes, key: counted.panes[key] + 1}
    assert [(found.kind, found.name) for found in recount.compare(counted, wrong)] == [(key.kind, key.name)]
