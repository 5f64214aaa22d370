from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from monitors.panes import Boundaries, ModelClock, pane_start, window

MIN = 60_000
ONE, TWO = ("predictions", 0), ("predictions", 1)
LABELS = ("labels", 0)


def clock(**lengths: int) -> ModelClock:
    lengths = {"pane_ms": MIN, "lateness_ms": 10_000, "maturity_ms": 2 * MIN, "idle_ms": 1_000, **lengths}
    return ModelClock(**lengths)


def advance(model: ModelClock, **read_up_to: int) -> None:
    names = {"one": ONE, "two": TWO, "labels": LABELS}
    model.advance({names[k]: v for k, v in read_up_to.items()}, drift=[ONE, TWO], labels=[LABELS])


def test_a_pane_starts_at_a_multiple_of_its_width() -> None:
    assert pane_start(61_000, MIN) == MIN
    assert pane_start(60_000, MIN) == MIN
    assert pane_start(59_999, MIN) == 0


def test_a_pane_completes_when_every_partition_has_passed_its_end_and_the_lateness() -> None:
    model = clock()
    model.observe(ONE, 2 * MIN + 10_001, record_time_ms=100)
    advance(model, one=100, two=100, labels=100)
    assert model.complete.done_ms == 0
    model.observe(TWO, 2 * MIN + 10_001, record_time_ms=200)
    advance(model, one=100, two=200, labels=100)
    assert model.complete.done_ms == 2 * MIN


def test_exactly_at_the_lateness_the_pane_is_still_open() -> None:
    model = clock()
    for source in (ONE, TWO):
        model.observe(source, MIN + 10_000, record_time_ms=100)
    advance(model, one=100, two=100)
    assert model.complete.done_ms == 0


def test_a_silent_partition_is_waited_for_until_it_has_been_read_past_the_crossing() -> None:
    model = clock()
    model.observe(ONE, 5 * MIN, record_time_ms=1_000)
    advance(model, one=1_000, two=1_999)
    assert model.complete.done_ms == 0
    advance(model, one=1_000, two=2_000)
    assert model.complete.done_ms == 4 * MIN


def test_a_partition_without_progress_blocks() -> None:
    model = clock()
    model.observe(ONE, 5 * MIN, record_time_ms=1_000)
    advance(model, one=9_999_999)
    assert model.complete.done_ms == 0


def test_a_stream_at_rest_completes_nothing() -> None:
    model = clock()
    model.observe(ONE, MIN + 5_000, record_time_ms=1_000)
    advance(model, one=10**12, two=10**12, labels=10**12)
    assert model.complete.done_ms == 0


def test_a_behind_partition_holds_the_panes_it_has_not_passed_but_not_those_before() -> None:
    model = clock()
    model.observe(ONE, 60 * MIN, record_time_ms=1_000)
    model.observe(TWO, 3 * MIN + 10_001, record_time_ms=1_000)
    advance(model, one=1_000, two=1_000)
    assert model.complete.done_ms == 3 * MIN


def test_labels_mature_only_when_their_partitions_have_been_read_past_the_crossing() -> None:
    model = clock()
    for source in (ONE, TWO):
        model.observe(source, 3 * MIN + 10_001, record_time_ms=5_000)
    advance(model, one=6_000, two=6_000, labels=5_999)
    assert model.complete.done_ms == 3 * MIN
    assert model.mature.done_ms == 0
    advance(model, one=6_000, two=6_000, labels=6_000)
    assert model.mature.done_ms == MIN


def test_a_pane_is_late_once_it_is_complete() -> None:
    model = clock()
    for source in (ONE, TWO):
        model.observe(source, 2 * MIN + 10_001, record_time_ms=1)
    assert not model.is_late(MIN)
    advance(model, one=1, two=1)
    assert model.is_late(MIN)
    assert not model.is_late(2 * MIN)


def test_a_jump_over_a_year_is_one_crossing() -> None:
    model = clock()
    model.observe(ONE, 365 * 24 * 60 * MIN, record_time_ms=1)
    assert len(model.complete.crossings) == 1


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 1000)), max_size=30),
    st.lists(st.integers(0, 2000), min_size=1, max_size=10),
)
def test_what_is_done_never_goes_back_and_never_passes_the_last_crossing(
    crossings: list[tuple[int, int]], reads: list[int]
) -> None:
    boundaries = Boundaries()
    furthest = 0
    for end, at in crossings:
        boundaries.cross(end * MIN, at)
        furthest = max(furthest, end * MIN)
    before = 0
    for read in reads:
        after = boundaries.advance([(0, read)], idle_ms=10)
        assert before <= after <= furthest
        before = after


@given(st.lists(st.integers(0, 40), min_size=1, max_size=40), st.integers(1, 30), st.integers(1, 40))
def test_a_window_is_the_shortest_run_of_newest_panes_that_holds_enough(
    sizes: list[int], min_events: int, max_age: int
) -> None:
    events = {index * MIN: size for index, size in enumerate(sizes)}
    end = len(sizes) * MIN
    taken = window(events, end_ms=end, pane_ms=MIN, min_events=min_events, max_age_ms=max_age * MIN)
    assert taken == sorted(taken, reverse=True)
    held = sum(events[start] for start in taken)
    if taken and held >= min_events:
        assert held - events[taken[-1]] < min_events
    else:
        assert len(taken) == min(max_age, len(sizes))
    assert np.all(np.array(taken, dtype=np.int64) >= end - max_age * MIN)
