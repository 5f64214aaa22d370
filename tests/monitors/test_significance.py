"""Thresholds are passed by chance as often as they say, also when rows are correlated."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from monitors import divergence, significance
from monitors.binning import fit
from monitors.sketch import count_cells

CELLS = 64
LOOKS = 2_000


def null_looks(n: int, m: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(CELLS, 3.0))
    pad = ((0, 0), (0, 4))
    return np.pad(rng.multinomial(n, shares, LOOKS), pad), np.pad(rng.multinomial(m, shares, LOOKS), pad)


def within(rate: float, alpha: float, looks: int = LOOKS) -> bool:
    """Four standard errors of a simulated rate."""
    return abs(rate - alpha) <= 4 * np.sqrt(alpha * (1 - alpha) / looks)


@pytest.mark.parametrize(("n", "m"), [(20_000, 1_000), (1_000, 1_000), (1_000, 8_000), (20_000, 300)])
def test_psi_passes_its_threshold_by_chance_as_often_as_alpha_says(n: int, m: int):
    pooled = [divergence.pool(*sides) for sides in zip(*null_looks(n, m, seed=n + m), strict=True)]
    for alpha in (0.05, 0.01):
        limits = [significance.psi_threshold(n, m, len(sides[0]), alpha) for sides in pooled]
        values = [divergence.pooled_psi(*sides) for sides in pooled]
        assert within(np.mean(np.array(values) > limits), alpha)


@pytest.mark.parametrize(("n", "m"), [(20_000, 1_000), (1_000, 1_000), (1_000, 8_000)])
def test_ks_passes_its_threshold_by_chance_at_most_and_nearly_as_often_as_alpha_says(n: int, m: int):
    values = np.array([divergence.ks(*sides) for sides in zip(*null_looks(n, m, seed=n), strict=True)])
    for alpha in (0.05, 0.01):
        rate = np.mean(values > significance.ks_threshold(n, m, alpha))
        assert alpha / 3 <= rate <= alpha + 4 * np.sqrt(alpha / LOOKS)


def test_cells_fitted_to_the_reference_keep_the_rates():
    rng = np.random.default_rng(5)
    psi = ks = 0
    for _ in range(600):
        reference, current = rng.gamma(2, size=2_000), rng.gamma(2, size=1_000)
        binning = fit("x", reference, kind="numeric")
        counts = [count_cells(binning.assign(side), binning.size) for side in (reference, current)]
        psi += divergence.psi(*counts) > significance.psi_threshold(2_000, 1_000, 10, 0.05)
        ks += divergence.ks(*counts) > significance.ks_threshold(2_000, 1_000, 0.05)
    assert within(psi / 600, 0.05, 600)
    assert within(ks / 600, 0.05, 600)


def test_p_values_are_alpha_at_the_threshold():
    for alpha in (0.2, 0.01, 1e-6):
        psi = significance.psi_threshold(500, 700, 10, alpha)
        assert significance.psi_p_value(psi, 500, 700, 10) == pytest.approx(alpha)
        assert significance.ks_p_value(significance.ks_threshold(500, 700, alpha), 500, 700) == pytest.approx(alpha)


def test_the_ks_p_value_is_near_scipys():
    rng = np.random.default_rng(2)
    reference, current = rng.normal(size=800), rng.normal(0.1, size=900)
    raw = stats.ks_2samp(reference, current, method="asymp")
    # scipy's is corrected for finite samples.
    assert significance.ks_p_value(raw.statistic, 800, 900) == pytest.approx(raw.pvalue, rel=0.1)


def test_psi_needs_less_to_be_significant_the_more_events_there_are():
    thresholds = [significance.psi_threshold(10_000, m, 10, 0.01) for m in (100, 1_000, 10_000)]
    assert thresholds == sorted(thresholds, reverse=True)


def test_without_events_nothing_is_significant():
    assert significance.psi_threshold(0, 10, 10, 0.01) == np.inf
    assert significance.ks_threshold(10, 0, 0.01) == np.inf
    assert np.isnan(significance.psi_p_value(0.1, 0, 10, 10))
    assert np.isnan(significance.ks_p_value(np.nan, 10, 10))


def test_a_single_group_cannot_drift():
    assert significance.psi_threshold(10, 10, 1, 0.01) == 0
    assert significance.psi_p_value(0.0, 10, 10, 1) == 1


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, float("nan")])
def test_an_alpha_that_is_no_probability_is_refused(alpha: float):
    with pytest.raises(ValueError, match="alpha: got"):
        significance.psi_threshold(10, 10, 10, alpha)
    with pytest.raises(ValueError, match="alpha: got"):
        significance.ks_threshold(10, 10, alpha)


@pytest.mark.parametrize("rows", [3, 50, 1_000])
def test_independent_rows_have_a_design_effect_near_one(rows: int):
    counts = np.random.default_rng(rows).multinomial(rows, np.full(30, 1 / 30), size=300)
    assert 1 <= significance.design_effect(counts) < 1.2


def test_the_design_effect_of_clustered_rows_is_the_known_one():
    """Dirichlet–multinomial panes: 1 + (rows − 1) / (concentration + 1)."""
    rng = np.random.default_rng(3)
    rows, concentration = 50, 20
    counts = np.array([rng.multinomial(rows, rng.dirichlet(np.full(10, concentration / 10))) for _ in range(400)])
    assert significance.design_effect(counts) == pytest.approx(1 + (rows - 1) / (concentration + 1), rel=0.15)


def test_correlation_that_outlasts_a_pane_is_found_over_blocks():
    rng = np.random.default_rng(4)
    shares = rng.dirichlet(np.full(10, 5.0), size=50).repeat(8, axis=0)
    counts = np.array([rng.multinomial(10, p) for p in shares])
    eightfold = counts.reshape(50, 8, 10).sum(axis=1)
    assert significance.design_effect(counts) == pytest.approx(significance.design_effect(eightfold), rel=0.2)


def test_one_broken_pane_among_many_hardly_changes_the_design_effect():
    counts = np.random.default_rng(5).multinomial(500, np.full(10, 0.1), size=30)
    counts[11] = 0
    counts[11, 3] = 500
    assert significance.design_effect(counts) < 2


def test_correlated_rows_keep_the_false_alarm_rate_at_their_effective_size():
    """Each look is 20 panes whose shares vary: at face value far too many pass, at effective size alpha do."""
    rng = np.random.default_rng(6)
    base, naive, corrected, looks = np.full(10, 0.1), 0, 0, 500
    reference = np.pad(np.full(10, 10_000), (0, 4))
    effect = significance.design_effect(np.array([rng.multinomial(50, rng.dirichlet(base * 30)) for _ in range(1_000)]))
    for _ in range(looks):
        window = sum(rng.multinomial(50, rng.dirichlet(base * 30)) for _ in range(20))
        value = divergence.psi(reference, np.pad(window, (0, 4)))
        naive += value > significance.psi_threshold(1e9, 1_000, 10, 0.05)
        corrected += value > significance.psi_threshold(1e9, significance.effective(1_000, effect), 10, 0.05)
    assert naive / looks > 0.3
    assert within(corrected / looks, 0.05, looks)


def test_a_group_that_only_the_odd_last_pane_filled_says_nothing_about_blocks():
    counts = np.tile([20, 0], (2 * significance.MIN_BLOCKS + 1, 1))
    counts[-1] = [19, 1]
    assert 1 <= significance.design_effect(counts) < 2


@pytest.mark.parametrize("counts", [np.zeros((0, 5)), np.zeros((9, 5)), np.eye(1, 5), np.ones((9, 1))])
def test_too_little_to_tell_is_a_design_effect_of_one(counts: np.ndarray):
    assert significance.design_effect(counts) == 1


def test_effective_size_divides_and_refuses_effects_under_one():
    assert significance.effective(1_000, 4) == 250
    with pytest.raises(ValueError, match=r"design_effect: got 0\.5"):
        significance.effective(10, 0.5)
