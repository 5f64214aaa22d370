"""What can be wrong with a message, and what a dead letter must say of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from streamer.decode import Kind

Document = dict[str, Any]
Make = Callable[[Document], bytes | None]

ALL: tuple[Kind, ...] = ("predictions", "features", "labels")
PREDICTIONS: tuple[Kind, ...] = ("predictions",)
FEATURES: tuple[Kind, ...] = ("features",)
LABELS: tuple[Kind, ...] = ("labels",)
BOTH: tuple[Kind, ...] = ("predictions", "features")
JOINED: tuple[Kind, ...] = ("predictions", "labels")

MODEL = "flight_delay"
# A moment of the replay: if garbage were counted, it would show.
_TS = 1_370_000_000_000
# 2100: beyond every clock.
_FUTURE = 4_102_444_800_000
_MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Fault:
    """One kind of malformed message.

    Attributes
    ----------
    make : makes it from the number of the message, so that no two are alike where the fault allows it.
    reason : how the dead letter's reason begins. field : its field, "" when it is the whole message.
    large : megabytes; one of it is enough.
    """

    name: str
    topic: Kind
    make: Callable[[int], bytes | None]
    reason: str
    field: str = ""
    large: bool = False


def good(topic: Kind, number: int) -> Document:
    """Return an event that would count."""
    event: Document = {"prediction_id": f"garbage-{number}", "model": MODEL, "ts": _TS}
    if topic == "labels":
        return {**event, "label": True}
    event |= {"version": "1", "features": {"hour": 7, "carrier": "UA", "temp": 60.5}}
    return event if topic == "features" else {**event, "prediction": "true", "score": 0.5}


def changed(**changes: Any) -> Make:
    """Make the event with other values."""
    return lambda event: _json({**event, **changes})


def without(field: str) -> Make:
    """Make the event without a field."""
    return lambda event: _json({name: value for name, value in event.items() if name != field})


def written(field: str, literal: str) -> Make:
    """Make the event with a value that `json.dumps` would not write."""
    return lambda event: _json({**event, field: "@"}).replace(b'"@"', literal.encode())


def _json(document: object) -> bytes:
    return json.dumps(document).encode()


def _nested(depth: int) -> str:
    return "[" * depth + "]" * depth


# Name, how it is made of a good event, how the reason begins.
_WHOLE: Sequence[tuple[str, Make, str]] = (
    ("nothing at all", lambda _: None, "empty: got no content"),
    ("no bytes", lambda _: b"", "empty: got no content"),
    ("white space", lambda _: b" \r\n\t", "empty: got no content"),
    ("plain text", lambda _: b"hello", "not JSON: Expecting value at character 0"),
    ("single quotes", lambda event: str(event).encode(), "not JSON: Expecting property name"),
    ("a trailing comma", lambda event: _json(event)[:-1] + b",}", "not JSON: "),
    ("a comment", lambda event: b"// an event\n" + _json(event), "not JSON: Expecting value"),
    ("a control character", lambda event: _json(event)[:-1] + b',"x":"\x01"}', "not JSON: Invalid control character"),
    ("cut before its end", lambda event: _json(event)[:-1], "truncated: got an end"),
    ("cut inside a text", lambda event: _json(event)[:12], "truncated: got an end"),
    ("two objects", lambda event: _json(event) * 2, "several values: got more after the first"),
    ("an object a line", lambda event: _json(event) + b"\n" + _json(event), "several values: got more"),
    ("an array of events", lambda event: _json([event]), "not an object: got an array of 1"),
    ("a number", lambda _: b"5", "not an object: got a number"),
    ("null", lambda _: b"null", "not an object: got null"),
    ("JSON in JSON", lambda event: _json(_json(event).decode()), "not an object: got text of"),
    ("invalid UTF-8", lambda event: _json(event).replace(b"garbage", b"\xff"), "not UTF-8: got the byte 0xff at"),
    ("Latin-1", lambda _: '{"model":"é"}'.encode("latin-1"), "not UTF-8: got the byte 0xe9 at 10"),
    ("UTF-16", lambda event: json.dumps(event).encode("utf-16"), "not UTF-8: got the byte 0xff at 0"),
    ("a byte order mark", lambda event: b"\xef\xbb\xbf" + _json(event), "not JSON: got a byte order mark"),
    ("a registry's framing", lambda event: b"\0\0\0\0\x07" + _json(event), "not JSON: got a byte 0 first"),
    ("gzip", lambda _: b"\x1f\x8b\x08\0abc", "not JSON: got gzip"),
    ("a broken Arrow stream", lambda _: b"\xff\xff\xff\xff\x10\0\0\0", "not an Arrow stream that can be read: "),
    ("nested without end", lambda _: b'{"features":' + b"[" * 20_000, "not JSON that can be used: nested too deeply"),
    ("nested deeply", written("features", _nested(5_000)), "not JSON that can be used: nested too deeply"),
    ("thousands of digits", written("ts", "9" * 5_000), "not JSON that can be used: got a number of thousands"),
)

# Name, topics, how it is made, the field, how the reason begins.
_FIELDS: Sequence[tuple[str, tuple[Kind, ...], Make, str, str]] = (
    ("no prediction_id", JOINED, without("prediction_id"), "prediction_id", "missing: got no prediction_id, wanted"),
    ("no model", ALL, without("model"), "model", "missing: got no model, wanted a name"),
    ("no ts", ALL, without("ts"), "ts", "missing: got no ts, wanted a whole number"),
    ("no features", FEATURES, without("features"), "features", "missing: got no features, wanted an object"),
    ("no prediction", PREDICTIONS, without("prediction"), "prediction", "got null, wanted a prediction, or an error"),
    ("no label", LABELS, without("label"), "label", "got null, wanted a label, or deleted = true"),
    ("an empty object", JOINED, lambda _: b"{}", "prediction_id", "missing: got no prediction_id"),
    ("prediction_id a number", JOINED, changed(prediction_id=7), "prediction_id", "got a number, wanted text of 1 to"),
    ("prediction_id empty", JOINED, changed(prediction_id=""), "prediction_id", "got text of 0 characters, wanted"),
    ("prediction_id long", JOINED, changed(prediction_id="x" * 201), "prediction_id", "got text of 201 characters"),
    ("model a number", ALL, changed(model=7), "model", "got a number, wanted a name"),
    ("model null", ALL, changed(model=None), "model", "got null, wanted a name"),
    ("model empty", ALL, changed(model=""), "model", "got text of 0 characters, wanted a name"),
    ("model long", ALL, changed(model="m" * 101), "model", "got text of 101 characters, wanted a name"),
    ("model in capitals", ALL, changed(model="Flight Delay"), "model", "got text of 12 characters, among them ' DF'"),
    ("model of nobody", ALL, changed(model="nobody"), "model", "model: got 'nobody', which is not configured"),
    ("version a number", BOTH, changed(version=1), "version", "got a number, wanted a name"),
    ("version null", BOTH, changed(version=None), "version", "got null, wanted a name"),
    ("version with a space", BOTH, changed(version="1 b"), "version", "got text of 3 characters, among them ' '"),
    ("ts null", ALL, changed(ts=None), "ts", "got null, wanted a whole number"),
    ("ts a text", ALL, changed(ts="2013-05-31"), "ts", "got text of 10 characters, wanted a whole number"),
    ("ts a boolean", ALL, changed(ts=True), "ts", "got a boolean, wanted a whole number"),
    ("ts a fraction", ALL, changed(ts=_TS + 0.5), "ts", f"got {_TS}.5, which is not whole"),
    ("ts negative", ALL, changed(ts=-_TS), "ts", f"got -{_TS}, which is before 1970"),
    ("ts in seconds", ALL, changed(ts=_TS // 1000), "ts", f"got {_TS // 1000}, which looks like seconds"),
    ("ts in microseconds", ALL, changed(ts=_TS * 1000), "ts", f"got {_TS * 1000}, which looks like microseconds"),
    ("ts in nanoseconds", ALL, changed(ts=_TS * 10**6), "ts", f"got {_TS * 10**6}, which looks like nanoseconds"),
    ("ts of 30 digits", ALL, written("ts", "9" * 30), "ts", "got 9999999999"),
    ("ts NaN", ALL, changed(ts=math.nan), "ts", "got NaN, which JSON does not have"),
    ("ts far ahead", ALL, changed(ts=_FUTURE), "ts", f"got {_FUTURE}, "),
    ("features null", BOTH, changed(features=None), "features", "got null, wanted an object of features"),
    ("features an array", BOTH, changed(features=[1]), "features", "got an array of 1, wanted an object of features"),
    ("features a text", BOTH, changed(features="{}"), "features", "got text of 2 characters, wanted an object"),
    ("a feature an object", BOTH, changed(features={"ok": 1, "at": {"x": 1}}), "features.at", "got an object of 1"),
    ("a feature an array", BOTH, changed(features={"hour": [7]}), "features.hour", "got an array of 1, wanted"),
    ("a feature NaN", BOTH, changed(features={"temp": math.nan}), "features.temp", "got NaN, which JSON does not have"),
    ("a feature infinite", BOTH, changed(features={"temp": math.inf}), "features.temp", "got Infinity, which JSON"),
    ("a feature -infinite", BOTH, changed(features={"temp": -math.inf}), "features.temp", "got -Infinity, which JSON"),
    ("a feature too large", BOTH, written("features", '{"temp":1e999}'), "features.temp", "got a number too large"),
    ("prediction an array", PREDICTIONS, changed(prediction=[1]), "prediction", "got an array of 1, wanted a number"),
    ("prediction NaN", PREDICTIONS, changed(prediction=math.nan), "prediction", "got NaN, which JSON does not have"),
    ("score a text", PREDICTIONS, changed(score="0.5"), "score", "got text of 3 characters, wanted a number"),
    ("score a boolean", PREDICTIONS, changed(score=True), "score", "got a boolean, wanted a number"),
    ("score NaN", PREDICTIONS, changed(score=math.nan), "score", "got NaN, which JSON does not have"),
    ("score of a class", PREDICTIONS, changed(score={"true": "x"}), "score.true", "got text of 1 characters, wanted a"),
    ("entity_id a number", BOTH, changed(entity_id=5), "entity_id", "got a number, wanted text or null"),
    ("half a surrogate", BOTH, changed(entity_id="\ud800"), "entity_id", "got half a surrogate pair"),
    ("origin unknown", PREDICTIONS, changed(origin="test"), "origin", "got text of 4 characters, wanted one of live"),
    ("rollout_id a number", PREDICTIONS, changed(rollout_id=1), "rollout_id", "got a number, wanted text or null"),
    ("bucket of 1,000", PREDICTIONS, changed(bucket=1000), "bucket", "got 1000, wanted a whole number from 0 to 999"),
    ("bucket negative", PREDICTIONS, changed(bucket=-1), "bucket", "got -1, wanted a whole number from 0 to 999"),
    ("latency_ms a text", PREDICTIONS, changed(latency_ms="12ms"), "latency_ms", "got text of 4 characters, wanted"),
    ("error a boolean", PREDICTIONS, changed(error=False), "error", "got a boolean, wanted text or null"),
    ("label null", LABELS, changed(label=None), "label", "got null, wanted a label, or deleted = true"),
    ("label an object", LABELS, changed(label={"late": 1}), "label", "got an object of 1, wanted a number"),
    ("label infinite", LABELS, changed(label=math.inf), "label", "got Infinity, which JSON does not have"),
    ("value a text", LABELS, changed(value="1"), "value", "got text of 1 characters, wanted a number or null"),
    ("revision a text", LABELS, changed(revision="2"), "revision", "got text of 1 characters, wanted a whole number"),
    ("revision too large", LABELS, changed(revision=2**63), "revision", f"got {2**63}, wanted a whole number of 64"),
    ("deleted a number", LABELS, changed(deleted=1), "deleted", "got a number, wanted true or false"),
    ("prediction_ts far ahead", LABELS, changed(prediction_ts=_FUTURE), "prediction_ts", f"got {_FUTURE}, "),
    ("prediction_ts in seconds", LABELS, changed(prediction_ts=_TS // 1000), "prediction_ts", f"got {_TS // 1000}, "),
)  # fmt: skip

_LARGE: Sequence[tuple[str, tuple[Kind, ...], int]] = (
    ("of a megabyte", ALL, _MEGABYTE),
    ("as large as a letter can be", PREDICTIONS, 7_900_000),
    ("larger than a letter can be", JOINED, 12 * _MEGABYTE),
)


def _fault(name: str, topic: Kind, make: Make, reason: str, field: str = "") -> Fault:
    return Fault(name, topic, lambda number: make(good(topic, number)), reason, field)


def _oversized(name: str, topic: Kind, size: int) -> Fault:
    return Fault(
        name, topic, lambda number: _json({**good(topic, number), "error": "x" * size}), "too large: got", large=True
    )


FAULTS: tuple[Fault, ...] = (
    *(_fault(name, topic, make, reason) for name, make, reason in _WHOLE for topic in ALL),
    *(_fault(name, topic, make, reason, field) for name, topics, make, field, reason in _FIELDS for topic in topics),
    *(_oversized(name, topic, size) for name, topics, size in _LARGE for topic in topics),
)


def mixture(messages: int, random: Random) -> list[Fault]:
    """Return so many faults in random order: each of `FAULTS` once, as far as they go, then any that is not large."""
    once = list(FAULTS)
    random.shuffle(once)
    small = [fault for fault in FAULTS if not fault.large]
    chosen = once[:messages] + random.choices(small, k=max(messages - len(once), 0))
    random.shuffle(chosen)
    return chosen
