"""Airflow's home and a registry of their own for the tests of the DAGs and their steps."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from streamer.settings import AirflowSettings, MlflowSettings, Settings

# Before anything imports Airflow: it reads them once.
_HOME = tempfile.mkdtemp(prefix="driftloop-airflow-")
os.environ.setdefault("AIRFLOW_HOME", _HOME)
os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
os.environ.setdefault("AIRFLOW__CORE__UNIT_TEST_MODE", "True")
os.environ.setdefault("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", f"sqlite:///{_HOME}/airflow.db")
os.environ.setdefault("AIRFLOW__LOGGING__LOGGING_LEVEL", "ERROR")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="session")
def registry_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow database, made once: its migrations take seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def settings(registry_uri: str, tmp_path: Path) -> Settings:
    """Settings with that registry, files under tmp_path, and nothing that listens."""
    return Settings(
        mlflow=MlflowSettings(
            tracking_uri=registry_uri, experiment=tmp_path.name, artifact_root=(tmp_path / "artifacts").as_uri()
        ),
        airflow=AirflowSettings(work_dir=tmp_path / "work"),
    )
