"""Events to columns to counts: the array operations between a decoded batch and its increments."""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitors.binning import Binning
from monitors.performance import canonical
from monitors.profile import ReferenceProfile

_TEXTS = frozenset({str, type(None)})

IntArray = NDArray[np.int64]

SCORE = "@score"
PREDICTION = "@prediction"


@dataclass(frozen=True)
class Coded:
    """A column of few distinct values: `codes` is each row's index among `values`, which occur, each once."""

    values: list[Any]
    codes: IntArray

    @classmethod
    def of(cls, column: Sequence[Any]) -> Coded:
        """Encode a column; values come in the order they first occur."""
        values = list(dict.fromkeys(column))
        if len(values) <= 1:
            return cls(values, np.zeros(len(column), dtype=np.int64))
        index = {value: code for code, value in enumerate(values)}
        return cls(values, np.fromiter(map(index.__getitem__, column), dtype=np.int64, count=len(column)))

    @classmethod
    def constant(cls, value: Any, rows: int) -> Coded:
        """Return a column of one value."""
        return cls([value], np.zeros(rows, dtype=np.int64))

    def equal(self, value: Any) -> NDArray[np.bool_]:
        """Return which rows hold this value; None is a value."""
        return np.equal(self.codes, self.values.index(value) if value in self.values else -1)

    def tolist(self) -> list[Any]:
        """Return each row's value."""
        if len(self.values) == 1:
            return self.values * len(self.codes)
        return [self.values[code] for code in self.codes.tolist()]


# A feature's values: numbers with nan for a missing one, texts (None is missing) by their codes, or anything at all.
Values = NDArray[np.float64] | Coded | Sequence[Any]


def score_column(scores: Sequence[Any], predictions: Sequence[Any], positive: str | None) -> Sequence[Any]:
    """Return the number a model's output is watched by: P(positive), or the prediction itself."""
    if set(map(type, scores)) <= {float}:
        return scores
    values: list[Any] = []
    for prediction, score in zip(predictions, scores, strict=True):
        if isinstance(score, dict):
            values.append(score.get(positive or ""))
        else:
            values.append(prediction if score is None else score)
    return values


def assign_cells(binning: Binning, values: Values) -> NDArray[np.int32]:
    """Return the cell each value falls into; a value of another kind than the feature's is unseen."""
    if isinstance(values, Coded):
        return assign_cells(binning, values.values)[values.codes]
    if isinstance(values, np.ndarray) and binning.kind == "categorical":
        values = [None if math.isnan(value) else value for value in values.tolist()]
    if isinstance(values, np.ndarray):
        return binning.assign(values)
    if binning.kind == "categorical":
        texts = np.empty(len(values), dtype=object)
        if not set(map(type, values)) <= _TEXTS:
            values = [value if value is None or type(value) is str else canonical(value) for value in values]
        texts[:] = values
        return binning.assign(texts)
    try:
        return binning.assign(np.frombuffer(struct.pack(f"{len(values)}d", *values)))
    except (struct.error, OverflowError):
        # A value is no number, or none that a float can hold.
        pass
    # numpy would read a number out of a text where the whole column allows it: the cell of an event
    # must not depend on the events it is read with.
    if str in set(map(type, values)):
        return _assign_mixed(binning, values)
    return binning.assign(_floats(values))


def _assign_mixed(binning: Binning, values: Sequence[Any]) -> NDArray[np.int32]:
    """Assign a numeric column some of whose values are text: those are unseen."""
    odd = np.array([isinstance(value, str) for value in values])
    cells = binning.assign(_floats([None if isinstance(value, str) else value for value in values]))
    cells[odd] = binning.unseen
    return cells


def _floats(values: Sequence[Any]) -> NDArray[np.float64]:
    """Return numbers as floats, None as nan, whole numbers too large for a float as infinite."""
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:
        return np.array([_float(value) for value in values])


def _float(value: float | None) -> float:
    if value is None:
        return math.nan
    # Python compares whole numbers of any size with floats exactly.
    return math.inf if value > sys.float_info.max else -math.inf if value < -sys.float_info.max else float(value)


def count_panes(cells: NDArray[np.int32], panes: IntArray, n_panes: int, size: int) -> IntArray:
    """Count cells by pane in one pass.

    Parameters
    ----------
    cells, panes : (rows,) the cell and the pane index of each row.

    Returns
    -------
    (n_panes, size) counts.
    """
    keys = panes * size + cells
    return np.bincount(keys, minlength=n_panes * size).reshape(n_panes, size).astype(np.int64)


def count_features(profile: ReferenceProfile, columns: Mapping[str, Values], panes: IntArray, n_panes: int) -> IntArray:
    """Count each column the profile knows, by pane: (n_panes, cells of all features), in the profile's layout."""
    counted = np.zeros((n_panes, profile.layout.size), dtype=np.int64)
    for name, values in columns.items():
        feature = profile.features.get(name)
        if feature is not None:
            cells = assign_cells(feature.binning, values)
            counted[:, profile.layout.places[name]] = count_panes(cells, panes, n_panes, feature.binning.size)
    return counted
