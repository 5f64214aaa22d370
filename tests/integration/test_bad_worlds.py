"""Worlds that are not as they should be: what the worker does, what its log says, and whether `doctor` finds it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from streamer.diagnosis.checks import Check
from streamer.diagnosis.doctor import examine
from streamer.diagnosis.transaction_checks import transactions
from streamer.kafka import topics
from streamer.settings import KafkaSettings, Settings
from streamer.state import Keys
from tests.integration.events import MODEL, T0, publish, send_events
from tests.integration.running import WorkerProcess, running_worker, wait_for

pytestmark = pytest.mark.integration


def doctor(settings: Settings) -> dict[str, Check]:
    return {check.name: check for check in examine(settings, now_ms=int(time.time() * 1000))}


def lines(worker: WorkerProcess, event: str) -> list[dict[str, Any]]:
    """Return the lines of a worker's log that tell of an event."""
    found = [json.loads(line) for line in worker.text().splitlines() if line.startswith("{")]
    return [line for line in found if line["event"] == event]


def send(settings: Settings, topic: str, *values: bytes, key: bytes | None = None, partition: int = 0) -> None:
    producer = Producer({**settings.kafka.properties()})
    for value in values:
        producer.produce(settings.topic(topic), value, key, partition)
    assert producer.flush(10) == 0


def counted(settings: Settings) -> Callable[[], int]:
    store = redis.Redis.from_url(settings.redis.url)
    key = Keys(settings.namespace).models()
    return lambda: json.loads(store.hget(key, "churn") or b"{}").get("n", 0)


def ended(worker: WorkerProcess) -> int:
    return worker.process.wait(60)


def test_strangers_in_every_topic_an_unknown_model_and_version_are_lines_and_findings_and_end_nothing(
    settings: Settings,
) -> None:
    publish(settings, MODEL, "1")
    with running_worker(settings) as worker:
        sent = send_events(settings, panes=1, per_pane=50, shift_from=5)
        wait_for(counted(settings), lambda n: n == sent)
        nonsense = (b"", b"\xff", b"{", b"[" * 50_000, b"\xc1\xc1")
        for number in range(settings.internal_partitions):
            send(settings, "commands", *nonsense, partition=number)
            send(settings, "partials", *nonsense, partition=number)
        send(settings, "models", b'{"name": "churn", "task": "none"}', key=b"churn")
        send(settings, "models", b"{", key=b"\xff\xfe")
        send(settings, "references", b"{", key=b"churn/1/manifest")
        send(settings, "references", b"{}", key=b"\xff")
        event = {"prediction_id": "a", "model": "nobody", "ts": T0, "prediction": 1, "features": {}}
        unknown_version = {**event, "prediction_id": "b", "model": "churn", "version": "7"}
        send(settings, "predictions", json.dumps(event).encode(), json.dumps(unknown_version).encode(), b"poison")
        wait_for(counted(settings), lambda n: n == sent + 1)
        wait_for(lambda: {line["event"] for line in _warned(worker)}, lambda found: found >= WARNED)
        assert lines(worker, "foreign_message")[0]["place"].startswith(settings.topic("partials"))
        assert lines(worker, "model_refused")[0]["stays"] == "model_epoch 1, as it was"
        assert lines(worker, "no_reference")[0]["version"] == "7"
        found = wait_for(lambda: doctor(settings), lambda checks: checks["dead letters"].status == "warning")
        assert "in the last hour" in found["dead letters"].found
        assert "predictions.v1 model" in found["dead letters"].found
        assert found["models"].status == "failed"
        assert "churn: task" in found["models"].found.replace(" key", ":")
        assert "reference churn 1" in found["models"].found
        # Mended: published once more.
        send(settings, "models", b"", key=b"\xff\xfe")
        delete(settings, "models", b"\xff\xfe")
        publish(settings, MODEL, "1")
        mended = doctor(settings)["models"]
        assert (mended.status, mended.found) == ("warning", "counted without a reference, so without drift: churn 7")
        more = send_events(settings, panes=1, per_pane=50, shift_from=5, first=1)
        wait_for(counted(settings), lambda n: n == sent + 1 + more)


WARNED = {"command_refused", "foreign_message", "model_refused", "reference_refused", "dead_letters", "no_reference"}


def _warned(worker: WorkerProcess) -> list[dict[str, Any]]:
    return [line for event in WARNED for line in lines(worker, event)]


def delete(settings: Settings, topic: str, key: bytes) -> None:
    producer = Producer({**settings.kafka.properties()})
    producer.produce(settings.topic(topic), None, key)
    assert producer.flush(10) == 0


