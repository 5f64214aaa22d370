"""What a serving system calls: arguments become events on the right topics, with nothing but the core installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import traceback
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streamer import sdk
from streamer.client.client_settings import client_settings
from streamer.client.entry import BATCH_HEADERS, EVENT_HEADERS, Entry
from streamer.decoding.arrow_schema import is_batch
from streamer.decoding.singles import singles
from streamer.events import FeatureLog, Label, Prediction
from streamer.kafka.clients import KafkaPropertyError
from streamer.sdk import Choice, Client, CloseReport, LabelColumns, PredictionColumns
from streamer.settings import load_settings

T0 = 1_700_000_000_000


class Kept:
    """Stands in for the outbox: keeps what is put into it."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def put(self, entries: Any) -> int:
        for entry in entries:
            assert entry.headers == (BATCH_HEADERS if is_batch(entry.body) else EVENT_HEADERS)
            assert entry.events == 1 or is_batch(entry.body)
        self.entries.extend(entries)
        return len(entries)

    @property
    def events(self) -> list[Any]:
        """What the messages say, each read as its topic is."""
        kinds = {"predictions": Prediction, "features": FeatureLog, "labels": Label}
        return [msgspec.json.decode(entry.body, type=kinds[entry.topic.split(".")[-2]]) for entry in self.entries]

    @property
    def places(self) -> list[tuple[str, str | None]]:
        return [(entry.topic, None if entry.key is None else entry.key.decode()) for entry in self.entries]

    def close(self, timeout_s: float) -> CloseReport:
        return CloseReport(len(self.entries), 0, 0, 0)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    outbox = Kept()
    monkeypatch.setattr(sdk, "Outbox", lambda *_, **__: outbox)
    return outbox


@pytest.fixture
def client(kept: Kept) -> Iterator[Client]:
    with Client(namespace="ns", redis_url=None) as made:
        yield made


def test_a_prediction_carries_what_was_given(client: Client, kept: Kept) -> None:
    choice = Choice("8", "canary-1", 12, "challenger")
    prediction_id = client.log_prediction(
        model="churn",
        features={"age": 3},
        prediction=True,
        score=0.9,
        entity_id=42,
        ts_ms=T0,
        latency_ms=1.5,
        choice=choice,
    )
    assert kept.places == [("ns.predictions.v1", prediction_id)]
    assert kept.events == [
        Prediction(
            prediction_id=prediction_id,
            model="churn",
            ts=T0,
            version="8",
            features={"age": 3},
            prediction=True,
            score=0.9,
            entity_id="42",
            rollout_id="canary-1",
            bucket=12,
            latency_ms=1.5,
        )
    ]
    assert uuid.UUID(prediction_id).version == 7


def test_a_given_id_and_version_are_kept(client: Client, kept: Kept) -> None:
    assert client.log_prediction(model="m", features={}, prediction=1, version="3", prediction_id="mine") == "mine"
    (event,) = kept.events
    assert (event.version, event.rollout_id, event.bucket) == ("3", None, None)
    with pytest.raises(ValueError, match="version: got '3', but choice says '4'"):
        client.log_prediction(model="m", features={}, prediction=1, version="3", choice=Choice("4"))


def test_without_a_version_it_is_the_unknown_one(client: Client, kept: Kept) -> None:
    client.log_prediction(model="m", features={}, prediction=1)
    assert kept.events[0].version == "_"


