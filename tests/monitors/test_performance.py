"""Vectors say what scikit-learn says of the rows, add up in any order, and take rows back without a trace."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn import metrics

from monitors.performance import (
    CALIBRATION_GROUPS,
    SCORE_CELLS,
    SCORE_CENTRES,
    SCORE_EDGES,
    PerformanceSchema,
    canonical,
    performance_drop,
)

BINARY = PerformanceSchema(task="binary", positive="true")
MULTICLASS = PerformanceSchema(task="multiclass")
REGRESSION = PerformanceSchema(task="regression")

classes = st.sampled_from(["true", "false"])
scores = st.one_of(st.floats(0, 1), st.just(math.nan), st.floats(1.5, 9))
binary_rows = st.lists(st.tuples(classes, classes, scores), max_size=25)
numbers = st.floats(-1e6, 1e6).map(str)
regression_rows = st.lists(st.tuples(numbers, numbers, st.just(math.nan)), max_size=25)


def fold(schema: PerformanceSchema, rows, *, signs=None, groups=None, n_groups: int = 1) -> np.ndarray:
    return schema.fold(
        labels=[row[0] for row in rows],
        predictions=[row[1] for row in rows],
        scores=np.array([row[2] for row in rows], dtype=float),
        signs=np.ones(len(rows), dtype=np.int64) if signs is None else np.asarray(signs),
        groups=np.zeros(len(rows), dtype=np.int64) if groups is None else np.asarray(groups),
        n_groups=n_groups,
    )


def drawn_binary(seed: int, rows: int = 3_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.random(rows) < 0.3
    score = np.clip(rng.beta(2, 3, rows) + 0.25 * truth, 0, 1)
    return truth, score > 0.5, score


def texts(flags: np.ndarray) -> list[str]:
    return [canonical(flag) for flag in flags]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (np.False_, "false"),
        (3, "3"),
        (3.0, "3"),
        (np.float32(3.0), "3"),
        (-0.0, "0"),
        (0.5, "0.5"),
        (1e300, "1e+300"),
        (math.inf, "inf"),
        ("JFK", "JFK"),
        (None, "None"),
    ],
)
def test_a_label_and_a_prediction_are_compared_by_one_text(value: object, text: str):
    assert canonical(value) == text


@given(st.integers(-(2**53) + 1, 2**53 - 1))
def test_a_whole_number_has_the_same_text_as_a_float(number: int):
    assert canonical(float(number)) == canonical(np.int64(number)) == str(number)


@pytest.mark.parametrize("seed", [1, 2])
def test_binary_metrics_are_scikit_learns(seed: int):
    truth, predicted, score = drawn_binary(seed)
    rows = list(zip(texts(truth), texts(predicted), score, strict=True))
    found = BINARY.metrics(fold(BINARY, rows)[0])
    wanted = {
        "n": 3_000,
        "accuracy": metrics.accuracy_score(truth, predicted),
        "precision": metrics.precision_score(truth, predicted),
        "recall": metrics.recall_score(truth, predicted),
        "f1": metrics.f1_score(truth, predicted),
        "positive_share": truth.mean(),
        "log_loss": metrics.log_loss(truth, score),
        "brier": metrics.brier_score_loss(truth, score),
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, rel=1e-5)
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(truth, score), abs=2e-3)


def test_auc_is_scikit_learns_of_scores_rounded_to_their_cell():
    truth, predicted, score = drawn_binary(3)
    vector = fold(BINARY, list(zip(texts(truth), texts(predicted), score, strict=True)))[0]
    cells = np.searchsorted(SCORE_EDGES, score, side="right")
    assert BINARY.metrics(vector)["auc"] == pytest.approx(metrics.roc_auc_score(truth, cells), abs=1e-12)


def test_the_calibration_error_is_that_of_sixteen_groups_of_cells():
    truth, predicted, score = drawn_binary(4)
    vector = fold(BINARY, list(zip(texts(truth), texts(predicted), score, strict=True)))[0]
    cells = np.searchsorted(SCORE_EDGES, score, side="right")
    wanted = 0.0
    for group in range(CALIBRATION_GROUPS):
        inside = cells // (SCORE_CELLS // CALIBRATION_GROUPS) == group
        wanted += abs(truth[inside].sum() - SCORE_CENTRES[cells[inside]].sum())
    assert BINARY.metrics(vector)["ece"] == pytest.approx(wanted / len(truth))


def test_calibrated_scores_have_a_small_calibration_error_and_overconfident_ones_a_large_one():
    rng = np.random.default_rng(5)
    probability = rng.random(20_000)
    truth = texts(rng.random(20_000) < probability)
    calibrated, overconfident = (
        BINARY.metrics(fold(BINARY, list(zip(truth, truth, shown, strict=True)))[0])["ece"]
        for shown in (probability, np.where(probability > 0.5, 0.99, 0.01))
    )
    assert calibrated < 0.02
    assert overconfident > 0.2


def test_multiclass_metrics_are_scikit_learns():
    rng = np.random.default_rng(6)
    names = np.array(["a", "b", "c"])
    shares = rng.dirichlet([1, 1, 1], size=2_000)
    truth = rng.integers(0, 3, 2_000)
    predicted = shares.argmax(axis=1)
    rows = list(zip(names[truth], names[predicted], shares[np.arange(2_000), truth], strict=True))
    found = MULTICLASS.metrics(fold(MULTICLASS, rows)[0])
    wanted = {
        "n": 2_000,
        "accuracy": metrics.accuracy_score(truth, predicted),
        "log_loss": metrics.log_loss(truth, shares),
    }
    assert found == pytest.approx(wanted, rel=1e-5)


def test_regression_metrics_are_scikit_learns():
    rng = np.random.default_rng(7)
    truth = rng.normal(50, 10, 2_000)
    predicted = truth + rng.normal(1, 4, 2_000)
    rows = [(str(a), str(b), math.nan) for a, b in zip(truth, predicted, strict=True)]
    wanted = {
        "n": 2_000,
        "mae": metrics.mean_absolute_error(truth, predicted),
        "rmse": metrics.root_mean_squared_error(truth, predicted),
        "bias": (predicted - truth).mean(),
        "r2": metrics.r2_score(truth, predicted),
    }
    assert REGRESSION.metrics(fold(REGRESSION, rows)[0]) == pytest.approx(wanted)


def test_rows_without_a_score_count_but_stay_out_of_what_scores_say():
    truth, predicted, score = drawn_binary(8)
    known = np.arange(len(score)) % 3 > 0
    shown = np.where(known, score, np.where(np.arange(len(score)) % 2, math.nan, 1.5))
    found = BINARY.metrics(fold(BINARY, list(zip(texts(truth), texts(predicted), shown, strict=True)))[0])
    assert found["n"] == len(score)
    assert found["accuracy"] == metrics.accuracy_score(truth, predicted)
    assert found["log_loss"] == pytest.approx(metrics.log_loss(truth[known], score[known]), rel=1e-5)
    assert found["brier"] == pytest.approx(metrics.brier_score_loss(truth[known], score[known]), rel=1e-5)


@pytest.mark.parametrize("schema", [BINARY, MULTICLASS, REGRESSION])
def test_an_empty_vector_says_only_that_it_is_empty(schema: PerformanceSchema):
    assert schema.metrics(fold(schema, [])[0]) == {"n": 0.0}


def test_what_a_vector_cannot_say_is_absent_and_not_zero():
    unscored = BINARY.metrics(fold(BINARY, [("false", "false", math.nan)])[0])
    assert unscored == {"n": 1.0, "accuracy": 1.0, "positive_share": 0.0}
    assert "auc" not in BINARY.metrics(fold(BINARY, [("true", "true", 0.9)] * 5)[0])
    assert MULTICLASS.metrics(fold(MULTICLASS, [("a", "b", math.nan)])[0]) == {"n": 1.0, "accuracy": 0.0}
    assert "r2" not in REGRESSION.metrics(fold(REGRESSION, [("5", "6", math.nan)] * 4)[0])


def test_a_certain_and_wrong_score_costs_much_and_not_everything():
    loss = BINARY.metrics(fold(BINARY, [("true", "false", 0.0), ("true", "true", 1.0)])[0])["log_loss"]
    assert loss == pytest.approx(-math.log(np.finfo(float).eps) / 2, rel=1e-6)


@given(binary_rows, binary_rows)
def test_folding_two_batches_and_adding_is_folding_them_together(first, second):
    assert (fold(BINARY, first) + fold(BINARY, second) == fold(BINARY, first + second)).all()
    assert (fold(MULTICLASS, first) + fold(MULTICLASS, second) == fold(MULTICLASS, first + second)).all()


@given(binary_rows, st.randoms(use_true_random=False))
def test_classification_counts_do_not_depend_on_the_order_of_rows(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert (fold(BINARY, rows) == fold(BINARY, shuffled)).all()


@given(binary_rows)
def test_rows_that_come_in_and_are_taken_back_leave_nothing(rows):
    signs = [1] * len(rows) + [-1] * len(rows)
    for schema in (BINARY, MULTICLASS):
        assert not fold(schema, rows + rows, signs=signs).any()


@given(regression_rows, regression_rows)
@example(kept=[("0.0", "9.0", math.nan), ("9.12399268706516e-154", "0.0", math.nan)], taken=[])
def test_errors_that_are_taken_back_leave_what_the_others_said(kept, taken):
    signs = [1] * (len(kept) + len(taken)) + [-1] * len(taken)
    left, wanted = fold(REGRESSION, kept + taken + taken, signs=signs)[0], fold(REGRESSION, kept)[0]
    assert left[0] == len(kept)
    assert left == pytest.approx(wanted, rel=1e-9, abs=1e-1)
    assert all(map(math.isfinite, REGRESSION.metrics(left).values()))


@given(classes, classes, classes, scores)
def test_a_corrected_label_is_as_if_it_had_been_right_at_once(prediction, wrong, right, score):
    corrected = fold(BINARY, [(wrong, prediction, score)] * 2 + [(right, prediction, score)], signs=[1, -1, 1])
    assert (corrected == fold(BINARY, [(right, prediction, score)])).all()


@given(st.lists(st.tuples(classes, classes, scores, st.integers(0, 3)), max_size=25))
def test_a_fold_over_groups_is_a_fold_of_each(rows):
    together = fold(BINARY, rows, groups=[row[3] for row in rows], n_groups=4)
    for group in range(4):
        assert (together[group] == fold(BINARY, [row for row in rows if row[3] == group])[0]).all()


@pytest.mark.parametrize(
    ("schema", "width", "dtype", "primary", "higher"),
    [
        (BINARY, 135, "<i8", "accuracy", True),
        (MULTICLASS, 4, "<i8", "accuracy", True),
        (REGRESSION, 6, "<f8", "mae", False),
    ],
)
def test_a_vector_has_one_width_and_type_a_task(schema, width: int, dtype: str, primary: str, higher: bool):
    assert (schema.width, schema.dtype, schema.primary, schema.higher_is_better) == (width, dtype, primary, higher)
    vectors = fold(schema, [("1", "1", 0.5)], n_groups=3)
    assert vectors.shape == (3, width)
    assert vectors.dtype == np.dtype(dtype)


@pytest.mark.parametrize("schema", [BINARY, MULTICLASS, REGRESSION])
def test_the_mean_outcome_of_events_is_the_primary_metric(schema: PerformanceSchema):
    rng = np.random.default_rng(9)
    names = ["1", "2", "3"] if schema.task != "binary" else ["true", "false"]
    rows = [(rng.choice(names), rng.choice(names), 0.5) for _ in range(200)]
    labels, predictions, shown = zip(*rows, strict=True)
    mean = schema.outcomes(labels, predictions, np.array(shown)).mean()
    value = schema.metrics(fold(schema, rows)[0])[schema.primary]
    assert mean == pytest.approx(value if schema.higher_is_better else -value)


def test_a_binary_schema_needs_its_positive_label():
    with pytest.raises(ValueError, match="positive: got None"):
        PerformanceSchema(task="binary")


@pytest.mark.parametrize("wrong", ["late", "nan", "inf", ""])
def test_a_regression_row_that_is_no_number_is_refused_by_name(wrong: str):
    with pytest.raises(ValueError, match=f"label: got {wrong!r}, wanted a finite number"):
        fold(REGRESSION, [("1", "1", math.nan), (wrong, "1", math.nan)])
    with pytest.raises(ValueError, match=f"prediction: got {wrong!r}"):
        REGRESSION.outcomes(["1"], [wrong], np.array([math.nan]))


def test_the_largest_numbers_there_are_leave_every_metric_finite():
    largest = repr(1.797e308)
    rows = [(largest, "-" + largest, math.nan), ("1", "2", math.nan)]
    panes = fold(REGRESSION, rows, groups=[0, 1], n_groups=2)
    found = REGRESSION.metrics(panes.sum(axis=0))
    assert all(math.isfinite(value) for value in found.values())
    drop = performance_drop(REGRESSION, baseline_value=1.0, baseline_se=0.1, pane_vectors=panes, alpha=0.05)
    assert math.isfinite(drop.upper)
    # As an earlier release has kept such a row.
    spoilt = np.array([1, math.inf, math.inf, math.inf, 1.797e308, math.inf])
    assert REGRESSION.metrics(spoilt)["n"] == 1


def panes_of(hits: list[int], sizes: list[int]) -> np.ndarray:
    return np.array([[size, hit, 0, 0] for hit, size in zip(hits, sizes, strict=True)])


def test_a_drop_is_positive_when_worse_whichever_way_the_metric_points():
    panes = panes_of([70, 74, 72], [100, 100, 100])
    worse = performance_drop(MULTICLASS, baseline_value=0.9, baseline_se=0.01, pane_vectors=panes, alpha=0.05)
    assert (worse.value, worse.n, worse.panes) == (pytest.approx(0.72), 300, 3)
    assert worse.drop == pytest.approx(0.18)
    assert 0 < worse.lower < worse.drop < worse.upper
    errors = np.stack([fold(REGRESSION, [("0", str(error), math.nan)] * 10)[0] for error in (3, 4, 5)])
    dearer = performance_drop(REGRESSION, baseline_value=1.5, baseline_se=0.1, pane_vectors=errors, alpha=0.05)
    assert (dearer.value, dearer.drop) == (pytest.approx(4.0), pytest.approx(2.5))
    assert dearer.lower < dearer.drop < dearer.upper


def test_a_binary_drop_is_the_drop_of_accuracy():
    truth, predicted, score = drawn_binary(10, 400)
    groups = np.arange(400) // 100
    panes = fold(BINARY, list(zip(texts(truth), texts(predicted), score, strict=True)), groups=groups, n_groups=4)
    found = performance_drop(BINARY, baseline_value=0.8, baseline_se=0.0, pane_vectors=panes, alpha=0.05)
    assert found.value == pytest.approx(metrics.accuracy_score(truth, predicted))


def test_without_panes_there_is_no_drop_and_one_pane_bounds_nothing():
    for panes in (np.zeros((0, 4)), panes_of([0], [0])):
        none = performance_drop(MULTICLASS, baseline_value=0.9, baseline_se=0.0, pane_vectors=panes, alpha=0.05)
        assert math.isnan(none.drop)
        assert (none.lower, none.upper, none.n, none.panes) == (-math.inf, math.inf, 0, 0)
    one = performance_drop(
        MULTICLASS, baseline_value=0.9, baseline_se=0.0, pane_vectors=panes_of([5, 0], [10, 0]), alpha=0.05
    )
    assert (one.drop, one.lower, one.upper, one.panes) == (pytest.approx(0.4), -math.inf, math.inf, 1)


def test_panes_that_agree_by_chance_are_no_more_certain_than_independent_rows():
    found = performance_drop(
        MULTICLASS, baseline_value=0.8, baseline_se=0.0, pane_vectors=panes_of([8] * 30, [10] * 30), alpha=0.05
    )
    assert (found.upper - found.lower) / 2 >= 1.96 * math.sqrt(0.8 * 0.2 / 300)


def test_an_uncertain_baseline_widens_the_interval():
    panes = panes_of([80, 82, 78], [100, 100, 100])
    widths = []
    for error in (0.0, 0.05, 0.1):
        found = performance_drop(MULTICLASS, baseline_value=0.8, baseline_se=error, pane_vectors=panes, alpha=0.05)
        widths.append(found.upper - found.lower)
    assert widths == sorted(set(widths))


def test_the_interval_holds_the_true_drop_as_often_as_it_says_though_rows_of_a_pane_are_alike():
    """Each pane has its own accuracy (0.8 ± 0.06): taken as independent, rows claim far too short an interval."""
    rng = np.random.default_rng(11)
    held = naive = 0
    runs, panes, rows = 600, 14, 400
    for _ in range(runs):
        chance = np.clip(rng.normal(0.8, 0.06, panes), 0, 1)
        vectors = panes_of(list(rng.binomial(rows, chance)), [rows] * panes)
        found = performance_drop(MULTICLASS, baseline_value=0.85, baseline_se=0.0, pane_vectors=vectors, alpha=0.1)
        held += found.lower <= 0.05 <= found.upper
        naive += abs(found.drop - 0.05) <= 1.645 * math.sqrt(0.8 * 0.2 / (panes * rows))
    assert held / runs == pytest.approx(0.9, abs=4 * math.sqrt(0.09 / runs))
    assert naive / runs < 0.6


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=8), st.floats(0.01, 0.4))
def test_a_smaller_alpha_never_makes_the_interval_shorter(sizes, alpha):
    panes = panes_of([min(pair) for pair in sizes], [max(pair) for pair in sizes])
    wide, narrow = (
        performance_drop(MULTICLASS, baseline_value=0.8, baseline_se=0.01, pane_vectors=panes, alpha=level)
        for level in (alpha / 2, alpha)
    )
    assert wide.lower <= narrow.lower
    assert wide.upper >= narrow.upper
