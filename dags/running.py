"""What all tasks share: how often they are tried, and how a step's exception ends its task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from dags.steps.outcomes import NothingToDo, Unmendable
from streamer.commands import CommandRefused
from streamer.settings import ConfigError

DEFAULTS: dict[str, Any] = {
    "owner": "driftloop",
    "retries": 3,
    "retry_delay": timedelta(seconds=5),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=5),
    "execution_timeout": timedelta(minutes=5),
}


@contextmanager
def ending_well() -> Iterator[None]:
    """Skip what follows where a step has nothing left to do, and fail at once where trying again cannot help.

    Everything else is left to the task's retries.
    """
    try:
        yield
    except NothingToDo as nothing:
        raise AirflowSkipException(str(nothing)) from nothing
    except (Unmendable, CommandRefused, ConfigError) as error:
        raise AirflowFailException(f"{type(error).__name__}: {error}") from error


def failures(context: Any) -> str:
    """Return which tasks of a run failed, for the reason of a `fail` or a rollback."""
    run = context["dag_run"]
    states = context["ti"].get_task_states(dag_id=run.dag_id, run_ids=[run.run_id]).get(run.run_id, {})
    failed = sorted(name for name, state in states.items() if str(state) == "failed")
    return f"{', '.join(failed) or 'a task'} failed in {run.dag_id} run {run.run_id}"
