"""Raw JSON messages to events, each held to the contract."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, overload

import msgspec

from streamer.events import NAME_PATTERN, FeatureLog, Label, Prediction

Kind = Literal["predictions", "features", "labels"]
Event = Prediction | FeatureLog | Label

# One event; many at once travel as an Arrow stream.
MAX_EVENT_BYTES = 1_000_000
_MAX_INT = 2**63


class UncheckedPrediction(Prediction, kw_only=True, omit_defaults=True):
    """A prediction whose names are still to be checked."""

    model: str
    version: str = "_"


class UncheckedFeatureLog(FeatureLog, kw_only=True, omit_defaults=True):
    """A feature log whose names are still to be checked."""

    model: str
    version: str = "_"


class UncheckedLabel(Label, kw_only=True, omit_defaults=True, gc=False):
    """A label whose names are still to be checked."""

    model: str
    version: str | None = None


_TYPES: dict[str, type[Event]] = {"predictions": Prediction, "features": FeatureLog, "labels": Label}
_decoders: dict[str, Callable[[bytes], Event]] = {
    kind: msgspec.json.Decoder(wanted).decode for kind, wanted in _TYPES.items()
}
_unchecked: dict[str, Callable[[bytes], Event]] = {
    "predictions": msgspec.json.Decoder(UncheckedPrediction).decode,
    "features": msgspec.json.Decoder(UncheckedFeatureLog).decode,
    "labels": msgspec.json.Decoder(UncheckedLabel).decode,
}
_is_name = re.compile(NAME_PATTERN).match


@overload
def decode(value: bytes, kind: Literal["predictions"]) -> Prediction: ...
@overload
def decode(value: bytes, kind: Literal["features"]) -> FeatureLog: ...
@overload
def decode(value: bytes, kind: Literal["labels"]) -> Label: ...
@overload
def decode(value: bytes, kind: Kind) -> Event: ...
def decode(value: bytes, kind: Kind) -> Event:
    """Decode and check one JSON event of a raw topic.

    Values that are valid but unusual (unknown fields, null, new categories) pass: they are counted. Unknown
    fields are not looked into, not even for whether they are UTF-8.

    Raises
    ------
    msgspec.DecodeError, ValueError
        The message is no such event; `streamer.explain.explain_invalid` says why.
    """
    if len(value) > MAX_EVENT_BYTES:
        raise msgspec.ValidationError("too large")
    event: Event
    try:
        event = _decoders[kind](value)
    except msgspec.ValidationError:
        # Of a key that stands twice the last counts, whatever the first would have been.
        settled = _settled(value, kind)
        if settled is None:
            raise
        event = settled
    except RecursionError:
        # One kind of error for whoever reads a log: a message that cannot be used must not end its reader.
        raise msgspec.DecodeError("nested too deeply") from None
    if isinstance(event, Prediction) and event.prediction is None and event.error is None:
        raise msgspec.ValidationError("neither prediction nor error")
    if isinstance(event, Label):
        if event.label is None and not event.deleted:
            raise msgspec.ValidationError("neither label nor deleted")
        if not -_MAX_INT <= event.revision < _MAX_INT:
            raise msgspec.ValidationError("revision beyond 64 bits")
    return event


def is_name(text: str) -> bool:
    """Tell whether a text may name a model or a version."""
    return _is_name(text) is not None


def _settled(value: bytes, kind: Kind) -> Event | None:
    """Return a message's event with the last of every key; None where that is no event either."""
    try:
        return msgspec.convert(msgspec.structs.asdict(_unchecked[kind](value)), _TYPES[kind])
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
