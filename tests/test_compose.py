"""The Docker stack, checked as far as that goes without an engine: structure, ports, names of settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamer.settings import Settings

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_made_of_something_and_waits_for_services_that_are_there(name: str) -> None:
    service = SERVICES[name]
    assert "image" in service or "build" in service
    assert set(service.get("depends_on", {})) <= set(SERVICES)
    for mount in service.get("volumes", []):
        assert mount.split(":")[0] in COMPOSE["volumes"]


@pytest.mark.parametrize("name", SERVICES)
def test_no_port_is_open_to_other_machines(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


def test_no_password_stands_in_the_file() -> None:
    text = (ROOT / "docker-compose.yaml").read_text()
    for name in ("DRIFTLOOP_POSTGRES_PASSWORD", "DRIFTLOOP_AIRFLOW_SECRET"):
        assert "${" + name + ":?}" in text


def test_every_driftloop_variable_names_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = COMPOSE["x-addresses"]
    for name, value in addresses.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DRIFTLOOP_CONFIG", "")
    settings = Settings()
    assert settings.kafka.bootstrap_servers == json.loads(addresses["DRIFTLOOP_KAFKA"])["bootstrap.servers"]
    assert settings.redis.url == addresses["DRIFTLOOP_REDIS__URL"]
    assert settings.mlflow.tracking_uri == addresses["DRIFTLOOP_MLFLOW__TRACKING_URI"]
