"""Cells are frozen with the reference, and every value has exactly one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from monitors.binning import Binning, fit

numbers = st.floats(allow_nan=False, allow_infinity=False, width=64)
rising = st.lists(numbers, min_size=2, max_size=30, unique=True).map(lambda xs: tuple(sorted(xs)))
texts = st.text(max_size=5)


def objects(values: list[str | None]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def test_the_special_cells_follow_the_inner_ones_in_the_agreed_order():
    binning = Binning("x", "numeric", edges=(0.0, 1.0, 2.0))
    assert (binning.cells, binning.size) == (2, 6)
    assert (binning.missing, binning.below, binning.above, binning.unseen) == (2, 3, 4, 5)


def test_inner_cells_are_half_open_and_the_reference_maximum_is_inside():
    binning = Binning("x", "numeric", edges=(0.0, 1.0, 2.0))
    cells = binning.assign(np.array([0.0, 0.999, 1.0, 2.0, -0.001, 2.001, np.nan, np.inf, -np.inf]))
    assert cells.dtype == np.int32
    assert cells.tolist() == [0, 0, 1, 1, 3, 4, 2, 4, 3]


def test_a_cell_stands_at_its_middle_or_its_value_and_a_category_nowhere():
    ranges = Binning("x", "numeric", edges=(0.0, 1.0, 4.0)).positions
    assert ranges is not None
    assert ranges.tolist() == [0.5, 2.5]
    values = Binning("x", "numeric", values=(0.0, 1.0, 5.0)).positions
    assert values is not None
    assert values.tolist() == [0.0, 1.0, 5.0]
    assert Binning("c", "categorical", categories=("a", "b")).positions is None


def test_the_middle_of_a_cell_as_wide_as_all_numbers_is_finite():
    wide = Binning("x", "numeric", edges=(1e308, 1.7e308)).positions
    assert wide is not None
    assert wide.tolist() == pytest.approx([1.35e308])


def test_a_discrete_number_without_a_cell_is_unseen_in_range_and_below_or_above_outside():
    binning = Binning("x", "numeric", values=(0.0, 1.0, 5.0))
    cells = binning.assign(np.array([0.0, 1.0, 5.0, 2.0, -1.0, 6.0, np.nan]))
    assert cells.tolist() == [0, 1, 2, binning.unseen, binning.below, binning.above, binning.missing]


def test_a_category_without_a_cell_is_unseen_and_none_is_missing():
    binning = Binning("c", "categorical", categories=("a", "b"))
    assert binning.assign(objects(["b", "a", "z", None])).tolist() == [1, 0, binning.unseen, binning.missing]


def test_without_reference_values_everything_present_is_unseen():
    binning = fit("x", np.array([np.nan, np.nan]), kind="numeric")
    assert binning.cells == 0
    assert binning.assign(np.array([1.0, np.nan, np.inf])).tolist() == [binning.unseen, binning.missing, binning.unseen]


def test_fitted_cells_hold_about_equal_reference_mass():
    values = np.random.default_rng(0).normal(size=10_000)
    binning = fit("x", values, kind="numeric", max_cells=100)
    counts = np.bincount(binning.assign(values), minlength=binning.size)
    assert binning.cells == 100
    assert counts[: binning.cells].min() >= 90
    assert counts[: binning.cells].max() <= 110
    assert counts[binning.cells :].sum() == 0


def test_a_value_heavier_than_a_cell_gets_a_cell_of_its_own():
    values = np.concatenate([np.zeros(600), np.random.default_rng(0).exponential(size=400)])
    binning = fit("rain", values, kind="numeric", max_cells=20)
    counts = np.bincount(binning.assign(values), minlength=binning.size)
    assert binning.cells <= 20
    assert counts[binning.assign(np.zeros(1))[0]] == 600


def test_few_distinct_numbers_get_one_cell_each():
    assert list(fit("hour", np.arange(24.0).repeat(20), kind="numeric").values) == list(range(24))


def test_a_small_sample_of_a_continuous_number_is_not_taken_for_discrete():
    binning = fit("x", np.random.default_rng(0).normal(size=60), kind="numeric")
    assert binning.edges
    assert not binning.values


@pytest.mark.parametrize("values", [[3.0], [3.0] * 50, [0.0, 1.0]])
def test_constants_and_flags_are_discrete_at_any_size(values: list[float]):
    assert list(fit("x", np.array(values), kind="numeric").values) == sorted(set(values))


def test_only_the_most_frequent_categories_get_cells():
    values = objects(["a"] * 5 + ["b"] * 4 + ["c"] * 3 + ["d"] * 3 + [None])
    assert fit("c", values, kind="categorical", max_cells=3).categories == ("a", "b", "c")


def test_infinities_in_the_reference_make_no_edge():
    values = np.concatenate([np.random.default_rng(0).normal(size=500), [np.inf, -np.inf]])
    assert np.isfinite(fit("x", values, kind="numeric").edges).all()


def test_midpoints_of_huge_edges_do_not_overflow():
    positions = Binning("x", "numeric", edges=(-1.7e308, 1.7e308)).positions
    assert positions is not None
    assert positions.tolist() == [0.0]


@given(rising)
def test_edges_survive_json_exactly(edges: tuple[float, ...]):
    binning = Binning("x", "numeric", edges=edges)
    assert Binning.from_dict(json.loads(json.dumps(binning.to_dict()))) == binning


@given(st.lists(texts, unique=True, max_size=10))
def test_categories_survive_json(categories: list[str]):
    binning = Binning("c", "categorical", categories=tuple(categories))
    assert Binning.from_dict(json.loads(json.dumps(binning.to_dict()))) == binning


@given(rising, hnp.arrays(np.float64, st.integers(0, 30), elements=st.floats()))
def test_every_number_falls_into_the_cell_that_holds_it(edges: tuple[float, ...], values: np.ndarray):
    binning = Binning("x", "numeric", edges=edges)
    for value, cell in zip(values, binning.assign(values), strict=True):
        if np.isnan(value):
            assert cell == binning.missing
        elif value < edges[0]:
            assert cell == binning.below
        elif value > edges[-1]:
            assert cell == binning.above
        else:
            last = cell == binning.cells - 1
            assert edges[cell] <= value
            assert value < edges[cell + 1] or (last and value == edges[-1])


@given(hnp.arrays(np.float64, st.integers(1, 60), elements=numbers), st.integers(2, 20))
def test_the_reference_never_falls_out_of_its_own_cells(values: np.ndarray, max_cells: int):
    binning = fit("x", values, kind="numeric", max_cells=max_cells)
    assert binning.cells <= max_cells
    assert binning.assign(values).max() < binning.cells


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Binning("age", "numeric", edges=(1.0, 1.0)), "age.edges"),
        (lambda: Binning("age", "numeric", edges=(1.0,)), "age.edges: got 1 edge"),
        (lambda: Binning("age", "numeric", values=(1.0, float("nan"))), "age.values"),
        (lambda: Binning("age", "numeric", categories=("a",)), "age: got"),
        (lambda: Binning("age", "categorical", categories=("a", "a")), "age.categories"),
        (lambda: Binning("age", "text"), "age.kind: got 'text'"),  # type: ignore[arg-type]
        (lambda: fit("age", np.zeros(3), kind="numeric", max_cells=1), "age.max_cells: got 1"),
        (lambda: Binning.from_dict({"kind": "numeric"}), "binning.feature"),
        (lambda: Binning.from_dict({"feature": "age", "kind": "numeric", "edges": 3}), "age: edges"),
    ],
)
def test_errors_name_the_field(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_text_in_a_numeric_feature_is_refused_by_name():
    with pytest.raises(TypeError, match="age: got values that are no numbers"):
        Binning("age", "numeric", values=(1.0,)).assign(objects(["old"]))


def test_a_number_among_categories_is_refused_by_name():
    with pytest.raises(TypeError, match="city: got 3"):
        fit("city", objects(["a", 3]), kind="categorical")  # type: ignore[list-item]