def test_features_and_labels_go_to_topics_of_their_own(client: Client, kept: Kept) -> None:
    client.log_features(model="m", features={"a": 1}, entity_id="e", ts_ms=T0)
    client.log_features(model="m", features={"a": 1}, prediction_id="p", version="3", ts_ms=T0)
    client.log_features(model="m", features={"a": 1}, ts_ms=T0)
    client.log_label("p", model="m", label=False, ts_ms=T0, revision=2, value=1.5)
    client.log_label(uuid.UUID(int=1), model="m", deleted=True, ts_ms=T0)
    assert kept.places == [
        ("ns.features.v1", "e"),
        ("ns.features.v1", "p"),
        ("ns.features.v1", None),
        ("ns.labels.v1", "p"),
        ("ns.labels.v1", str(uuid.UUID(int=1))),
    ]
    assert kept.events[1] == FeatureLog(model="m", ts=T0, features={"a": 1}, version="3", prediction_id="p")
    assert kept.events[3] == Label(prediction_id="p", model="m", ts=T0, label=False, revision=2, value=1.5)


def test_features_are_of_the_version_that_was_chosen(client: Client, kept: Kept) -> None:
    client.log_features(model="m", features={"a": 1}, entity_id="e", choice=Choice("4"))
    assert kept.events[0].version == "4"
    with pytest.raises(ValueError, match="version: got '3', but choice says '4'"):
        client.log_features(model="m", features={"a": 1}, version="3", choice=Choice("4"))


def test_batches_are_events_or_columns(client: Client, kept: Kept) -> None:
    events = [Prediction(prediction_id=name, model="m", ts=T0, prediction=1) for name in "ab"]
    assert client.log_predictions(events) == ["a", "b"]
    columns = PredictionColumns(model="m", features={}, prediction=[1], prediction_id=["c"])
    assert client.log_predictions(columns) == ["c"]
    client.log_labels([Label(prediction_id="a", model="m", ts=T0, label=1)])
    client.log_labels(LabelColumns(model="m", prediction_id=["b", "c"], label=[0, 1]))
    assert kept.places == [
        *(("ns.predictions.v1", name) for name in "abc"),
        *(("ns.labels.v1", name) for name in "abc"),
    ]


def many(rows: int, **columns: Any) -> PredictionColumns:
    return PredictionColumns(model="m", features={"x": list(range(rows))}, prediction=[1] * rows, **columns)


def test_columns_of_many_rows_are_one_message(client: Client, kept: Kept) -> None:
    ids = client.log_predictions(many(500))
    client.log_labels(LabelColumns(model="m", prediction_id=ids, label=[0] * 500))
    assert [(entry.topic, entry.key, entry.events) for entry in kept.entries] == [
        ("ns.predictions.v1", None, 500),
        ("ns.labels.v1", None, 500),
    ]
    predictions, labels = (entry.body for entry in kept.entries)
    assert [json.loads(raw)["prediction_id"] for _row, raw in singles(predictions, "predictions")] == ids
    assert [json.loads(raw)["prediction_id"] for _row, raw in singles(labels, "labels")] == ids


def test_columns_of_few_rows_or_of_mixed_kinds_go_one_by_one(client: Client, kept: Kept) -> None:
    client.log_predictions(many(20))
    assert [entry.events for entry in kept.entries] == [1] * 20
    client.log_predictions(many(100, entity_id=[uuid.UUID(int=row) for row in range(100)]))
    assert [entry.events for entry in kept.entries] == [1] * 120


def test_a_wrong_row_of_many_is_named_and_nothing_is_logged(client: Client, kept: Kept) -> None:
    with pytest.raises(ValueError, match=r"^row 99: ts_ms: got 5"):
        client.log_predictions(many(100, ts_ms=[T0] * 99 + [5]))
    assert kept.entries == []


def test_the_format_of_batches_can_be_chosen(kept: Kept) -> None:
    with Client(redis_url=None, batch_format="json") as client:
        client.log_predictions(many(500))
        assert [entry.events for entry in kept.entries] == [1] * 500
    kept.entries.clear()
    with Client(redis_url=None, batch_format="arrow", queue_size=8) as client:
        client.log_predictions(many(5))
        # A message that is larger than the queue would never have room in it.
        assert [entry.events for entry in kept.entries] == [2, 2, 1]
    with pytest.raises(ValueError, match="batch_format: got 'csv', wanted arrow, json or None"):
        Client(redis_url=None, batch_format="csv")  # type: ignore[arg-type]


