from __future__ import annotations

import json
from typing import Any

import numpy as np
import polars as pl
import pytest

from dags.steps import gates, training, validation
from dags.steps.gates import Contender
from dags.steps.tables import split_by_time, typed
from tests.dags.toys import config, raw

FEATURES = ["x", "city"]


def contender(task: str = "binary", *, flipped: bool = False, rows: int = 1_500) -> Contender:
    model = config(task)
    table = typed(raw(task, rows, seed=3, flipped=flipped), model)
    family = "logistic_regression"
    return Contender(training.fit(model, table, FEATURES, family, {"strength": 1.0}), FEATURES)


def held_out(task: str = "binary", rows: int = 1_500) -> pl.DataFrame:
    return typed(raw(task, rows, seed=4), config(task))


def run(candidate: Contender, champion: Contender | None, task: str = "binary") -> dict[str, gates.Gate]:
    return {gate.name: gate for gate in gates.run_gates(config(task), candidate, champion, held_out(task))}


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_good_candidate_passes_every_gate(task: str) -> None:
    found = run(contender(task), contender(task, rows=600), task)
    assert list(found) == ["performance", "fairness", "robustness", "latency", "interpretability", "artefact"]
    assert gates.failed(list(found.values())) == []


def test_a_candidate_that_is_worse_than_the_champion_fails_on_performance_and_in_slices() -> None:
    found = run(contender(flipped=True), contender())
    assert not found["performance"].passed
    assert not found["fairness"].passed
    assert "wanted at least -0.005" in gates.failed(list(found.values()))[0]


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_without_a_champion_a_candidate_must_beat_the_commonest_answer(task: str) -> None:
    assert run(contender(task), None, task)["performance"].passed
    gate = run(contender(task, flipped=True), None, task)["performance"]
    assert not gate.passed
    assert gate.detail["against"] == "constant"


def test_one_slice_that_loses_much_fails_whatever_the_whole_gains() -> None:
    table = held_out()
    labels = table["label"].to_list()
    wrong = ["true" if label == "false" else "false" for label in labels]
    lima = (table["city"] == "lima").fill_null(False).to_list()
    champion = gates.Answers(
        labels, [b if each else a for a, b, each in zip(wrong, labels, lima, strict=True)], np.full(len(labels), 0.5)
    )
    candidate = gates.Answers(
        labels, [b if each else a for a, b, each in zip(labels, wrong, lima, strict=True)], np.full(len(labels), 0.5)
    )
    assert gates.performance(config(), candidate, champion).passed
    gate = gates.fairness(config(), candidate, champion, table)
    assert not gate.passed
    assert gate.detail["worst"] == "city=lima"


def test_small_slices_say_nothing() -> None:
    table = held_out().head(300)
    answers = gates.constant(config(), table)
    assert gates.fairness(config(), answers, answers, table).detail["slices"] == 0


class Brittle:
    """Answers like another model, but only where every number is there."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.classes_ = model.classes_

    def predict_proba(self, rows: Any) -> Any:
        shares = self._model.predict_proba(rows)
        shares[rows["x"].isna().to_numpy()] = np.nan
        return shares


def test_a_model_without_an_answer_to_a_missing_value_is_not_robust() -> None:
    good = contender()
    brittle = Contender(Brittle(good.model), FEATURES)
    table = held_out().drop_nulls("x")

    gate = gates.robustness(config(), brittle, good, table)
    assert not gate.passed
    assert not gate.detail["all_answers_finite"]


def test_importances_rank_what_the_model_goes_by() -> None:
    gate = run(contender(), None)["interpretability"]
    assert next(iter(gate.detail["importances"])) == "x"


class Slow:
    """Answers like another model, after much thought."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.classes_ = model.classes_

    def predict_proba(self, rows: Any) -> Any:
        for _ in range(400):
            shares = self._model.predict_proba(rows)
        return shares


def test_a_candidate_slower_than_the_champion_allows_is_stopped_and_the_first_of_all_is_only_timed() -> None:
    good = contender()
    table = held_out().head(2)
    assert not gates.latency(config(), Contender(Slow(good.model), FEATURES), good, table).passed
    assert gates.latency(config(), good, good, table).passed
    alone = gates.latency(config(), Contender(Slow(good.model), FEATURES), None, table)
    assert (alone.passed, alone.threshold) == (True, None)


def test_gates_are_json() -> None:
    gates_run = run(contender(), contender())
    assert gates_run
    for gate in gates_run.values():
        written = gate.to_dict()
        assert json.loads(json.dumps(written, allow_nan=False)) == written


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_good_data_passes_every_check(task: str) -> None:
    assert validation.failed(validation.check(typed(raw(task), config(task)), config(task))) == []


def test_too_little_data_is_named() -> None:
    table = typed(raw(rows=100).with_columns(pl.lit(False).alias("label")), config())
    failures = validation.failed(validation.check(table, config()))
    assert any("rows: got 100, wanted at least 200" in each for each in failures)
    assert any("rarest_class_rows" in each for each in failures)
    older, _ = split_by_time(typed(raw(rows=300), config()), 0.99)
    assert any(each.startswith("panes") for each in validation.failed(validation.check(older.head(1), config())))