def test_a_missing_topic_and_one_with_other_partitions_are_refused_before_anything_runs(settings: Settings) -> None:
    admin = AdminClient({**settings.kafka.properties()})
    for future in admin.create_partitions([NewPartitions(settings.topic("state"), 6)]).values():
        future.result()
    _until(lambda: len(admin.list_topics(timeout=10).topics[settings.topic("state")].partitions) == 6)
    worker = WorkerProcess(settings)
    assert ended(worker) == 1
    assert f"topic {settings.topic('state')}: has 6 partitions, wanted 4" in worker.text()
    assert "has 6 partitions, wanted 4" in doctor(settings)["topics"].found
    remove(settings, "labels")
    worker = WorkerProcess(settings)
    assert ended(worker) == 1
    assert f"topics missing, or without a leader: {settings.topic('labels')}" in worker.text()
    check = doctor(settings)["topics"]
    assert (check.status, check.remedy) == ("failed", "driftloop topics create")
    topics.ensure(settings, ["labels"])


def test_offsets_lost_to_retention_and_a_topic_made_anew_are_told_and_the_worker_goes_on(settings: Settings) -> None:
    publish(settings, MODEL, "1")
    # So that clients notice soon what has changed.
    hasty = {**settings.kafka.properties(), "topic.metadata.refresh.interval.ms": "1000"}
    settings = settings.model_copy(update={"kafka": KafkaSettings.model_validate(hasty)})
    read = counted(settings)
    with running_worker(settings):
        sent = send_events(settings, panes=1, per_pane=100, shift_from=5)
        wait_for(read, lambda n: n == sent)
    send_events(settings, panes=1, per_pane=100, shift_from=5, first=1)
    admin = AdminClient({**settings.kafka.properties()})
    name = settings.topic("predictions")
    gone = admin.delete_records([TopicPartition(name, number, -1) for number in range(4)])
    assert all(future.result() for future in gone.values())
    found = doctor(settings)["offsets"]
    assert found.status == "failed"
    assert f"{name}[" in found.found
    assert "are gone and were never read" in found.found
    worker = WorkerProcess(settings)
    try:
        sent += send_events(settings, panes=1, per_pane=100, shift_from=5, first=2)
        wait_for(read, lambda n: n == sent)
        lost = lines(worker, "lost_range")
        assert sum(line["end"] - line["start"] for line in lost if line["topic"] == name) >= 100
        assert doctor(settings)["offsets"].status == "ok"
        # A topic with more partitions than before is read on.
        for future in admin.create_partitions([NewPartitions(name, 6)]).values():
            future.result()
        _until(lambda: len(admin.list_topics(timeout=10).topics[name].partitions) == 6)
        sent += send_events(settings, panes=1, per_pane=100, shift_from=5, first=3)
        wait_for(read, lambda n: n == sent)
        assert "partitions is 6, wanted 4" in doctor(settings)["topics"].found
        # One made anew is another topic: the worker ends, and reads it from its beginning.
        remove(settings, "predictions")
        assert ended(worker) == 1
        assert "Unknown topic" in lines(worker, "stage_failed")[0]["reason"]
        assert "Unknown topic" in worker.text().rstrip().rsplit("driftloop: the worker has ended by ", 1)[1]
        # By itself: nothing hung until the watchdog came.
        assert "Timeout (" not in worker.text()
        topics.ensure(settings, ["predictions"])
        worker.start()
        sent += send_events(settings, panes=1, per_pane=100, shift_from=5, first=4)
        wait_for(read, lambda n: n == sent)
    finally:
        worker.kill()


def test_a_transaction_that_hangs_is_found_with_its_place_and_one_at_work_is_not(settings: Settings) -> None:
    name = settings.topic("partials")
    producer = Producer({**settings.kafka.properties(), "transactional.id": name})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(name, b"counts", partition=1)
    assert producer.flush(10) == 0
    assert doctor(settings)["transactions"].status == "ok"
    found = transactions(settings, now_ms=int(time.time() * 1000) + 90_000)
    assert found.status == "failed"
    assert f"{name}[1]: open from offset " in found.found
    assert "kafka-transactions.sh" in found.remedy
    producer.abort_transaction(30)
    _until(lambda: doctor(settings)["transactions"].found == "none is open in any topic of driftloop's")


def remove(settings: Settings, topic: str) -> None:
    admin = AdminClient({**settings.kafka.properties()})
    for future in admin.delete_topics([settings.topic(topic)]).values():
        future.result()
    _until(lambda: settings.topic(topic) not in admin.list_topics(timeout=10).topics)


def _until(true: Callable[[], bool]) -> None:
    wait_for(true, bool, timeout_s=20)
