"""A row counts in the whole and in each of its slices, once."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from monitors.binning import Binning
from monitors.performance import PerformanceSchema
from monitors.profile import FeatureProfile, ReferenceProfile
from monitors.slices import WHOLE, bounded, group, kept_slices, slice_key, slice_keys

SCHEMA = PerformanceSchema(task="multiclass")
keys = st.sets(st.sampled_from(["carrier=UA", "carrier=DL", "origin=JFK", "origin=_missing"]), max_size=3)


def test_slices_are_named_by_feature_and_value_in_the_features_order():
    assert slice_key("carrier", "UA") == "carrier=UA"
    assert slice_keys({"origin": "JFK", "carrier": "UA"}) == ["origin=JFK", "carrier=UA"]
    assert slice_keys({}) == []


def profile(**features: Binning) -> ReferenceProfile:
    """Return a reference whose first cells are its most frequent; the second and the third are equally so."""
    profiles = {
        name: FeatureProfile(binning, np.array([9 - cell + (cell == 2) for cell in range(binning.size)]))
        for name, binning in features.items()
    }
    return ReferenceProfile("m", "1", profiles, None, 100, 0)


CARRIER = Binning("carrier", "categorical", categories=("AA", "B6", "DL", "UA"))
HOUR = Binning("hour", "numeric", values=(0, 0.5, 23))
KM = Binning("km", "numeric", edges=(0, 10, 20))


def test_kept_apart_are_the_values_most_frequent_in_the_reference_ties_by_the_cells_order():
    known = profile(carrier=CARRIER, hour=HOUR, km=KM)
    assert kept_slices(["carrier"], known, 2) == {"carrier=AA", "carrier=B6"}
    assert kept_slices(["carrier", "hour"], known, 9) == {
        *(f"carrier={code}" for code in CARRIER.categories),
        *("hour=0", "hour=0.5", "hour=23"),
    }


def test_ranges_features_without_a_reference_and_versions_without_one_have_no_slice_apart():
    assert kept_slices(["km", "elsewhere"], profile(km=KM), 9) == frozenset()
    assert kept_slices(["carrier"], None, 9) == frozenset()


def test_other_values_are_together_and_the_whole_stays_whole():
    kept = frozenset({"carrier=AA"})
    assert [bounded(key, kept) for key in (WHOLE, "carrier=AA", "carrier=a=b", "hour=1")] == [
        *(WHOLE, "carrier=AA"),
        *("carrier (other)", "hour (other)"),
    ]


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
