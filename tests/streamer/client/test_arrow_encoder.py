"""Columns as Arrow messages: the events they stand for, no more than a message holds, and nothing that is wrong."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.client.arrow_encoder import MAX_BATCH_BYTES, encode_labels, encode_predictions
from streamer.client.batches import LabelColumns, PredictionColumns
from streamer.decode import Kind, decode
from streamer.decoding.arrow_batches import read
from streamer.decoding.singles import singles
from streamer.routing import Choice

T0 = 1_700_000_000_000
MANY = 10**6

choices = st.sampled_from([Choice("7"), Choice("8", "canary-1", 12, "challenger")])
numbers = st.none() | st.floats() | st.integers(-(2**63), 2**63 - 1)
columns = [
    st.floats(),
    st.none() | st.floats(),
    st.integers(-(2**63), 2**63 - 1),
    st.none() | st.booleans(),
    st.none() | st.text(max_size=5),
    st.just("same"),
]


def events_of(pieces: Any, kind: Kind) -> list[Any]:
    return [decode(raw, kind) for piece in pieces for _row, raw in singles(piece.body, kind)]


def settled(event: Any) -> Any:
    """Return an event as JSON gives it back: what is no finite number is null."""
    return decode(msgspec.json.encode(event), "labels" if hasattr(event, "label") else "predictions")


@st.composite
def prediction_columns(draw: st.DrawFn) -> PredictionColumns:
    n = draw(st.integers(1, 8))

    def column(values: Any) -> list[Any]:
        return draw(st.lists(values, min_size=n, max_size=n))

    routed = draw(st.booleans())
    score = [
        st.none() | st.floats(0, 1),
        st.none() | st.dictionaries(st.sampled_from("ab"), st.floats(0, 1), min_size=1),
    ]
    return PredictionColumns(
        model="m",
        features={f"f{number}": column(draw(st.sampled_from(columns))) for number in range(draw(st.integers(0, 3)))},
        prediction=column(st.booleans() if draw(st.booleans()) else st.integers(0, 5)),
        score=draw(st.none() | st.just(column(draw(st.sampled_from(score))))),
        version=None if routed else draw(st.none() | st.just("7") | st.just(column(st.sampled_from("78")))),
        choices=column(choices) if routed else None,
        entity_id=draw(st.none() | st.just(column(st.none() | st.text(min_size=1, max_size=5)))),
        prediction_id=column(st.text(min_size=1, max_size=5)) if draw(st.booleans()) else column(st.integers(0, 9)),
        ts_ms=column(st.integers(T0, T0 + 10**9)),
        latency_ms=draw(st.none() | st.just(column(st.none() | st.floats(0, 9)))),
        error=draw(st.none() | st.just(column(st.none() | st.text(max_size=5)))),
        origin=draw(st.sampled_from(["live", "shadow"])),
    )


@given(prediction_columns())
def test_predictions_are_those_that_rows_would_be(given: PredictionColumns) -> None:
    encoded = encode_predictions(given, MANY)
    assert encoded is not None
    ids, pieces = encoded
    wanted = [settled(event) for event in given.events()]
    assert events_of(pieces, "predictions") == wanted
    assert ids == [event.prediction_id for event in wanted]
    assert sum(piece.events for piece in pieces) == len(wanted)


@given(st.data())
def test_labels_are_those_that_rows_would_be(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 8))

    def column(values: Any) -> list[Any]:
        return data.draw(st.lists(values, min_size=n, max_size=n))

    given = LabelColumns(
        model="m",
        prediction_id=column(st.text(min_size=1, max_size=5)),
        label=column(st.sampled_from(["a", "b"])),
        ts_ms=column(st.integers(T0, T0 + 9)),
        value=data.draw(st.none() | st.just(column(st.none() | st.floats(0, 9)))),
        revision=data.draw(st.none() | st.just(column(st.integers(0, 3)))),
        deleted=data.draw(st.none() | st.just(column(st.booleans()))),
        version=data.draw(st.none() | st.just(column(st.sampled_from("78")))),
        prediction=data.draw(st.none() | st.just(column(st.sampled_from(["a", None])))),
        score=data.draw(st.none() | st.just(column(st.none() | st.floats(0, 1)))),
        prediction_ts_ms=data.draw(st.none() | st.just(column(st.none() | st.integers(T0, T0 + 9)))),
        previous=data.draw(st.none() | st.just(column(st.sampled_from(["a", None])))),
    )
    pieces = encode_labels(given, MANY)
    assert pieces is not None
    assert events_of(pieces, "labels") == [settled(event) for event in given.events()]


@pytest.mark.parametrize(
    "make",
    [np.array, pl.Series, pd.Series, pa.array, lambda values: pa.chunked_array([values[:1], values[1:]]), tuple, list],
)
def test_any_kind_of_column_is_taken(make: Any) -> None:
    given = PredictionColumns(
        model="m",
        features={"age": make([1.5, float("nan")]), "plan": make(["a", "b"])},
        prediction=make([True, False]),
        prediction_id=["p", "q"],
        ts_ms=make([T0, T0 + 1]),
    )
    encoded = encode_predictions(given, MANY)
    assert encoded is not None
    first, second = events_of(encoded[1], "predictions")
    assert (first.features, second.features) == ({"age": 1.5, "plan": "a"}, {"age": None, "plan": "b"})
    assert (first.prediction, second.prediction, second.ts) == (True, False, T0 + 1)


def test_categories_are_taken_as_their_texts() -> None:
    plan = pd.Series(["a", "b", "a"], dtype="category")
    other = pl.Series(["x", "y", "x"], dtype=pl.Categorical)
    given = PredictionColumns(model="m", features={"plan": plan, "other": other}, prediction=[1, 0, 1])
    encoded = encode_predictions(given, MANY)
    assert encoded is not None
    events = events_of(encoded[1], "predictions")
    assert [event.features for event in events] == [{"plan": p, "other": o} for p, o in ("ax", "by", "ax")]
    assert [uuid.UUID(event.prediction_id).version for event in events] == [7] * 3


LABELS: dict[str, Any] = {"prediction_id": ["a", "b"], "label": [1, 0]}
PREDICTIONS: dict[str, Any] = {"features": {"x": [1, 2]}, "prediction": [1, 2]}


@pytest.mark.parametrize(
    ("form", "given"),
    [
        (PredictionColumns, {**PREDICTIONS, **wrong})
        for wrong in (
            {"features": {"x": [1]}},
            {"features": {"x": [1, "a"]}},
            {"features": {"x": "ab"}},
            {"features": {"x": {1, 2}}},
            {"features": {"@x": [1, 2]}},
            {"features": {"x": [[1], [2]]}},
            {"features": {"x": np.zeros((2, 2))}},
            {"features": {"x": [2**70, 1]}},
            {"features": {"x": ["\ud800", "a"]}},
            {"prediction": [1, None]},
            {"prediction": [1.0, float("nan")]},
            {"prediction": []},
            {"prediction_id": ["a", None]},
            {"prediction_id": ["a", ""]},
            {"prediction_id": ["a", "b" * 201]},
            {"prediction_id": [uuid.UUID(int=1), uuid.UUID(int=2)]},
            {"ts_ms": [T0, 5]},
            {"ts_ms": [T0, None]},
            {"ts_ms": [T0, T0 + 0.5]},
            {"model": "M"},
            {"version": "A B"},
            {"version": ["1", "A B"]},
            {"version": ["1", None]},
            {"version": "1", "choices": [Choice("1")] * 2},
            {"origin": "dream"},
            {"latency_ms": [True, False]},
            {"score": [True, False]},
            {"score": [{"a": 1.0}, 1.0]},
            {"score": [{"a": None}, {"a": 1.0}]},
            {"error": [1, 2]},
            {"entity_id": [1.5, 2.5]},
            {"entity_id": ["", "a"]},
        )
    ]
    + [
        (LabelColumns, {**LABELS, **wrong})
        for wrong in (
            {"label": [1, None]},
            {"label": [1]},
            {"deleted": [0, 1]},
            {"deleted": [True, None]},
            {"revision": [1, None]},
            {"revision": [1, 2.5]},
            {"prediction_ts_ms": [T0, 5]},
            {"value": ["a", "b"]},
        )
    ],
)
def test_what_is_in_doubt_is_left_to_the_rows(form: Any, given: dict[str, Any]) -> None:
    encode = encode_predictions if form is PredictionColumns else encode_labels
    assert encode(form(**{"model": "m", **given}), MANY) is None


def test_messages_stay_below_what_kafka_takes() -> None:
    rows = 40_000
    rng = np.random.default_rng(0)
    features = {f"f{number}": rng.normal(size=rows) for number in range(20)}
    texts = ["x" * 5_000 if row % 1_000 == 0 else "y" for row in range(rows)]
    given = PredictionColumns(model="m", features={**features, "text": texts}, prediction=rng.uniform(size=rows))
    encoded = encode_predictions(given, MANY)
    assert encoded is not None
    ids, pieces = encoded
    assert max(len(piece.body) for piece in pieces) <= MAX_BATCH_BYTES
    # None is much smaller than it could be, but the last.
    assert len(pieces) <= 1 + 2 * sum(len(piece.body) for piece in pieces) // MAX_BATCH_BYTES
    found = [id_ for piece in pieces for id_ in read(piece.body, "predictions").columns["prediction_id"].values]
    assert found == ids
    smaller = encode_predictions(given, 1_000)
    assert smaller is not None
    assert max(piece.events for piece in smaller[1]) == 1_000


def test_texts_that_repeat_are_written_once() -> None:
    rows = 1_000
    given = PredictionColumns(
        model="m", features={"plan": ["gold", "basic"] * 500}, prediction=[True] * rows, version="7"
    )
    encoded = encode_predictions(given, MANY)
    assert encoded is not None
    (piece,) = encoded[1]
    schema = pa.ipc.open_stream(piece.body).schema
    coded = pa.dictionary(pa.int8(), pa.string())
    assert (schema.field("model").type, schema.field("version").type) == (coded, coded)
    assert schema.field("features").type.field("plan").type == coded
    assert schema.field("prediction_id").type == pa.string()
    assert len(piece.body) < 60 * rows
