"""A replay keeps the order of event time, waits when it is told to, and loses and repeats nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.replay import UNLIMITED_MS, Batch, Replay, keeping_up, merged, nearest, rated, sliced

Times = list[int]


def _stream(kind: str, times: Times, slice_ms: int = 10) -> Any:
    return sliced(kind, times, lambda first, last: times[first:last], slice_ms=slice_ms)


@given(st.lists(st.integers(0, 500)), st.lists(st.integers(0, 500)), st.integers(1, 100))
def test_every_event_is_played_once_and_no_slice_before_an_older_one(one: Times, two: Times, slice_ms: int) -> None:
    played: list[tuple[str, Times]] = []
    batches = merged(_stream("predictions", sorted(one), slice_ms), _stream("labels", sorted(two), slice_ms))
    replay = Replay(
        batches,
        {
            "predictions": lambda times: played.append(("predictions", times)),
            "labels": lambda times: played.append(("labels", times)),
        },
    )
    counts = replay.run()
    assert counts.get("predictions", 0) == len(one)
    assert counts.get("labels", 0) == len(two)
    for kind, times in (("predictions", one), ("labels", two)):
        assert [time for name, batch in played if name == kind for time in batch] == sorted(times)
    ends = [max(times) for _, times in played]
    assert ends == sorted(ends)
    assert replay.position_ms == (ends[-1] if ends else None)


def test_a_slice_holds_what_falls_into_it_and_empty_ones_are_left_out() -> None:
    batches = list(_stream("p", [0, 9, 10, 35], slice_ms=10))
    assert batches == [Batch(9, "p", [0, 9], 2), Batch(10, "p", [10], 1), Batch(35, "p", [35], 1)]
    assert list(_stream("p", [])) == []


def test_at_the_same_time_the_earlier_stream_goes_first() -> None:
    kinds = [batch.kind for batch in merged(_stream("predictions", [5, 15]), _stream("labels", [5, 15]))]
    assert kinds == ["predictions", "labels", "predictions", "labels"]


def test_times_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="times_ms: the p are not in order"):
        list(_stream("p", [3, 1]))
    with pytest.raises(ValueError, match="slice_ms: got 0"):
        list(_stream("p", [1], slice_ms=0))
    with pytest.raises(ValueError, match="time_ms: got 1 after 2"):
        Replay([Batch(2, "p", None), Batch(1, "p", None)], {"p": lambda _: None}).run()


def test_a_kind_nobody_plays_is_named() -> None:
    with pytest.raises(ValueError, match="kind: got 'q', wanted one of"):
        Replay([Batch(2, "q", None)], {"p": lambda _: None}).run()


def test_event_time_stands_still_while_the_gate_holds() -> None:
    limit = [10]
    asked = threading.Event()
    played: list[int] = []

    def gate(_: int) -> int:
        if played:
            asked.set()
        return limit[0]

    replay = Replay([Batch(time, "p", time) for time in (5, 10, 11, 30)], {"p": played.append}, gate=gate, poll_s=0.001)
    thread = threading.Thread(target=replay.run)
    thread.start()
    assert asked.wait(5)
    while not replay.held:
        pass
    assert (played, replay.position_ms) == ([5, 10], 10)
    limit[0] = UNLIMITED_MS
    thread.join(5)
    assert (played, replay.position_ms, replay.held) == ([5, 10, 11, 30], 30, False)


def test_a_stopped_replay_goes_on_where_it_was() -> None:
    stopped = threading.Event()
    played: list[int] = []

    def play(time: int) -> None:
        played.append(time)
        if time == 2:
            stopped.set()

    replay = Replay([Batch(time, "p", time) for time in (1, 2, 3, 4)], {"p": play})
    assert replay.run(stopped) == {"p": 2}
    stopped.clear()
    assert replay.run(stopped) == {"p": 4}
    assert played == [1, 2, 3, 4]


def test_event_time_runs_so_far_ahead_of_the_worker_and_no_further() -> None:
    worker: list[int | None] = [None]
    gate = keeping_up(lambda: worker[0], max_lead_ms=100)
    assert gate(1_000) == 1_100
    worker[0] = 500  # what it saw before this replay holds nothing up
    assert gate(1_080) == 1_100
    worker[0] = 1_050
    assert gate(1_090) == 1_150
    worker[0] = 1_090  # it stands where the replay stands: a hole in the data is no reason to wait
    assert gate(1_090) == UNLIMITED_MS


def _fake_clock(times: list[float]) -> Callable[[], float]:
    return lambda: times.pop(0)


def test_a_rate_is_kept_by_the_clock_it_is_given() -> None:
    gate = rated(event_ms_per_s=1_000, clock_s=_fake_clock([50.0, 50.0, 51.5]))
    assert gate(7_000) == 7_000
    assert gate(7_000) == 8_500


def test_the_nearest_gate_decides() -> None:
    assert nearest(lambda _: 9, lambda _: 4)(0) == 4


def test_numpy_columns_are_cut_without_a_copy_of_their_rows() -> None:
    times = np.array([1, 2, 11])
    table = np.arange(3)
    (first, second) = sliced("p", times, lambda a, b: table[a:b], slice_ms=10)  # type: ignore[arg-type]
    assert first.payload.base is table
    assert (first.rows, second.rows) == (2, 1)