def test_a_batch_with_a_wrong_row_logs_nothing(client: Client, kept: Kept) -> None:
    events = [
        Prediction(prediction_id="a", model="m", ts=T0, prediction=1),
        Prediction(prediction_id="b", model="", ts=T0),
    ]
    with pytest.raises(ValueError, match=r"^row 1: prediction: got None"):
        client.log_predictions(events)
    with pytest.raises(ValueError, match=r"^row 0: label: got None"):
        client.log_labels([Label(prediction_id="a", model="m", ts=T0)])
    assert kept.entries == []


def test_choosing_needs_a_redis_and_an_entity(client: Client) -> None:
    with pytest.raises(ValueError, match="redis_url: got None"):
        client.choose("m", "e")
    with Client(redis_url="redis://127.0.0.1:1/0") as other:
        with pytest.raises(ValueError, match="entity_id: got ''"):
            other.choose("m", "")
        with pytest.raises(ValueError, match="model: got 'M'"):
            other.choose("M", "e")
        assert other.choose("m", 42) == Choice("_")


def test_a_wrong_setting_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="queue_size: got 0"):
        Client(queue_size=0)
    with pytest.raises(ValueError, match="spool_bytes: got 5, wanted at least 10000000"):
        Client(spool_bytes=5)
    with pytest.raises(KafkaPropertyError, match=r"kafka\.lingerms: kafka-python has no such property"):
        Client(kafka={"lingerms": 5})
    with pytest.raises(ValueError, match="transport: got 'fast'"):
        Client(transport="fast")  # type: ignore[arg-type]


