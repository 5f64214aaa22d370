"""The cells of one text feature of many models: a text's number is looked up once, and its cells by arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from operator import call
from typing import Any

import numpy as np

from monitors.cells import NO_CELL, Cells
from monitors.performance import canonical
from streamer.counting.columns import IntArray, TextCells

# The table has so many cells, or so many a category that is some model's: no more memory than the categories take.
# Where models have categories of their own it would have many more, and texts are looked up model by model instead.
_SMALL = 2**16
_CELLS_A_CATEGORY = 16


class _Numbers(dict[Any, int]):
    """The number of each text that is some model's category, and of None; 0 of all others."""

    def __missing__(self, value: Any) -> int:
        # Not kept: there is no end to what may come.
        return 0 if type(value) is str else self.get(canonical(value), 0)


class TextTable:
    """Text binnings by number, some of which may be absent: nobody watches the feature there."""

    def __init__(self) -> None:
        self._binnings: dict[int, TextCells] = {}
        self._finders: dict[int, Callable[[Any], int]] = {}
        self._numbers = _Numbers()
        # (binnings, texts); None while there is none, or none that is small enough.
        self._cells: Cells | None = None
        self._is_worked_out = False

    def add(self, number: int, cells: TextCells) -> None:
        """Take in a binning."""
        self._binnings[number] = cells
        self._finders[number] = cells.__getitem__
        self._is_worked_out = False

    def assign(self, ids: IntArray, values: Sequence[Any]) -> Cells:
        """Return the cell of each value in its binning; `monitors.cells.NO_CELL` where that is absent."""
        if not self._is_worked_out:
            self._work_out()
        if self._cells is None:
            finders = map(self._finders.get, ids.tolist(), repeat(_nowhere))
            return np.fromiter(map(call, finders, values), dtype=np.int32, count=len(values))
        numbers = np.fromiter(map(self._numbers.__getitem__, values), dtype=np.int64, count=len(values))
        cells: Cells = self._cells[np.minimum(ids, len(self._cells) - 1), numbers]
        return cells

    def _work_out(self) -> None:
        self._is_worked_out, self._cells = True, None
        for binning in self._binnings.values():
            for text in binning:
                self._numbers.setdefault(text, len(self._numbers) + 1)
        # The last row is of all binnings beyond those that are there.
        shape = (max(self._binnings) + 2, len(self._numbers) + 1)
        categories = sum(map(len, self._binnings.values()))
        if shape[0] * shape[1] > max(_SMALL, _CELLS_A_CATEGORY * categories):
            return
        self._cells = np.full(shape, NO_CELL, dtype=np.int32)
        for number, binning in self._binnings.items():
            self._cells[number] = binning.unseen
            self._cells[number, [self._numbers[text] for text in binning]] = list(binning.values())


def _nowhere(_: Any) -> int:
    """Return the cell of a text where nobody watches."""
    return NO_CELL
