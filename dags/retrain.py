"""Retraining: from an accepted request to a registered challenger that is handed to the canary.

Tasks hand one another the workspace's path, never data. A request that is another run's, data that cannot be trained
on and a candidate that fails a gate end the run early and well; anything else that fails, fails the request, but for
Evidently's page: a run without it shows as failed, and its request and canary go on.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import TriggerRule, dag, task
from airflow.sdk.exceptions import AirflowFailException

from dags.assets import CHALLENGERS
from dags.running import DEFAULTS, ending_well, failures

CANARY = "canary"


@dag(
    dag_id="retrain",
    schedule=None,
    catchup=False,
    max_active_runs=8,
    default_args=DEFAULTS,
    tags=["driftloop"],
    doc_md=__doc__,
)
def retrain() -> None:
    """Accept, check, extract, validate, choose features, train, select, gate, register, stage, hand over."""

    @task
    def accept(*, dag_run: Any = None) -> str:
        """Bind the request to this run; return the workspace. Skips what follows when it is another's."""
        from dags.steps import stages

        with ending_well():
            return stages.accept(dag_run.conf, dag_run.run_id)

    @task
    def check(work: str) -> dict[str, Any]:
        """Check that the monitor is up to date and no data fault stands."""
        from dags.steps import stages

        with ending_well():
            return stages.check(work)

    @task(execution_timeout=timedelta(hours=1))
    def extract(work: str) -> dict[str, Any]:
        """Read the request's offset ranges and the champion's own training rows."""
        from dags.steps import stages

        with ending_well():
            return stages.extract(work)

    @task
    def validate_data(work: str) -> dict[str, Any]:
        """Check that the rows can be trained on; else the request is rejected."""
        from dags.steps import stages

        with ending_well():
            return stages.validate(work)

    # Beside what follows the training, when there is a slot to spare: nobody waits for the page, and it is not worth a
    # retraining, nor a canary that runs already. Clear the task to try again.
    @task(execution_timeout=timedelta(minutes=30), priority_weight=1, weight_rule="absolute")
    def report(work: str) -> dict[str, Any]:
        """Write Evidently's page."""
        from dags.steps import stages

        with ending_well():
            return stages.report(work)

    @task
    def features(work: str) -> list[str]:
        """Choose the features; return the families to train."""
        from dags.steps import stages

        with ending_well():
            return stages.choose_features(work)

    @task(execution_timeout=timedelta(hours=2), map_index_template="{{ family }}", priority_weight=10)
    def train(work: str, family: str) -> dict[str, Any]:
        """Search and train one family."""
        from airflow.sdk import get_current_context

        from dags.steps import stages

        get_current_context()["family"] = family  # type: ignore[typeddict-unknown-key]
        with ending_well():
            return stages.train(work, family)

    @task
    def select(work: str) -> dict[str, Any]:
        """Choose the winner."""
        from dags.steps import stages

        with ending_well():
            return stages.select(work)

    @task(execution_timeout=timedelta(minutes=30))
    def gate(work: str) -> dict[str, Any]:
        """Hold the winner against the champion on the newest rows; else the request is rejected."""
        from dags.steps import stages

        with ending_well():
            return stages.gate(work)

    @task(execution_timeout=timedelta(hours=1))
    def register(work: str) -> str:
        """Train the winner on all rows and register it with its reference; return its version."""
        from dags.steps import stages

        with ending_well():
            return stages.register(work)

    @task(outlets=[CHALLENGERS], execution_timeout=timedelta(minutes=15))
    def stage(work: str, *, outlet_events: Any = None) -> str:
        """Check the registered version, and tell evaluate that it may meet traffic; return the version."""
        from dags.steps import stages

        with ending_well():
            handed = stages.stage(work)
        outlet_events[CHALLENGERS].extra = handed
        return str(handed["version"])

    @task(trigger_rule=TriggerRule.ONE_FAILED)
    def fail(*, dag_run: Any = None, ti: Any = None) -> str:
        """Tell evaluate that the request has failed, and of what."""
        from dags.steps import stages

        reason = failures({"dag_run": dag_run, "ti": ti})
        stages.fail(dag_run.conf, dag_run.run_id, reason)
        return reason

    @task(retries=0)
    def failed(reason: str) -> None:
        """Fail, so that the run shows what it is."""
        raise AirflowFailException(reason)

    work: Any = accept()
    families: Any = features(work)
    trained = train.partial(work=work).expand(family=families)
    chosen, gated, registered, staged = select(work), gate(work), register(work), stage(work)
    checked, extracted, validated = check(work), extract(work), validate_data(work)
    hand_over = TriggerDagRunOperator(
        task_id="hand_over",
        trigger_dag_id=CANARY,
        trigger_run_id="canary__{{ dag_run.run_id }}",
        conf={
            "model": "{{ dag_run.conf['request']['model'] }}",
            "model_epoch": "{{ dag_run.conf['request']['model_epoch'] }}",
            "request_id": "{{ dag_run.conf['request']['request_id'] }}",
            "challenger": "{{ ti.xcom_pull(task_ids='stage') }}",
        },
        skip_when_already_exists=True,
    )
    checked >> extracted >> validated >> families
    trained >> chosen >> gated >> registered >> staged >> hand_over
    trained >> report(work)
    everything = [
        work,
        checked,
        extracted,
        validated,
        families,
        trained,
        chosen,
        gated,
        registered,
        staged,
        hand_over,
    ]
    reason: Any = fail()
    everything >> reason
    failed(reason)


retrain()
