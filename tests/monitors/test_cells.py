"""A table of many binnings assigns the cells that each binning assigns by itself."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors.binning import Binning
from monitors.cells import NO_CELL, UNWATCHED, CellTable

finite = st.floats(allow_nan=False, allow_infinity=False, width=64)
# Close together, far apart, whole, a power apart: what grids are laid over well and badly.
near = finite | st.floats(0, 1e-3) | st.integers(-20, 20).map(float) | st.integers(-300, 300).map(lambda x: 10.0**x)
marks = st.lists(near, max_size=40, unique=True).map(lambda found: tuple(np.unique(np.array(found) + 0.0).tolist()))


@st.composite
def binnings(draw: st.DrawFn) -> Binning:
    found = draw(marks)
    if len(found) > 1 and draw(st.booleans()):
        return Binning("x", "numeric", edges=found)
    return Binning("x", "numeric", values=found)


def tried(binning: Binning, values: list[float]) -> np.ndarray:
    given_ = np.array([*binning.edges, *binning.values])
    with np.errstate(over="ignore"):
        beside = [np.nextafter(given_, side) for side in (-np.inf, np.inf)]
    return np.concatenate([np.array(values), given_, *beside, [np.inf, -np.inf, np.nan, 0.0, -0.0]])


@settings(max_examples=300)
@given(st.lists(st.tuples(binnings(), st.lists(st.floats(width=64), max_size=10)), min_size=1, max_size=5))
def test_a_table_assigns_what_each_binning_does(drawn: list[tuple[Binning, list[float]]]) -> None:
    table, values, ids, wanted = CellTable(), [], [], []
    for number, (binning, some) in enumerate(drawn):
        id_ = table.add(binning, 1_000 * number)
        values.append(tried(binning, some))
        ids.append(np.full(len(values[-1]), id_))
        wanted += (binning.assign(values[-1]) + 1_000 * number).tolist()
    assert table.assign(np.concatenate(values), np.concatenate(ids)).tolist() == wanted
    # Rows of all of them at once.
    rows = np.column_stack([np.resize(each, 50) for each in values])
    row_ids = np.array([each[0] for each in ids])
    by_row = table.assign(rows, row_ids)
    for number, (binning, _some) in enumerate(drawn):
        assert by_row[:, number].tolist() == (binning.assign(rows[:, number]) + 1_000 * number).tolist()
        assert table.unseen(row_ids)[number] == binning.unseen + 1_000 * number


def test_very_many_marks_in_one_place_are_told_apart() -> None:
    edges = np.concatenate([[-1e9], 1e6 + np.arange(200) * 1e-6, [2e6, 1e300]])
    binning = Binning("x", "numeric", edges=tuple(edges))
    values = np.concatenate([edges, np.nextafter(edges, np.inf), np.linspace(1e6, 1e6 + 3e-4, 500)])
    table = CellTable()
    ids = np.full(len(values), table.add(binning, 0))
    assert table.assign(values, ids).tolist() == binning.assign(values).tolist()


def test_what_nobody_watches_has_no_cell() -> None:
    found = CellTable().assign(np.array([1.0, np.nan, -np.inf]), np.full(3, UNWATCHED))
    assert found.tolist() == [NO_CELL] * 3
