"""Data faults are told apart from drift and from a feature's own habits."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from monitors.binning import Binning
from monitors.profile import FeatureProfile
from monitors.quality import QualityFinding, assess

NUMBERS = Binning("x", "numeric", edges=tuple(float(edge) for edge in range(11)))
WORDS = Binning("c", "categorical", categories=("a", "b", "c"))
STUCK = [0, 0, 0, 200, 0, 0, 0, 0, 0, 0]


def counts(
    binning: Binning, inner: list[int] | int, *, missing: int = 0, unseen: int = 0, above: int = 0
) -> np.ndarray:
    cells = [inner] * binning.cells if isinstance(inner, int) else inner
    return np.array([*cells, missing, 0, above, unseen], dtype=np.int64)


def profile(binning: Binning = NUMBERS, inner: list[int] | int = 100, *, missing: int = 0, unseen: int = 0):
    return FeatureProfile(binning, counts(binning, inner, missing=missing, unseen=unseen))


def fault(reference: FeatureProfile, current: np.ndarray, limit: float = 0.5) -> str | None:
    return assess(reference, current, max_missing_share=limit).fault


def test_ordinary_data_has_no_fault():
    finding = assess(profile(missing=50), counts(NUMBERS, 10, missing=5), max_missing_share=0.5)
    assert finding == QualityFinding("x", 5 / 105, 50 / 1_050, 0.0, None)
    assert msgspec.convert(msgspec.to_builtins(finding), QualityFinding) == finding


def test_a_burst_of_missing_values_is_a_fault():
    assert fault(profile(), counts(NUMBERS, 10, missing=150)) == "missing_burst"


def test_missing_values_under_the_limit_are_no_fault():
    assert fault(profile(), counts(NUMBERS, 10, missing=80)) is None


def test_a_feature_that_is_mostly_missing_anyway_is_no_fault():
    habitual = profile(missing=1_500)
    assert fault(habitual, counts(NUMBERS, 10, missing=160)) is None
    assert fault(habitual, counts(NUMBERS, 10, missing=900)) == "missing_burst"


def test_all_values_gone_is_a_fault_whatever_the_limit():
    assert fault(profile(), counts(NUMBERS, 0, missing=100), limit=1.0) == "missing_burst"
    assert fault(profile(inner=0, missing=100), counts(NUMBERS, 0, missing=100)) is None


def test_a_feature_stuck_in_one_cell_is_dead():
    assert fault(profile(), counts(NUMBERS, STUCK)) == "dead_feature"
    assert fault(profile(), counts(NUMBERS, [*STUCK[:-1], 1])) is None


def test_a_feature_that_was_hardly_spread_is_not_dead():
    flag = Binning("flag", "numeric", values=(0.0, 1.0))
    assert fault(profile(flag, [950, 50]), counts(flag, [500, 0])) is None


def test_a_feature_that_stands_still_within_panes_is_not_dead():
    assert fault(replace(profile(), pane_concentration=1.0), counts(NUMBERS, STUCK)) is None
    assert fault(replace(profile(), design_effect=400.0), counts(NUMBERS, STUCK)) is None


def test_everything_out_of_range_is_drift_and_not_a_dead_feature():
    assert fault(profile(), counts(NUMBERS, 0, above=500)) is None


def test_a_schema_nobody_has_seen_is_a_fault():
    assert fault(profile(WORDS), counts(WORDS, 0, unseen=100)) == "all_unseen"
    assert fault(profile(WORDS), counts(WORDS, [20, 20, 20], unseen=40)) is None


def test_a_reference_that_knew_few_of_its_own_values_calls_nothing_unseen():
    assert fault(profile(WORDS, 10, unseen=5_000), counts(WORDS, 0, unseen=100)) is None


@pytest.mark.parametrize("current", [counts(NUMBERS, 0), counts(NUMBERS, 0, missing=29)])
def test_few_events_are_no_fault(current: np.ndarray):
    assert fault(profile(), current) is None


def test_without_events_shares_are_absent_and_not_zero():
    finding = assess(profile(), counts(NUMBERS, 0), max_missing_share=0.5)
    assert np.isnan(finding.missing_share)
    assert np.isnan(finding.unseen_share)
    assert finding.reference_missing_share == 0
