"""The intake: every request that has arrived starts one retrain run, whatever Airflow does with asset events.

Runs on each event and every minute besides: Airflow merges and strands events, so each sweep looks at all of them.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import AssetOrTimeSchedule, CronTriggerTimetable, dag, task

from dags.assets import REQUESTS
from dags.running import DEFAULTS

RETRAIN = "retrain"
MARK = "swept_until"
# Events this much older than the mark are looked at again: an event may be stored late, and a fan-out may fail.
OVERLAP = timedelta(hours=1)


@dag(
    dag_id="intake",
    schedule=AssetOrTimeSchedule(timetable=CronTriggerTimetable("* * * * *", timezone="UTC"), assets=[REQUESTS]),
    max_active_runs=1,
    catchup=False,
    default_args=DEFAULTS,
    tags=["driftloop"],
    doc_md=__doc__,
)
def intake() -> None:
    """Sweep the events and start what has not been started."""

    @task(inlets=[REQUESTS])
    def sweep(*, inlet_events: Any = None, asset_state_store: Any = None, ti: Any = None) -> list[dict[str, Any]]:
        """Return the runs to start; the mark moves, less an overlap that makes its exact place not matter."""
        from dags.steps.requests import new_runs

        store = asset_state_store[REQUESTS]
        mark = store.get(MARK)
        began = datetime.now(tz=UTC)
        events = inlet_events[REQUESTS].ascending()
        if mark is not None:
            events = events.after((datetime.fromisoformat(str(mark)) - OVERLAP).isoformat())
        runs = new_runs(
            (event.extra for event in events),
            exists=lambda run_id: ti.get_dr_count(dag_id=RETRAIN, run_ids=[run_id]) > 0,
        )
        store.set(MARK, began.isoformat())
        return runs

    TriggerDagRunOperator.partial(
        task_id="fan_out", trigger_dag_id=RETRAIN, skip_when_already_exists=True
    ).expand_kwargs(sweep())


intake()
