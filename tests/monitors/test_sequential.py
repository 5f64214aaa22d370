"""Bounds hold at every look at once, are tight where the verdict is expected, and say what they cannot mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitors.sequential import expected_variance, radius, rho, step_alpha

alphas = st.floats(0.001, 0.4)
variances = st.floats(1e-3, 1e6)


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_a_sum_passes_its_bound_at_any_of_two_thousand_looks_at_most_as_often_as_alpha(alpha: float):
    """The same walks turned over are another sample; a bound for one fixed time is passed far more often."""
    rng = np.random.default_rng(1)
    walks, looks = 1_500, 2_000
    sums = np.cumsum(rng.normal(size=(walks, looks)), axis=1)
    best = rho(500.0, alpha=alpha)
    bound = np.array([radius(float(look), rho=best, alpha=alpha) for look in range(1, looks + 1)])
    allowed = alpha + 4 * math.sqrt(alpha * (1 - alpha) / walks)
    for side in (sums, -sums):
        passed = (side >= bound).any(axis=1).mean()
        assert alpha / 4 < passed <= allowed
    fixed = {0.05: 1.645, 0.2: 0.842}[alpha] * np.sqrt(np.arange(1, looks + 1))
    assert (sums >= fixed).any(axis=1).mean() > 2 * allowed


def test_a_bound_with_the_variance_estimated_from_the_rows_holds_too():
    rng = np.random.default_rng(2)
    walks, looks, warm = 1_000, 1_000, 50
    steps = rng.exponential(size=(walks, looks)) - 1
    sums, squares = np.cumsum(steps, axis=1)[:, warm:], np.cumsum(steps**2, axis=1)[:, warm:]
    best = rho(300.0, alpha=0.05)
    bound = np.sqrt(2 * (squares + best) * np.log1p(np.sqrt((squares + best) / best) / 0.1))
    assert bound[3, 4] == pytest.approx(radius(float(squares[3, 4]), rho=best, alpha=0.05))
    assert (sums >= bound).any(axis=1).mean() <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / walks)


@given(variances, st.floats(0.001, 0.1))
def test_no_other_rho_is_tighter_at_the_expected_variance(variance: float, alpha: float):
    best = rho(variance, alpha=alpha)
    others = [radius(variance, rho=best * factor, alpha=alpha) for factor in np.geomspace(0.01, 100, 41)]
    assert radius(variance, rho=best, alpha=alpha) <= 1.002 * min(others)


@pytest.mark.parametrize(("factor", "wider"), [(0.1, 1.08), (0.5, 1.01), (2.0, 1.02), (10.0, 1.32)])
def test_a_variance_guessed_wrong_widens_the_bound_a_little(factor: float, wider: float):
    at_best, guessed = (radius(1.0, rho=rho(guess, alpha=0.05), alpha=0.05) for guess in (1.0, factor))
    assert guessed / at_best == pytest.approx(wider, abs=0.01)


@given(variances, variances, alphas)
def test_the_bound_rises_with_the_variance_and_with_certainty(variance: float, more: float, alpha: float):
    assert radius(variance + more, rho=1.0, alpha=alpha) > radius(variance, rho=1.0, alpha=alpha)
    assert radius(variance, rho=1.0, alpha=alpha / 2) > radius(variance, rho=1.0, alpha=alpha)


@given(variances, st.floats(1e-3, 1e3), alphas)
def test_the_bound_is_in_the_units_of_the_sum(variance: float, unit: float, alpha: float):
    scaled = radius(variance * unit**2, rho=unit**2, alpha=alpha)
    assert scaled == pytest.approx(unit * radius(variance, rho=1.0, alpha=alpha))


@given(st.floats(1e-3, 100), st.floats(1e-3, 10), alphas)
def test_the_expected_variance_is_that_at_which_the_radius_is_the_margin(row_variance, margin, alpha):
    variance = expected_variance(row_variance, margin, alpha=alpha)
    weight = variance / row_variance
    assert radius(variance, rho=rho(variance, alpha=alpha), alpha=alpha) / weight == pytest.approx(margin)


def test_the_shares_of_all_steps_add_up_to_half_of_alpha():
    shares = [step_alpha(0.05, number) for number in range(1, 100_000)]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(0.025, rel=1e-4)
    assert sum(shares) < 0.025


@pytest.mark.parametrize("number", [0, -1])
def test_steps_are_counted_from_one(number: int):
    with pytest.raises(ValueError, match=f"number: got {number}"):
        step_alpha(0.05, number)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.7, -0.1, math.nan])
def test_an_error_for_which_the_bound_means_nothing_is_refused(alpha: float):
    with pytest.raises(ValueError, match="alpha: got"):
        rho(1.0, alpha=alpha)
    with pytest.raises(ValueError, match="alpha: got"):
        radius(1.0, rho=1.0, alpha=alpha)


@pytest.mark.parametrize("variance", [0.0, -1.0, math.nan])
def test_a_verdict_cannot_be_expected_at_no_variance(variance: float):
    with pytest.raises(ValueError, match="variance_at_verdict: got"):
        rho(variance, alpha=0.05)
