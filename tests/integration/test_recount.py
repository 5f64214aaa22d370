"""The recount against a real worker: equal after kills, garbage, corrections and repeats; and it sees a lie."""

from __future__ import annotations

import json
from random import Random

import pytest
from confluent_kafka import Producer

from streamer import recount
from streamer.deadletters import list_letters
from streamer.settings import Settings
from tests.integration.events import MODEL, T0, publish, send_events
from tests.integration.running import WorkerProcess, wait_for

pytestmark = pytest.mark.integration


def send_oddities(settings: Settings, sent: int) -> int:
    """Corrections, deletions and repeats of what `send_events` sent, in the wrong partitions too, and garbage."""
    random = Random(0)
    producer = Producer({**settings.kafka.properties()})
    garbage = 0
    for number in range(sent):
        producer.poll(0)
        id_ = f"00000000-0000-0000-0000-{number:012x}"
        label = {"prediction_id": id_, "model": "churn", "ts": T0 + number, "revision": random.randrange(3)}
        label |= {"deleted": True} if random.random() < 0.3 else {"label": random.random() < 0.5}
        producer.produce(settings.topic("labels"), json.dumps(label), id_, random.randrange(4))
        if random.random() < 0.2:
            repeated = {**label, "version": "1", "prediction": True, "features": {"age": "40", "plan": None}}
            producer.produce(settings.topic("predictions"), json.dumps(repeated | {"origin": "shadow"}), id_)
        if random.random() < 0.1:
            garbage += 1
            producer.produce(settings.topic("predictions"), random.choice(["{", '{"model": "nobody"}', ""]), id_)
    assert producer.flush(30) == 0
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
    key = next(key for key in counted.panes if key[4] == "cells")
    wrong = {**counted.panes, key: counted.panes[key] + 1}
    assert [(found.kind, found.name) for found in recount.compare(counted, wrong)] == [(key[4], key[5])]
