"""The service is configured by file and environment; what is wrong is named with its file, key and value."""

from __future__ import annotations

import os
import re
import tomllib
import traceback
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from streamer.durations import Duration
from streamer.kafka.topics import TOPICS
from streamer.settings import ConfigError, Settings, config_path, load_settings

DEFAULTS = Path(__file__).parents[2] / "config" / "driftloop.toml"
ABSENT = {
    "redis.join_url",
    "redis.username",
    "redis.password",
    "redis.ssl_ca_certs",
    "redis.ssl_certfile",
    "redis.ssl_keyfile",
    "mlflow.registry_uri",
    "mlflow.artifact_root",
    "sdk.spool",
}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("DRIFTLOOP_"):
            monkeypatch.delenv(name)


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config" / "driftloop.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return path


def test_the_shipped_file_says_what_holds_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    without = load_settings()
    monkeypatch.setenv("DRIFTLOOP_CONFIG", str(DEFAULTS))
    assert load_settings() == without


def _keys(model: BaseModel, prefix: str = "") -> set[str]:
    keys = set()
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        key = f"{prefix}{field.alias or name}"
        keys |= _keys(value, f"{key}.") if isinstance(value, BaseModel) else {key}
    return keys


def _written(document: dict[str, Any], prefix: str = "") -> set[str]:
    keys = set()
    for name, value in document.items():
        keys |= _written(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}"}
    return keys


def test_the_shipped_file_has_every_key() -> None:
    text = DEFAULTS.read_text()
    assert _written(tomllib.loads(text)) == _keys(Settings()) - ABSENT - {"topics"}
    for key in ABSENT:
        assert re.search(rf"^# {key.split('.')[1]} = ", text, re.MULTILINE)


def test_what_the_shipped_file_says_of_topics_is_so() -> None:
    examples = DEFAULTS.read_text().split("# ---- Topics")[1].split("\n\n", 1)[1]
    topics = tomllib.loads(re.sub(r"^# ", "", examples, flags=re.MULTILINE))["topics"]
    assert topics.keys() == {"predictions", "labels", "ledger"}
    for name, written in topics.items():
        assert Duration.parse(written["retention"]) == TOPICS[name].retention_ms
        assert written.get("partitions", TOPICS[name].partitions) == TOPICS[name].partitions


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _file(tmp_path, 'namespace = "file"\n[worker]\nflush_ms = 100\nreplica = "a"\n[kafka]\nacks = "all"')
    monkeypatch.setenv("DRIFTLOOP_WORKER__REPLICA", "b")
    monkeypatch.setenv("DRIFTLOOP_WORKER__MAX_FUTURE_MS", "60000")
    monkeypatch.setenv("DRIFTLOOP_REDIS__JOIN_URL", "")
    monkeypatch.setenv("DRIFTLOOP_KAFKA", '{"bootstrap.servers": "broker:1", "linger.ms": 5}')
    settings = load_settings()
    assert (settings.namespace, settings.worker.flush_ms, settings.worker.replica) == ("file", 100, "b")
    assert settings.worker.max_future_ms == 60_000
    assert settings.redis.join_url is None
    assert settings.kafka.properties() == {"bootstrap.servers": "broker:1", "acks": "all", "linger.ms": "5"}


