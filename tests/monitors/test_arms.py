"""What is counted of an arm adds up, whatever the order, and can be taken back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors.arms import EXPOSURE_DTYPE, OUTCOME_DTYPE, fold_exposures, fold_outcomes, merge_rows

outcome_rows = st.lists(st.tuples(st.integers(0, 999), st.integers(-5, 5), st.sampled_from([1, -1])), max_size=15).map(
    lambda rows: fold_outcomes(*columns(rows, 3))
)
exposure_rows = st.lists(st.tuples(st.integers(0, 999), st.booleans(), st.just(1.0)), max_size=15).map(
    lambda rows: fold_exposures(*columns(rows, 3))
)


def columns(rows, width: int) -> list[list]:
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(width)]


@given(st.lists(st.tuples(st.integers(0, 999), st.integers(-5, 5), st.sampled_from([1, -1])), max_size=30))
def test_outcomes_fold_to_a_row_a_bucket_present(events):
    rows = fold_outcomes(*columns(events, 3))
    assert rows["bucket"].tolist() == sorted({bucket for bucket, _, _ in events})
    for row in rows:
        mine = [(value, sign) for bucket, value, sign in events if bucket == row["bucket"]]
        assert row["n"] == sum(sign for _, sign in mine)
        assert row["total"] == sum(sign * value for value, sign in mine)
        assert row["total_sq"] == sum(sign * value**2 for value, sign in mine)


def test_exposures_count_failures_and_the_latencies_that_are_known():
    rows = fold_exposures([5, 5, 5, 5, 1], [True, False, False, False, True], [10.0, 1_000.0, math.nan, -1.0, 0.0])
    assert rows["bucket"].tolist() == [1, 5]
    assert rows["n"].tolist() == [1, 4]
    assert rows["errors"].tolist() == [1, 1]
    assert rows["latency_n"].tolist() == [1, 2]
    assert rows["latency_total_ms"].tolist() == [0.0, 1_010.0]
    # An answer faster than the clock can see is taken as a microsecond, not as none.
    assert rows["latency_log_total"] == pytest.approx([math.log(0.001), math.log(10) + math.log(1_000)])


def test_nothing_folds_to_no_rows():
    assert len(fold_outcomes([], [], [])) == len(fold_exposures([], [], [])) == 0


@given(outcome_rows, outcome_rows, outcome_rows)
def test_outcome_rows_merge_in_any_order_and_grouping(a, b, c):
    assert (merge_rows(a, b) == merge_rows(b, a)).all()
    assert (merge_rows(merge_rows(a, b), c) == merge_rows(a, merge_rows(b, c))).all()
    assert (merge_rows(a, np.zeros(0, OUTCOME_DTYPE)) == a).all()


@settings(max_examples=50, deadline=None)
@given(exposure_rows, exposure_rows, exposure_rows)
def test_exposure_rows_merge_in_any_order_and_grouping(a, b, c):
    assert (merge_rows(a, b) == merge_rows(b, a)).all()
    assert (merge_rows(merge_rows(a, b), c) == merge_rows(a, merge_rows(b, c))).all()
    assert (merge_rows(np.zeros(0, EXPOSURE_DTYPE), a) == a).all()


@given(st.lists(st.tuples(st.integers(0, 999), st.integers(-5, 5)), max_size=20))
def test_outcomes_that_are_taken_back_leave_empty_rows(events):
    buckets, outcomes = columns(events, 2)
    ones = np.ones(len(events))
    left = merge_rows(fold_outcomes(buckets, outcomes, ones), fold_outcomes(buckets, outcomes, -ones))
    assert not any(left[name].any() for name in ("n", "total", "total_sq"))


def test_rows_of_two_kinds_do_not_merge():
    with pytest.raises(ValueError, match="b: got rows of"):
        merge_rows(np.zeros(1, OUTCOME_DTYPE), np.zeros(1, EXPOSURE_DTYPE))
