"""The retrain and canary DAGs against real servers: a worker that answers, a log to read, a registry to fill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from dags.steps.bootstrap import bootstrap, set_champion
from dags.steps.notify import insist, tell
from dags.steps.registry import CHALLENGER, CHAMPION, PREVIOUS, STATUS_TAG, Registry
from streamer import references
from streamer.commands import new_command, send
from streamer.documents import ModelView
from streamer.events import RetrainRequest
from streamer.kafka import topics
from streamer.kafka.reader import read_to_end
from streamer.local.stack import Stack, environment_of
from streamer.models import ModelConfig
from streamer.settings import AirflowSettings, MlflowSettings, Settings
from streamer.state import Keys
from streamer.view import LiveView
from tests.integration.play_dag import RESULT
from tests.integration.running import running_worker
from tests.integration.traffic import MODEL, PANE_MS, T0, Traffic, table

pytestmark = [pytest.mark.integration, pytest.mark.airflow]


class Player:
    """A process with Airflow in it, which takes ten seconds to start and is therefore shared."""

    def __init__(self, settings: Settings, home: Path) -> None:
        home.mkdir()
        variables = {
            # In its unit-test mode, which other tests set, Airflow makes a new key for each process.
            **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")},
            **environment_of(settings),
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        self._log = (home / "player.log").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.play_dag"],
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def play(self, dag_id: str, conf: dict[str, Any]) -> dict[str, Any]:
        """Run a DAG to its end; return how its tasks ended, and all that was logged."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"dag_id": dag_id, "conf": conf}) + "\n")
        self._process.stdin.flush()
        said = ""
        for line in self._process.stdout:
            if line.startswith(RESULT):
                result: dict[str, Any] = json.loads(line.removeprefix(RESULT))
                assert "error" not in result, result["error"]
                return {**result, "log": said + self._logged()}
            said += line
        raise AssertionError(f"the process ended: {said[-3000:]}{self._logged()[-6000:]}")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(60) == 0
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    def _logged(self) -> str:
        self._log.flush()
        return Path(self._log.name).read_text(encoding="utf-8")


class Scene:
    """A model that serves, its traffic, and what its DAGs need."""

    def __init__(self, settings: Settings, model: ModelConfig, player: Player) -> None:
        references.publish_models(settings, [model])
        self.settings = settings
        self.model = model
        self.player = player
        self.registry = Registry(settings, model.name)
        self.traffic = Traffic(settings, model, rows=150)
        self.champion = ""
        self._redis = redis.Redis.from_url(settings.redis.url)

    def play(self, dag_id: str, conf: dict[str, Any]) -> dict[str, Any]:
        """Run a DAG to its end."""
        return self.player.play(dag_id, conf)

    def view(self) -> ModelView:
        """Return the model's live view."""
        found = LiveView(self._redis, Keys(self.settings.namespace)).model(self.model.name)
        assert found is not None
        return found

    def ask(self) -> RetrainRequest:
        """Ask for a retraining, and return the request as it stands in Kafka."""
        wish = new_command("request", model=self.model.name, model_epoch=1, payload={"reason": "test"}, actor="test")
        send(self.settings, wish, check=True)
        return self.until(self._newest_request)

    def _newest_request(self) -> RetrainRequest | None:
        open_request = self.view().summary.open_request
        for message in read_to_end(self.settings, self.settings.topic("retrain-requests")):
            request = msgspec.json.decode(message.value() or b"", type=RetrainRequest)
            if request.request_id == open_request:
                return request
        return None

    def until(self, found: Callable[[], Any], timeout_s: float = 120.0) -> Any:
        """Wait for something."""
        deadline = time.monotonic() + timeout_s
        while not (value := found()):
            assert time.monotonic() < deadline, found
            time.sleep(0.2)
        return value

    def validated(self) -> dict[str, Any]:
        """Bring a request to where the canary takes over, by its commands alone; return the canary's conf."""
        request = self.ask()
        challenger = bootstrap(
            self.model,
            table(2_000, start_ms=T0 - 400 * PANE_MS, seed=self.traffic.pane + 7),
            settings=self.settings,
        )
        self.registry.set_alias(CHAMPION, self.champion)
        self.registry.set_alias(CHALLENGER, challenger)
        common = {"model": self.model.name, "model_epoch": 1, "subject": request.request_id, "run_id": "test"}
        for kind in ("accept", "train"):
            insist(self.settings, kind, **common, payload={"run_id": "test"})
        insist(self.settings, "validate", **common, payload={"run_id": "test", "version": challenger})
        return {
            "model": self.model.name,
            "model_epoch": 1,
            "request_id": request.request_id,
            "challenger": challenger,
        }


