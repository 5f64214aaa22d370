"""Columns become the events they stand for; a wrong one is named with its row."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import polars as pl
import pytest

from streamer.client.batches import LabelColumns, PredictionColumns, column
from streamer.routing import Choice

T0 = 1_700_000_000_000


@pytest.mark.parametrize(
    "values",
    [[1, 2], (1, 2), np.array([1, 2]), pl.Series([1, 2]), pl.Series([1, 2]).to_arrow(), pl.Series([1, 2]).to_pandas()],
)
def test_any_kind_of_column_gives_plain_values(values: Any) -> None:
    assert column(values, "x", 2) == [1, 2]
    assert type(column(values, "x")[0]) is int


@pytest.mark.parametrize("values", ["ab", {"a": 1}, 3, np.float64(3.0), None])
def test_what_is_no_column_is_refused(values: Any) -> None:
    with pytest.raises(TypeError, match=r"^x: got .* wanted a column"):
        column(values, "x")


def test_columns_become_predictions_row_by_row() -> None:
    choices = [Choice("7"), Choice("8", "canary-1", 12, "challenger")]
    first, second = PredictionColumns(
        model="m",
        features={"age": np.array([30.0, np.nan]), "plan": ["a", "b"]},
        prediction=np.array([True, False]),
        score=np.array([0.9, 0.2]),
        choices=choices,
        entity_id=[1, "x"],
        prediction_id=["p", "q"],
        ts_ms=np.array([T0, T0 + 1]),
        latency_ms=[1.0, 2.0],
        origin="shadow",
    ).events()
    assert (first.prediction_id, first.ts, first.entity_id, first.version) == ("p", T0, "1", "7")
    assert (first.prediction, first.score, first.origin, first.rollout_id) == (True, 0.9, "shadow", None)
    assert first.features == {"age": 30.0, "plan": "a"}
    assert (second.version, second.rollout_id, second.bucket) == ("8", "canary-1", 12)


def test_ids_are_made_in_order_and_times_are_now() -> None:
    before = int(time.time() * 1000)
    events = PredictionColumns(model="m", features={}, prediction=[1] * 50, version="3").events()
    assert len({event.prediction_id for event in events}) == 50
    assert [event.prediction_id[14] for event in events] == ["7"] * 50
    assert sorted(event.prediction_id for event in events) == [event.prediction_id for event in events]
    assert before <= events[0].ts <= int(time.time() * 1000)
    assert {event.version for event in events} == {"3"}


def test_a_version_may_be_a_column_or_be_left_out() -> None:
    events = PredictionColumns(model="m", features={}, prediction=[1, 2], version=["a", "b"]).events()
    assert [event.version for event in events] == ["a", "b"]
    assert PredictionColumns(model="m", features={}, prediction=[1]).events()[0].version == "_"
    with pytest.raises(ValueError, match="version: got both version and choices"):
        PredictionColumns(model="m", features={}, prediction=[1], version="1", choices=[Choice("1")]).events()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"features": {"age": [1]}}, r"features\['age'\]: got 1 values, wanted 2"),
        ({"score": [0.1]}, "score: got 1 values, wanted 2"),
        ({"ts_ms": [T0, 5]}, "row 1: ts_ms: got 5"),
        ({"prediction": [1, None]}, "row 1: prediction: got None"),
        ({"prediction_id": ["a", None]}, "row 1: prediction_id: got None"),
        ({"model": "M"}, "row 0: model: got 'M'"),
    ],
)
def test_a_wrong_column_is_named_with_its_row(columns: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"model": "m", "features": {}, "prediction": [1, 2], **columns}
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        PredictionColumns(**given).events()


def test_label_columns_become_labels() -> None:
    first, second = LabelColumns(
        model="m",
        prediction_id=["p", "q"],
        label=np.array([1, 0]),
        ts_ms=[T0, T0],
        revision=[0, 2],
        deleted=np.array([False, True]),
        value=[1.5, None],
        version=["7", "8"],
        prediction=[1, 1],
        score=[0.5, 0.6],
        prediction_ts_ms=[T0, T0],
        previous=[None, 1],
    ).events()
    assert (first.label, first.revision, first.deleted, first.value, first.version) == (1, 0, False, 1.5, "7")
    assert (second.label, second.revision, second.deleted, second.prediction_ts, second.previous) == (0, 2, True, T0, 1)
    with pytest.raises(ValueError, match=r"^row 1: label: got None"):
        LabelColumns(model="m", prediction_id=["p", "q"], label=[1, None]).events()
