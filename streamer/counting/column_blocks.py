"""Features that come as columns to cells: one array operation a feature, whatever models its rows are of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitors.cells import NO_CELL, UNWATCHED, Cells, CellTable
from streamer.counting.columns import Block, Coded, IntArray, TextCells, Watched
from streamer.counting.lanes import number_cells

# A feature's values: numbers with nan for a missing one, texts (None is missing) by their codes, or anything at all.
Values = NDArray[np.float64] | Coded | Sequence[Any]


def column_blocks(
    table: CellTable, columns: Mapping[str, Values], watched: Sequence[Watched], watched_of: IntArray
) -> Iterator[Block]:
    """Give the cell of every value of columns.

    Parameters
    ----------
    table : the binnings of all numeric features.
    watched : what is watched of some versions; `watched_of` is each row's index among them.
    """
    for name, values in columns.items():
        ids = np.array([each.numbers.get(name, UNWATCHED) for each in watched])
        texts = [each.texts.get(name) for each in watched]
        if ids.any() and any(text is not None for text in texts):
            numbers = _numbers(table, values, ids[watched_of])
            yield Block(np.where(ids[watched_of] == UNWATCHED, _texts(values, texts, watched_of), numbers), 1)
        elif ids.any():
            yield Block(_numbers(table, values, ids[watched_of]), 1)
        elif any(text is not None for text in texts):
            yield Block(_texts(values, texts, watched_of), 1)


def _numbers(table: CellTable, values: Values, ids: IntArray) -> Cells:
    if isinstance(values, np.ndarray):
        return table.assign(values, ids)
    return number_cells(table, values.tolist() if isinstance(values, Coded) else values, ids)


def _texts(values: Values, texts: Sequence[TextCells | None], watched_of: IntArray) -> Cells:
    if isinstance(values, np.ndarray):
        values = [None if math.isnan(value) else value for value in values.tolist()]
    # Not by what is equal: True is 1, and is no category of that name.
    coded = values if isinstance(values, Coded) else Coded(list(values), np.arange(len(values)))
    if len(texts) == 1 or len(coded.values) < len(coded.codes):
        cells = [[NO_CELL if text is None else text[value] for value in coded.values] for text in texts]
        return np.array(cells, dtype=np.int32).reshape(len(texts), -1)[watched_of, coded.codes]
    # Few rows of many texts: a text may stand in any row, in several, or in none.
    of_rows = map(coded.values.__getitem__, coded.codes.tolist())
    found = zip(map(texts.__getitem__, watched_of.tolist()), of_rows, strict=True)
    return np.array([NO_CELL if text is None else text[value] for text, value in found], dtype=np.int32)
