"""Sound messages of every raw format, and the ways in which drawn damage is done to them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, NamedTuple

from streamer.decode import Kind
from tests.chaos.faults import ALL, MODEL, Document

REGRESSION = "fares"
# Sound messages lie within a day of here.
_TS = 1_370_000_000_000
_SPREAD_MS = 86_400_000
_CARRIERS = ("UA", "AA", "B6", "DL", "EV")
_VERSIONS = ("1", "1", "1", "2", "_")
# As deep as what no decoder survives, and as long as makes copying it cost something.
_DEPTHS = (1, 2, 10, 500, 2_000, 30_000)
_MAX_DAMAGES = 3

Damage = Callable[[Random, bytes, bytes], bytes]

# Values that a field may hold where another was wanted; JSON text, since some of them no encoder writes.
LITERALS = (
    "null", "true", "false", "0", "-1", "-0.0", "1", "999", "1000", "3.5", "1e3", "1e308", "1e999", "-1e999",
    "9223372036854775807", "9223372036854775808", "-9223372036854775809", "9" * 400, "9" * 5_000, "0." + "3" * 400,
    "1370000000000", "1370000000000.0", "1.37e12", "1370000000", "4102444800000", "01", "+1", ".5", "5.", "0x10",
    "NaN", "Infinity", "-Infinity", "nan", "undefined", "None", "True", "'1'", "", "[]", "[1]", "[null]", "{}",
    '{"a":1}', '{"a":null}', '{"":0.5}', '{"true":0.5,"false":0.5}', '{"a":{"b":1}}', '""', '"1"', '"live"',
    '"shadow"', '"1e3"', '" "', '"\\u0000"', '"\\ud800"', '"\\udfff\\ud800"', '"\\ud83d\\ude00"', '"é"', '"\\n"',
    '"' + "x" * 101 + '"', '"' + "x" * 201 + '"', '"A"', '"a\\n"', '"a b"', '"../../etc"', '"\x7f"', '"\u2028"',
)  # fmt: skip
_BYTES = (
    b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\0", b"\x01", b"\xef\xbb\xbf", b"\\", b'"', b"{",
    b"}", b"[", b"]", b",", b":", b"\\u12", b"\\x41", b"/*", b"//", b"\r\n", b" " * 50, b"\x1f\x8b", b"e", b".", b"-",
)  # fmt: skip


class Named(NamedTuple):
    """Whose event it is: a prediction_id and the model that answered."""

    prediction_id: str
    model: str


def named(series: str, number: int) -> Named:
    """Return the id and model of that number in a series; no damage done once makes another number's id of it."""
    return Named(f"{series}-{number}-{number * 2_654_435_761 % 2**32:08x}", (MODEL, MODEL, REGRESSION)[number % 3])


def sound(random: Random, topic: Kind, whose: Named) -> Document:
    """Return an event that counts."""
    model = whose.model
    event: Document = {
        "prediction_id": whose.prediction_id,
        "model": model,
        "ts": _TS + random.randrange(_SPREAD_MS),
    }
    if topic == "labels":
        return event | _label(random, model)
    event["version"] = random.choice(_VERSIONS)
    event["features"] = {
        "hour": random.randrange(24),
        "carrier": random.choice(_CARRIERS),
        "temp": round(random.gauss(60, 15), 1),
    }
    if topic == "features":
        return event
    event["prediction"] = random.choice(("true", "false")) if model == MODEL else round(random.gauss(100, 30), 2)
    if random.random() < 0.7:
        event["score"] = round(random.random(), 4) if model == MODEL else event["prediction"]
    if random.random() < 0.3:
        event |= {"entity_id": f"user-{random.randrange(97)}", "latency_ms": 7.5}
        event["origin"] = random.choice(("live", "shadow"))
    return event


def _label(random: Random, model: str) -> Document:
    if model == MODEL:
        return {"label": random.choice(("true", "false"))}
    truth = round(random.gauss(100, 30), 2)
    return {"label": truth, "version": "1", "prediction": truth + 1, "prediction_ts": _TS}


def written(event: Document) -> bytes:
    """Return the event as a message."""
    return json.dumps(event, separators=(",", ":")).encode()


def _place(random: Random, raw: bytes) -> int:
    return random.randrange(len(raw) + 1)


def _flipped(random: Random, raw: bytes, _: bytes) -> bytes:
    changed = bytearray(raw)
    for _ in range(random.choice((1, 1, 1, 2, 8))):
        if changed:
            at = random.randrange(len(changed))
            changed[at] = changed[at] ^ (1 << random.randrange(8)) if random.random() < 0.5 else random.randrange(256)
    return bytes(changed)


def _truncated(random: Random, raw: bytes, _: bytes) -> bytes:
    return raw[: _place(random, raw)]


