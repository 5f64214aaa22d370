"""What a caller may log: arguments checked and made plain, with errors that name them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from streamer.events import EARLIEST_MS, LATEST_MS, NAME_PATTERN, FeatureLog, Label, Origin, Prediction, Scalar

_MAX_IDENTIFIER = 200
_ORIGINS: frozenset[Origin] = frozenset({"live", "shadow", "backfill"})
_PLAIN: frozenset[type] = frozenset({float, int, str, bool, type(None)})

_encode = msgspec.json.Encoder().encode
_matches_name = re.compile(NAME_PATTERN).match
# Names repeat in every event: those found good are remembered, up to a bound.
_good_names: set[str] = set()
_good_features: set[str] = set()
_MAX_GOOD_NAMES = 10_000


def scalar(value: Any, argument: str) -> Scalar:
    """Return a value as JSON has it: numpy scalars as Python's own, NaN and infinities as null.

    Raises
    ------
    TypeError
        When it is not a number, a text, a boolean or None.
    """
    if type(value) not in _PLAIN:
        # numpy, pandas and torch scalars have item(); so do arrays, which then are not one value.
        if hasattr(value, "item"):
            try:
                value = value.item()
            except (ValueError, RuntimeError) as error:
                raise TypeError(f"{argument}: got {type(value).__name__}, wanted a single value: {error}") from error
        if isinstance(value, str):
            return str(value)
        if type(value) not in _PLAIN:
            raise TypeError(f"{argument}: got {type(value).__name__}, wanted a number, a text, a boolean or None")
    if type(value) is float and not math.isfinite(value):
        return None
    plain: Scalar = value
    return plain


def number(value: Any, argument: str) -> float | None:
    """Return a number or None; a boolean or a text is refused."""
    plain = scalar(value, argument)
    if isinstance(plain, (bool, str)):
        raise TypeError(f"{argument}: got {plain!r}, wanted a number or None")
    return plain


def features(values: Any, argument: str = "features") -> dict[str, Scalar]:
    """Return a copy of a mapping from feature names to plain values."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{argument}: got {type(values).__name__}, wanted a mapping from feature names to values")
    plain: dict[str, Scalar] = dict(values)
    # Nearly always every name was seen before and every value is plain: then a copy is all it takes.
    # NaN and infinities need no look, for the JSON encoder writes them as null.
    if not _good_features.issuperset(plain):
        _check_feature_names(plain, argument)
    if not _PLAIN.issuperset(map(type, plain.values())):
        plain = {name: scalar(value, f"{argument}[{name!r}]") for name, value in plain.items()}
    return plain


def _check_feature_names(names: Iterable[Any], argument: str) -> None:
    for name in names:
        if type(name) is not str or not name or name.startswith("@"):
            raise ValueError(f"{argument}: got the name {name!r}, wanted a text that does not begin with '@'")
        if len(_good_features) < _MAX_GOOD_NAMES:
            _good_features.add(name)


def score(value: Any, argument: str = "score") -> float | dict[str, float] | None:
    """Return a score: a number, or a number for each class."""
    if type(value) is float:
        return value
    if isinstance(value, Mapping):
        shares: dict[str, float] = {}
        for name, share in value.items():
            plain = number(share, f"{argument}[{name!r}]")
            if plain is None:
                raise ValueError(f"{argument}[{name!r}]: got {share!r}, wanted a finite number for each class")
            shares[str(name)] = plain
        return shares
    return number(value, argument)


def name(value: Any, argument: str) -> str:
    """Return a model's or a version's name."""
    if type(value) is not str:
        raise TypeError(f"{argument}: got {value!r}, wanted a text such as 'flight_delay' or '7'")
    if value in _good_names:
        return value
    if _matches_name(value) is None or value.endswith("\n"):
        raise ValueError(f"{argument}: got {value!r}, wanted 1 to 100 of a-z, 0-9, '.', '_' and '-'")
    if len(_good_names) < _MAX_GOOD_NAMES:
        _good_names.add(value)
    return value


def identifier(value: Any, argument: str) -> str:
    """Return an id of 1 to 200 characters; a UUID or a whole number is taken as its text."""
    text = value if type(value) is str else str(value)
    if value is None or not 0 < len(text) <= _MAX_IDENTIFIER:
        raise ValueError(f"{argument}: got {value!r}, wanted an id of 1 to {_MAX_IDENTIFIER} characters")
    return text


def entity(value: Any, argument: str = "entity_id") -> str | None:
    """Return an entity's id, None where there is none."""
    return None if value is None else identifier(value, argument)


