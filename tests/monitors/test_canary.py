"""A challenger is judged by what both arms' users show: never by no data, rarely by chance, surely when it harms."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from monitors.canary import verdict
from monitors.comparison import add_pane, new_comparison
from tests.monitors.rollouts import PLAN, World, after, counted, judged


@pytest.mark.parametrize("step", range(5))
def test_no_data_is_never_a_pass_and_never_a_fail(step: int):
    found = judged(PLAN, new_comparison(PLAN), step)
    assert found.status == "running"
    assert (found.delta, found.lower, found.upper, found.effective_buckets) == (None, None, None, 0.0)
    assert (found.n_champion, found.n_challenger) == (0, 0)
    assert not any(guardrail["breached"] for guardrail in found.guardrails.values())


def test_predictions_without_labels_are_no_verdict_either():
    found = judged(PLAN, after(80, covered=(0.0, 0.0)))
    assert (found.status, found.delta) == ("running", None)


@pytest.mark.parametrize("covered", [(1.0, 0.0), (0.0, 1.0)])
def test_labels_of_one_arm_alone_are_an_error(covered: tuple[float, float]):
    found = judged(PLAN, after(20, covered=covered))
    assert found.status == "error"
    assert "label coverage differs" in found.reason


def test_a_verdict_carries_the_step_the_epoch_and_the_time_it_was_given_at():
    found = verdict(PLAN, after(3), step=2, epoch=41, at_ms=1_234)
    assert (found.step, found.epoch, found.at_ms) == (2, 41, 1_234)


def test_the_past_of_earlier_steps_does_not_pass_a_step_that_has_seen_nothing():
    comparison = after(40, step=1, mean_rows=6.0)
    assert judged(PLAN, comparison, 1).status == "pass"
    found = judged(PLAN, comparison, 2)
    assert found.status == "running"
    assert found.reason == "0 new outcomes of 100"


@pytest.mark.parametrize("seed", range(3))
def test_an_equal_challenger_passes_every_step_in_time_on_new_outcomes_of_each(seed: int):
    world, comparison = World(seed, mean_rows=6.0), new_comparison(PLAN)
    for step in range(5):
        status = "running"
        while status == "running":
            comparison = world.add(PLAN, comparison, PLAN.percent_at(step))
            status = judged(PLAN, comparison, step).status
        assert status == "pass"
    assert min(tally.outcomes[1] for tally in comparison.tallies) >= PLAN.min_outcomes
    assert comparison.tally(4).outcomes[0] >= PLAN.min_outcomes


def test_the_last_step_waits_for_new_outcomes_of_the_control_too():
    plan = replace(PLAN, min_outcomes=200)
    world, comparison = World(4, mean_rows=6.0), after(40, step=3, mean_rows=6.0)
    comparison = world.add(plan, comparison, 98)
    assert comparison.tally(4).outcomes[1] > 200 > comparison.tally(4).outcomes[0]
    assert judged(plan, comparison).status == "running"
    assert judged(replace(plan, control_percent=0.0), replace(comparison, step=4)).status == "pass"


def test_a_much_worse_challenger_is_failed_within_days_whatever_the_seed():
    for seed in range(20):
        world, comparison, panes, status = World(seed), new_comparison(PLAN), 0, "running"
        while status == "running" and panes < 60:
            comparison, panes = world.add(PLAN, comparison, 10, worse=0.25), panes + 1
            status = judged(PLAN, comparison).status
        assert status == "fail"
        assert panes < 40


def test_harm_that_starts_late_is_found_since_its_step_began():
    """A long good past hides a bad present from the bound of the whole rollout, not from that of the step."""
    world, comparison = World(5, mean_rows=6.0), new_comparison(PLAN)
    for _ in range(100):
        comparison = world.add(PLAN, comparison, 25, worse=-0.05)
    found, panes = judged(PLAN, comparison), 0
    while found.status != "fail" and panes < 30:
        comparison, panes = world.add(PLAN, comparison, 50, worse=0.15), panes + 1
        found = judged(PLAN, comparison)
    assert found.status == "fail"
    assert found.reason.startswith("worse since the step began")
    assert found.upper > 0


def test_harm_within_the_tolerance_is_no_fail():
    comparison = after(50, worse=0.08, mean_rows=6.0)
    assert judged(PLAN, comparison).status == "fail"
    assert judged(replace(PLAN, tolerance=0.12, margin=0.2), comparison).status == "pass"


def test_users_that_are_too_few_are_no_verdict_however_many_their_events():
    """Ten heavy users of the challenger look far worse; they are ten."""
    comparison = new_comparison(PLAN)
    champion, challenger = np.arange(100, 200), np.arange(10)
    for pane in range(30):
        comparison = add_pane(
            PLAN,
            comparison,
            pane_start_ms=pane,
            champion_outcomes=counted("outcomes", champion, n=np.full(100, 10), total=np.full(100, 9.0)),
            challenger_outcomes=counted("outcomes", challenger, n=np.full(10, 500), total=np.full(10, 50.0)),
            champion_exposures=counted("exposures", champion, n=champion % 10 + 5),
            challenger_exposures=counted("exposures", challenger, n=np.arange(5, 15)),
        )
    found = judged(PLAN, comparison)
    assert found.delta == pytest.approx(-0.8)
    assert (found.lower, found.upper) == (None, None)
    assert found.status not in ("pass", "fail")
    assert found.reason == "10.0 effective buckets of 20"
    assert judged(replace(PLAN, max_panes=30), comparison).status == "inconclusive"


def test_what_cannot_be_decided_in_its_panes_is_inconclusive():
    plan = replace(PLAN, max_panes=8, margin=0.001)
    assert judged(plan, after(7, plan=plan)).status == "running"
    found = judged(plan, after(8, plan=plan))
    assert (found.status, found.reason) == ("inconclusive", "undecided after 8 panes of this step")


def test_a_bound_still_too_wide_is_running_and_says_how_far_it_is():
    found = judged(PLAN, after(4))
    assert found.status == "running"
    assert found.reason.endswith("wanted above -0.0300")
    assert found.lower < found.delta < found.upper


def test_a_split_that_keeps_disagreeing_with_the_plan_is_an_error():
    plan = replace(PLAN, max_panes=5)
    world, comparison = World(6), after(2, plan=plan)
    for _ in range(4):
        comparison = world.add(plan, comparison, 37)
    assert judged(plan, comparison).status != "error"
    found = judged(plan, world.add(plan, comparison, 37))
    assert found.status == "error"
    assert "wrong side of the split" in found.reason
    assert judged(plan, world.add(plan, comparison, 25)).status != "error"


# Guardrails


def test_a_challenger_that_fails_far_more_often_is_failed_before_its_outcomes_speak():
    found = judged(PLAN, after(20, failing=(0.01, 0.2)))
    assert found.status == "fail"
    assert found.reason.startswith("error_increase: at least")
    guardrail = found.guardrails["error_increase"]
    assert guardrail["value"] == pytest.approx(0.19, abs=0.02)
    assert guardrail["lower"] > guardrail["limit"] == 0.02


def test_a_slow_challenger_is_failed_on_the_ratio_of_geometric_means():
    found = judged(PLAN, after(20, latency_ms=(10.0, 30.0)))
    assert found.status == "fail"
    assert found.reason.startswith("latency_ratio: at least")
    assert found.guardrails["latency_ratio"]["value"] == pytest.approx(3.0, rel=0.05)


@pytest.mark.parametrize("pane", [{"failing": (0.01, 0.025)}, {"latency_ms": (10.0, 18.0)}])
def test_a_guardrail_allows_what_is_within_its_limit(pane: dict[str, tuple[float, float]]):
    found = judged(PLAN, after(40, mean_rows=6.0, **pane))
    assert found.status == "pass"


def test_a_guardrail_says_nothing_on_too_few_buckets():
    found = judged(replace(PLAN, min_buckets=400.0), after(20, failing=(0.0, 0.9), latency_ms=(1.0, 99.0)))
    assert found.status == "running"
    assert found.guardrails["error_increase"]["lower"] is None
    assert found.guardrails["latency_ratio"]["lower"] is None
    assert found.guardrails["since_step"]["upper"] is None


def test_logs_that_vanish_from_one_arm_are_an_error_and_not_a_verdict():
    found = judged(PLAN, after(20, step=2, lost=0.6))
    assert found.status == "error"
    assert found.reason.startswith("sample ratio mismatch")
    assert found.guardrails["sample_ratio"]["expected"] == 0.25
    assert found.guardrails["sample_ratio"]["share"] < 0.2


def test_the_sample_ratio_waits_for_occupied_buckets_on_both_sides():
    for step in (0, 4):
        # 176 buckets have a user: some 9 of the challenger's at the first step, 4 of the control's at the last.
        sparse = after(1, step=step, mean_rows=0.2)
        assert judged(PLAN, sparse).guardrails["sample_ratio"]["p_value"] is None
    assert judged(PLAN, after(1, step=2)).guardrails["sample_ratio"]["p_value"] is not None


def test_unequal_label_coverage_is_an_error_and_a_small_inequality_is_none():
    found = judged(PLAN, after(30, covered=(0.9, 0.6)))
    assert found.status == "error"
    assert found.reason.startswith("label coverage differs by -0.29")
    assert judged(PLAN, after(30, covered=(0.9, 0.87))).status != "error"


def test_an_equal_challenger_under_shared_days_and_sticky_users_is_rarely_called_worse_or_faulty():
    """200 ramps of 8 looks from 5 to 50 %: at most α is called worse; pooled counts would say so most of the time."""
    failed = errors = pooled_worse = 0
    for seed in range(200):
        world, comparison, called = World(seed, spread=1.0, days=0.0), new_comparison(PLAN), set()
        for pane in range(8):
            # The base rate falls while the ramp rises.
            world.habit -= 0.18
            comparison = world.add(PLAN, comparison, PLAN.percent_at(pane // 2))
            called.add(judged(PLAN, comparison).status)
        failed += "fail" in called
        errors += "error" in called
        n, right = world.pooled.T
        rate = right.sum() / n.sum()
        pooled_worse += right[1] / n[1] - right[0] / n[0] < -1.96 * math.sqrt(rate * (1 - rate) * (1 / n).sum())
    assert failed <= 0.05 * 200
    assert errors <= 0.02 * 200
    assert pooled_worse > 0.5 * 200


def test_a_challenger_that_is_worse_by_the_margin_is_rarely_passed_at_any_look():
    plan, passed = replace(PLAN, margin=0.1, tolerance=0.1), 0
    for seed in range(200):
        world, comparison = World(1_000 + seed, days=0.3), new_comparison(plan)
        called = set()
        for _ in range(4):
            comparison = world.add(plan, comparison, 10, worse=0.1)
            called.add(judged(plan, comparison).status)
        passed += "pass" in called
    assert passed <= 0.05 * 200
