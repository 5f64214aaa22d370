"""What is wrong with a message that cannot be used: which field, what came and what was wanted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import msgspec

from streamer.decode import MAX_EVENT_BYTES, Event, Kind, decode
from streamer.events import EARLIEST_MS, LATEST_MS

_NAME = "a name of 1 to 100 of a-z, 0-9, '.', '_' and '-'"
_EPOCH_MS = f"a whole number of epoch milliseconds from {EARLIEST_MS} (1973) to {LATEST_MS} (2200)"
_SCALAR = "a number, text, a boolean or null"
_SCORE = "a number, an object of numbers by class, or null"
_TEXT_OR_NULL = "text or null"
_WANTED = {
    "prediction_id": "text of 1 to 200 characters",
    "model": _NAME,
    "version": _NAME,
    "ts": _EPOCH_MS,
    "prediction_ts": f"{_EPOCH_MS}, or null",
    "features": f"an object of features, each {_SCALAR}",
    "prediction": _SCALAR,
    "previous": _SCALAR,
    "label": _SCALAR,
    "score": _SCORE,
    "value": "a number or null",
    "latency_ms": "a number or null",
    "origin": "one of live, shadow, backfill",
    "bucket": "a whole number from 0 to 999, or null",
    "revision": "a whole number of 64 bits",
    "deleted": "true or false",
    "entity_id": _TEXT_OR_NULL,
    "rollout_id": _TEXT_OR_NULL,
    "error": _TEXT_OR_NULL,
}
# Numbers that say nothing of the data itself: they may be shown, where dead letters are redacted too.
_SHOWN = frozenset({"ts", "prediction_ts", "bucket", "revision"})
_NAMES = frozenset({"model", "version"})
# How msgspec ends its messages: the field, and whether something inside it is meant.
_PATH = re.compile(r" - at `\$\.(\w+)(\[\.\.\.\])?`$")
_MISSING = re.compile(r"missing required field `(\w+)`$")
_HALF_PAIR = re.compile("[\ud800-\udfff]")
# An event has three levels; what Python's parser can take depends on who calls it.
_MAX_DEPTH = 100
# A text to its end, or to that of the message, so that no byte is looked at twice.
_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_LEVELS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def explain_invalid(raw: bytes, kind: Kind) -> tuple[str, str]:
    """Return why `decode` refuses a message.

    The slow path: taken for dead letters alone. Nothing of the data is quoted but times, buckets and
    revisions, so the reason may stand where dead letters are redacted.

    Returns
    -------
    reason : "<what> in words: got …, wanted …".
    field : the field that is wrong, `features.<name>` for one feature; "" when it is the whole message.

    Raises
    ------
    ValueError
        Nothing is wrong with the message.
    """
    unreadable = _explain_bytes(raw)
    if unreadable is not None:
        return unreadable, ""
    text = raw.decode()
    literals: list[_Literal] = []

    def note(name: str) -> _Literal:
        literals.append(_Literal(name))
        return literals[-1]

    if is_deep(raw):
        return "not JSON that can be used: nested too deeply, wanted a flat object", ""
    try:
        # NaN and its like are noted and not refused: what comes after them may be no JSON either.
        document = json.loads(text, parse_constant=note)
    except ValueError as error:
        return _explain_syntax(text, error), ""
    if literals:
        first = literals[0].name
        return f"got {first}, which JSON does not have, wanted null for a missing number", _field_of(document, first)
    if not isinstance(document, dict):
        twice = " (encoded as JSON twice?)" if isinstance(document, str) and document.lstrip()[:1] == "{" else ""
        return f"not an object: got {_described(document)}{twice}, wanted a JSON object", ""
    try:
        decode(raw, kind)
    except (msgspec.DecodeError, ValueError) as error:
        return _explain_field(document, kind, str(error))
    raise ValueError(f"{kind}: nothing is wrong with this message")


def explain_future(event: Event, record_ms: int, max_future_ms: int) -> tuple[str, str] | None:
    """Return why an event with a time too far ahead of its record's own is refused, and the field; None if it is not.

    A label's `prediction_ts` makes the pane it counts in, where labels bring their context.
    """
    limit = record_ms + max_future_ms
    for field in ("ts", "prediction_ts"):
        ts: int | None = getattr(event, field, None)
        if ts is not None and ts > limit:
            ahead = f"{ts - record_ms} ms ahead of its record"
            return f"got {ts}, {ahead}, wanted at most {limit} (worker.max_future_ms)", field
    return None


def explain_unknown(model: str) -> tuple[str, str]:
    """Return why an event of a model that is not configured is refused, and the field."""
    return f"model: got {model!r}, which is not configured; publish its file: driftloop models apply FILE", "model"


def known_field(field: str) -> str:
    """Return the contract's field that a dead letter's field is, or is inside of; "" for any other name.

    Names are the sender's, without end: a metric has room for the contract's own.
    """
    name = field.partition(".")[0]
    return name if name in _WANTED else ""


class _Literal(NamedTuple):
    """NaN, Infinity or -Infinity, where a value should be."""

    name: str


def _explain_bytes(raw: bytes) -> str | None:
    """Say what is wrong with a message before it is looked at as JSON."""
    if not raw.strip():
        return "empty: got no content, wanted a JSON object"
    if len(raw) > MAX_EVENT_BYTES:
        return f"too large: got {len(raw)} bytes, wanted at most {MAX_EVENT_BYTES}; send many events as an Arrow stream"
    if raw[0] == 0:
        return "not JSON: got a byte 0 first (a schema registry's framing?), wanted a JSON object"
    if raw[:2] == b"\x1f\x8b":
        return "not JSON: got gzip, wanted a JSON object; let Kafka's producer compress"
    if raw[:3] == b"\xef\xbb\xbf":
        return "not JSON: got a byte order mark first, wanted a JSON object"
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return f"not UTF-8: got the byte 0x{raw[error.start]:02x} at {error.start}, wanted JSON in UTF-8"
    return None


def is_deep(raw: bytes) -> bool:
    """Tell whether JSON's brackets stand in one another deeper than any message of ours, or than one can be shown.

    The time it takes grows with the length alone.
    """
    if raw.count(b"[") + raw.count(b"{") <= _MAX_DEPTH:
        return False
    brackets = _TEXT.sub(b"", raw).translate(None, _NO_BRACKETS)
    return any(level > _MAX_DEPTH for level in accumulate(map(_LEVELS.__getitem__, brackets)))


def _explain_syntax(text: str, error: ValueError) -> str:
    if not isinstance(error, json.JSONDecodeError):
        return "not JSON that can be used: got a number of thousands of digits, wanted one of 64 bits"
    if error.msg == "Extra data":
        return f"several values: got more after the first, at character {error.pos}, wanted one JSON object a message"
    # An unfinished text is reported where it began.
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
        return f"truncated: got an end inside the object, after {len(text)} characters, wanted the rest of it"
    return f"not JSON: {error.msg} at character {error.pos}, wanted a JSON object"


def _field_of(document: object, literal: str) -> str:
    """Return the first field whose value is, or holds, the literal NaN or Infinity."""
    for field, value in document.items() if isinstance(document, dict) else ():
        if value == _Literal(literal):
            return str(field)[:100]
        for name, inner in value.items() if isinstance(value, dict) else ():
            if inner == _Literal(literal):
                return f"{field[:100]}.{name[:100]}"
    return ""


def _explain_field(document: dict[str, Any], kind: Kind, error: str) -> tuple[str, str]:
    """Put the decoder's error in terms of the contract."""
    missing = _MISSING.search(error)
    if missing is not None:
        return f"missing: got no {missing[1]}, wanted {_WANTED[missing[1]]}", missing[1]
    path = _PATH.search(error)
    if path is not None:
        field, value = path[1], document.get(path[1])
        if path[2] and isinstance(value, dict):
            return _explain_inside(field, value)
        if field == "features" and kind == "features" and field not in document:
            return f"missing: got no features, wanted {_WANTED['features']}", field
        return f"got {_described(value, field)}, wanted {_WANTED[field]}", field
    for field, value in document.items():
        if any(_HALF_PAIR.search(text) for text in _texts(field, value)):
            return "got half a surrogate pair, wanted text that is Unicode", field if field in _WANTED else ""
    if kind == "predictions":
        return "got null, wanted a prediction, or an error that says why there is none", "prediction"
    if kind == "labels" and document.get("label") is None:
        return "got null, wanted a label, or deleted = true to take one back", "label"
    return f"got {_described(document.get('revision'), 'revision')}, wanted {_WANTED['revision']}", "revision"


