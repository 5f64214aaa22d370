"""Each version answers its own rows in one call; a broken one costs its rows and nobody else's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import Pipeline

from streamer.client.batches import PredictionColumns
from streamer.events import Deployment, Prediction
from streamer.routing import Choice, choose
from streamer.scoring import Outputs, Predict, Scorer, predict_with


class FakeClient:
    """Routes by a deployment and keeps what is logged."""

    def __init__(self, percent: float = 50.0, deployed: bool = True) -> None:
        self.deployment = Deployment(
            model="m",
            model_epoch=1,
            epoch=1,
            champion="1",
            challenger="2",
            percent=percent,
            rollout_id="canary-r",
            salt="canary-r",
        )
        self.deployed = deployed
        self.logged: list[Prediction] = []

    def choose(self, model: str, entity_id: object) -> Choice:
        return choose(self.deployment if self.deployed else None, str(entity_id))

    def log_predictions(self, predictions: PredictionColumns) -> list[str]:
        events = predictions.events()
        self.logged.extend(events)
        return [event.prediction_id for event in events]


class Models:
    """Version v answers x + v, and counts how often it is loaded and called."""

    def __init__(self, broken: str = "", missing: str = "") -> None:
        self.broken, self.missing = broken, missing
        self.loads: list[str] = []
        self.calls: list[tuple[str, int]] = []

    def load(self, version: str) -> Predict:
        self.loads.append(version)
        if version == self.missing:
            raise FileNotFoundError(f"no artefact of version {version}")

        def predict(rows: Mapping[str, list[Any]]) -> Outputs:
            self.calls.append((version, len(rows["x"])))
            if version == self.broken:
                raise RuntimeError("shape mismatch")
            values = [value + int(version) for value in rows["x"]]
            return Outputs(values, np.array(values) / 10)

        return predict


ENTITIES = [f"e{number}" for number in range(40)]
TABLE = {"x": np.arange(40) * 10}


def test_every_row_is_answered_by_its_own_version_in_one_call_each() -> None:
    client, models = FakeClient(), Models()
    scored = Scorer(client, "m", load=models.load).score(TABLE, entity_id=ENTITIES, ts_ms=[1_700_000_000_000] * 40)
    versions = [choice.version for choice in scored.choice]
    assert set(versions) == {"1", "2"}
    assert scored.prediction == [10 * row + int(version) for row, version in enumerate(versions)]
    assert sorted(models.calls) == [("1", versions.count("1")), ("2", versions.count("2"))]
    logged = client.logged[3]
    assert logged.prediction_id == scored.prediction_id[3]
    assert (logged.version, logged.entity_id, logged.features) == (versions[3], "e3", {"x": 30})
    assert logged.score == pytest.approx(scored.prediction[3] / 10)
    assert (logged.rollout_id, logged.bucket) == ("canary-r", scored.choice[3].bucket)
    assert logged.latency_ms is not None
    assert logged.latency_ms > 0


def test_a_version_is_loaded_once_and_old_ones_are_let_go() -> None:
    client, models = FakeClient(percent=100), Models()
    scorer = Scorer(client, "m", load=models.load)
    for version in ("2", "2", "3", "4", "5", "6", "2"):
        client.deployment.challenger = version
        scorer.score({"x": [1]}, entity_id=["e"])
    assert models.loads == ["2", "3", "4", "5", "6", "2"]


@pytest.mark.parametrize("models", [Models(broken="2"), Models(missing="2")], ids=["fails", "cannot be loaded"])
def test_a_broken_challenger_costs_its_own_rows_and_says_why(models: Models) -> None:
    client = FakeClient()
    scored = Scorer(client, "m", load=models.load).score(TABLE, entity_id=ENTITIES)
    for choice, prediction, error, event in zip(
        scored.choice, scored.prediction, scored.error, client.logged, strict=True
    ):
        assert (prediction is None) == (error is not None) == (choice.version == "2")
        assert event.error == error
    assert "RuntimeError: shape mismatch" in scored.error or any("no artefact" in str(e) for e in scored.error)


def test_damage_is_done_to_the_challenger_alone() -> None:
    scored = Scorer(
        FakeClient(), "m", load=Models().load, damage=lambda outputs: Outputs([-1] * len(outputs.prediction))
    ).score(TABLE, entity_id=ENTITIES)
    for choice, prediction in zip(scored.choice, scored.prediction, strict=True):
        assert (prediction == -1) == (choice.arm == "challenger")


def test_a_model_nobody_deployed_is_an_error_that_says_what_to_do() -> None:
    scored = Scorer(FakeClient(deployed=False), "m", load=Models().load).score({"x": [1]}, entity_id=["e"])
    assert scored.prediction == [None]
    assert "send set_champion first" in str(scored.error[0])


def test_what_a_version_fails_of_is_logged_when_it_begins_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    broken = [True]

    def load(version: str) -> Callable[..., Outputs]:
        def predict(rows: Mapping[str, list[Any]]) -> Outputs:
            if broken:
                raise RuntimeError("no memory")
            return Outputs([1.0] * len(rows["x"]))

        return predict

    scorer = Scorer(FakeClient(percent=0.0), "m", load=load)
    with caplog.at_level(logging.INFO, "streamer.scoring"):
        for _ in range(3):
            scorer.score({"x": [1.0]}, entity_id=["a"])
        broken.clear()
        for _ in range(2):
            scorer.score({"x": [1.0]}, entity_id=["a"])
    assert [record.getMessage() for record in caplog.records] == [
        "driftloop: m 1 cannot answer: RuntimeError: no memory",
        "driftloop: m 1 answers again",
    ]


def test_a_column_of_another_length_is_named() -> None:
    with pytest.raises(ValueError, match=r"features\['x'\]: got 1 values, wanted 2"):
        Scorer(FakeClient(), "m", load=Models().load).score({"x": [1]}, entity_id=["a", "b"])


X = np.random.default_rng(0).normal(size=(200, 2))
ROWS = {"b": X[:, 1].tolist(), "a": X[:, 0].tolist()}


def _fitted(model: Any, target: Any) -> Pipeline:
    import pandas as pd

    passing = ColumnTransformer([("all", "passthrough", ["a", "b"])])
    return Pipeline([("prepare", passing), ("model", model)]).fit(pd.DataFrame({"a": X[:, 0], "b": X[:, 1]}), target)


def test_a_binary_pipeline_scores_the_positive_class() -> None:
    model = _fitted(LogisticRegression(), X[:, 0] > 0)
    outputs = predict_with(model, task="binary", features=["a", "b"], positive=True)(ROWS)
    assert [bool(value) for value in outputs.prediction] == (X[:, 0] > 0).tolist()
    turned = predict_with(model, task="binary", features=["a", "b"], positive="false")(ROWS)
    assert outputs.score is not None
    assert turned.score is not None
    np.testing.assert_allclose(np.array(outputs.score) + np.array(turned.score), 1)
    with pytest.raises(ValueError, match="positive: got 'maybe', wanted one of two classes"):
        predict_with(model, task="binary", features=["a", "b"], positive="maybe")


def test_a_multiclass_pipeline_scores_each_class() -> None:
    target = np.digitize(X[:, 0], [-0.5, 0.5])
    outputs = predict_with(_fitted(LogisticRegression(), target), task="multiclass", features=["a", "b"])(ROWS)
    assert outputs.score is not None
    assert set(outputs.score[0]) == {"0", "1", "2"}
    assert sum(outputs.score[0].values()) == pytest.approx(1)
    assert [str(value) for value in outputs.prediction] == [max(s, key=s.get) for s in outputs.score]


def test_a_regression_is_its_own_score_and_a_plain_classifier_has_none() -> None:
    outputs = predict_with(_fitted(LinearRegression(), X[:, 0] * 2), task="regression", features=["a", "b"])(ROWS)
    np.testing.assert_allclose(np.array(outputs.prediction), X[:, 0] * 2, atol=1e-9)
    assert outputs.score == outputs.prediction

    class Pyfunc:
        def predict(self, frame: Any) -> Any:
            return (frame["a"] > 0).to_numpy()

    said = predict_with(Pyfunc(), task="binary", features=["a", "b"], positive=True)(ROWS)
    assert said == Outputs((X[:, 0] > 0).tolist(), None)