@pytest.fixture(scope="module")
def served(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A worker in a namespace of its own, and a registry: each test brings a model of another name."""
    files = tmp_path_factory.mktemp("dags")
    own = stack.settings.model_copy(
        update={
            "namespace": f"t{uuid.uuid4().hex[:10]}",
            "internal_partitions": 4,
            "mlflow": MlflowSettings(
                tracking_uri=f"sqlite:///{files}/mlflow.db", artifact_root=(files / "artifacts").as_uri()
            ),
            "airflow": AirflowSettings(work_dir=files / "work"),
        }
    )
    topics.ensure(own)
    with running_worker(own):
        yield own


@pytest.fixture(scope="module")
def player(served: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Player]:
    made = Player(served, tmp_path_factory.getbasetemp() / "airflow-home")
    yield made
    made.close()


@pytest.fixture
def scene(served: Settings, player: Player, request: pytest.FixtureRequest) -> Iterator[Scene]:
    model = MODEL.model_copy(update={"name": f"toy-{request.node.name[5:40].replace('_', '-')}"})
    made = Scene(served, model, player)
    made.champion = bootstrap(model, table(3_000, start_ms=T0 - 100 * PANE_MS, seed=99), settings=served)
    set_champion(served, model, made.champion)
    try:
        yield made
    finally:
        made.traffic.stop()


def test_a_request_becomes_a_registered_challenger(scene: Scene) -> None:
    scene.traffic.flipped = True
    scene.traffic.serve(20)
    request = scene.ask()
    played = scene.play("retrain", {"request": msgspec.to_builtins(request)})
    assert played["state"] == "success", played["log"][-8_000:]
    assert played["tasks"]["train[0]"] == played["tasks"]["train[1]"] == "success"
    assert (played["tasks"]["fail"], played["tasks"]["failed"]) == ("skipped", "skipped")
    view = scene.until(lambda: (v := scene.view()).request and v.request.state == "validated" and v)
    assert [entry["state"] for entry in view.request.history] == ["raised", "accepted", "training", "validated"]
    assert view.request.run_id == played["run_id"]
    challenger = scene.registry.alias(CHALLENGER)
    assert challenger not in (None, scene.champion)
    tags = scene.registry.tags(str(challenger))
    assert tags["driftloop.parent_version"] == scene.champion
    assert tags["driftloop.request_id"] == request.request_id
    assert references.read(scene.settings, scene.model.name, str(challenger)) is not None
    # Once more by hand, by another run: it is not that run's request.
    again = scene.play("retrain", {"request": msgspec.to_builtins(request)})
    assert again["state"] == "success"
    assert again["tasks"]["accept"] == again["tasks"]["stage"] == "skipped"


def test_a_candidate_that_is_no_better_is_rejected_and_the_run_ends_well(scene: Scene) -> None:
    strict = scene.model.model_copy(update={"retrain": scene.model.retrain.model_copy(update={"min_gain": 0.5})})
    references.publish_models(scene.settings, [strict])
    scene.traffic.serve(20)
    request = scene.ask()
    played = scene.play("retrain", {"request": msgspec.to_builtins(request)})
    assert played["state"] == "success", played["log"][-8_000:]
    assert (played["tasks"]["gate"], played["tasks"]["register"], played["tasks"]["fail"]) == ("skipped",) * 3
    view = scene.until(lambda: (v := scene.view()).request and v.request.state == "rejected" and v)
    assert "performance" in view.request.history[-1]["reason"]
    assert scene.registry.alias(CHALLENGER) is None


def test_a_run_that_fails_fails_its_request(scene: Scene) -> None:
    broken = scene.model.model_copy(
        update={"retrain": scene.model.retrain.model_copy(update={"loader": "nowhere:at_all"})}
    )
    references.publish_models(scene.settings, [broken])
    scene.traffic.serve(5)
    request = scene.ask()
    played = scene.play("retrain", {"request": msgspec.to_builtins(request)})
    assert played["state"] == "failed"
    assert (played["tasks"]["extract"], played["tasks"]["fail"], played["tasks"]["failed"]) == (
        "failed",
        "success",
        "failed",
    )
    view = scene.until(lambda: (v := scene.view()).request and v.request.state == "failed" and v)
    assert "extract failed" in view.request.history[-1]["reason"]


def test_a_good_challenger_climbs_the_ramp_and_is_promoted(scene: Scene) -> None:
    scene.traffic.serve(5)
    conf = scene.validated()
    scene.traffic.accuracy = {scene.champion: 0.7, conf["challenger"]: 0.85}
    scene.traffic.start(every_s=0.3)
    played = scene.play("canary", conf)
    assert played["state"] == "success", played["log"][-8_000:]
    tasks = played["tasks"]
    assert {tasks[f"step_{step}.wait"] for step in (1, 2, 3)} == {"success"}
    assert (tasks["step_4.set"], tasks["step_5.wait"], tasks["promote"]) == ("skipped", "skipped", "success")
    view = scene.until(lambda: (v := scene.view()).summary.champion == conf["challenger"] and v)
    assert view.request.state == "promoted"
    assert scene.registry.alias(CHAMPION) == conf["challenger"]
    assert scene.registry.alias(PREVIOUS) == scene.champion
    assert scene.registry.alias(CHALLENGER) is None
    assert scene.registry.tags(conf["challenger"])[STATUS_TAG] == "champion"
    assert scene.registry.tags(scene.champion)[STATUS_TAG] == "retired"
    # The whole run again, as somebody who clears it would have it: nothing is left to do, and nothing changes.
    epoch = scene.view().split.epoch  # type: ignore[union-attr]
    again = scene.play("canary", conf)
    assert again["state"] == "failed"
    assert scene.view().split.epoch == epoch  # type: ignore[union-attr]
    assert scene.registry.alias(CHAMPION) == conf["challenger"]


def test_a_bad_challenger_is_rolled_back_and_the_run_shows_it(scene: Scene) -> None:
    scene.traffic.serve(5)
    conf = scene.validated()
    scene.traffic.accuracy = {scene.champion: 0.9, conf["challenger"]: 0.2}
    scene.traffic.start(every_s=0.3)
    played = scene.play("canary", conf)
    assert played["state"] == "failed"
    tasks = played["tasks"]
    assert (tasks["step_1.wait"], tasks["step_2.set"]) == ("failed", "upstream_failed")
    assert (tasks["promote"], tasks["roll_back"], tasks["rolled_back"]) == ("upstream_failed", "success", "failed")
    view = scene.until(lambda: (v := scene.view()).request and v.request.state == "rolled_back" and v)
    assert (view.summary.champion, view.summary.challenger) == (scene.champion, None)
    assert scene.registry.alias(CHAMPION) == scene.champion
    assert scene.registry.alias(CHALLENGER) is None
    tags = scene.registry.tags(conf["challenger"])
    assert tags[STATUS_TAG] == "rolled_back"
    assert tags["driftloop.reason"].startswith("fail: ")
    assert "step_1.wait failed" in tags["driftloop.reason"]


def test_a_rollout_somebody_ends_by_force_ends_the_wait(scene: Scene) -> None:
    scene.traffic.serve(5)
    conf = scene.validated()
    rollout_id = f"canary-{conf['request_id']}"

    def force() -> None:
        scene.until(lambda: (v := scene.view()).canary and v.canary.step == 0, timeout_s=60)
        wish = {"model": scene.model.name, "model_epoch": 1, "subject": rollout_id, "run_id": "person"}
        tell(scene.settings, "rollback", **wish, payload={"reason": "by hand"})

    person = threading.Thread(target=force)
    person.start()
    # No traffic: there will never be a verdict.
    played = scene.play("canary", conf)
    person.join()
    assert played["state"] == "failed"
    assert (played["tasks"]["step_1.wait"], played["tasks"]["roll_back"]) == ("failed", "success")
    assert scene.registry.alias(CHALLENGER) is None
    assert scene.view().request.history[-1]["reason"] == "by hand"  # type: ignore[union-attr]


def test_a_canary_that_cannot_begin_fails_the_request_that_waits_for_it(scene: Scene) -> None:
    scene.traffic.serve(5)
    conf = scene.validated()
    played = scene.play("canary", {**conf, "challenger": scene.champion})
    assert played["state"] == "failed"
    assert (played["tasks"]["start"], played["tasks"]["roll_back"]) == ("failed", "success")
    scene.until(lambda: (v := scene.view()).request and v.request.state == "failed")
    assert scene.registry.alias(CHAMPION) == scene.champion
