"""Reading in bulk says of every message what reading it alone says."""

from __future__ import annotations

import gc
import json
import weakref
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.catalog import Catalog
from streamer.counting.layouts import MAX_LEARNED, Layout, values_of
from streamer.decode import Kind
from streamer.decoding.bulk_decode import BulkDecoder, decode_each
from streamer.events import Label
from streamer.explain import explain_invalid
from tests.chaos.oracle import judge
from tests.streamer.logs import T0, config

NOW, FUTURE = T0, 1_000


def catalog_of(*models: dict[str, Any]) -> Catalog:
    catalog = Catalog()
    for sections in models:
        model = config(**sections)
        catalog.put_model(model.name, model.to_json())
    return catalog


CATALOG = catalog_of({"slices": ["plan", "age"]}, {"name": "fares", "task": "regression"})


def one_by_one(catalog: Catalog, kind: Kind, raw: bytes) -> tuple[str, str] | tuple[str, dict[str, Any]]:
    """Say what becomes of a message by itself: its fault, or its model and content."""
    event, fault = judge(catalog, kind, raw, record_ms=NOW, max_future_ms=FUTURE)
    if event is None or fault is not None:
        return fault or ("", "")
    model = catalog.model(event.model)
    assert model is not None
    content = msgspec.structs.asdict(event)
    if "features" in content and not isinstance(event, Label):
        content["features"] = {name: number(event.features.get(name)) for name in model.config.features}
    return event.model, content


