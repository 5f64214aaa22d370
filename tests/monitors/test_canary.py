"""A challenger is judged by what both arms' users show: never by no data, rarely by chance, surely when it harms."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors.canary import (
    CONTRASTS,
    COUNTERS,
    EXPOSURE_DTYPE,
    OUTCOME_DTYPE,
    CanaryPlan,
    Comparison,
    StepTally,
    add_pane,
    fold_exposures,
    fold_outcomes,
    merge_rows,
    new_comparison,
    verdict,
)

BUCKETS = 1_000
ALL = np.arange(BUCKETS)
PLAN = CanaryPlan()

outcome_rows = st.lists(st.tuples(st.integers(0, 999), st.integers(-5, 5), st.sampled_from([1, -1])), max_size=15).map(
    lambda rows: fold_outcomes(*columns(rows, 3))
)
exposure_rows = st.lists(st.tuples(st.integers(0, 999), st.booleans(), st.just(1.0)), max_size=15).map(
    lambda rows: fold_exposures(*columns(rows, 3))
)


def columns(rows, width: int) -> list[list]:
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(width)]


def counted(name: str, buckets: np.ndarray, **fields: np.ndarray) -> np.ndarray:
    rows = np.zeros(len(buckets), dtype=OUTCOME_DTYPE if name == "outcomes" else EXPOSURE_DTYPE)
    rows["bucket"] = buckets
    for field, values in fields.items():
        rows[field] = values
    return rows[rows["n"] > 0]


def below(percent: float) -> np.ndarray:
    """Return which buckets the router gives the challenger at that share."""
    return np.less(ALL, 10 * percent)


class World:
    """Traffic on two arms: each bucket has its users' habits, each pane its own day, shared by both arms."""

    def __init__(self, seed: int, *, mean_rows: float = 2.0, spread: float = 0.2, days: float = 0.7):
        self.rng = np.random.default_rng(seed)
        self.habit = self.rng.normal(0, spread, BUCKETS)
        self.traffic = self.rng.gamma(2, mean_rows / 2, BUCKETS)
        self.days = days
        self.pane = 0
        self.pooled = np.zeros((2, 2))

    def add(
        self,
        plan: CanaryPlan,
        comparison: Comparison,
        percent: float,
        *,
        worse: float = 0.0,
        covered: tuple[float, float] = (1.0, 1.0),
        failing: tuple[float, float] = (0.0, 0.0),
        latency_ms: tuple[float, float] = (10.0, 10.0),
        lost: float = 0.0,
        challenger: np.ndarray | None = None,
    ) -> Comparison:
        """Add a pane; `worse` is how much less often the challenger is right, `lost` its share of logs that vanish."""
        rng = self.rng
        hers = below(percent) if challenger is None else challenger
        arm = hers.astype(int)
        n = rng.poisson(self.traffic)
        n = np.where(hers, rng.binomial(n, 1 - lost), n)
        right = np.clip(1 / (1 + np.exp(-(1 + self.habit + rng.normal(0, self.days)))) - worse * hers, 0, 1)
        labelled = rng.binomial(n, np.take(covered, arm))
        total = rng.binomial(labelled, right)
        errors = rng.binomial(n, np.take(failing, arm))
        log_latency = n * np.log(np.take(latency_ms, arm)) + rng.normal(size=BUCKETS) * np.sqrt(n) * 0.5
        outcomes = {"n": labelled, "total": total, "total_sq": total}
        exposures = {"n": n, "errors": errors, "latency_n": n, "latency_log_total": log_latency}
        sides = {
            side: (
                counted("outcomes", ALL[chosen], **{k: v[chosen] for k, v in outcomes.items()}),
                counted("exposures", ALL[chosen], **{k: v[chosen] for k, v in exposures.items()}),
            )
            for side, chosen in (("champion", ~hers), ("challenger", hers))
        }
        self.pane += 1
        self.pooled += [(labelled[hers == side].sum(), total[hers == side].sum()) for side in (False, True)]
        return add_pane(
            plan,
            comparison,
            pane_start_ms=self.pane * 60_000,
            champion_outcomes=sides["champion"][0],
            challenger_outcomes=sides["challenger"][0],
            champion_exposures=sides["champion"][1],
            challenger_exposures=sides["challenger"][1],
        )


def judged(plan: CanaryPlan, comparison: Comparison, step: int | None = None):
    return verdict(plan, comparison, step=comparison.step if step is None else step, epoch=7, at_ms=99)


def after(panes: int, *, plan: CanaryPlan = PLAN, seed: int = 1, step: int = 2, mean_rows: float = 2.0, **pane):
    """Return the comparison after some panes at a step."""
    world, comparison = World(seed, mean_rows=mean_rows), new_comparison(plan)
    for _ in range(panes):
        comparison = world.add(plan, comparison, plan.percent_at(step), **pane)
    return comparison


# Rows


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


# The plan


