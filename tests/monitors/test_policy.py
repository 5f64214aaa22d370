"""Looks become decisions: streaks, hysteresis, faults, cooldowns, and a budget of false alarms that holds."""

from __future__ import annotations

from dataclasses import replace
from math import nan
from statistics import NormalDist

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitors.drift import FeatureDrift
from monitors.policy import (
    AlertPolicy,
    AlertState,
    Decision,
    Look,
    PerformanceLook,
    decide,
    ended,
    look_alpha,
    under_permission,
)

PANE = 100
POLICY = AlertPolicy(consecutive=3, clear_ratio=0.8, cooldown_ms=1_000, psi=0.1, ks=0.1, performance_drop=0.05)


def feature(psi: float, name: str = "x", missing: str | None = None) -> FeatureDrift:
    return FeatureDrift(
        feature=name,
        psi=psi,
        ks=nan,
        jensen_shannon=nan,
        wasserstein=nan,
        p_psi=nan,
        p_ks=nan,
        threshold_psi=0.1,
        threshold_ks=nan,
        alarm=psi > 0.1,
        n=1_000,
        n_reference=1_000,
        missing_share=0.0,
        unseen_share=0.0,
        out_of_range_share=0.0,
        missing=missing,  # type: ignore[arg-type]
    )


def drift(at: int, *psis: float, fault: str | None = None) -> Look:
    return Look(at * PANE, tuple(feature(psi, f"x{i}") for i, psi in enumerate(psis)), None, fault)


def performance(at: int, drop: float, missing: str | None = None) -> Look:
    found = PerformanceLook(0.8 - drop, 0.8, drop, drop - 0.01, drop + 0.01, drop >= 0.05, 100, 5, missing)
    return Look(at * PANE, None, found, None)


def run(
    looks: list[Look], state: AlertState | None = None, policy: AlertPolicy = POLICY, *, request_open: bool = False
) -> tuple[AlertState, list[Decision]]:
    state, decisions = state or AlertState(), []
    for look in looks:
        state, decision = decide(policy, state, look, request_open=request_open)
        decisions += [decision] if decision else []
    return state, decisions


def test_a_decision_takes_as_many_alarming_looks_in_a_row_as_the_policy_says():
    state, decisions = run([drift(1, 0.3), drift(2, 0.3)])
    assert (state.phase, state.drift_streak, state.since_ms, decisions) == ("suspected", 2, 1 * PANE, [])
    state, decision = decide(POLICY, state, drift(3, 0.3), request_open=False)
    assert decision == Decision("drift", 3 * PANE)
    assert (state.phase, state.drift_streak, state.since_ms) == ("raised", 0, 3 * PANE)


def test_a_streak_ends_clearly_under_the_line_and_holds_in_between():
    assert run([drift(1, 0.3), drift(2, 0.09)])[0].drift_streak == 1
    state, _ = run([drift(1, 0.3), drift(2, 0.079)])
    assert (state.drift_streak, state.phase, state.since_ms) == (0, "quiet", 2 * PANE)
    assert run([drift(1, 0.3), drift(2, 0.09), drift(3, 0.3), drift(4, 0.09), drift(5, 0.3)])[1]


def test_a_look_without_numbers_leaves_the_streak_alone():
    nothing = Look(2 * PANE, (feature(nan, missing="too_few_events"),), None, None)
    assert run([drift(1, 0.3), nothing])[0].drift_streak == 1
    assert run([performance(1, 0.2), performance(2, nan, missing="warming_up")])[0].performance_streak == 1


def test_the_two_kinds_of_look_do_not_touch_each_others_streak():
    state, decisions = run([drift(1, 0.3), performance(0, 0.0), drift(2, 0.3), performance(1, 0.2)])
    assert (state.drift_streak, state.performance_streak, decisions) == (2, 1, [])


def test_a_falling_performance_leads_to_a_decision_of_its_own():
    state, decisions = run([performance(1, 0.2), performance(2, 0.045), performance(3, 0.2), performance(4, 0.2)])
    assert (state.phase, decisions) == ("raised", [Decision("performance", 4 * PANE)])
    assert run([performance(1, 0.2), performance(2, 0.03)])[0].performance_streak == 0


