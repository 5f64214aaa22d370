"""What Airflow's processes are told, so that what one of them writes the others can read."""

from __future__ import annotations

import os
from base64 import urlsafe_b64decode
from pathlib import Path

import pytest

from streamer.local.airflow import Airflow
from streamer.local.ports import Ports
from streamer.local.postgres import Postgres
from streamer.local.processes import Launcher
from streamer.local.site import Site
from streamer.settings import Settings

SECRETS = ("AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__API_AUTH__JWT_SECRET", "AIRFLOW__API__SECRET_KEY")


@pytest.fixture
def airflow(tmp_path: Path) -> Airflow:
    site = Site(tmp_path, Launcher("test", tmp_path / "guardian.log"), Ports(), Settings())
    return Airflow(site, Postgres(site), lambda: {"DRIFTLOOP_KAFKA": "{}"})


def test_all_processes_are_given_the_same_keys_from_their_first_start_on(airflow: Airflow) -> None:
    first, second = airflow.variables(), airflow.variables()
    assert all(first[name] == second[name] for name in SECRETS)
    assert len({first[name] for name in SECRETS}) == len(SECRETS)
    # What Fernet takes for a key.
    assert len(urlsafe_b64decode(first["AIRFLOW__CORE__FERNET_KEY"])) == 32


def test_keys_can_be_read_by_their_owner_alone(airflow: Airflow, tmp_path: Path) -> None:
    airflow.variables()
    files = [path for path in (tmp_path / "airflow").iterdir() if path.is_file()]
    assert len(files) == len(SECRETS)
    assert {os.stat(path).st_mode & 0o777 for path in files} == {0o600}