def test_the_last_step_leaves_the_champion_its_control():
    assert [PLAN.percent_at(step) for step in range(-1, 5)] == [0, 5, 10, 25, 50, 98]
    assert PLAN.last_step == 4
    assert CanaryPlan(control_percent=0).percent_at(4) == 100
    with pytest.raises(ValueError, match="step: got 5, wanted −1 to 4"):
        PLAN.percent_at(5)


@pytest.mark.parametrize("steps", [(), (0, 10), (10, 10), (20, 10), (5, 98, 100), (99, 100)])
def test_steps_that_do_not_rise_to_the_control_are_refused(steps: tuple[float, ...]):
    with pytest.raises(ValueError, match="steps: got"):
        CanaryPlan(steps=steps)


# Panes and steps


def test_a_pane_without_challenger_changes_nothing():
    comparison = new_comparison(PLAN)
    assert World(1).add(PLAN, comparison, 0) is comparison


@pytest.mark.parametrize("step", range(5))
def test_a_panes_step_is_told_from_its_buckets(step: int):
    found = after(2, step=step)
    assert (found.step, found.used, found.left_out) == (step, 2, 0)
    assert [tally.panes for tally in found.tallies] == [2 * (each == step) for each in range(5)]


def test_a_pane_in_which_the_split_changed_is_left_out_and_counted():
    mixed = ALL < 50
    mixed[70:90] = True
    world, comparison = World(1), after(3, step=0)
    found = world.add(PLAN, comparison, 5, challenger=mixed)
    assert (found.left_out, found.left_out_run, found.used) == (1, 1, 3)
    for name in CONTRASTS:
        assert getattr(found, name) is getattr(comparison, name)
    found = world.add(PLAN, found, 10)
    assert (found.left_out, found.left_out_run, found.used, found.step) == (1, 0, 4, 1)


def test_a_share_the_plan_never_sets_is_left_out():
    assert World(1).add(PLAN, new_comparison(PLAN), 37).left_out == 1


def test_with_few_users_a_pane_is_never_of_a_step_before_the_newest():
    """Buckets 3 and 900 alone fit every step but the last; the newest seen is the smallest it can be."""
    few = (fold_outcomes([900], [1], [1]), fold_outcomes([3], [1], [1]))
    shown = (fold_exposures([900], [0], [9]), fold_exposures([3], [0], [9]))
    comparison = after(1, step=2)
    found = add_pane(
        PLAN,
        comparison,
        pane_start_ms=5,
        champion_outcomes=few[0],
        challenger_outcomes=few[1],
        champion_exposures=shown[0],
        challenger_exposures=shown[1],
    )
    assert (found.step, found.tally(2).panes, found.last_pane_ms) == (2, 2, 5)


def test_a_late_pane_of_an_earlier_step_adds_to_the_whole_but_not_to_the_newest_step():
    world, comparison = World(1), after(3, step=2)
    found = world.add(PLAN, comparison, 10)
    assert found.step == 2
    assert found.outcomes.weight > comparison.outcomes.weight
    assert found.since is comparison.since
    assert (found.exposed == comparison.exposed).all()
    assert found.tally(1).panes == 1


def test_a_new_step_starts_its_own_sums_and_keeps_those_of_the_whole():
    world, comparison = World(1), after(5, step=1)
    found = world.add(PLAN, comparison, 25)
    assert found.since.weight == pytest.approx(found.outcomes.weight - comparison.outcomes.weight)
    assert found.tally(2).weight == pytest.approx(found.since.weight)
    assert found.exposed.sum() == sum(found.tally(2).exposures)
    assert found.tally(1) == comparison.tally(1)


def test_a_step_nobody_has_seen_has_an_empty_tally():
    assert new_comparison(PLAN).tally(-1) == after(1).tally(4) == after(1).tally(9) == StepTally()


@pytest.mark.parametrize("panes", [0, 1, 4])
def test_a_comparison_survives_its_state(panes: int):
    comparison = after(panes)
    state = comparison.to_state()
    again = Comparison.from_state(state)
    assert again.to_state() == state
    assert [getattr(again, name) for name in COUNTERS] == [getattr(comparison, name) for name in COUNTERS]
    assert again.tallies == comparison.tallies
    assert (again.exposed == comparison.exposed).all()
    assert judged(PLAN, again, 2) == judged(PLAN, comparison, 2)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_every_pane_with_a_challenger_is_either_used_or_left_out(shares: list[int], seed: int):
    world, comparison, newest = World(seed), new_comparison(PLAN), -1
    for share in shares:
        comparison = world.add(PLAN, comparison, (5, 10, 25, 50, 98, 37)[share])
        newest = max(newest, share) if share < 5 else newest
        assert comparison.step == newest
    assert comparison.used == sum(share < 5 for share in shares) == sum(t.panes for t in comparison.tallies)
    assert comparison.left_out == sum(share == 5 for share in shares)
    assert sum(tally.weight for tally in comparison.tallies) == pytest.approx(comparison.outcomes.weight)


# Verdicts


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
