"""The SDK against a real Kafka and Valkey: everything arrives once, and a broker that is away costs nobody anything."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from confluent_kafka.admin import AdminClient

from streamer.client.entry import BATCH_HEADERS
from streamer.decode import decode
from streamer.decoding.singles import singles
from streamer.events import Deployment, Label, Prediction, encode
from streamer.kafka.clients import admin_config
from streamer.kafka.partitioning import murmur2
from streamer.kafka.reader import read_to_end
from streamer.local.stack import Stack
from streamer.sdk import Choice, Client, CloseReport, LabelColumns, PredictionColumns, TransportName
from streamer.settings import Settings
from streamer.state import Keys
from tests.integration.running import environment

pytestmark = pytest.mark.integration

T0 = 1_700_000_000_000
TRANSPORTS: Sequence[TransportName] = ("kafka-python", "librdkafka")


def _client(settings: Settings, **options: Any) -> Client:
    return Client(
        settings.kafka.bootstrap_servers, redis_url=settings.redis.url, namespace=settings.namespace, **options
    )


def _read(settings: Settings, name: str) -> list[Any]:
    """Return every message of a topic."""
    return list(read_to_end(settings, settings.topic(name)))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_is_logged_is_what_the_worker_reads(settings: Settings, transport: TransportName) -> None:
    with _client(settings, transport=transport, batch_format="json") as client:
        first = client.log_prediction(
            model="churn",
            features={"age": 3, "plan": "ä", "x": float("nan")},
            prediction=True,
            score=0.9,
            entity_id="e1",
            choice=Choice("8", "canary-1", 12, "challenger"),
        )
        client.log_label(first, model="churn", label=False)
        client.log_features(model="churn", features={"age": 4}, entity_id="e1")
        ids = client.log_predictions(
            PredictionColumns(model="churn", features={"age": range(3_000)}, prediction=[1] * 3_000)
        )
        client.log_labels(LabelColumns(model="churn", prediction_id=ids, label=[0] * 3_000))
        assert client.flush(30) == 0
        assert client.close() == CloseReport(sent=6_003, failed=0, dropped=0, unsent=0)
    predictions = _read(settings, "predictions")
    assert sorted(message.key().decode() for message in predictions) == sorted([first, *ids])
    partitions = len({message.partition() for message in predictions})
    for message in predictions:
        assert message.headers() == [("driftloop-schema", b"1")]
        assert message.partition() == (murmur2(message.key()) & 0x7FFFFFFF) % partitions
    (read,) = [decode(m.value(), "predictions") for m in predictions if m.key().decode() == first]
    assert read.features == {"age": 3, "plan": "ä", "x": None}
    assert (read.version, read.rollout_id, read.bucket, read.score) == ("8", "canary-1", 12, 0.9)
    labels = [decode(message.value(), "labels") for message in _read(settings, "labels")]
    assert sorted(label.prediction_id for label in labels) == sorted([first, *ids])
    (features,) = _read(settings, "features")
    assert features.key() == b"e1"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_columns_are_few_messages_of_many_events(settings: Settings, transport: TransportName) -> None:
    rows = 20_000
    with _client(settings, transport=transport) as client:
        ids = client.log_predictions(
            PredictionColumns(
                model="churn", features={"age": range(rows), "plan": ["a", "b"] * 10_000}, prediction=[1] * rows
            )
        )
        assert client.close(30) == CloseReport(sent=rows, failed=0, dropped=0, unsent=0)
    messages = _read(settings, "predictions")
    assert len(messages) < 5
    found = [single.value for message in messages for single in singles(message.value(), "predictions")]
    assert sorted(decode(raw, "predictions").prediction_id for raw in found) == sorted(ids)
    for message in messages:
        assert message.key() is None
        assert message.headers() == BATCH_HEADERS


def test_the_split_in_redis_routes(settings: Settings) -> None:
    store = redis.Redis.from_url(settings.redis.url)
    deployment = Deployment(
        model="churn",
        model_epoch=1,
        epoch=1,
        champion="7",
        challenger="8",
        percent=50,
        rollout_id="canary-r",
        salt="canary-r",
    )
    store.set(Keys(settings.namespace).split("churn"), encode(deployment))
    with _client(settings) as client:
        choices = [client.choose("churn", number) for number in range(1_000)]
        assert 400 < sum(choice.version == "8" for choice in choices) < 600
        assert {choice.rollout_id for choice in choices} == {"canary-r"}
        rolled_back = msgspec.structs.replace(deployment, epoch=2, challenger=None, percent=0, rollout_id=None)
        store.set(Keys(settings.namespace).split("churn"), encode(rolled_back))
        deadline = time.monotonic() + 10
        while client.choose("churn", 1) != Choice("7"):
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_broker_that_is_away_holds_nobody_up(transport: TransportName) -> None:
    dropped: list[int] = []
    client = Client("127.0.0.1:1", redis_url=None, queue_size=100, on_drop=dropped.append, transport=transport)
    # It never comes: a call that waited for it would not return.
    for number in range(1_000):
        client.log_prediction(model="churn", features={"age": number}, prediction=1)
    assert client.stats().dropped == 900
    report = client.close(timeout_s=1)
    assert report == CloseReport(sent=0, failed=0, dropped=900, unsent=100)
    assert sum(dropped) == 900


def test_a_topic_that_does_not_exist_is_not_made(settings: Settings) -> None:
    client = Client(settings.kafka.bootstrap_servers, redis_url=None, namespace="never-made")
    client.log_label("p", model="churn", label=1)
    assert client.close(timeout_s=4).sent == 0
    assert "never-made.labels.v1" not in AdminClient(admin_config(settings)).list_topics().topics


def test_a_message_too_large_costs_itself_alone(settings: Settings) -> None:
    with _client(settings) as client:
        client.log_predictions(
            [
                Prediction(prediction_id=str(number), model="churn", ts=T0, prediction=1, features={"x": "y" * size})
                for number, size in enumerate((10, 5_000_000, 10))
            ]
        )
        assert client.close(20) == CloseReport(sent=2, failed=1, dropped=0, unsent=0)


SCRIPT = textwrap.dedent(
    """
    import os, sys
    from streamer.sdk import Client
    client = Client.from_environment(transport=sys.argv[1])
    client.log_label("parent", model="churn", label=1)
    client.flush(20)
    if os.fork() == 0:
        client.log_label("child", model="churn", label=1)
        assert client.stats().dropped == 0
        client.close(20)
        os._exit(0)
    assert os.wait()[1] == 0
    client.log_label("parent", model="churn", label=0, revision=1)
    # Not closed: the interpreter's end sends what waits.
    """
)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_forked_child_and_a_client_left_open_lose_nothing(settings: Settings, transport: TransportName) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, transport],
        env=environment(settings),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    labels = [decode(message.value(), "labels") for message in _read(settings, "labels")]
    assert sorted((label.prediction_id, label.revision) for label in labels) == [
        ("child", 0),
        ("parent", 0),
        ("parent", 1),
    ]


def test_a_label_may_be_logged_as_an_event(settings: Settings) -> None:
    with _client(settings) as client:
        client.log_labels([Label(prediction_id="p", model="churn", ts=T0, deleted=True)])
    (message,) = _read(settings, "labels")
    assert decode(message.value(), "labels").deleted


def test_a_broker_that_goes_and_comes_back_costs_no_event(stack: Stack, settings: Settings, tmp_path: Path) -> None:
    clients = {
        f"{transport}-{kind}": _client(settings, transport=transport, spool=tmp_path / transport if kind else None)
        for transport in TRANSPORTS
        for kind in ("", "spool")
    }
    logged = 0

    def log_for(seconds: float) -> None:
        nonlocal logged
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for name, client in clients.items():
                client.log_label(f"{name}/{logged}", model="churn", label=1)
            logged += 1
            time.sleep(0.005)

    log_for(0.5)
    broker = stack.part("kafka")
    stopping = threading.Thread(target=broker.stop)
    stopping.start()
    log_for(3)
    stopping.join()
    waiting = {name: client.stats() for name, client in clients.items()}
    returning = threading.Thread(target=broker.start)
    returning.start()
    while returning.is_alive():
        log_for(0.2)
    for name, client in clients.items():
        assert waiting[name].sent < logged
        assert client.flush(30) == 0, name
        assert client.close(1) == CloseReport(sent=logged, failed=0, dropped=0, unsent=0), name
    assert all(stats.spooled or stats.in_flight for stats in waiting.values())
    orders: dict[str, dict[int | None, list[int]]] = {name: {} for name in clients}
    for message in _read(settings, "labels"):
        name, _, number = message.key().decode().partition("/")
        orders[name].setdefault(message.partition(), []).append(int(number))
    for name, by_partition in orders.items():
        assert sorted(number for numbers in by_partition.values() for number in numbers) == list(range(logged)), name
        # Of a partition, so of a key, everything in the order it was logged in.
        assert all(numbers == sorted(numbers) for numbers in by_partition.values()), name
    assert list(tmp_path.iterdir()) == []


SPOOLING = textwrap.dedent(
    """
    import sys, time
    from streamer.sdk import Client
    client = Client("127.0.0.1:1", redis_url=None, namespace=sys.argv[2], transport=sys.argv[1], spool=sys.argv[3])
    for number in range(10**9):
        client.log_label(str(number), model="churn", label=1)
        if number % 200 == 0:
            print(client.stats().spooled, flush=True)
            time.sleep(0.02)
    """
)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_was_spooled_survives_kill_9(settings: Settings, transport: TransportName, tmp_path: Path) -> None:
    path = tmp_path / "spool"
    command = [sys.executable, "-c", SPOOLING, transport, settings.namespace, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        spooled = 0
        while spooled < 3_000:
            spooled = int(child.stdout.readline())
        child.kill()
    with _client(settings, transport=transport, spool=path) as client:
        assert client.stats().spooled >= spooled
        assert client.flush(30) == 0
        report = client.close()
    assert report.failed == report.dropped == report.unsent == report.spooled == 0
    found = sorted(int(message.key()) for message in _read(settings, "labels"))
    assert found == list(range(len(found)))
    assert len(found) == report.sent >= spooled
    assert not path.exists()
