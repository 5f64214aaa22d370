"""The difference of two arms is that of their users within each pane, and its variance is clustered by bucket."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors.contrast import ARMS, BUCKETS, CHALLENGER, CHAMPION, Contrast

# A pane: arm, bucket and outcome of each event. Few buckets, so that arms and panes share some.
events = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5), st.integers(-3, 3)), max_size=12)
panes = st.lists(events, max_size=4)


def tables(pane) -> tuple[np.ndarray, np.ndarray]:
    n, total = np.zeros((ARMS, BUCKETS)), np.zeros((ARMS, BUCKETS))
    for arm, bucket, outcome in pane:
        n[arm, bucket] += 1
        total[arm, bucket] += outcome
    return n, total


def contrast(data) -> Contrast:
    found = Contrast()
    for pane in data:
        found = found.add(*tables(pane))
    return found


def by_hand(data) -> tuple[float, float, float | None]:
    """Return Σw(ȳ₁ − ȳ₀), Σw and V from raw events, by the statistic's formulas; V None if one bucket is an arm."""
    numerator = weight = 0.0
    influence: dict[int, dict[int, float]] = {CHAMPION: {}, CHALLENGER: {}}
    load: dict[int, dict[int, float]] = {CHAMPION: {}, CHALLENGER: {}}
    for pane in data:
        arms = {arm: [(b, y) for a, b, y in pane if a == arm] for arm in (CHAMPION, CHALLENGER)}
        if not all(arms.values()):
            continue
        sizes = {arm: len(rows) for arm, rows in arms.items()}
        w = sizes[0] * sizes[1] / (sizes[0] + sizes[1])
        means = {arm: sum(y for _, y in rows) / sizes[arm] for arm, rows in arms.items()}
        numerator += w * (means[CHALLENGER] - means[CHAMPION])
        weight += w
        for arm, sign in ((CHAMPION, -1), (CHALLENGER, 1)):
            for bucket, y in arms[arm]:
                held = influence[arm].get(bucket, 0.0)
                influence[arm][bucket] = held + sign * w / sizes[arm] * (y - means[arm])
                load[arm][bucket] = load[arm].get(bucket, 0.0) + w / sizes[arm]
    variance = 0.0
    for bucket in range(BUCKETS):
        error = 0.0
        for arm in (CHAMPION, CHALLENGER):
            if bucket in load[arm]:
                share = load[arm][bucket] / sum(load[arm].values())
                if share > 1 - 1e-9:
                    return numerator, weight, None
                error += influence[arm][bucket] / (1 - share)
        variance += error**2
    return numerator, weight, variance


@given(panes)
def test_the_estimate_and_its_variance_are_those_of_the_raw_events(data):
    found = contrast(data)
    numerator, weight, variance = by_hand(data)
    assert (found.numerator, found.weight) == pytest.approx((numerator, weight))
    assert found.variance == pytest.approx(math.inf if variance is None else variance)


@given(panes, st.randoms(use_true_random=False))
def test_panes_may_be_added_in_any_order(data, random):
    shuffled = list(data)
    random.shuffle(shuffled)
    one, other = contrast(data), contrast(shuffled)
    assert (one.numerator, one.weight) == pytest.approx((other.numerator, other.weight))
    np.testing.assert_allclose(one.influence, other.influence, atol=1e-9)
    np.testing.assert_allclose(one.load, other.load)


@given(panes)
def test_swapping_the_arms_turns_the_difference_over_and_leaves_its_variance(data):
    found = contrast(data)
    swapped = contrast([[(1 - arm, bucket, outcome) for arm, bucket, outcome in pane] for pane in data])
    assert swapped.numerator == pytest.approx(-found.numerator)
    assert swapped.variance == pytest.approx(found.variance)
    assert swapped.effective_buckets == pytest.approx(found.effective_buckets)


@given(panes, st.integers(-100, 100))
def test_a_day_on_which_everything_is_better_for_everybody_moves_nothing(data, shift):
    moved = [[(arm, b, y + (shift if day % 2 else 0)) for arm, b, y in pane] for day, pane in enumerate(data)]
    assert contrast(moved).numerator == pytest.approx(contrast(data).numerator, abs=1e-6)
    if contrast(data).variance < math.inf:
        assert contrast(moved).variance == pytest.approx(contrast(data).variance, abs=1e-6)


@settings(max_examples=50)
@given(panes)
def test_a_contrast_survives_its_state(data):
    found = contrast(data)
    again = Contrast.from_state(found.to_state())
    assert (again.numerator, again.weight) == (found.numerator, found.weight)
    assert (again.influence == found.influence).all()
    assert (again.load == found.load).all()


def test_the_state_holds_only_buckets_that_have_rows():
    state = contrast([[(0, 3, 1), (1, 999, 0)]]).to_state()
    assert len(state["at"]) == 2 * 2
    assert len(state["load"]) == len(state["influence"]) == 2 * 8


