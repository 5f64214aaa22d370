"""A row counts in the whole and in each of its slices, once."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from monitors.performance import PerformanceSchema
from monitors.slices import WHOLE, group, slice_key, slice_keys

SCHEMA = PerformanceSchema(task="multiclass")
keys = st.sets(st.sampled_from(["carrier=UA", "carrier=DL", "origin=JFK", "origin=_missing"]), max_size=3)


def test_slices_are_named_by_feature_and_value_in_the_features_order():
    assert slice_key("carrier", "UA") == "carrier=UA"
    assert slice_keys({"origin": "JFK", "carrier": "UA"}) == ["origin=JFK", "carrier=UA"]
    assert slice_keys({}) == []


def test_no_rows_are_no_pairs_and_the_whole_still_has_its_name():
    groups, rows, names = group([])
    assert (groups.tolist(), rows.tolist(), names) == ([], [], [WHOLE])


def test_the_whole_comes_first_and_has_every_row():
    groups, rows, names = group([["b=1", "a=1"], [], ["a=1"]])
    assert names == [WHOLE, "b=1", "a=1"]
    assert rows[groups == 0].tolist() == [0, 1, 2]
    assert rows[groups == names.index("a=1")].tolist() == [0, 2]


@given(st.lists(keys, max_size=20))
def test_a_slice_holds_exactly_the_rows_that_have_its_key(slices: list[set[str]]):
    groups, rows, names = group([iter(one) for one in slices])
    assert sorted(names) == sorted({WHOLE}.union(*slices))
    for number, name in enumerate(names):
        wanted = [row for row, one in enumerate(slices) if name == WHOLE or name in one]
        assert sorted(rows[groups == number].tolist()) == wanted


@given(st.lists(st.tuples(keys, st.sampled_from("ab"), st.sampled_from("ab")), max_size=20))
def test_one_fold_over_groups_gives_every_slice_its_own_accuracy(data):
    groups, rows, names = group([one for one, _, _ in data])
    vectors = SCHEMA.fold(
        labels=[data[row][1] for row in rows],
        predictions=[data[row][2] for row in rows],
        scores=np.full(len(rows), math.nan),
        signs=np.ones(len(rows), dtype=np.int64),
        groups=groups,
        n_groups=len(names),
    )
    for name, vector in zip(names, vectors, strict=True):
        agree = [label == said for one, label, said in data if name == WHOLE or name in one]
        assert (vector[0], vector[1]) == (len(agree), sum(agree))
