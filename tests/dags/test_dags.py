"""What Airflow makes of the DAGs: they load, hang together as they should, and survive their own serialisation."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import dags

if TYPE_CHECKING:
    from airflow.dag_processing.dagbag import DagBag

pytestmark = pytest.mark.airflow

STAGES = ["accept", "check", "extract", "validate_data", "features", "train", "select", "gate", "register", "stage"]


@pytest.fixture(scope="module")
def bag() -> DagBag:
    from airflow.dag_processing.dagbag import DagBag

    folder = Path(str(dags.__file__)).parent
    return DagBag(dag_folder=str(folder), bundle_name="dags-folder", bundle_path=folder)


def test_the_dags_load_and_nothing_else_passes_for_one(bag: DagBag) -> None:
    assert bag.import_errors == {}
    assert sorted(bag.dags) == ["canary", "intake", "retrain"]


def test_every_task_has_a_time_out_and_is_tried_again_unless_it_only_says_that_the_run_failed(bag: DagBag) -> None:
    for dag in bag.dags.values():
        for task in dag.tasks:
            assert isinstance(task.execution_timeout, timedelta), task.task_id
            if task.task_id not in ("failed", "rolled_back"):
                assert task.retries >= 3, task.task_id
                assert task.retry_exponential_backoff, task.task_id


def test_the_stages_follow_one_another(bag: DagBag) -> None:
    retrain = bag.dags["retrain"]
    for before, after in itertools.pairwise(STAGES):
        assert before in retrain.get_task(after).upstream_task_ids
    assert retrain.get_task("hand_over").upstream_task_ids == {"stage"}
    assert retrain.get_task("train").is_mapped


def test_nobody_waits_for_the_page_and_without_it_the_request_goes_on(bag: DagBag) -> None:
    page = bag.dags["retrain"].get_task("report")
    assert "train" in page.upstream_task_ids
    assert page.downstream_task_ids == set()


def test_whatever_fails_is_told_and_shows(bag: DagBag) -> None:
    for dag_id, teller, leaf in (("retrain", "fail", "failed"), ("canary", "roll_back", "rolled_back")):
        dag = bag.dags[dag_id]
        told = dag.get_task(teller)
        assert told.trigger_rule == "one_failed"
        assert told.upstream_task_ids == {task.task_id for task in dag.tasks} - {teller, leaf, "report"}
        assert told.downstream_task_ids == {leaf}
        assert dag.get_task(leaf).downstream_task_ids == set()


def test_the_ramp_is_climbed_step_by_step(bag: DagBag) -> None:
    canary = bag.dags["canary"]
    before = "start"
    for step in range(1, 6):
        assert canary.get_task(f"step_{step}.set").upstream_task_ids == {before}
        assert canary.get_task(f"step_{step}.wait").upstream_task_ids == {f"step_{step}.set"}
        before = f"step_{step}.wait"
    promote = canary.get_task("promote")
    assert promote.upstream_task_ids == {f"step_{step}.wait" for step in range(1, 6)}
    assert promote.trigger_rule == "none_failed_min_one_success"


def test_the_dags_can_be_stored_and_read_again(bag: DagBag) -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    for dag in bag.dags.values():
        stored = DagSerialization.to_dict(dag)
        assert sorted(DagSerialization.from_dict(stored).task_ids) == sorted(dag.task_ids)


def test_the_watchers_trigger_is_made_again_from_what_airflow_stores(bag: DagBag) -> None:
    from dags.assets import REQUESTS

    (watcher,) = REQUESTS.watchers
    path, arguments = watcher.trigger.serialize()
    module, name = path.rsplit(".", 1)
    again = getattr(importlib.import_module(module), name)(**arguments)
    assert again.serialize() == (path, arguments)
    assert arguments["topics"] == ["retrain-requests.v1"]
    assert arguments["dlq_topic"] == "dead-letters.v1"


def test_the_verdict_trigger_is_made_again_from_what_airflow_stores() -> None:
    from dags.triggers import VerdictTrigger

    path, arguments = VerdictTrigger("toy", "canary-rq-1", 2, 7, 100).serialize()
    module, name = path.rsplit(".", 1)
    again = getattr(importlib.import_module(module), name)(**arguments)
    assert again.serialize() == (path, arguments)


def filtered(messages: list[Any], monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], int]:
    """Return what the trigger makes of messages, and how many it rejected."""
    import asyncio

    from dags import triggers

    rejected: list[None] = []
    monkeypatch.setattr(triggers, "reject_shared_stream_event", lambda: rejected.append(None))

    async def stream() -> Any:
        for message in messages:
            yield message

    async def collect() -> list[Any]:
        trigger = triggers.RetrainRequestTrigger(topics=["t"])
        return [event.payload async for event in trigger.filter_shared_stream(stream())]

    return asyncio.run(collect()), len(rejected)


def test_a_message_that_is_no_request_is_rejected_and_the_stream_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from streamer.events import encode
    from tests.dags.steps.test_workspace import request

    good = encode(request())
    events, rejected = filtered([b"{", b"", None, 7, b'{"model": "m"}', b"\xff", good], monkeypatch)
    assert [event["request_id"] for event in events] == ["rq-1"]
    assert rejected == 6


def test_a_step_with_nothing_left_to_do_is_skipped_and_one_no_retry_mends_fails_at_once() -> None:
    from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

    from dags.running import ending_well
    from dags.steps.retraining import Rejected
    from dags.steps.tables import TableError

    def run(error: Exception) -> None:
        with ending_well():
            raise error

    with pytest.raises(AirflowSkipException, match="too few rows"):
        run(Rejected("too few rows", {}))
    with pytest.raises(AirflowFailException, match="TableError: lacks"):
        run(TableError("lacks x"))
    with pytest.raises(OSError, match="tried again"):
        run(OSError("tried again"))


def test_tasks_import_heavy_libraries_only_when_they_need_them() -> None:
    """A task that sends a command must not pay seconds for scikit-learn."""
    import subprocess
    import sys

    code = (
        "import sys; from dags.steps import stages, rollout, notify, retraining, readiness; import dags.running;"
        "heavy = ('sklearn', 'mlflow', 'scipy', 'polars', 'pandas', 'evidently');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_warm_executors_libraries_exist() -> None:
    from dags.executor import LIBRARIES

    for name in LIBRARIES:
        assert importlib.util.find_spec(name) is not None, name