def test_a_file_may_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text('namespace = "other"')
    assert config_path() is None
    monkeypatch.setenv("DRIFTLOOP_CONFIG", str(other))
    assert load_settings().namespace == "other"
    monkeypatch.setenv("DRIFTLOOP_CONFIG", "/nowhere.toml")
    with pytest.raises(ConfigError, match=r"DRIFTLOOP_CONFIG names /nowhere\.toml, which is not a file"):
        load_settings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[worker]\nflush = 1", r"driftloop\.toml: worker\.flush: unknown key \(value 1\)"),
        ("[worker]\nflush_ms = 1", r"driftloop\.toml: worker\.flush_ms: got 1: "),
        ("[worker]\nmax_future_ms = 'soon'", r"worker\.max_future_ms: got 'soon': .*wanted a duration"),
        ("[redis]\nurl = 'store:6379'", r"redis\.url: got 'store:6379': .*wanted redis://host:6379/0"),
        (
            "[redis]\njoin_url = 'redis://store:port'",
            r"redis\.join_url: got 'redis://store:port': .*its port is no number",
        ),
        ("namespace = 'Prod'", r"namespace: got 'Prod': "),
        ("[dead_letters]\nmode = 'none'", r"dead_letters\.mode: got 'none': .*'raw' or 'redacted'"),
        ("[topics.predictions]\npartition = 3", r"topics\.predictions\.partition: unknown key"),
        ("namespace = ", r"driftloop\.toml: not valid TOML"),
        ("namespace = '\ud800'", r"driftloop\.toml: not valid TOML: 'utf-8' codec can't decode"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    _file(tmp_path, text)
    with pytest.raises(ConfigError, match=message):
        load_settings()


@pytest.mark.parametrize(
    "text",
    [
        '[mlflow]\npassword = "hunter2"',
        '[redis]\npassword = "hunter2"\nssl_ca_certs = "ca.pem"',
        '[redis]\npassword = ["hunter2"]',
        '[redis]\nurl = 3\njoin_url = ["redis://me:hunter2@store:6379"]',
        'password = { a = ["hunter2"] }',
        '[sasl]\npassword = "hunter2"',
        '[redis]\nurl = "me:hunter2@store:6379"',
        '[redis]\nurl = "http://me:hunter2@store:6379"',
        '[redis]\nurl = "redis://me:hunter2/more@store:6379"',
        'kafka = "hunter2"',
        'redis = ["hunter2"]',
    ],
)
def test_a_secret_is_not_shown_neither_in_the_message_nor_in_a_traceback(tmp_path: Path, text: str) -> None:
    _file(tmp_path, text)
    with pytest.raises(ConfigError, match=r"driftloop\.toml: ") as refused:
        load_settings()
    assert "hunter2" not in "".join(traceback.format_exception(refused.value))


def test_what_is_wrong_in_the_environment_is_not_blamed_on_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _file(tmp_path, "[worker]\nflush_ms = 100\nview_ms = 1")
    monkeypatch.setenv("DRIFTLOOP_WORKER__FLUSH_MS", "1")
    monkeypatch.setenv("DRIFTLOOP_KAFKA", '{"bootstrap.servers": 9092}')
    with pytest.raises(ConfigError) as refused:
        load_settings()
    kafka, flush, view = str(refused.value).splitlines()
    assert kafka.startswith("DRIFTLOOP_KAFKA: kafka.bootstrap.servers: got 9092: ")
    assert flush.startswith("DRIFTLOOP_WORKER__FLUSH_MS: worker.flush_ms: got '1': ")
    assert view.startswith("config/driftloop.toml: worker.view_ms: got 1: ")


@pytest.mark.parametrize("name", ["DRIFTLOOP_KAFKA", "DRIFTLOOP_REDIS"])
@pytest.mark.parametrize("value", ['{"sasl.password": "hunter2', "hunter2:9092"])
def test_a_variable_that_is_no_json_is_named_without_its_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=rf"^{name}: not valid JSON \(.*line 1.*\); wanted") as refused:
        load_settings()
    assert "hunter2" not in "".join(traceback.format_exception(refused.value))


def test_tls_files_for_an_address_without_tls_are_refused(tmp_path: Path) -> None:
    _file(tmp_path, '[redis]\nssl_ca_certs = "ca.pem"')
    with pytest.raises(ConfigError, match=r"redis: .*ssl_ca_certs is given, but no address is encrypted"):
        load_settings()
    _file(tmp_path, '[redis]\njoin_url = "rediss://labels:6380/0"\nssl_ca_certs = "ca.pem"\nusername = "worker"')
    assert load_settings().redis.username == "worker"


def test_a_value_in_place_of_a_table_is_told_what_was_wanted(tmp_path: Path) -> None:
    _file(tmp_path, 'kafka = "broker:9092"')
    with pytest.raises(ConfigError, match=r"kafka: got one value of type str, wanted a table: \[kafka\]"):
        load_settings()


def test_two_faults_are_two_lines(tmp_path: Path) -> None:
    _file(tmp_path, "a = 1\n[worker]\nb = 2")
    with pytest.raises(ConfigError) as refused:
        load_settings()
    assert len(str(refused.value).splitlines()) == 2


def test_a_namespace_prefixes_every_topic() -> None:
    assert Settings().topic("dead-letters") == "dead-letters.v1"
    assert Settings(namespace="team-a").topic("dead-letters") == "team-a.dead-letters.v1"