def test_where_both_are_due_performance_is_the_reason():
    both = Look(PANE, drift(1, 0.3).drift, performance(1, 0.2).performance, None)
    assert run([both], policy=replace(POLICY, consecutive=1))[1] == [Decision("performance", PANE)]


def test_fewer_features_than_the_policy_wants_do_not_alarm():
    policy = replace(POLICY, min_features=2)
    assert run([drift(1, 0.3, 0.01)], policy=policy)[0].drift_streak == 0
    assert run([drift(1, 0.3, 0.2)], policy=policy)[0].drift_streak == 1


def test_a_kind_that_is_no_trigger_decides_nothing():
    policy = replace(POLICY, triggers=("performance",), consecutive=1)
    assert run([drift(1, 0.5)], policy=policy) == (AlertState(), [])


def test_a_fault_blocks_streaks_and_decisions_until_a_drift_look_finds_it_gone():
    state, decisions = run([drift(1, 0.3), drift(2, 0.3), drift(3, 0.3, fault="x: missing_burst")])
    assert (state.drift_streak, state.fault, decisions) == (2, "x: missing_burst", [])
    state, decisions = run([performance(2, 0.3), performance(3, 0.3), performance(4, 0.3)], state)
    assert (state.performance_streak, state.fault, decisions) == (0, "x: missing_burst", [])
    state, decisions = run([drift(4, 0.3)], state)
    assert (state.fault, decisions) == (None, [Decision("drift", 4 * PANE)])


def test_an_allowed_fault_blocks_nothing_and_is_kept_until_it_is_gone():
    policy = replace(POLICY, consecutive=1, triggers=("performance",))
    state, _ = run([drift(1, 0.3, fault="x: missing_burst")], policy=policy)
    look = performance(2, 0.3)
    allowed, decision = decide(policy, state, look, request_open=False, fault_allowed=True)
    assert (allowed.fault, allowed.allowed_fault, decision) == (None, "x: missing_burst", Decision("performance", 200))
    assert under_permission(allowed, fault_allowed=False).fault == "x: missing_burst"
    blocked, decision = decide(policy, under_permission(state, fault_allowed=True), look, request_open=False)
    assert (blocked.fault, blocked.allowed_fault, decision) == ("x: missing_burst", None, None)
    gone, _ = decide(policy, allowed, drift(3, 0.0), request_open=False, fault_allowed=True)
    assert (gone.fault, gone.allowed_fault) == (None, None)


def test_while_a_request_is_open_nothing_is_counted():
    state, decisions = run([drift(at, 0.5) for at in range(1, 9)], request_open=True)
    assert (state.phase, state.drift_streak, decisions) == ("raised", 0, [])


def test_after_a_request_the_alert_cools_down_and_starts_afresh():
    state = ended(POLICY, AlertState("raised"), at_ms=1_000)
    assert (state.phase, state.since_ms, state.cooling_until_ms) == ("cooling", 1_000, 2_000)
    state, decisions = run([drift(at, 0.5) for at in range(11, 20)], state)
    assert (state.phase, state.drift_streak, decisions) == ("cooling", 0, [])
    assert run([drift(at, 0.5) for at in range(20, 23)], state)[1] == [Decision("drift", 2_200)]


def test_a_late_look_at_a_pane_from_before_the_cooldowns_end_decides_nothing():
    state, _ = run([drift(25, 0.0)], ended(POLICY, AlertState("raised"), at_ms=1_000))
    assert state.phase == "quiet"
    state, decisions = run([performance(at, 0.5) for at in range(12, 20)], state)
    assert (state.performance_streak, decisions) == (0, [])


def test_a_request_that_ended_unheard_cools_down_too():
    state, decisions = run([drift(5, 0.5)], AlertState("raised"))
    assert (state.phase, state.cooling_until_ms, decisions) == ("cooling", 1_500, [])


psis = st.sampled_from([0.01, 0.09, 0.3])
faults = st.sampled_from([None, None, None, "x: dead_feature"])
steps = st.lists(st.tuples(st.booleans(), psis, faults, st.booleans()), max_size=80)