def test_no_secret_is_in_a_message_or_a_repr(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"redis_url: its port is no number \(a / or # in a password") as refused:
        Client(redis_url="redis://:se/cret@host:6379/0", spool=tmp_path / "spool")
    shown = "".join(traceback.format_exception(refused.value))
    assert "'se'" not in shown
    # It held nothing open: another client may have the spool.
    Client(redis_url=None, spool=tmp_path / "spool").close(0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRIFTLOOP_KAFKA", '{"sasl.password": "hush", "sasl.username": "me"}')
    monkeypatch.setenv("DRIFTLOOP_REDIS__URL", "redis://:hush@host:6379/0")
    monkeypatch.setenv("DRIFTLOOP_REDIS__PASSWORD", "hush")
    found = client_settings({})
    assert found.kafka["sasl.password"] == found.redis["password"] == "hush"
    assert "hush" not in repr(found)
    assert "sasl.password" in repr(found)


def _made(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], directory: str | Path = "/", **arguments: Any
) -> dict[str, Any]:
    """Return what `from_environment` hands to the constructor."""
    got: dict[str, Any] = {}

    def init(self: Client, servers: str, **options: Any) -> None:
        got.update(servers=servers, **options)

    monkeypatch.setattr(Client, "__init__", init)
    monkeypatch.chdir(directory)
    for name in [name for name in os.environ if name.startswith("DRIFTLOOP_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    Client.from_environment(**arguments)
    return got


def test_the_environment_configures_it_as_it_does_the_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "driftloop.toml"
    config.write_text(
        'namespace = "file"\n[kafka]\n"bootstrap.servers" = "file:1"\nacks = "all"\n[redis]\nurl = "redis://f"\n'
    )
    got = _made(monkeypatch, {"DRIFTLOOP_CONFIG": str(config)}, queue_size=7)
    assert (got["servers"], got["namespace"], got["redis_url"]) == ("file:1", "file", "redis://f")
    assert (got["kafka"], got["queue_size"]) == ({"acks": "all"}, 7)
    got = _made(
        monkeypatch,
        {
            "DRIFTLOOP_CONFIG": str(config),
            "DRIFTLOOP_KAFKA": json.dumps({"bootstrap.servers": "env:2", "linger.ms": 5}),
            "DRIFTLOOP_NAMESPACE": "env",
            "DRIFTLOOP_REDIS__URL": "redis://e",
        },
    )
    assert (got["servers"], got["namespace"], got["redis_url"]) == ("env:2", "env", "redis://e")
    assert got["kafka"] == {"acks": "all", "linger.ms": 5}


def test_the_sdks_own_keys_come_from_the_file_the_environment_and_the_call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert _made(monkeypatch, {}).items() >= {"transport": "kafka-python", "queue_size": 100_000, "spool": None}.items()
    config = tmp_path / "driftloop.toml"
    config.write_text('[sdk]\ntransport = "librdkafka"\nqueue_size = 5\nspool = "/file"\nspool_bytes = 20_000_000\n')
    variables = {"DRIFTLOOP_CONFIG": str(config), "DRIFTLOOP_SDK__QUEUE_SIZE": "6", "DRIFTLOOP_SDK__SPOOL": "/env"}
    got = _made(monkeypatch, variables)
    assert (got["transport"], got["queue_size"]) == ("librdkafka", 6)
    assert (got["spool"], got["spool_bytes"]) == ("/env", 20_000_000)
    got = _made(monkeypatch, variables, queue_size=7, spool="/call", transport="kafka-python", spool_bytes=30_000_000)
    assert (got["transport"], got["queue_size"]) == ("kafka-python", 7)
    assert (got["spool"], got["spool_bytes"]) == ("/call", 30_000_000)
    with pytest.raises(ValueError, match=r"sdk\.queue_size: got 'many', wanted a whole number"):
        _made(monkeypatch, {"DRIFTLOOP_SDK__QUEUE_SIZE": "many"})
    with pytest.raises(ValueError, match=r"sdk\.spol: there is no such key; .* queue_size, transport, spool"):
        _made(monkeypatch, {"DRIFTLOOP_SDK__SPOL": "/x"})


def test_a_table_as_json_counts_more_than_the_file_and_less_than_a_variable_of_its_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "driftloop.toml"
    config.write_text('[redis]\nurl = "redis://f"\nusername = "f"\n[sdk]\nqueue_size = 5\nspool = "/file"\n')
    variables = {
        "DRIFTLOOP_CONFIG": str(config),
        "DRIFTLOOP_REDIS": '{"url": "redis://json", "password": "json"}',
        "DRIFTLOOP_SDK": '{"queue_size": 6, "spool_bytes": 20000000}',
        "DRIFTLOOP_SDK__SPOOL_BYTES": "30000000",
    }
    got = _made(monkeypatch, variables)
    assert (got["redis_url"], got["redis"]) == ("redis://json", {"username": "f", "password": "json"})
    assert (got["queue_size"], got["spool"], got["spool_bytes"]) == (6, "/file", 30_000_000)
    worker = load_settings()
    assert worker.redis.url == got["redis_url"]
    assert (worker.sdk.queue_size, str(worker.sdk.spool), worker.sdk.spool_bytes) == (6, "/file", 30_000_000)
    assert _made(monkeypatch, variables | {"DRIFTLOOP_REDIS__URL": "redis://e"})["redis_url"] == "redis://e"
    with pytest.raises(ValueError, match=r"sdk\.spol: there is no such key"):
        _made(monkeypatch, {"DRIFTLOOP_SDK": '{"spol": "/x"}'})


def test_without_a_file_named_the_one_in_its_place_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "driftloop.toml").write_text('namespace = "here"')
    assert _made(monkeypatch, {})["namespace"] == ""
    assert _made(monkeypatch, {}, tmp_path)["namespace"] == "here"


def test_an_environment_that_cannot_be_read_is_named_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="DRIFTLOOP_KAFKA: wanted a JSON object") as refused:
        _made(monkeypatch, {"DRIFTLOOP_KAFKA": '{"sasl.password": "hush"'})
    assert "hush" not in str(refused.value)
    with pytest.raises(ValueError, match="DRIFTLOOP_REDIS: wanted a JSON object") as refused:
        _made(monkeypatch, {"DRIFTLOOP_REDIS": '{"password": "hush"'})
    assert "hush" not in str(refused.value)
    with pytest.raises(ValueError, match=r"^DRIFTLOOP_CONFIG: /nowhere: wanted a TOML file"):
        _made(monkeypatch, {"DRIFTLOOP_CONFIG": "/nowhere"})
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "driftloop.toml").write_bytes(b"[redis")
    with pytest.raises(ValueError, match=r"^config/driftloop\.toml: wanted a TOML file: "):
        _made(monkeypatch, {}, tmp_path)


