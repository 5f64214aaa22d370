"""What may be logged is made plain; what may not is refused with the argument's name."""

from __future__ import annotations

import math
import uuid
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.client import arguments
from streamer.decode import decode
from streamer.events import Label, Prediction, encode

T0 = 1_700_000_000_000
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(), st.text())


def _prediction(**changes: Any) -> Prediction:
    return msgspec.structs.replace(Prediction(prediction_id="p", model="m", ts=T0, prediction=1), **changes)


def _label(**changes: Any) -> Label:
    return msgspec.structs.replace(Label(prediction_id="p", model="m", ts=T0, label=1), **changes)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float64(1.5), 1.5),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array([7])[0], 7),
        (np.array(7), 7),
        (math.nan, None),
        (math.inf, None),
        (np.float64("nan"), None),
        (None, None),
        ("", ""),
    ],
)
def test_a_scalar_becomes_pythons_own(value: Any, plain: Any) -> None:
    got = arguments.scalar(value, "x")
    assert got == plain
    assert type(got) is type(plain)


@pytest.mark.parametrize("value", [[1], {"a": 1}, object(), b"bytes", np.array([1, 2]), 1j])
def test_what_is_no_single_value_is_refused_by_name(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^features\['age'\]: got "):
        arguments.features({"age": value})


@pytest.mark.parametrize("name", ["@score", "", 3])
def test_a_feature_may_not_have_a_reserved_name(name: Any) -> None:
    with pytest.raises(ValueError, match=r"^features: got the name "):
        arguments.features({name: 1})


def test_features_are_copied_so_that_the_caller_may_go_on_with_his_own() -> None:
    mine: dict[str, Any] = {"age": 3}
    logged = arguments.features(mine)
    mine["age"] = 4
    assert logged == {"age": 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "Flight Delay"}, "model: got 'Flight Delay', wanted 1 to 100 of a-z"),
        ({"model": "m\n"}, "model: got 'm\\\\n'"),
        ({"model": None}, "model: got None"),
        ({"version": 7}, "version: got 7"),
        ({"prediction_id": ""}, "prediction_id: got ''"),
        ({"prediction_id": "x" * 201}, "prediction_id: got "),
        ({"ts": 1_700_000_000}, r"ts_ms: got 1700000000, wanted epoch milliseconds \(is it in seconds\?\)"),
        ({"ts": T0 * 1_000}, "micro- or nanoseconds"),
        ({"ts": 1.5}, "ts_ms: got 1.5, wanted whole"),
        ({"ts": True}, "ts_ms: got True"),
        ({"features": [1]}, "features: got list"),
        ({"prediction": None}, "prediction: got None, wanted a value, or an error"),
        ({"prediction": math.nan}, "prediction: got nan"),
        ({"score": "high"}, "score: got 'high'"),
        ({"score": True}, "score: got True"),
        ({"score": {"a": None}}, r"score\['a'\]: got None"),
        ({"entity_id": ""}, "entity_id: got ''"),
        ({"origin": "test"}, "origin: got 'test', wanted one of live, shadow, backfill"),
        ({"bucket": 1000}, "bucket: got 1000"),
        ({"bucket": 1.0}, "bucket: got 1.0"),
        ({"latency_ms": "3"}, "latency_ms: got '3'"),
        ({"error": 3}, "error: got int"),
        ({"rollout_id": 3}, "rollout_id: got int"),
    ],
)
def test_a_wrong_field_of_a_prediction_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^row 3: .*{message}|^row 3: {message}"):
        arguments.checked_prediction(_prediction(**changes), "row 3: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": None}, "label: got None, wanted a value, or deleted=True"),
        ({"revision": 1.0}, "revision: got 1.0"),
        ({"deleted": 1}, "deleted: got 1"),
        ({"value": "x"}, "value: got 'x'"),
        ({"prediction_ts": 5}, "prediction_ts_ms: got 5"),
        ({"version": "A"}, "version: got 'A'"),
    ],
)
def test_a_wrong_field_of_a_label_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        arguments.checked_label(_label(**changes))


def test_ids_are_taken_as_their_text() -> None:
    given_id = uuid.UUID(int=5)
    event = arguments.checked_prediction(_prediction(prediction_id=given_id, entity_id=42))
    assert (event.prediction_id, event.entity_id) == (str(given_id), "42")


def test_an_error_needs_no_prediction_and_a_deletion_no_label() -> None:
    assert arguments.checked_prediction(_prediction(prediction=None, error="time-out")).error == "time-out"
    assert arguments.checked_label(_label(label=None, deleted=True)).deleted


@given(
    st.dictionaries(st.text(min_size=1).filter(lambda name: name[0] != "@"), SCALARS, max_size=5),
    SCALARS.filter(lambda value: value is not None and value == value and value not in (math.inf, -math.inf)),
    st.one_of(st.none(), st.floats(), st.dictionaries(st.text(), st.floats(0, 1), max_size=3)),
)
def test_whatever_is_accepted_is_what_the_worker_accepts(features: dict[str, Any], prediction: Any, score: Any) -> None:
    event = arguments.checked_prediction(_prediction(features=features, prediction=prediction, score=score))
    read = decode(encode(event), "predictions")
    assert read.features.keys() == features.keys()
    for name, value in features.items():
        finite = not isinstance(value, float) or math.isfinite(value)
        assert read.features[name] == (value if finite else None)
    assert read.prediction == prediction