def _beheaded(random: Random, raw: bytes, _: bytes) -> bytes:
    return raw[_place(random, raw) :]


def _gapped(random: Random, raw: bytes, _: bytes) -> bytes:
    at = _place(random, raw)
    return raw[:at] + raw[at + random.randrange(1, 20) :]


def _stuffed(random: Random, raw: bytes, _: bytes) -> bytes:
    at = _place(random, raw)
    return raw[:at] + random.choice(_BYTES) * random.choice((1, 1, 1, 3)) + raw[at:]


def _spliced(random: Random, raw: bytes, other: bytes) -> bytes:
    return raw[: _place(random, raw)] + other[_place(random, other) :]


def _repeated(random: Random, raw: bytes, _: bytes) -> bytes:
    return random.choice((b"", b"\n", b",", b" ")).join([raw] * random.randrange(2, 4))


def _field(random: Random, raw: bytes) -> tuple[Document, str] | None:
    """Return the message as an object with one of its keys; None where earlier damage has made it none."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return (document, random.choice(list(document))) if isinstance(document, dict) and document else None


def _with(document: Mapping[str, Any], key: str, literal: str) -> bytes:
    """Write an object with one value replaced by JSON text."""
    parts = (f"{json.dumps(name)}:{literal if name == key else json.dumps(value)}" for name, value in document.items())
    return f"{{{','.join(parts)}}}".encode()


def _retyped(random: Random, raw: bytes, _: bytes) -> bytes:
    found = _field(random, raw)
    return raw + b"]" if found is None else _with(*found, random.choice(LITERALS))


def _left_out(random: Random, raw: bytes, _: bytes) -> bytes:
    found = _field(random, raw)
    if found is None:
        return raw + b"}"
    document, key = found
    return written({name: value for name, value in document.items() if name != key})


def _doubled(random: Random, raw: bytes, _: bytes) -> bytes:
    """Give a key twice, at either end of the object."""
    found = _field(random, raw)
    if found is None:
        return raw + raw
    again = f"{json.dumps(found[1])}:{random.choice(LITERALS)}".encode()
    inner = raw.strip()[1:-1]
    return b"{" + (again + b"," + inner if random.random() < 0.5 else inner + b"," + again) + b"}"


def _nested(random: Random, raw: bytes, _: bytes) -> bytes:
    found = _field(random, raw)
    depth = random.choice(_DEPTHS)
    opening, closing = random.choice((("[", "]"), ('{"a":', "}")))
    if found is None:
        return opening.encode() * depth + raw
    document, key = found
    ends = closing * depth if random.random() < 0.8 else ""
    return _with(document, key, opening * depth + json.dumps(document[key]) + ends)


def _renamed(random: Random, raw: bytes, other: bytes) -> bytes:
    found = _field(random, raw)
    if found is None:
        return other + raw
    document, key = found
    name = random.choice((key.upper(), key + "_", "", "\ud800", "x" * 300, "label", "score", "ts", "features"))
    return written({name if each == key else each: value for each, value in document.items()})


def _featured(random: Random, raw: bytes, _: bytes) -> bytes:
    """Give a feature an odd value, or one that is odd an odd name."""
    found = _field(random, raw)
    features = None if found is None else found[0].get("features")
    if not isinstance(features, dict):
        return _retyped(random, raw, raw)
    name = random.choice([*features, "", "é", 'q"', "\ud800", "a.b", "x" * 300, "new"])
    inner = _with({**features, name: None}, name, random.choice(LITERALS)).decode()
    return _with(found[0], "features", inner)  # type: ignore[index]


DAMAGES: Mapping[str, Damage] = {
    "bytes flipped": _flipped,
    "end cut off": _truncated,
    "beginning cut off": _beheaded,
    "bytes left out": _gapped,
    "bytes put in": _stuffed,
    "spliced with another": _spliced,
    "several in one": _repeated,
    "a value of another type": _retyped,
    "a field left out": _left_out,
    "a key twice": _doubled,
    "a value nested": _nested,
    "a key renamed": _renamed,
    "an odd feature": _featured,
}


_NAMES = tuple(DAMAGES)


def mutation(random: Random, number: int, neighbour: Named) -> tuple[Kind, str, bytes]:
    """Return a topic, the kind of the first damage, and a damaged message; a label is of a neighbour's prediction."""
    topic = random.choice(ALL)
    raw = written(sound(random, topic, neighbour if topic == "labels" else named("fuzz", number)))
    # Of another topic now and then; its id is nobody's, so that what is spliced together repeats nothing.
    other = written(sound(random, random.choice((topic, *ALL)), named("donor", number)))
    name = random.choice(_NAMES)
    for turn in range(random.choice((1, 1, 1, 2, _MAX_DAMAGES))):
        raw = DAMAGES[name if turn == 0 else random.choice(_NAMES)](random, raw, other)
    return topic, name, raw