def _explain_inside(field: str, values: dict[str, Any]) -> tuple[str, str]:
    """Name the entry of features or score that is no value."""
    usable: Callable[[Any], bool] = _is_scalar if field == "features" else _is_number
    wanted = _SCALAR if field == "features" else "a number"
    name, value = next(((name, value) for name, value in values.items() if not usable(value)), ("", None))
    return f"got {_described(value)}, wanted {wanted}", f"{field}.{name[:100]}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) != float("inf")


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | bool) or _is_number(value)


def _texts(field: str, value: Any) -> list[str]:
    inner = [text for pair in value.items() for text in pair] if isinstance(value, dict) else [value]
    return [text for text in (field, *inner) if isinstance(text, str)]


def _described(value: Any, field: str = "") -> str:
    """Say what a value is without quoting it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return _number(value, field)
    if isinstance(value, str):
        return _text(value, field)
    return f"an array of {len(value)}" if isinstance(value, list) else f"an object of {len(value)}"


def _number(value: float, field: str) -> str:
    if isinstance(value, float) and abs(value) == float("inf"):
        return "a number too large for 64 bits"
    if field not in _SHOWN:
        return "a number"
    if field not in {"ts", "prediction_ts"}:
        return str(value)[:40]
    if value < 0:
        return f"{str(value)[:40]}, which is before 1970"
    if value < EARLIEST_MS:
        return f"{value}, which looks like seconds"
    if value <= LATEST_MS:
        return f"{value}, which is not whole"
    return f"{str(value)[:40]}, which looks like {'microseconds' if value < 10**17 else 'nanoseconds'}"


def _text(value: str, field: str) -> str:
    if field in _NAMES:
        odd = sorted(set(re.sub("[a-z0-9._-]", "", value)))[:5]
        return f"text of {len(value)} characters" + (f", among them {''.join(odd)!r}" if odd else "")
    return f"text of {len(value)} characters"