CORE_ONLY = textwrap.dedent(
    """
    import sys

    class Blocker:
        blocked = set(sys.argv[1].split(","))

        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in self.blocked:
                raise ImportError(f"{name} is not part of the core install")

    sys.meta_path.insert(0, Blocker())
    import streamer.events, streamer.kafka.partitioning, streamer.routing, streamer.sdk, streamer.state
    client = streamer.sdk.Client("127.0.0.1:1", redis_url=None)
    print(client.log_prediction(model="m", features={"a": 1.5}, prediction=1))
    for arguments in ({"transport": "librdkafka"}, {"batch_format": "arrow"}):
        try:
            streamer.sdk.Client(**arguments)
        except ValueError as error:
            print(error)
    columns = streamer.sdk.PredictionColumns(model="m", features={"a": [1] * 500}, prediction=[1] * 500)
    print(len(client.log_predictions(columns)), client.stats().queued)
    print(sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
    """
)
BEYOND_CORE = (
    "pydantic,pydantic_settings,numpy,pandas,polars,pyarrow,scipy,sklearn,confluent_kafka,aiokafka,faust,mode,river,"
    "structlog,prometheus_client,rich,typer,tenacity,cramjam,zstandard,mlflow,airflow,evidently,psutil,yaml,monitors,dags,demo"
)


def test_the_core_install_is_enough() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CORE_ONLY, BEYOND_CORE], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    prediction_id, refusal, no_arrow, as_rows = done.stdout.splitlines()
    assert uuid.UUID(prediction_id).version == 7
    assert "librdkafka needs confluent-kafka; pip install 'driftloop[worker]'" in refusal
    assert no_arrow == "batch_format: arrow needs pyarrow; pip install 'driftloop[arrow]'"
    assert as_rows == "500 501"


def test_what_the_core_imports_is_what_it_declares() -> None:
    import tomllib

    document = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    declared = {requirement.split(">")[0].split("[")[0] for requirement in document["project"]["dependencies"]}
    assert declared == {"kafka-python", "lz4", "msgspec", "redis", "uuid-utils"}


def test_structs_of_the_batch_form_stay_as_they_were(client: Client, kept: Kept) -> None:
    event = Prediction(prediction_id="a", model="m", ts=T0, prediction=1, features={"x": float("nan")})
    client.log_predictions([event])
    event.features["x"] = 2.0
    assert kept.events[0].features == {"x": None}


def test_text_without_utf8_is_refused_by_its_place(client: Client, kept: Kept) -> None:
    with pytest.raises(ValueError, match=r"^features\['city'\]: got .*, wanted text that has UTF-8"):
        client.log_prediction(model="m", features={"age": 3, "city": "\ud800"}, prediction=1)
    with pytest.raises(ValueError, match=r"^row 1: entity_id: got '\\udc00', wanted text that has UTF-8"):
        client.log_predictions(
            [
                Prediction(prediction_id=name, model="m", ts=T0, prediction=1, entity_id=entity)
                for name, entity in (("a", "e"), ("b", "\udc00"))
            ]
        )
    assert kept.entries == []
