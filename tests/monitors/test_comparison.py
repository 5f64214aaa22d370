"""Panes add up to a comparison: each at its step, or left out and counted."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors.arms import fold_exposures, fold_outcomes
from monitors.comparison import CONTRASTS, COUNTERS, CanaryPlan, Comparison, StepTally, add_pane, new_comparison
from tests.monitors.rollouts import ALL, PLAN, World, after, judged

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