def epoch_ms(value: Any, argument: str = "ts_ms") -> int:
    """Return an event time in whole epoch milliseconds, UTC, from 1973 to the year 2200."""
    plain = scalar(value, argument)
    if type(plain) is not int:
        raise TypeError(f"{argument}: got {value!r}, wanted whole epoch milliseconds")
    if not EARLIEST_MS <= plain <= LATEST_MS:
        unit = "seconds" if plain < EARLIEST_MS else "micro- or nanoseconds"
        raise ValueError(f"{argument}: got {plain}, wanted epoch milliseconds (is it in {unit}?)")
    return plain


def origin(value: Any, argument: str = "origin") -> Origin:
    """Return where a prediction comes from: live, shadow or backfill."""
    if value not in _ORIGINS:
        raise ValueError(f"{argument}: got {value!r}, wanted one of live, shadow, backfill")
    found: Origin = value
    return found


def text(value: Any, argument: str) -> str | None:
    """Return a text or None."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{argument}: got {type(value).__name__}, wanted a text or None")
    return value


def bucket(value: Any, argument: str = "bucket") -> int | None:
    """Return a bucket, 0 to 999, or None."""
    plain = scalar(value, argument)
    if plain is None:
        return None
    if type(plain) is not int or not 0 <= plain < 1000:
        raise ValueError(f"{argument}: got {value!r}, wanted a whole number from 0 to 999, or None")
    return plain


def checked_prediction(event: Prediction, where: str = "") -> Prediction:
    """Return a prediction whose every field is what `predictions.v1` takes; `where` begins its errors."""
    prediction, error = scalar(event.prediction, where + "prediction"), text(event.error, where + "error")
    if prediction is None and error is None:
        raise ValueError(f"{where}prediction: got {event.prediction!r}, wanted a value, or an error that says why not")
    return Prediction(
        prediction_id=identifier(event.prediction_id, where + "prediction_id"),
        model=name(event.model, where + "model"),
        ts=epoch_ms(event.ts, where + "ts_ms"),
        version=name(event.version, where + "version"),
        features=features(event.features, where + "features"),
        prediction=prediction,
        score=score(event.score, where + "score"),
        entity_id=entity(event.entity_id, where + "entity_id"),
        origin=origin(event.origin, where + "origin"),
        rollout_id=text(event.rollout_id, where + "rollout_id"),
        bucket=bucket(event.bucket, where + "bucket"),
        latency_ms=number(event.latency_ms, where + "latency_ms"),
        error=error,
    )


def checked_features(event: FeatureLog, where: str = "") -> FeatureLog:
    """Return features whose every field is what `features.v1` takes."""
    return FeatureLog(
        model=name(event.model, where + "model"),
        ts=epoch_ms(event.ts, where + "ts_ms"),
        features=features(event.features, where + "features"),
        version=name(event.version, where + "version"),
        prediction_id=None if event.prediction_id is None else identifier(event.prediction_id, where + "prediction_id"),
        entity_id=entity(event.entity_id, where + "entity_id"),
    )


def checked_label(event: Label, where: str = "") -> Label:
    """Return a label whose every field is what `labels.v1` takes."""
    revision = scalar(event.revision, where + "revision")
    if type(revision) is not int:
        raise TypeError(f"{where}revision: got {event.revision!r}, wanted a whole number")
    if type(event.deleted) is not bool:
        raise TypeError(f"{where}deleted: got {event.deleted!r}, wanted True or False")
    label = scalar(event.label, where + "label")
    if label is None and not event.deleted:
        raise ValueError(f"{where}label: got {event.label!r}, wanted a value, or deleted=True to take one back")
    return Label(
        prediction_id=identifier(event.prediction_id, where + "prediction_id"),
        model=name(event.model, where + "model"),
        ts=epoch_ms(event.ts, where + "ts_ms"),
        label=label,
        value=number(event.value, where + "value"),
        revision=revision,
        deleted=event.deleted,
        version=None if event.version is None else name(event.version, where + "version"),
        prediction=scalar(event.prediction, where + "prediction"),
        score=score(event.score, where + "score"),
        prediction_ts=None
        if event.prediction_ts is None
        else epoch_ms(event.prediction_ts, where + "prediction_ts_ms"),
        previous=scalar(event.previous, where + "previous"),
    )


def encoded(event: Prediction | FeatureLog | Label, where: str = "") -> bytes:
    """Return a checked event's JSON.

    Raises
    ------
    ValueError
        When a text has no UTF-8 (half a surrogate pair); the message names the field.
    """
    try:
        return _encode(event)
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}{_unencodable(event)}, wanted text that has UTF-8: {error}") from error


def _unencodable(event: Prediction | FeatureLog | Label) -> str:
    """Return which field has no JSON, and what it holds."""
    for field in event.__struct_fields__:
        value = getattr(event, field)
        parts = value.items() if isinstance(value, dict) else ()
        named = {**{f"{field}[{name!r}]": {name: part} for name, part in parts}, field: value}
        for place, part in named.items():
            try:
                _encode(part)
            except UnicodeEncodeError:
                return f"{place}: got {part!r}"
    return f"got {event!r}"
