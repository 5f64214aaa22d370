"""The canary: a challenger's way up its model's ramp, a step at a time, each held until evaluate's verdict on it.

The ramp has a fixed number of positions, for tasks that are mapped at run time would not wait for one another; those
a model does not use are skipped. Whatever fails rolls the challenger back, and the run shows as failed.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import TaskGroup, TriggerRule, dag, task
from airflow.sdk.exceptions import AirflowFailException

from dags.operators import AwaitVerdict, Promote, SetStep
from dags.running import DEFAULTS, ending_well, failures
from dags.steps.readiness import MAX_STEPS


@dag(
    dag_id="canary",
    schedule=None,
    catchup=False,
    max_active_runs=16,
    default_args=DEFAULTS,
    tags=["driftloop"],
    doc_md=__doc__,
)
def canary() -> None:
    """Start, then set and wait for each step, then promote; on any failure roll back."""

    @task
    def start(*, dag_run: Any = None) -> dict[str, Any]:
        """Begin the rollout at 0 %."""
        from dags.steps import rollout
        from streamer.settings import load_settings

        with ending_well():
            mine = rollout.Rollout.from_conf(dag_run.conf, dag_run.run_id)
            return rollout.start(load_settings(), mine)

    @task(trigger_rule=TriggerRule.ONE_FAILED, retries=10)
    def roll_back(*, dag_run: Any = None, ti: Any = None) -> str:
        """Give all traffic back to the champion."""
        from dags.steps import rollout
        from streamer.settings import load_settings

        reason, settings = failures({"dag_run": dag_run, "ti": ti}), load_settings()
        with ending_well():
            mine = rollout.Rollout.from_conf(dag_run.conf, dag_run.run_id)
            reason = "; ".join(filter(None, (rollout.held_against(settings, mine), reason)))
            rollout.roll_back(settings, mine, reason)
        return reason

    @task(retries=0)
    def rolled_back(reason: str) -> None:
        """Fail, so that the run shows what it is."""
        raise AirflowFailException(reason)

    begun = start()
    previous: Any = begun
    steps: list[Any] = [begun]
    waits = []
    for position in range(MAX_STEPS):
        with TaskGroup(f"step_{position + 1}"):
            taken = SetStep(task_id="set", step=position)
            passed = AwaitVerdict(task_id="wait", step=position, set_task=f"step_{position + 1}.set")
            taken >> passed
        previous >> taken
        previous = passed
        steps += [taken, passed]
        waits.append(passed)
    # A skipped position skips those behind it; promotion needs none failed, and one passed.
    promoted = Promote(
        task_id="promote", trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS, execution_timeout=timedelta(minutes=10)
    )
    waits >> promoted
    reason: Any = roll_back()
    [*steps, promoted] >> reason
    rolled_back(reason)


canary()
