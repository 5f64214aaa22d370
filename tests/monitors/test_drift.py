"""A feature alarms when its drift is both past chance and large enough to matter."""

from __future__ import annotations

from dataclasses import replace
from math import isnan

import msgspec
import numpy as np
import pytest

from monitors.drift import FeatureDrift, measure
from monitors.policy import AlertPolicy
from monitors.profile import FeatureProfile, ReferenceProfile, build_profile
from monitors.sketch import Counts, count_cells

CALIBRATED = AlertPolicy(mode="calibrated", psi=0.1, ks=0.1)
FIXED = replace(CALIBRATED, mode="fixed")


def profile(kind: str) -> FeatureProfile:
    rng = np.random.default_rng(0)
    values = rng.normal(size=20_000) if kind == "numeric" else np.array(rng.choice(list("abcd"), 20_000), dtype=object)
    return build_profile(
        model="m", version="1", columns={"x": values}, kinds={"x": kind}, panes=None, baseline=None, created_ms=0
    ).features["x"]


NUMERIC, CATEGORICAL = profile("numeric"), profile("categorical")


def numbers(shift: float, rows: int, seed: int = 1) -> np.ndarray:
    values = np.random.default_rng(seed).normal(shift, 1, size=rows)
    return count_cells(NUMERIC.binning.assign(values), NUMERIC.binning.size)


def categories(values: list[str | None]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return count_cells(CATEGORICAL.binning.assign(array), CATEGORICAL.binning.size)


def measure_one(
    feature: FeatureProfile,
    counts: Counts,
    *,
    policy: AlertPolicy,
    alpha: float,
    effect: float = 1.0,
    min_events: int = 10,
) -> FeatureDrift:
    """Measure a reference of one feature."""
    whole = ReferenceProfile("m", "1", {"x": feature}, None, 20_000, 0)
    return measure(whole, counts, policy=policy, alpha=alpha, design_effects=np.array([effect]), min_events=min_events)[
        "x"
    ]


def look(
    shift: float, rows: int, *, policy: AlertPolicy = CALIBRATED, effect: float = 1.0, min_events: int = 10
) -> FeatureDrift:
    return measure_one(NUMERIC, numbers(shift, rows), policy=policy, alpha=1e-4, effect=effect, min_events=min_events)


def test_a_large_and_certain_drift_alarms_in_either_mode():
    for policy in (CALIBRATED, FIXED):
        found = look(0.7, 5_000, policy=policy)
        assert found.alarm
        assert found.psi > found.threshold_psi
        assert found.ks > found.threshold_ks
        assert found.p_psi < 1e-6


def test_a_certain_but_small_drift_does_not_alarm():
    found = look(0.1, 50_000)
    assert found.p_psi < 1e-4
    assert found.psi < 0.1
    assert not found.alarm


def test_a_large_but_uncertain_drift_alarms_only_with_fixed_thresholds():
    assert look(0.0, 30).psi > 0.1
    assert not look(0.0, 30).alarm
    assert look(0.0, 30, policy=FIXED).alarm


def test_correlated_rows_raise_the_line():
    independent, correlated = look(0.7, 1_000), look(0.7, 1_000, effect=50)
    assert independent.alarm
    assert not correlated.alarm
    assert correlated.threshold_psi > independent.threshold_psi
    assert correlated.p_ks > independent.p_ks
    assert correlated.psi == independent.psi


def test_the_line_is_the_floor_where_chance_explains_less():
    found = look(0.0, 50_000)
    assert (found.threshold_psi, found.threshold_ks) == (0.1, 0.1)


def test_without_a_floor_no_drift_alarms_about_as_often_as_alpha():
    policy = replace(CALIBRATED, psi=1e-9, ks=1e-9)
    alarms = sum(
        measure_one(NUMERIC, numbers(0, 1_000, seed), policy=policy, alpha=0.05).alarm for seed in range(1_500)
    )
    # The reference is one draw for all looks, which moves the rate a little; PSI and KS share alpha.
    assert 0.02 < alarms / 1_500 < 0.07


def test_with_too_few_events_there_are_no_numbers_and_no_alarm():
    found = look(3.0, 50, min_events=51)
    assert found.missing == "too_few_events"
    assert isnan(found.psi)
    assert isnan(found.ks)
    assert isnan(found.threshold_psi)
    assert not found.alarm
    assert found.n == 50


def test_without_a_single_value_there_are_no_numbers():
    counts = np.zeros(NUMERIC.binning.size, dtype=np.int64)
    counts[NUMERIC.binning.missing] = 1_000
    found = measure_one(NUMERIC, counts, policy=CALIBRATED, alpha=0.01)
    assert found.missing == "too_few_events"
    assert found.missing_share == 1
    assert isnan(found.unseen_share)


def test_an_empty_reference_is_no_reference():
    empty = FeatureProfile(NUMERIC.binning, np.zeros(NUMERIC.binning.size, dtype=np.int64))
    found = measure_one(empty, NUMERIC.counts, policy=CALIBRATED, alpha=0.01)
    assert found.missing == "no_reference"
    assert not found.alarm


def test_missing_values_are_shown_but_are_no_drift():
    counts = NUMERIC.counts.copy()
    counts[NUMERIC.binning.missing] = 20_000
    found = measure_one(NUMERIC, counts, policy=CALIBRATED, alpha=0.01)
    assert found.missing_share == 0.5
    assert found.psi == 0
    assert not found.alarm


def test_categories_have_no_ks_and_spend_all_of_alpha_on_psi():
    policy = replace(CALIBRATED, psi=1e-9)
    counts = categories(["a"] * 100 + ["b"] * 100)
    found = measure_one(CATEGORICAL, counts, policy=policy, alpha=0.01)
    assert isnan(found.ks)
    assert isnan(found.wasserstein)
    assert isnan(found.threshold_ks)
    assert found.alarm
    tighter = measure_one(CATEGORICAL, counts, policy=policy, alpha=0.005)
    assert found.threshold_psi < tighter.threshold_psi


def test_a_new_category_is_drift_and_its_share_is_told():
    counts = categories([*(list("abcd") * 200), *(["new"] * 200), *([None] * 100)])
    found = measure_one(CATEGORICAL, counts, policy=CALIBRATED, alpha=1e-4)
    assert found.unseen_share == 0.2
    assert found.missing_share == pytest.approx(100 / 1_100)
    assert found.alarm


def test_a_finding_is_plain_and_carries_the_name_it_was_given():
    found = look(0.5, 1_000)
    assert found.feature == "x"
    assert msgspec.convert(msgspec.to_builtins(found), FeatureDrift) == found
