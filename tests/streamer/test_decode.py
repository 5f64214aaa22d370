"""What is no event, and what is said of it; what is odd but is one."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.decode import MAX_EVENT_BYTES, Kind, decode
from streamer.events import Label, Prediction, encode
from streamer.explain import explain_future, explain_invalid, known_field

TS = 1_700_000_000_000
PREDICTION: dict[str, Any] = {"prediction_id": "p1", "model": "m", "ts": TS, "prediction": 1, "features": {"a": 1.5}}
FEATURES: dict[str, Any] = {"model": "m", "ts": TS, "features": {"a": 1.5}}
LABEL: dict[str, Any] = {"prediction_id": "p1", "model": "m", "ts": TS, "label": 1}
GOOD: dict[Kind, dict[str, Any]] = {"predictions": PREDICTION, "features": FEATURES, "labels": LABEL}
ABSENT = object()


def changed(kind: Kind, **changes: Any) -> bytes:
    document = {**GOOD[kind], **changes}
    return json.dumps({name: value for name, value in document.items() if value is not ABSENT}).encode()


def p(**changes: Any) -> tuple[Kind, bytes]:
    return "predictions", changed("predictions", **changes)


def f(**changes: Any) -> tuple[Kind, bytes]:
    return "features", changed("features", **changes)


def l_(**changes: Any) -> tuple[Kind, bytes]:
    return "labels", changed("labels", **changes)


WHOLE_MESSAGE: list[tuple[str, bytes, str]] = [
    ("no bytes", b"", "empty: got no content"),
    ("white space alone", b" \n", "empty: got no content"),
    ("too many bytes", changed("predictions", error="x" * MAX_EVENT_BYTES), "too large: got 1000"),
    ("a schema registry's framing", b"\0\0\0\0\x07abc", "not JSON: got a byte 0 first"),
    ("gzip", b"\x1f\x8b\x08\0abc", "not JSON: got gzip"),
    ("a byte order mark", b"\xef\xbb\xbf" + changed("predictions"), "not JSON: got a byte order mark"),
    ("UTF-16", json.dumps(PREDICTION).encode("utf-16"), "not UTF-8: got the byte 0xff at 0"),
    ("UTF-16 without a mark", json.dumps(PREDICTION).encode("utf-16-le"), "not JSON: "),
    ("Latin-1", '{"model":"é"}'.encode("latin-1"), "not UTF-8: got the byte 0xe9 at 10"),
    ("plain text", b"hello", "not JSON: Expecting value at character 0"),
    ("single quotes", str(PREDICTION).encode(), "not JSON: Expecting property name"),
    ("a trailing comma", b'{"ts":1,}', "not JSON: "),
    ("a control character in text", b'{"model":"\x01"}', "not JSON: Invalid control character"),
    ("cut in the middle of an object", changed("predictions")[:-1], "truncated: got an end"),
    ("cut in the middle of text", b'{"model":"fli', "truncated: got an end"),
    ("two objects in one message", changed("predictions") * 2, "several values: got more after the first"),
    ("objects a line each", changed("predictions") + b"\n" + changed("predictions"), "several values: "),
    ("an array", b"[1,2,3]", "not an object: got an array of 3"),
    ("a number", b"5", "not an object: got a number"),
    ("null", b"null", "not an object: got null"),
    ("JSON in JSON", json.dumps(json.dumps(PREDICTION)).encode(), "not an object: got text of 99 characters (encoded"),
    (
        "thousands of digits",
        b'{"model":"m","ts":' + b"9" * 5_000 + b"}",
        "not JSON that can be used: got a number of th",
    ),
    ("nested without end", b'{"features":' + b"[" * 100_000, "not JSON that can be used: nested too deeply"),
    ("NaN and then an end", b'{"ts":NaN,"model":"m"', "truncated: got an end inside the object"),
    ("NaN and then no JSON", b'{"ts":NaN,"model":}', "not JSON: Expecting value at character 18"),
    ("NaN and then another object", b'{"ts":NaN}{"ts":NaN}', "several values: got more after the first"),
    ("NaN and then nesting", b'{"ts":-Infinity,"x":' + b"[" * 100_000, "not JSON that can be used: nested too"),
    ("NaN in an array", b"[NaN]", "got NaN, which JSON does not have"),
]

FIELDS: list[tuple[str, tuple[Kind, bytes], str, str]] = [
    ("no model", p(model=ABSENT), "model", "missing: got no model, wanted a name"),
    ("no ts", l_(ts=ABSENT), "ts", "missing: got no ts, wanted a whole number of epoch"),
    ("no id", l_(prediction_id=ABSENT), "prediction_id", "missing: got no prediction_id"),
    ("no features", f(features=ABSENT), "features", "missing: got no features, wanted"),
    ("an empty object", ("predictions", b"{}"), "prediction_id", "missing: got no prediction_id"),
    ("ts as text", p(ts="2023-11-14"), "ts", "got text of 10 characters, wanted"),
    ("ts as a boolean", p(ts=True), "ts", "got a boolean, wanted a whole"),
    ("ts null", p(ts=None), "ts", "got null, wanted a whole"),
    ("ts with a fraction", p(ts=TS + 0.5), "ts", f"got {TS}.5, which is not whole"),
    ("ts in seconds", p(ts=1_700_000_000), "ts", "got 1700000000, which looks like s"),
    ("ts in microseconds", l_(ts=TS * 1000), "ts", "got 1700000000000000, which looks like mic"),
    ("ts in nanoseconds", l_(ts=TS * 10**6), "ts", "got 1700000000000000000, which looks like n"),
    ("ts negative", f(ts=-1), "ts", "got -1, which is before 1970, wanted"),
    ("ts of 30 digits", f(ts=int("9" * 30)), "ts", "got 9999999999"),
    ("prediction_ts in seconds", l_(prediction_ts=17 * 10**8), "prediction_ts", "got 1700000000,"),
    ("a bad name", p(model="My Model"), "model", "got text of 8 characters, among them"),
    ("a name too long", p(model="m" * 101), "model", "got text of 101 characters, w"),
    ("an empty name", p(model=""), "model", "got text of 0 characters, wanted a name"),
    ("a name with a line end", p(version="v1\n"), "version", "got text of 3 characters, among them '\\n'"),
    ("version as a number", p(version=3), "version", "got a number, wanted a name"),
    ("version null", p(version=None), "version", "got null, wanted a name"),
    ("id as a number", p(prediction_id=7), "prediction_id", "got a number, wanted text"),
    ("id empty", l_(prediction_id=""), "prediction_id", "got text of 0 characters, wanted text"),
    ("id too long", l_(prediction_id="x" * 201), "prediction_id", "got text of 201 characters"),
    ("features an array", p(features=[1]), "features", "got an array of 1, wanted an"),
    ("features null", p(features=None), "features", "got null, wanted an object"),
    ("a nested feature", p(features={"ok": 1, "geo": {"x": 1}}), "features.geo",
     "got an object of 1, wanted a number, text, a boolean or null"),
    ("a feature that is an array", f(features={"v": [1, 2]}), "features.v", "got an array of 2"),
    ("a feature that is NaN", p(features={"a": math.nan}), "features.a", "got NaN, which J"),
    ("a feature that is infinite", f(features={"b": -math.inf}), "features.b", "got -Infinity"),
    ("a feature beyond 64 bits", ("features", b'{"model":"m","ts":1700000000000,"features":{"a":1e999}}'),
     "features.a", "got a number too large for 64 bits, wanted a number"),
    ("score text", p(score="0.5"), "score", "got text of 3 characters, wanted a number"),
    ("score a boolean", p(score=True), "score", "got a boolean, wanted a number"),
    ("score of a class is text", p(score={"a": 0.5, "b": "x"}), "score.b", "got text of 1"),
    ("score NaN", p(score=math.nan), "score", "got NaN, which JSON does not have"),
    ("prediction an array", p(prediction=[1]), "prediction", "got an array of 1, wanted"),
    ("neither prediction nor error", p(prediction=None), "prediction",
     "got null, wanted a prediction, or an error"),
    ("prediction absent", p(prediction=ABSENT), "prediction", "got null, wanted a pred"),
    ("an unknown origin", p(origin="test"), "origin", "got text of 4 characters, wanted one"),
    ("bucket out of range", p(bucket=1000), "bucket", "got 1000, wanted a whole number from"),
    ("bucket negative", p(bucket=-1), "bucket", "got -1, wanted a whole number from 0"),
    ("bucket a fraction", p(bucket=1.5), "bucket", "got 1.5, wanted a whole number"),
    ("latency text", p(latency_ms="12ms"), "latency_ms", "got text of 4 characters"),
    ("entity a number", p(entity_id=5), "entity_id", "got a number, wanted text or null"),
    ("error a boolean", p(error=False), "error", "got a boolean, wanted text or null"),
    ("half a surrogate pair", p(entity_id="\ud800"), "entity_id", "got half a surrogate"),
    ("label null", l_(label=None), "label", "got null, wanted a label, or deleted = true"),
    ("label absent", l_(label=ABSENT), "label", "got null, wanted a label, or deleted = true"),
    ("label an object", l_(label={"y": 1}), "label", "got an object of 1, wanted a number"),
    ("deleted a number", l_(deleted=1), "deleted", "got a number, wanted true or false"),
    ("revision text", l_(revision="2"), "revision", "got text of 1 characters, wanted a whole"),
    ("revision beyond 64 bits", l_(revision=2**63), "revision", "got 9223372036854775808, wanted"),
    ("value text", l_(value="1"), "value", "got text of 1 characters, wanted a number or null"),
]  # fmt: skip


def refused(raw: bytes, kind: Kind) -> tuple[str, str]:
    with pytest.raises((msgspec.DecodeError, ValueError)):
        decode(raw, kind)
    return explain_invalid(raw, kind)


@pytest.mark.parametrize("kind", ["predictions", "features", "labels"])
@pytest.mark.parametrize(
    ("raw", "reason"), [case[1:] for case in WHOLE_MESSAGE], ids=[case[0] for case in WHOLE_MESSAGE]
)
def test_a_message_that_is_no_object_is_explained_as_a_whole(kind: Kind, raw: bytes, reason: str) -> None:
    explained, field = refused(raw, kind)
    assert explained.startswith(reason)
    assert field == ""


@pytest.mark.parametrize(
    ("message", "field", "reason"), [case[1:] for case in FIELDS], ids=[case[0] for case in FIELDS]
)
def test_a_wrong_field_is_named_with_what_was_got_and_wanted(
    message: tuple[Kind, bytes], field: str, reason: str
) -> None:
    kind, raw = message
    explained, named = refused(raw, kind)
    assert named == field
    assert explained.startswith(reason)
    assert "got " in explained
    assert "wanted " in explained


ODD: list[tuple[str, tuple[Kind, bytes]]] = [
    ("unknown fields", p(request={"deep": [1, {"x": None}]})),
    ("a null feature", p(features={"a": None})),
    ("a new category", f(features={"carrier": "ZZ-never-seen"})),
    ("a feature of another kind", f(features={"a": "text", "b": True})),
    ("no feature at all", p(features={})),
    ("features absent", p(features=ABSENT)),
    ("a huge number", p(features={"a": 1e300, "b": 10**40})),
    ("a prediction that failed", p(prediction=None, error="timeout")),
    ("a score outside 0 to 1", p(score=-7.5)),
    ("a score a class", p(score={"a": 0.25, "b": 0.75})),
    ("a negative latency", p(latency_ms=-1)),
    ("a label taken back", l_(label=None, deleted=True)),
    ("a negative revision", l_(revision=-3)),
    ("a key twice", ("labels", changed("labels")[:-1] + b', "label": 0}')),
    ("white space around", ("labels", b"\n " + changed("labels") + b"\n")),
]  # fmt: skip


@pytest.mark.parametrize("message", [case[1] for case in ODD], ids=[case[0] for case in ODD])
def test_what_is_valid_but_odd_is_an_event(message: tuple[Kind, bytes]) -> None:
    kind, raw = message
    assert decode(raw, kind).model == "m"
    with pytest.raises(ValueError, match="nothing is wrong"):
        explain_invalid(raw, kind)


def test_no_reason_quotes_the_data() -> None:
    secret = "alice@example.org"
    for raw in (
        changed("predictions", features={"mail": [secret]}),
        changed("predictions", score=secret),
        changed("predictions", entity_id=[secret]),
        changed("predictions", origin=secret),
        f'{{"mail": "{secret}"'.encode(),
    ):
        reason, field = explain_invalid(raw, "predictions")
        assert "alice" not in reason + field


@given(
    st.one_of(
        st.binary(max_size=60),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from([*PREDICTION, "score", "label", "revision", "x"]), inner, max_size=6)
            ),
        ).map(lambda document: json.dumps(document).encode()),
    ),
    st.sampled_from(["predictions", "features", "labels"]),
)
def test_every_message_is_decoded_or_explained(raw: bytes, kind: Kind) -> None:
    try:
        decode(raw, kind)
    except (msgspec.DecodeError, ValueError):
        reason, _field = explain_invalid(raw, kind)
        assert reason


def test_what_we_encode_we_decode() -> None:
    prediction = Prediction(prediction_id="p", model="m", ts=TS, prediction="yes", score=0.5, features={"a": None})
    assert decode(encode(prediction), "predictions") == prediction
    label = Label(prediction_id="p", model="m", ts=TS, deleted=True)
    assert decode(encode(label), "labels") == label


def test_a_time_too_far_ahead_of_its_record_is_explained() -> None:
    just = Label(prediction_id="p", model="m", ts=TS + 1_000, label=1, prediction_ts=TS + 1_000)
    assert explain_future(just, TS, 1_000) is None
    for field in ("ts", "prediction_ts"):
        explained = explain_future(msgspec.structs.replace(just, **{field: TS + 1_001}), TS, 1_000)
        assert explained is not None
        assert explained[1] == field
        assert explained[0].startswith(f"got {TS + 1001}, 1001 ms ahead of its record, wanted at most {TS + 1000}")


def test_a_metric_s_field_is_one_of_the_contract() -> None:
    assert [known_field(field) for field in ("", "ts", "features.a.b", "score.yes")] == ["", "ts", "features", "score"]
    assert known_field(explain_invalid(b'{"anything": NaN}', "labels")[1]) == ""