@pytest.mark.parametrize("arm", [CHAMPION, CHALLENGER])
def test_a_pane_with_one_arm_alone_compares_nothing(arm: int):
    before = contrast([[(0, 1, 1), (1, 2, 0)]])
    assert before.add(*tables([(arm, 5, 1)])) is before


def test_before_any_pane_there_is_no_difference_and_no_bound():
    empty = Contrast()
    assert empty.delta is None
    assert (empty.effective_buckets, empty.variance) == (0.0, 0.0)
    assert empty.radius(variance_at_verdict=1.0, alpha=0.05) == math.inf


def test_one_user_who_is_all_of_an_arm_bounds_nothing():
    found = contrast([[(0, bucket, bucket % 2) for bucket in range(10)] + [(1, 50, 1)] * 5])
    assert found.delta == pytest.approx(0.5)
    assert found.variance == math.inf
    assert found.radius(variance_at_verdict=1.0, alpha=0.05) == math.inf


def test_effective_buckets_are_those_of_the_arm_that_has_fewer_and_count_equal_loads():
    even = contrast([[(0, bucket, 1) for bucket in range(100, 140)] + [(1, bucket, 0) for bucket in range(7)]])
    assert even.effective_buckets == pytest.approx(7)
    heavy = contrast([[(0, bucket, 1) for bucket in range(100, 140)] + [(1, 0, 0)] * 100 + [(1, 1, 0)]])
    assert heavy.effective_buckets == pytest.approx(1, abs=0.05)


def test_a_ramp_under_a_moving_base_rate_does_not_fool_the_difference_as_it_fools_pooled_counts():
    """The base rate falls from 0.9 to 0.5 while the challenger's share rises: pooled, an equal challenger looks bad."""
    found, pooled_n, pooled_total = Contrast(), np.zeros(ARMS), np.zeros(ARMS)
    for rate, cut in ((0.9, 50), (0.7, 250), (0.5, 500)):
        n = np.zeros((ARMS, BUCKETS))
        n[CHALLENGER, :cut], n[CHAMPION, cut:] = 10, 10
        found = found.add(n, rate * n)
        pooled_n, pooled_total = pooled_n + n.sum(axis=1), pooled_total + rate * n.sum(axis=1)
    pooled = pooled_total / pooled_n
    assert found.delta == pytest.approx(0.0)
    assert pooled[CHALLENGER] - pooled[CHAMPION] < -0.1


def test_the_variance_is_that_of_the_numerator_when_users_stick_to_their_ways():
    """Over 400 worlds the numerator's own spread is what the variance says; independent rows would say far less."""
    rng = np.random.default_rng(3)
    cut, days, rows = 200, 5, 6
    numerators, variances, naive = [], [], []
    for _ in range(400):
        habit = rng.normal(0, 1.0, 400)
        found, independent = Contrast(), 0.0
        for _ in range(days):
            # The first 400 buckets have one user each; half of them see the challenger.
            total = np.zeros((ARMS, BUCKETS))
            n = np.zeros((ARMS, BUCKETS))
            outcome = rng.binomial(rows, 1 / (1 + np.exp(-(habit + rng.normal()))))
            n[CHALLENGER, :cut], n[CHAMPION, cut:400] = rows, rows
            total[CHALLENGER, :cut], total[CHAMPION, cut:400] = outcome[:cut], outcome[cut:]
            found = found.add(n, total)
            mean = outcome.sum() / (400 * rows)
            independent += mean * (1 - mean) * (cut * rows / 2)
        numerators.append(found.numerator)
        variances.append(found.variance)
        naive.append(independent)
    truth = np.var(numerators)
    # The spread of 400 draws is itself known to some 7 %.
    assert np.mean(variances) == pytest.approx(truth, rel=0.28)
    assert np.mean(naive) < 0.6 * truth


def test_the_bound_on_the_difference_holds_at_every_look_of_nearly_all_rollouts():
    rng = np.random.default_rng(4)
    outside = 0
    for _ in range(200):
        habit, found, left = rng.normal(0, 0.8, 300), Contrast(), False
        for _ in range(25):
            n, total = np.zeros((ARMS, BUCKETS)), np.zeros((ARMS, BUCKETS))
            rows = rng.poisson(3, 300)
            outcome = rng.binomial(rows, 1 / (1 + np.exp(-(habit + rng.normal(0, 0.7)))))
            n[CHALLENGER, :100], n[CHAMPION, 100:300] = rows[:100], rows[100:]
            total[CHALLENGER, :100], total[CHAMPION, 100:300] = outcome[:100], outcome[100:]
            found = found.add(n, total)
            left = left or abs(found.delta or 0.0) > found.radius(variance_at_verdict=300.0, alpha=0.05)
        outside += left
    # Two sides of 5 % each.
    assert outside / 200 <= 0.1
