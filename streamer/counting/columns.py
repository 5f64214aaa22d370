"""Columns of events, and what of them is watched: the terms in which rows and counting speak with each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitors.binning import Binning
from monitors.cells import Cells
from monitors.performance import canonical

IntArray = NDArray[np.int64]

SCORE = "@score"
PREDICTION = "@prediction"
# Keys of one read lie close together; farther apart, they are looked up by sorting.
_CLOSE = 8


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


class Distinct(NamedTuple):
    """The distinct whole numbers of a column, rising, and each row's index among them."""

    values: IntArray
    codes: IntArray


def distinct(keys: IntArray) -> Distinct:
    """Return the distinct values of a column of whole numbers."""
    if not len(keys):
        return Distinct(keys, keys)
    first = int(keys.min())
    span = int(keys.max()) - first + 1
    if span == 1:
        return Distinct(keys[:1], np.zeros(len(keys), dtype=np.int64))
    if span > _CLOSE * len(keys):
        values, codes = np.unique(keys, return_inverse=True)
        return Distinct(values, codes)
    (present,) = np.nonzero(np.bincount(keys - first, minlength=span))
    index = np.zeros(span, dtype=np.int64)
    index[present] = np.arange(len(present))
    return Distinct(present + first, index[keys - first])


class TextCells(dict[Any, int]):
    """The cell of each category of a binning whose cells begin at `first`; anything else is looked up by its text."""

    def __init__(self, binning: Binning, first: int) -> None:
        super().__init__({category: first + cell for cell, category in enumerate(binning.categories)})
        self[None] = first + binning.missing
        self.unseen = first + binning.unseen

    def __missing__(self, value: Any) -> int:
        # Not kept: there is no end to what may come.
        return self.unseen if type(value) is str else self.get(canonical(value), self.unseen)


class Watched(NamedTuple):
    """Where the values of one model version's watched features are counted.

    Attributes
    ----------
    numbers : feature → its number in a `monitors.cells.CellTable`.
    texts : feature → the cell of each text.
    """

    numbers: Mapping[str, int]
    texts: Mapping[str, TextCells]


class Block(NamedTuple):
    """Cells of some values of some rows.

    Attributes
    ----------
    cells : (values,) those of the first row, then those of the second, and so on; `monitors.cells.NO_CELL` where
        nobody watches.
    widths : how many each row has: a number, or one for each row.
    """

    cells: Cells
    widths: int | IntArray


def score_column(scores: Sequence[Any], predictions: Sequence[Any], positives: Sequence[str | None]) -> Sequence[Any]:
    """Return the number a model's output is watched by: P(positive), or the prediction itself."""
    values: list[Any] = []
    for prediction, score, positive in zip(predictions, scores, positives, strict=True):
        if isinstance(score, dict):
            values.append(score.get(positive or ""))
        else:
            values.append(prediction if score is None else score)
    return values