@given(steps, st.integers(1, 4), st.integers(0, 600))
def test_decisions_respect_requests_faults_streaks_and_cooldowns(steps, consecutive: int, cooldown_ms: int):
    """Whatever the looks: a request is opened by each decision and ended at random."""
    policy = replace(POLICY, consecutive=consecutive, cooldown_ms=cooldown_ms)
    state, request_open, quiet_until = AlertState(), False, -1
    alarms = {"drift": 0, "performance": 0}
    for at, (about_drift, size, fault, end) in enumerate(steps):
        look = drift(at, size, fault=fault) if about_drift else performance(at, size / 2)
        before = state
        state, decision = decide(policy, state, look, request_open=request_open)
        alarms["drift" if about_drift else "performance"] += size == 0.3
        if about_drift:
            assert state.drift_streak <= before.drift_streak + 1
            assert state.performance_streak in (before.performance_streak, 0)
            assert state.fault == fault
        else:
            assert state.performance_streak <= before.performance_streak + 1
            assert state.drift_streak in (before.drift_streak, 0)
            assert state.fault == before.fault
        if decision:
            assert not request_open
            assert state.fault is None
            assert at * PANE >= quiet_until
            assert decision.kind == ("drift" if about_drift else "performance")
            assert alarms[decision.kind] >= consecutive
            assert size == 0.3
            assert state.phase == "raised"
            request_open = True
        elif request_open and end:
            request_open, quiet_until = False, at * PANE + cooldown_ms
            state = ended(policy, state, at_ms=at * PANE)
        if request_open or state.phase in ("raised", "cooling"):
            assert state.drift_streak == state.performance_streak == 0
            alarms = {"drift": 0, "performance": 0}
        assert (state.phase == "suspected") == (state.drift_streak + state.performance_streak > 0)
        assert msgspec.convert(msgspec.to_builtins(state), AlertState) == state


def test_the_budget_is_split_over_looks_features_and_kinds():
    day = 86_400_000
    policy = AlertPolicy(false_requests=1, per_ms=30 * day, consecutive=1, triggers=("drift",))
    assert look_alpha(policy, features=10, look_every_ms=day) == pytest.approx(1 / 300)
    assert look_alpha(replace(policy, consecutive=3), features=10, look_every_ms=day) == pytest.approx(3 / 300)
    assert look_alpha(replace(policy, min_features=2), features=10, look_every_ms=day) == pytest.approx(2 / 300)
    both = replace(policy, triggers=("drift", "performance"))
    assert look_alpha(both, features=10, look_every_ms=day) == pytest.approx(1 / 600)


def test_no_test_is_ever_laxer_than_five_percent():
    assert look_alpha(AlertPolicy(false_requests=100), features=1, look_every_ms=10**9) == 0.05


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="features, look_every_ms: got 0, 5"):
        look_alpha(AlertPolicy(), features=0, look_every_ms=5)


@pytest.mark.parametrize("overlap", [1, 7])
@pytest.mark.parametrize("min_features", [1, 2])
def test_false_requests_stay_within_the_budget_however_windows_overlap(overlap: int, min_features: int):
    """Thirty times a year of looks without drift: windows of `overlap` panes, features that move together."""
    rng = np.random.default_rng(overlap)
    features, looks, budget = 5, 365, 5
    policy = replace(
        POLICY,
        triggers=("drift",),
        per_ms=looks * PANE,
        false_requests=budget,
        cooldown_ms=0,
        min_features=min_features,
    )
    limit = NormalDist().inv_cdf(1 - look_alpha(policy, features=features, look_every_ms=PANE))
    requests = 0
    for _ in range(30):
        panes = (rng.normal(size=(looks + overlap, 1)) + rng.normal(size=(looks + overlap, features))) / np.sqrt(2)
        sums = np.cumsum(panes, axis=0)
        windows = (sums[overlap:] - sums[:-overlap]) / np.sqrt(overlap)
        state = AlertState()
        for at, row in enumerate(windows):
            look = drift(at, *np.where(row > limit, 0.3, 0.01).tolist())
            state, decision = decide(policy, state, look, request_open=False)
            if decision:
                requests += 1
                state = ended(policy, state, at_ms=at * PANE)
    assert requests / 30 <= budget
