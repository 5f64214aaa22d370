"""The columns of a batch of events, as an Arrow IPC stream carries them: the contract, without Arrow itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from streamer.decode import Kind

# How an encapsulated IPC stream begins, which no JSON does, and how it ends.
BEGIN = b"\xff\xff\xff\xff"
END = b"\xff\xff\xff\xff\0\0\0\0"

Form = Literal["text", "whole", "number", "flag", "scalar", "score", "features"]

WANTED: Mapping[Form, str] = {
    "text": "utf8, plain or dictionary-encoded",
    "whole": "an integer",
    "number": "an integer or a floating-point number",
    "flag": "bool",
    "scalar": "an integer, a floating-point number, utf8 (plain or dictionary-encoded) or bool",
    "score": "a number, or a struct of numbers by class",
    "features": "a struct with a child a feature",
}


class Wanted(NamedTuple):
    """What a column holds, and whether a batch must have it."""

    form: Form
    required: bool = False


COLUMNS: Mapping[Kind, Mapping[str, Wanted]] = {
    "predictions": {
        "prediction_id": Wanted("text", required=True),
        "model": Wanted("text", required=True),
        "ts": Wanted("whole", required=True),
        "version": Wanted("text"),
        "features": Wanted("features"),
        "prediction": Wanted("scalar"),
        "score": Wanted("score"),
        "entity_id": Wanted("text"),
        "origin": Wanted("text"),
        "rollout_id": Wanted("text"),
        "bucket": Wanted("whole"),
        "latency_ms": Wanted("number"),
        "error": Wanted("text"),
    },
    "features": {
        "model": Wanted("text", required=True),
        "ts": Wanted("whole", required=True),
        "features": Wanted("features", required=True),
        "version": Wanted("text"),
        "prediction_id": Wanted("text"),
        "entity_id": Wanted("text"),
    },
    "labels": {
        "prediction_id": Wanted("text", required=True),
        "model": Wanted("text", required=True),
        "ts": Wanted("whole", required=True),
        "label": Wanted("scalar"),
        "value": Wanted("number"),
        "revision": Wanted("whole"),
        "deleted": Wanted("flag"),
        "version": Wanted("text"),
        "prediction": Wanted("scalar"),
        "score": Wanted("score"),
        "prediction_ts": Wanted("whole"),
        "previous": Wanted("scalar"),
    },
}


def is_batch(value: bytes) -> bool:
    """Tell whether a message holds many events, by how it begins."""
    return value.startswith(BEGIN)
