"""The cells of many features at once: numbers of all of them find theirs in one pass of array operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from monitors.binning import Binning

Cells = npt.NDArray[np.int32]

# The number of a feature that nobody watches: each of its values falls into `NO_CELL`.
UNWATCHED = 0
NO_CELL = -1
# An even grid of so many places costs 4 KiB a feature and leaves one or two marks a place.
_PLACES = 1024
_PLACES_A_MARK = 4
# With more marks than this in one place of a grid, a binary search is as fast.
_MAX_CROWD = 12
# So many marks are compared with every value; the few places that hold more are looked at by themselves.
_COMMON_CROWD = 2


@dataclass(frozen=True)
class _Marks:
    """The rising marks of one binning, and the cell of a number that reaches so many of them."""

    marks: npt.NDArray[np.float64]
    cell_of_rank: Cells
    missing: int
    unseen: int

    @classmethod
    def of(cls, binning: Binning, first: int) -> _Marks:
        """Take a binning apart; its cells begin at `first`.

        The last cell of edges is closed, and a value has a cell to itself: a mark right after it makes both the
        half-open case.
        """
        inner = np.arange(binning.cells, dtype=np.int32)
        if binning.edges:
            marks = np.array(binning.edges)
            marks[-1] = _next(marks[-1])
            cells = np.concatenate([[binning.below], inner, [binning.above]])
        elif binning.values:
            values = np.array(binning.values)
            marks = np.column_stack([values, _next(values)]).ravel()
            gaps = np.full(binning.cells, binning.unseen)
            gaps[-1] = binning.above
            cells = np.concatenate([[binning.below], np.column_stack([inner, gaps]).ravel()])
        else:
            marks, cells = np.zeros(0), np.array([binning.unseen])
        return cls(marks, (first + cells).astype(np.int32), first + binning.missing, first + binning.unseen)


def _next(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the number right after each: infinity after the last."""
    with np.errstate(over="ignore"):
        return np.nextafter(numbers, np.inf)


@dataclass(frozen=True)
class _Grid:
    """An even grid over the range of some marks: how many of them lie before each place, and at most in one.

    `folded` says that it is even in the numbers' bits, which is nearly even in their logarithms.
    """

    low: float
    scale: float
    before: npt.NDArray[np.int32]
    crowd: int
    folded: bool = False

    @classmethod
    def over(cls, marks: npt.NDArray[np.float64]) -> _Grid:
        """Lay a grid over marks; of one place where none would help."""
        even = cls._even(marks, marks, folded=False)
        if even is None or even.crowd > _COMMON_CROWD:
            folded = cls._even(marks, _folded(marks), folded=True)
            even = min((grid for grid in (even, folded) if grid is not None), key=lambda grid: grid.crowd, default=None)
        return cls(0.0, 0.0, np.zeros(1, dtype=np.int32), len(marks)) if even is None else even

    @classmethod
    def _even(cls, marks: npt.NDArray[np.float64], scaled: npt.NDArray[np.float64], *, folded: bool) -> _Grid | None:
        if len(marks) < 2:
            return None
        places = min(_PLACES, _PLACES_A_MARK * len(marks))
        with np.errstate(all="ignore"):
            low = float(scaled[0])
            scale = float(places / (scaled[-1] - low))
        if not (np.isfinite(low) and np.isfinite(scale) and scale > 0):
            return None
        held = np.bincount(_places(scaled, low, scale, places - 1), minlength=places)
        crowd = int(held.max())
        if crowd > _MAX_CROWD:
            return None
        return cls(low, scale, (np.cumsum(held) - held).astype(np.int32), crowd, folded)


