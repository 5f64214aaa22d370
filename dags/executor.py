"""Airflow's LocalExecutor with the libraries of our tasks imported once, in the process they are all forked from.

A task that trains, measures or registers would spend more seconds importing scikit-learn and MLflow than working.
Set `AIRFLOW__CORE__EXECUTOR=dags.executor.WarmLocalExecutor`; with any other executor everything works, slower.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import warnings

from airflow.executors.local_executor import LocalExecutor

# None of them starts a thread when imported, which a fork would leave behind.
LIBRARIES = (
    "confluent_kafka",
    "dags.assets",
    "dags.operators",
    "dags.steps.gates",
    "dags.steps.registering",
    "dags.steps.retraining",
    "dags.steps.stages",
    "dags.steps.training",
    "mlflow.sklearn",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "skops.io",
)

log = logging.getLogger(__name__)


class WarmLocalExecutor(LocalExecutor):
    """LocalExecutor that imports before it forks."""

    def start(self) -> None:
        """Import what tasks import, then start the workers."""
        # Spawned workers (macOS) inherit nothing.
        if multiprocessing.get_start_method() == "fork":
            with warnings.catch_warnings():
                # skops asks every module there is for every function of scipy's; Airflow's deprecated ones complain.
                warnings.simplefilter("ignore")
                for name in LIBRARIES:
                    importlib.import_module(name)
        super().start()
