"""How well a model did, as fixed-width vectors of counts that add up over rows, panes and slices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import special

SCORE_CELLS = 64
CALIBRATION_GROUPS = 16
MICRO = 1_000_000
# No number of a regression counts as more: sums of squares over 10**10 rows, and their squares, stay finite.
LARGEST = 1e140
# Equal steps of arcsin √p: cells are narrow near 0 and 1, where a rare class has all its scores. Rounded,
# so that a row and its later correction fall into the same cell whatever machine folds them.
SCORE_EDGES = np.round(np.sin(np.arange(1, SCORE_CELLS) * np.pi / (2 * SCORE_CELLS)) ** 2, 12)
SCORE_CENTRES = np.sin((np.arange(SCORE_CELLS) + 0.5) * np.pi / (2 * SCORE_CELLS)) ** 2

# The columns before the score histograms (negatives, then positives) of a binary vector, and the whole of the others.
BINARY = ("n", "true_positive", "false_positive", "false_negative", "scored", "log_loss_micro", "brier_micro")
MULTICLASS = ("n", "correct", "scored", "log_loss_micro")
REGRESSION = ("n", "absolute_error", "squared_error", "error", "truth", "squared_truth")

Vectors = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def canonical(value: object) -> str:
    """Return the one text a label or a prediction is compared by: true/false, integral floats as integers, else str."""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float | np.floating):
        number = float(value)
        # Beyond 2**53 a float is no exact integer: its own text is the honest one.
        return str(int(number)) if number.is_integer() and abs(number) < 2**53 else str(number)
    return str(value)


@dataclass(frozen=True)
class PerformanceSchema:
    """What a model's performance vector holds, how rows fold into it and which metrics it gives.

    Parameters
    ----------
    task : "binary", "multiclass" or "regression".
    positive : canonical text of the label that counts as positive; binary only.

    Notes
    -----
    For classification every entry is an integer (log loss and Brier score in millionths, rounded an
    event), so that sums, signed ones too, are exact and free of order. For regression they are float64,
    and a label or prediction beyond ±1e140 counts as that.

    Raises
    ------
    ValueError
        For a binary task without `positive`.
    """

    task: Literal["binary", "multiclass", "regression"]
    positive: str | None = None

    def __post_init__(self) -> None:
        if self.task == "binary" and self.positive is None:
            raise ValueError("positive: got None, wanted the label that counts as positive; a binary task needs it")

    @property
    def width(self) -> int:
        """Return the number of entries of a vector."""
        return {"binary": len(BINARY) + 2 * SCORE_CELLS, "multiclass": len(MULTICLASS), "regression": len(REGRESSION)}[
            self.task
        ]

    @property
    def dtype(self) -> str:
        """Return numpy's name of a vector's little-endian type."""
        return "<f8" if self.task == "regression" else "<i8"

    @property
    def primary(self) -> str:
        """Return the metric drops are measured in."""
        return "mae" if self.task == "regression" else "accuracy"

    @property
    def higher_is_better(self) -> bool:
        """Return whether the primary metric rises as the model gets better."""
        return self.task != "regression"

    def fold(
        self,
        *,
        labels: Sequence[str],
        predictions: Sequence[str],
        scores: Floats,
        signs: Integers,
        groups: Integers,
        n_groups: int,
    ) -> Vectors:
        """Fold rows into one vector a group.

        Parameters
        ----------
        labels, predictions : (rows,) canonical texts.
        scores : (rows,) P(positive) for binary, P(of the true label) for multiclass, unused for regression.
            nan, or anything outside [0, 1], is a missing score: the row counts, without log loss and the like.
        signs : (rows,) +1 for a row that comes in, −1 for one taken back.
        groups : (rows,) which vector a row belongs to, from 0 to n_groups − 1.

        Returns
        -------
        (n_groups, width) array of `dtype`.

        Raises
        ------
        ValueError
            For a regression label or prediction that is not a finite number; the message holds it.
        """
        columns, cells = self._columns(labels, predictions, np.asarray(scores, dtype=np.float64))
        where, weights = np.asarray(groups, dtype=np.int64), np.asarray(signs, dtype=np.float64)
        vectors = np.zeros((n_groups, self.width))
        for index, column in enumerate(columns):
            vectors[:, index] = np.bincount(where, weights=column * weights, minlength=n_groups)
        if cells is not None:
            scored = cells >= 0
            flat = where[scored] * 2 * SCORE_CELLS + cells[scored]
            histogram = np.bincount(flat, weights=weights[scored], minlength=n_groups * 2 * SCORE_CELLS)
            vectors[:, len(columns) :] = histogram.reshape(n_groups, 2 * SCORE_CELLS)
        # Exact for integers: float64 sums of whole numbers below 2**53, some 10**8 rows a fold.
        return vectors.astype(self.dtype)

    def metrics(self, vector: Vectors) -> dict[str, float]:
        """Return what a vector says: metric → value, without those it cannot say (`n` is always there).

        binary: n, accuracy, precision, recall, f1, positive_share (of labels), log_loss, brier, auc, ece;
        multiclass: n, accuracy, log_loss; regression: n, mae, rmse, bias (prediction − truth), r2.
        Log loss is in nats. AUC takes scores of one of the 64 cells as tied; the expected
        calibration error pools them to 16 groups.
        """
        n = float(vector[0])
        if n <= 0:
            return {"n": 0.0}
        if self.task == "binary":
            return {"n": n} | _binary(vector)
        if self.task == "multiclass":
            _, correct, scored, log_loss = (float(entry) for entry in vector)
            return {"n": n, "accuracy": correct / n} | ({"log_loss": log_loss / MICRO / scored} if scored > 0 else {})
        return {"n": n} | _regression(vector)

    def outcomes(self, labels: Sequence[str], predictions: Sequence[str], scores: Floats) -> Floats:
        """Return a float64 value an event, higher is better: correct 0 or 1; for regression −|error|."""
        if self.task == "regression":
            return np.asarray(-np.abs(_numbers(predictions, "prediction") - _numbers(labels, "label")))
        if self.task == "multiclass":
            return np.asarray(_equal(labels, predictions), dtype=np.float64)
        agree = _equal(labels, self.positive) == _equal(predictions, self.positive)
        return np.asarray(agree, dtype=np.float64)

    def _columns(
        self, labels: Sequence[str], predictions: Sequence[str], scores: Floats
    ) -> tuple[list[Floats], Integers | None]:
        """Return the values a row adds to each leading column, and its score cell (−1: none) where there is one."""
        ones = np.ones(len(labels))
        if self.task == "regression":
            truth = _numbers(labels, "label")
            error = _numbers(predictions, "prediction") - truth
            return [ones, np.abs(error), error**2, error, truth, truth**2], None
        scored = (scores >= 0) & (scores <= 1)
        known = np.where(scored, scores, 0.5)
        if self.task == "multiclass":
            correct = _equal(labels, predictions)
            return [ones, correct.astype(np.float64), scored.astype(np.float64), _log_loss_micro(known) * scored], None
        positive, predicted = _equal(labels, self.positive), _equal(predictions, self.positive)
        counts = [positive & predicted, ~positive & predicted, positive & ~predicted, scored]
        losses = [_log_loss_micro(np.where(positive, known, 1 - known)), np.rint(MICRO * (known - positive) ** 2)]
        cells = np.searchsorted(SCORE_EDGES, known, side="right") + SCORE_CELLS * positive
        columns = [ones, *(count.astype(np.float64) for count in counts), *(loss * scored for loss in losses)]
        return columns, np.where(scored, cells, -1)


@dataclass(frozen=True)
class PerformanceDrop:
    """How far the primary metric fell below its baseline; `drop` is positive when worse.

    `lower` and `upper` bound the drop with 1 − alpha confidence; both infinite with fewer than two panes.
    """

    value: float
    baseline: float
    drop: float
    lower: float
    upper: float
    n: int
    panes: int


def performance_drop(
    schema: PerformanceSchema, *, baseline_value: float, baseline_se: float, pane_vectors: Vectors, alpha: float
) -> PerformanceDrop:
    """Compare the primary metric over some panes with its baseline.

    Parameters
    ----------
    baseline_value, baseline_se : the reference's metric and its standard error.
    pane_vectors : (panes, width), the window's panes; those without rows are passed over.
    alpha : two-sided; the interval has confidence 1 − alpha.

    Notes
    -----
    The value is the ratio Σ s_t / Σ n_t of sums over panes t. Rows of a pane share users, weather and
    batches, so panes are the units: its variance is K/(K−1) · Σ (s_t − value · n_t)² / (Σ n_t)² [1], never
    below what independent rows would have; the quantile is Student's with K − 1 degrees of freedom.

    [1] W. G. Cochran, *Sampling Techniques*, 3rd ed., 1977, section 6.
    """
    panes = np.asarray(pane_vectors, dtype=np.float64).reshape(-1, schema.width)
    panes = panes[panes[:, 0] > 0]
    counts, sums = panes[:, 0], _primary_sums(schema, panes)
    n, k = float(counts.sum()), len(panes)
    if k == 0:
        return PerformanceDrop(math.nan, baseline_value, math.nan, -math.inf, math.inf, 0, 0)
    value = float(sums.sum()) / n
    drop = baseline_value - value if schema.higher_is_better else value - baseline_value
    if k == 1:
        return PerformanceDrop(value, baseline_value, drop, -math.inf, math.inf, int(n), 1)
    squares = float(sums.sum() if schema.higher_is_better else panes[:, REGRESSION.index("squared_error")].sum())
    between = k / (k - 1) * float(((sums - value * counts) ** 2).sum()) / n**2
    within = max(squares / n - value * value, 0.0) / n
    radius = float(special.stdtrit(k - 1, 1 - alpha / 2)) * math.sqrt(max(between, within) + baseline_se**2)
    return PerformanceDrop(value, baseline_value, drop, drop - radius, drop + radius, int(n), k)


def _primary_sums(schema: PerformanceSchema, panes: Floats) -> Floats:
    """Return (panes,) the sum whose share of n is the primary metric."""
    if schema.task == "binary":
        return panes[:, 0] - panes[:, BINARY.index("false_positive")] - panes[:, BINARY.index("false_negative")]
    return panes[:, 1]


def _binary(vector: Vectors) -> dict[str, float]:
    """Return the metrics of a binary vector with rows in it."""
    n, hits, false_alarms, misses, scored, log_loss, brier = (float(entry) for entry in vector[: len(BINARY)])
    found = {"accuracy": (n - false_alarms - misses) / n, "positive_share": (hits + misses) / n}
    if hits + false_alarms > 0:
        found["precision"] = hits / (hits + false_alarms)
    if hits + misses > 0:
        found["recall"] = hits / (hits + misses)
    if 2 * hits + false_alarms + misses > 0:
        found["f1"] = 2 * hits / (2 * hits + false_alarms + misses)
    if scored <= 0:
        return found
    found |= {"log_loss": log_loss / MICRO / scored, "brier": brier / MICRO / scored}
    negatives, positives = vector[len(BINARY) :].reshape(2, SCORE_CELLS).astype(np.float64)
    if negatives.sum() > 0 and positives.sum() > 0:
        below = np.cumsum(negatives) - negatives / 2
        found["auc"] = float(positives @ below) / float(positives.sum() * negatives.sum())
    expected = ((negatives + positives) * SCORE_CENTRES).reshape(CALIBRATION_GROUPS, -1).sum(axis=1)
    observed = positives.reshape(CALIBRATION_GROUPS, -1).sum(axis=1)
    found["ece"] = float(np.abs(observed - expected).sum()) / scored
    return found


def _regression(vector: Vectors) -> dict[str, float]:
    """Return the metrics of a regression vector with rows in it."""
    n, absolute, squared, error, truth, squared_truth = (float(entry) for entry in vector)
    # Taking rows back leaves rounding behind, so a sum of squares may end a hair below zero.
    found = {"mae": max(absolute, 0.0) / n, "rmse": math.sqrt(max(squared, 0.0) / n), "bias": error / n}
    # A float times itself may become inf, where its power would raise.
    spread = squared_truth - truth * truth / n
    if spread > 1e-12 * squared_truth:
        r2 = 1 - squared / spread
        # Truths of next to no spread: the share of it that is explained is beyond what a double holds.
        if math.isfinite(r2):
            found["r2"] = r2
    return found


def _equal(texts: Sequence[str], other: Sequence[str] | str | None) -> npt.NDArray[np.bool_]:
    """Compare texts one by one with another sequence, or all with one text."""
    right = other if isinstance(other, str) or other is None else np.asarray(other, dtype=object)
    return np.asarray(np.asarray(texts, dtype=object) == right, dtype=np.bool_)


def _log_loss_micro(probability: Floats) -> Floats:
    """Return −ln p in whole millionths of a nat, p kept off 0 by the float64 epsilon."""
    return np.asarray(np.rint(-MICRO * np.log(np.clip(probability, np.finfo(np.float64).eps, 1.0))))


def _numbers(texts: Sequence[str], what: str) -> Floats:
    """Return texts as numbers within ±LARGEST, or a ValueError that holds the first that is not finite."""
    try:
        numbers = np.asarray(np.asarray(texts, dtype=object), dtype=np.float64)
    except ValueError:
        numbers = np.asarray([_number(text) for text in texts])
    if not np.isfinite(numbers).all():
        wrong = texts[int(np.flatnonzero(~np.isfinite(numbers))[0])]
        raise ValueError(f"{what}: got {wrong!r}, wanted a finite number; a regression model has no others")
    return np.clip(numbers, -LARGEST, LARGEST)


def _number(text: str) -> float:
    """Return the number a text says, nan if it says none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
