"""Looking only at the models that time may have moved finds what looking at all of them finds."""

from __future__ import annotations

from copy import deepcopy

from hypothesis import given
from hypothesis import strategies as st

from monitors.panes import ModelClock
from streamer.evaluation.waiting import Waiting

SOURCES = [("predictions", 0), ("predictions", 1)]
LABELS = [("labels", 0)]

marks = st.tuples(st.sampled_from("ab"), st.sampled_from(SOURCES), st.integers(0, 200))
progress = st.tuples(st.sampled_from([*SOURCES, *LABELS]), st.integers(0, 30))
flushes = st.lists(st.tuples(st.lists(marks, max_size=3), st.lists(progress, max_size=3)), max_size=40)


@given(flushes)
def test_it_misses_no_pane_that_time_completes(
    drawn: list[tuple[list[tuple[str, tuple[str, int], int]], list]],
) -> None:
    all_clocks = {name: ModelClock(10, 3, 20, 5) for name in "ab"}
    clocks, waiting = deepcopy(all_clocks), Waiting()
    read_up_to: dict[tuple[str, int], int] = {}
    now = 0
    for marked, progressed in drawn:
        moved = set[str]()
        for name, source, event_time in marked:
            all_clocks[name].observe(source, event_time, now)
            if clocks[name].observe(source, event_time, now):
                moved.add(name)
        for source, step in progressed:
            now = read_up_to[source] = max(now, read_up_to.get(source, 0) + step)
        for clock in all_clocks.values():
            clock.advance(read_up_to, drift=SOURCES, labels=LABELS)
        waiting.wake(moved)
        latest = max(read_up_to.values(), default=0)
        for name in waiting.ready(latest):
            clocks[name].advance(read_up_to, drift=SOURCES, labels=LABELS)
            waiting.until(name, clocks[name].waits_until_ms, latest)
        assert clocks == all_clocks


def test_who_waits_for_nothing_is_not_looked_at() -> None:
    waiting = Waiting()
    waiting.until("a", 100, 50)
    assert waiting.ready(99) == []
    assert waiting.ready(100) == ["a"]
    assert waiting.ready(200) == []
    waiting.until("a", 300, 200)
    waiting.until("a", None, 200)
    assert waiting.ready(400) == []
