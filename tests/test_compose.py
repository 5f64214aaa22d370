"""The Docker stack, checked as far as that goes without an engine: structure, ports, settings, secrets."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from streamer.local.airflow import AIRFLOW_SETTINGS
from streamer.local.kafka import BROKER_SETTINGS
from streamer.local.valkey import SERVER_SETTINGS
from streamer.settings import Settings

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docker-compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ONE_SHOT = {"topics", "mlflow-migrate", "airflow-migrate"}
EACH_SERVICE = pytest.mark.parametrize("name", SERVICES)


def test_the_whole_stack_is_there() -> None:
    airflow = {f"airflow-{part}" for part in ("migrate", "api-server", "scheduler", "triggerer", "dag-processor")}
    assert {"kafka", "valkey", "postgres", "mlflow", "worker"} | airflow <= set(SERVICES)


@EACH_SERVICE
def test_a_service_is_built_here_or_an_image_of_a_named_version(name: str) -> None:
    service = SERVICES[name]
    assert ("image" in service) != ("build" in service)
    if "image" in service:
        assert re.fullmatch(r"[a-z/]+:\d+(\.\d+)*", service["image"])


@EACH_SERVICE
def test_a_service_waits_for_others_to_be_healthy_or_done(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        wanted = "service_completed_successfully" if other in ONE_SHOT else "service_healthy"
        assert how == {"condition": wanted}


@EACH_SERVICE
def test_a_service_that_stays_has_a_health_check_and_one_that_ends_has_none(name: str) -> None:
    check = SERVICES[name].get("healthcheck")
    if name in ONE_SHOT:
        assert check == {"disable": True}
        assert SERVICES[name].get("restart", "no") == "no"
    else:
        # The worker's is the image's own.
        assert name == "worker" or check["test"][0] in ("CMD", "CMD-SHELL")
        assert SERVICES[name]["restart"] == "unless-stopped"


@EACH_SERVICE
def test_volumes_and_configs_are_declared(name: str) -> None:
    assert {mount.split(":")[0] for mount in SERVICES[name].get("volumes", [])} <= set(COMPOSE["volumes"])
    assert {config["source"] for config in SERVICES[name].get("configs", [])} <= set(COMPOSE["configs"])


@EACH_SERVICE
def test_no_port_is_open_to_other_machines(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


def test_no_secret_stands_in_the_file() -> None:
    used = set(re.findall(r"(?<!\$)\$\{([^}]*)}", TEXT))
    secrets = ("POSTGRES_PASSWORD", "AIRFLOW_SECRET", "AIRFLOW_FERNET_KEY")
    assert used == {f"DRIFTLOOP_{name}:?" for name in secrets}
    for line in TEXT.splitlines():
        key, _, value = line.strip().partition(": ")
        if re.fullmatch(r"[A-Z_]*(PASSWORD|SECRET|FERNET)[A-Z_]*", key):
            assert value.startswith("${")
    assert all("driftloop:${" in found for found in re.findall(r"//driftloop:\S+@", TEXT))


@EACH_SERVICE
def test_every_driftloop_variable_names_a_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {key: value for key, value in SERVICES[name].get("environment", {}).items() if key.startswith("DRIFTLOOP_")}
    monkeypatch.setenv("DRIFTLOOP_CONFIG", "")
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    settings = Settings()
    for key, value in given.items():
        section, _, field = key.removeprefix("DRIFTLOOP_").lower().partition("__")
        found = getattr(settings, section)
        if field:
            assert isinstance(found, BaseModel)
            assert str(getattr(found, field)) == value
    if given:
        assert settings.kafka.properties() == json.loads(given["DRIFTLOOP_KAFKA"])


def test_kafka_runs_with_the_local_stacks_settings() -> None:
    environment = SERVICES["kafka"]["environment"]
    as_environment = {f"KAFKA_{name.upper().replace('.', '_')}": value for name, value in BROKER_SETTINGS.items()}
    assert {name: environment.get(name) for name in as_environment} == as_environment


def test_valkey_runs_with_the_local_stacks_settings() -> None:
    options = SERVICES["valkey"]["command"][1:]
    assert dict(zip(options[::2], options[1::2], strict=True)) == {
        f"--{name}": value for name, value in SERVER_SETTINGS.items()
    }


def test_airflow_runs_with_the_local_stacks_settings() -> None:
    for name in (name for name in SERVICES if name.startswith("airflow-")):
        environment = SERVICES[name]["environment"]
        as_environment = {f"AIRFLOW__{key}": value for key, value in AIRFLOW_SETTINGS.items()}
        assert {key: environment.get(key) for key in as_environment} == as_environment


def test_airflows_kafka_connection_commits_only_what_is_stored() -> None:
    connection = json.loads(SERVICES["airflow-triggerer"]["environment"]["AIRFLOW_CONN_KAFKA_DRIFT"])
    assert connection["conn_type"] == "kafka"
    assert connection["extra"]["enable.auto.commit"] is False
    assert connection["extra"]["bootstrap.servers"] == "kafka:9092"


def test_the_image_does_not_run_as_root_and_says_whether_it_is_well() -> None:
    steps = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^USER driftloop$", steps, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK .*\\\n.*/health", steps, re.MULTILINE)