def _folded(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return what rises with the numbers as their bits do: evenly from a power of two to the next."""
    bits = np.ascontiguousarray(numbers + 0.0).view(np.int64)
    # A negative number's bits fall as it rises; both zeros are one number.
    return np.where(bits < 0, np.int64(-(2**63)) - bits, bits).astype(np.float64)


def _places(numbers: npt.NDArray[np.float64], low: Any, scale: Any, last: Any) -> npt.NDArray[np.int64]:
    """Return the place of each number on its grid, the first or the last beyond the range.

    Never falling in the number, so that marks in lower places lie below it, whatever is rounded on the way.
    """
    with np.errstate(all="ignore"):
        at = (numbers - low) * scale
    # These two, unlike minimum and maximum, take nan for the bound.
    np.fmax(at, 0, out=at)
    np.fmin(at, last, out=at)
    found: npt.NDArray[np.int64] = at.astype(np.int64)
    return found


class _Growing:
    """An array that grows at its end."""

    def __init__(self, dtype: Any) -> None:
        self._held: npt.NDArray[Any] = np.zeros(64, dtype=dtype)
        self.size = 0

    def append(self, value: float) -> None:
        """Append a value."""
        self._make_room(1)
        self._held[self.size] = value
        self.size += 1

    def extend(self, values: npt.NDArray[Any]) -> None:
        """Append some values."""
        self._make_room(len(values))
        self._held[self.size : self.size + len(values)] = values
        self.size += len(values)

    def _make_room(self, more: int) -> None:
        if self.size + more > len(self._held):
            longer = np.zeros(max(self.size + more, 2 * len(self._held)), dtype=self._held.dtype)
            longer[: self.size] = self._held[: self.size]
            self._held = longer

    @property
    def values(self) -> npt.NDArray[Any]:
        """What it holds, without a copy."""
        return self._held[: self.size]


class CellTable:
    """Numeric binnings by number, each with its cells from some first one on.

    Notes
    -----
    `assign` returns what `Binning.assign` does, some ten times as fast: a number's place on an even grid over the
    marks' range tells which marks lie in lower places, and those in its own, mostly one or none, are compared
    with it. The marks of all binnings lie in one array, as do their grids, so one pass serves all of them.
    """

    def __init__(self) -> None:
        self._marks, self._cells = _Growing(np.float64), _Growing(np.int32)
        self._before, self._grid, self._last = _Growing(np.int32), _Growing(np.int64), _Growing(np.float64)
        self._low, self._scale = _Growing(np.float64), _Growing(np.float64)
        self._crowd, self._missing = _Growing(np.int64), _Growing(np.int32)
        self._unseen = _Growing(np.int32)
        self._folded, self._any_folded = _Growing(np.bool_), False
        self._put(_Marks(np.zeros(0), np.array([NO_CELL], dtype=np.int32), NO_CELL, NO_CELL))

    @property
    def size(self) -> int:
        """How many binnings it holds; one of them, `UNWATCHED`, is none."""
        return self._missing.size

    def add(self, binning: Binning, first: int) -> int:
        """Take in a numeric binning whose cells begin at `first`; return its number."""
        return self._put(_Marks.of(binning, first))

    def _put(self, marks: _Marks) -> int:
        grid = _Grid.over(marks.marks)
        self._grid.append(self._before.size)
        self._before.extend(self._marks.size + grid.before)
        self._last.append(len(grid.before) - 1)
        self._low.append(grid.low)
        self._scale.append(grid.scale)
        self._crowd.append(grid.crowd)
        self._folded.append(grid.folded)
        self._any_folded |= grid.folded
        self._missing.append(marks.missing)
        self._unseen.append(marks.unseen)
        # No number reaches nan: ranks end at the last mark.
        self._marks.extend(np.append(marks.marks, np.nan))
        self._cells.extend(marks.cell_of_rank)
        return self._missing.size - 1

    def assign(self, numbers: npt.NDArray[np.float64], ids: npt.NDArray[np.int64]) -> Cells:
        """Return the cell of each number.

        Parameters
        ----------
        numbers : numbers of any shape; nan is missing, ±inf lies below or above the range.
        ids : the number of each one's binning, or what broadcasts to it.
        """
        low, scale, last = (each.values.take(ids) for each in (self._low, self._scale, self._last))
        scaled = numbers
        if self._any_folded and (folded := self._folded.values.take(ids)).any():
            scaled = np.where(folded, _folded(numbers), numbers)
        places = _places(scaled, low, scale, last)
        places += self._grid.values.take(ids)
        at = self._before.values.take(places)
        marks, crowd = self._marks.values, self._crowd.values.take(ids)
        most = int(crowd.max(initial=0))
        for _ in range(min(most, _COMMON_CROWD)):
            at += marks.take(at) <= numbers
        if most > _COMMON_CROWD:
            self._climb(at, numbers, crowd)
        cells: Cells = self._cells.values.take(at)
        missing = np.isnan(numbers)
        if missing.any():
            cells[missing] = np.broadcast_to(self._missing.values.take(ids), numbers.shape)[missing]
        return cells

    def unseen(self, ids: npt.NDArray[np.int64]) -> Cells:
        """Return the cell of what is no number, for the binnings of these numbers."""
        cells: Cells = self._unseen.values.take(ids)
        return cells

    def _climb(self, at: Cells, numbers: npt.NDArray[np.float64], crowd: npt.NDArray[np.int64]) -> None:
        """Take the marks that more than a few share a place with, in place; by halves where there are very many."""
        marks = self._marks.values
        flat, tried = at.reshape(-1), numbers.reshape(-1)
        (rest,) = np.nonzero(np.broadcast_to(crowd > _COMMON_CROWD, numbers.shape).reshape(-1))
        left = np.broadcast_to(crowd, numbers.shape).reshape(-1)[rest] - _COMMON_CROWD
        # Whoever did not reach the mark before reaches none after it.
        reached = marks[np.maximum(flat[rest] - 1, 0)] <= tried[rest]
        rest, left = rest[reached], left[reached]
        few = left <= _MAX_CROWD
        self._halve(flat, tried, rest[~few], left[~few])
        rest = rest[few]
        while len(rest):
            reached = marks.take(flat[rest]) <= tried[rest]
            rest = rest[reached]
            flat[rest] += 1

    def _halve(
        self,
        at: Cells,
        numbers: npt.NDArray[np.float64],
        rest: npt.NDArray[np.int64],
        left: npt.NDArray[np.int64],
    ) -> None:
        """Find by binary search how many of the `left` marks after `at` each of the rest reaches."""
        marks = self._marks.values
        start, tried = at[rest], numbers[rest]
        while len(rest) and left.any():
            half = left // 2
            reached = (left > 0) & (marks.take(start + half, mode="clip") <= tried)
            start = np.where(reached, start + half + 1, start)
            left = np.where(reached, left - half - 1, half)
        at[rest] = start
