from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitors.performance import canonical
from streamer.counting.columns import Coded
from streamer.counting.lanes import SliceKeys
from streamer.counting.rows import Places
from streamer.join.records import position_of
from tests.streamer.logs import catalog_of, config, predictions, rows_of

SOURCES = [("predictions.v1", "AAAABBBBCCCC", 3), ("predictions.v1", "DDDDEEEEFFFF", 11)]


@given(st.lists(st.sampled_from([None, "a", "b", "c"])))
def test_a_coded_column_holds_what_it_was_made_of(column: list[Any]) -> None:
    coded = Coded.of(column)
    assert coded.tolist() == column
    assert set(coded.values) == set(column)
    for value in (None, "a", "z"):
        assert coded.equal(value).tolist() == [each == value for each in column]


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2**40), st.integers(0, 9)), min_size=1), st.booleans())
def test_positions_name_topic_partition_offset_and_row(drawn: list[tuple[int, int, int]], alone: bool) -> None:
    source, offsets, row = np.array(drawn, dtype=np.int64).T
    places = Places(SOURCES, source, offsets, offsets, None if alone else row)
    wanted = [
        position_of(SOURCES[at][1], SOURCES[at][2], offset, 0 if alone else number) for at, offset, number in drawn
    ]
    assert places.positions() == wanted
    some = np.arange(len(drawn))[::-2]
    assert places.take(some).positions() == wanted[::-2]


def test_taking_rows_takes_them_from_every_column() -> None:
    events = predictions(0, 6)
    for event in events[::2]:
        event.version, event.rollout_id, event.bucket = "2", "r", 7
    rows = rows_of(catalog_of(config()), events, "predictions.v1", range(6)).take([5, 0])
    assert rows.prediction_ids == [events[5].prediction_id, events[0].prediction_id]
    assert rows.versions.tolist() == ["1", "2"]
    assert rows.rollouts.tolist() == [None, "r"]
    assert rows.buckets == [None, 7]
    assert rows.times_ms.tolist() == [events[5].ts, events[0].ts]
    assert rows.slices == [[f"plan={events[row].features['plan']}"] for row in (5, 0)]
    assert rows.places.offsets.tolist() == [5, 0]


@pytest.mark.parametrize("value", [True, 1, 1.0, "1", "true", None])
def test_slices_are_told_apart_by_their_texts_and_not_by_what_is_equal(value: Any) -> None:
    keys = SliceKeys(["plan"])
    for before in (True, 1, "1", "true", None):
        assert keys[before,] == ([] if before is None else [f"plan={canonical(before)}"])
    assert keys[value,] == ([] if value is None else [f"plan={canonical(value)}"])
