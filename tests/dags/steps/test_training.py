from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dags.steps import selection, training
from dags.steps.artefact import ArtefactError, load, round_trip
from dags.steps.measuring import answer, answer_inputs, measure, measure_slices
from dags.steps.pipelines import TRIALS, trials
from dags.steps.tables import inputs, split_by_time, typed
from tests.dags.toys import config, raw

FEATURES = ["x", "city"]
FAMILIES = ["hist_gradient_boosting", "logistic_regression", "random_forest"]


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_and_answers_whatever_comes(task: str, family: str) -> None:
    model = config(task)
    older, newest = split_by_time(typed(raw(task), model), 0.25)
    candidate = training.train_family(model, older, FEATURES, family)
    metrics = measure(model, answer(model, candidate.model, FEATURES, newest))
    if task == "regression":
        assert metrics["r2"] > 0.6
    else:
        assert metrics["accuracy"] > (0.65 if task == "multiclass" else 0.75)
    rows = inputs(newest.head(3), FEATURES)
    strange = pd.DataFrame({"x": [np.nan, 1e9, 0.0], "city": ["atlantis", np.nan, "oslo"]})
    for each in (rows, strange):
        assert np.isfinite(answer_inputs(model, candidate.model, each, ["", "", ""]).scores).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pipeline_comes_back_from_its_file_and_answers_the_same(family: str) -> None:
    model = config()
    table = typed(raw(rows=600), model)
    trained = training.fit(model, table, FEATURES, family, trials(family, 1)[0])
    again, size = round_trip(trained)
    rows = inputs(table, FEATURES)
    assert np.array_equal(trained.predict_proba(rows), again.predict_proba(rows))
    assert size > 1_000


def test_a_file_that_holds_anything_else_is_not_read(tmp_path_factory: pytest.TempPathFactory) -> None:
    import skops.io
    from sklearn.preprocessing import FunctionTransformer

    path = tmp_path_factory.mktemp("evil") / "model.skops"
    skops.io.dump(FunctionTransformer(func=pd.read_pickle), path)
    with pytest.raises(ArtefactError, match=r"read_pickle|pandas"):
        load(path)


def test_folds_only_ever_predict_the_future() -> None:
    table = typed(raw(rows=401), config())
    folds = list(training.expanding_windows(table))
    assert len(folds) == training.FOLDS
    for old, new in folds:
        assert old["ts"].max() <= new["ts"].min()  # type: ignore[operator]
    assert sum(len(new) for _, new in folds) + len(folds[0][0]) == len(table)


def test_the_same_rows_and_seed_train_the_same_model() -> None:
    model = config()
    table = typed(raw(), model)
    first, second = (training.train_family(model, table, FEATURES, "hist_gradient_boosting") for _ in range(2))
    rows = inputs(table, FEATURES)
    assert np.array_equal(first.model.predict_proba(rows), second.model.predict_proba(rows))
    assert first.metrics == second.metrics


def test_the_search_tries_as_many_as_it_may_the_default_first() -> None:
    model = config(max_trials=2)
    candidate = training.train_family(model, typed(raw(rows=600), model), FEATURES, "logistic_regression")
    assert [trial["parameters"] for trial in candidate.tried] == list(TRIALS["logistic_regression"][:2])
    assert candidate.parameters in TRIALS["logistic_regression"][:2]
    with pytest.raises(ValueError, match="wanted one of"):
        trials("perceptron", 1)


def test_slices_are_measured_by_the_names_the_monitor_has() -> None:
    model = config()
    table = typed(raw(), model)
    trained = training.fit(model, table, FEATURES, "logistic_regression", {"strength": 1.0})
    measured = measure_slices(model, answer(model, trained, FEATURES, table), table)
    assert set(measured) == {"city=oslo", "city=rome", "city=lima"}
    assert sum(metrics["n"] for metrics in measured.values()) == len(table.drop_nulls("city"))


def summary(family: str, seconds: float, **metrics: float) -> dict[str, object]:
    return {"family": family, "parameters": {}, "metrics": metrics, "tried": [], "seconds": seconds}


def test_the_better_candidate_wins_and_cost_decides_between_equals() -> None:
    good = summary("logistic_regression", 1.0, log_loss=0.3, auc=0.9, accuracy=0.85)
    poor = summary("hist_gradient_boosting", 1.0, log_loss=0.6, auc=0.7, accuracy=0.7)
    assert selection.select(config(), [poor, good])["winner"] == "logistic_regression"
    slow = summary("hist_gradient_boosting", 300.0, log_loss=0.3, auc=0.9, accuracy=0.85)
    chosen = selection.select(config(), [slow, good])
    assert chosen["winner"] == "logistic_regression"
    assert [row["family"] for row in chosen["table"]] == ["logistic_regression", "hist_gradient_boosting"]


def test_regression_is_selected_by_its_error() -> None:
    better = summary("hist_gradient_boosting", 2.0, mae=1.0, r2=0.8)
    worse = summary("logistic_regression", 0.1, mae=2.0, r2=0.3)
    assert selection.select(config("regression"), [worse, better])["winner"] == "hist_gradient_boosting"
    with pytest.raises(ValueError, match="at least one"):
        selection.select(config(), [])
