"""Texts of many models fall into the cells their own model's binning has for them, however they are looked up."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from monitors.binning import Binning
from monitors.cells import NO_CELL
from streamer.counting import text_table
from streamer.counting.columns import TextCells
from streamer.counting.text_table import TextTable

CATEGORIES = ("a", "b", "1", "true", "c")
values: st.SearchStrategy[Any] = st.sampled_from([*CATEGORIES, None, True, 1, 1.0, "z", "", 10**30])
categories = st.lists(st.sampled_from(CATEGORIES), min_size=1, unique=True).map(tuple)


@given(
    st.dictionaries(st.integers(0, 6), st.tuples(categories, st.integers(0, 1_000)), min_size=1),
    st.lists(st.tuples(st.integers(0, 8), values), min_size=1),
    st.booleans(),
)
def test_each_text_falls_into_the_cell_of_its_own_binning(
    binnings: dict[int, tuple[tuple[str, ...], int]], asked: list[tuple[int, Any]], is_large: bool
) -> None:
    of = {n: TextCells(Binning("x", "categorical", categories=texts), first) for n, (texts, first) in binnings.items()}
    table = TextTable()
    for number, cells in of.items():
        table.add(number, cells)
    ids, texts = zip(*asked, strict=True)
    with mock.patch.multiple(text_table, _SMALL=0 if is_large else 1_000, _CELLS_A_CATEGORY=0):
        found = table.assign(np.array(ids), texts)
    assert found.tolist() == [of[number][text] if number in of else NO_CELL for number, text in asked]