def number(value: Any) -> Any:
    """Return what a value counts as: a whole number is the float it is binned as, where one can hold it."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1000 else value


def in_bulk(decoder: BulkDecoder, kind: Kind, raws: list[bytes]) -> list[Any]:
    decoded, faults = decoder.decode(kind, raws, np.full(len(raws), NOW), FUTURE)
    found: list[Any] = [None] * len(raws)
    for row, fault in faults.items():
        found[row] = fault
    rows = range(len(raws)) if decoded.rows is None else decoded.rows.tolist()
    for at, (row, event) in enumerate(zip(rows, decoded.events, strict=True)):
        assert found[row] is None
        model = decoded.models[decoded.model_of[at]]
        content = {name: getattr(event, name) for name in event.__struct_fields__} | {"model": model.name}
        if decoded.layouts:
            layout = decoded.layouts[decoded.model_of[at]]
            values = values_of(event.features)
            content["features"] = {name: number(values[layout.index[name]]) for name in model.config.features}
        found[row] = (model.name, content)
    assert None not in found
    return found


scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=3)
features = st.dictionaries(
    st.sampled_from(["age", "plan", "extra", "f0", 'q"', ""]), scalars | st.just([1]), max_size=5
)
names = st.sampled_from(["churn", "churn", "churn", "fares", "nobody", "No", ""])


@st.composite
def messages(draw: st.DrawFn, kind: Kind) -> bytes:
    fields: dict[str, st.SearchStrategy[Any]] = {
        "model": names,
        "ts": st.sampled_from([NOW, NOW, NOW, NOW + FUTURE, NOW + FUTURE + 1, 5, "now", NOW + 0.5]),
        "version": st.sampled_from(["1", "1", "2", "V 2", "", 3, None]),
    }
    if kind != "features":
        fields["prediction_id"] = st.sampled_from(["a", "b", "", "x" * 201, 7])
    if kind != "labels":
        fields["features"] = features | st.none()
    if kind == "predictions":
        fields |= {
            "prediction": scalars,
            "score": st.none() | st.floats(0, 1) | st.dictionaries(st.text(max_size=1), st.floats(0, 1)) | st.text(),
            "error": st.none() | st.just("e"),
            "origin": st.sampled_from(["live", "shadow", "test"]),
            "bucket": st.none() | st.integers(-1, 1000),
            "entity_id": st.none() | st.text(max_size=2) | st.integers(),
            "request": scalars,
        }
    elif kind == "labels":
        fields |= {
            "label": scalars,
            "deleted": st.booleans(),
            "revision": st.integers(-(2**64), 2**64),
            "prediction_ts": st.none() | st.sampled_from([NOW, NOW + FUTURE, NOW + FUTURE + 1]),
        }
    # Mostly sound: one field drawn freely, or none.
    sound = {
        "model": "churn",
        "ts": NOW,
        "version": "1",
        "prediction_id": "a",
        "label": 1,
        "prediction": 1,
        "features": {},
    }
    document: dict[str, Any] = {name: sound[name] for name in fields if name in sound}
    for name in draw(st.lists(st.sampled_from(sorted(fields)), max_size=3, unique=True)):
        document[name] = draw(fields[name])
    if draw(st.integers(0, 9)) == 0:
        del document[draw(st.sampled_from(sorted(document)))]
    text = json.dumps(document)
    if draw(st.integers(0, 19)) == 0:
        text = text[: draw(st.integers(0, len(text)))]
    if draw(st.integers(0, 19)) == 0:
        text = text[:-1] + draw(st.sampled_from([', "model": "fares"}', ', "version": "4"}', ', "model": "No"}']))
    return text.encode()


@pytest.mark.parametrize("kind", ["predictions", "features", "labels"])
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_in_bulk_is_one_by_one(kind: Kind, data: st.DataObject) -> None:
    raws = data.draw(st.lists(messages(kind), min_size=1, max_size=8))
    decoder = BulkDecoder(CATALOG)
    wanted = [one_by_one(CATALOG, kind, raw) for raw in raws]
    # Three times: the last time the layouts have fields for the names that the others brought.
    for _ in range(3):
        found = in_bulk(decoder, kind, raws)
        for (said, content), (said_alone, alone) in zip(found, wanted, strict=True):
            assert said == said_alone
            if isinstance(content, dict) and isinstance(alone, dict):
                assert content == {name: alone.get(name) for name in content}
            else:
                assert content == alone


def test_an_error_in_the_middle_stops_nothing() -> None:
    events, refused = decode_each(msgspec.json.Decoder(int).decode, [b"1", b"x", b"2", b"", b"3"])
    assert events == [1, None, 2, None, 3]
    assert refused == [1, 3]


def test_a_name_that_is_not_configured_is_learned_when_it_comes_again_and_then_read_fast() -> None:
    decoder = BulkDecoder(catalog_of({}))
    raw = with_features({"age": 1.5, "new": "x"})
    in_bulk(decoder, "predictions", [raw, raw])
    slowly = decoder._slowly
    decoder._slowly = lambda *_: pytest.fail("read the slow way")  # type: ignore[method-assign]
    in_bulk(decoder, "predictions", [raw])
    decoder._slowly = slowly  # type: ignore[method-assign]
    for piece in range(MAX_LEARNED // 100 + 2):
        event = with_features({f"n{piece}-{number}": 1 for number in range(100)})
        in_bulk(decoder, "predictions", [event, event])
    (layout,) = decoder._layouts
    assert len(layout.names) == 2 + MAX_LEARNED


def test_predictions_without_features_are_read_fast_into_their_own_models_structs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = BulkDecoder(CATALOG)
    monkeypatch.setattr(decoder, "_slowly", None)
    raws = [
        json.dumps({"prediction_id": "a", "model": name, "ts": NOW, "prediction": 1}).encode()
        for name in ("churn", "fares")
    ]
    decoded, faults = decoder.decode("predictions", raws, np.full(2, NOW), FUTURE)
    assert not faults
    assert [type(event.features) for event in decoded.events] == [
        decoded.layouts[number].features for number in decoded.model_of
    ]


def test_names_that_come_but_once_are_not_learned_and_not_kept() -> None:
    decoder = BulkDecoder(catalog_of({}))
    for number in range(2 * MAX_LEARNED):
        in_bulk(decoder, "predictions", [with_features({f"n{number}": 1})])
    (layout,) = decoder._layouts
    assert layout.names == ("age", "plan")
    assert max(map(len, decoder._came_once.values())) <= MAX_LEARNED


def test_layouts_that_have_learned_a_name_do_not_keep_those_before_them() -> None:
    decoder = BulkDecoder(catalog_of({}))
    made = []
    for number in range(200):
        made.append(weakref.ref(decoder_layout(decoder).features))
        in_bulk(decoder, "predictions", [with_features({f"n{number}": 1})] * 2)
    gc.collect()
    # msgspec itself remembers the last 64 unions of structs it has made a decoder for.
    assert len([each for each in made if each() is not None]) <= 64


def with_features(features: dict[str, Any]) -> bytes:
    return json.dumps(
        {"prediction_id": "a", "model": "churn", "ts": NOW, "prediction": 1, "features": features}
    ).encode()


def decoder_layout(decoder: BulkDecoder) -> Layout:
    decoder._refresh()
    (layout,) = decoder._layouts
    return layout


def test_a_model_that_is_changed_or_taken_away_is_noticed() -> None:
    catalog = catalog_of({})
    decoder = BulkDecoder(catalog)
    raw = json.dumps({"prediction_id": "a", "model": "churn", "ts": NOW, "prediction": 1}).encode()
    assert in_bulk(decoder, "predictions", [raw])[0][0] == "churn"
    catalog.put_model("churn", config(features={"weight": {"kind": "numeric"}}).to_json())
    decoded, _faults = decoder.decode("predictions", [raw], np.array([NOW]), FUTURE)
    assert "weight" in decoded.layouts[0].names
    catalog.put_model("churn", None)
    assert in_bulk(decoder, "predictions", [raw])[0][1] == "model"


@pytest.mark.parametrize("models", [1, 2])
@pytest.mark.parametrize("kind", ["predictions", "features", "labels"])
@pytest.mark.parametrize("model", [None, "\0", ""])
def test_an_event_that_names_no_model_is_nobodys_however_few_models_there_are(
    kind: Kind, models: int, model: str | None
) -> None:
    catalog = catalog_of(*[{"name": name} for name in ("churn", "other")[:models]])
    event: dict[str, Any] = {"prediction_id": "p", "model": "churn", "ts": T0}
    event |= {"label": True} if kind == "labels" else {"features": {"age": 1.0}}
    event |= {"prediction": True} if kind == "predictions" else {}
    named = json.dumps(event).encode()
    event.pop("model")
    raw = json.dumps(event if model is None else {"model": model, **event}).encode()
    decoded, faults = BulkDecoder(catalog).decode(kind, [named, raw, named], np.full(3, NOW), FUTURE)
    assert decoded.rows is not None
    assert decoded.rows.tolist() == [0, 2]
    assert faults == {1: explain_invalid(raw, kind)}
