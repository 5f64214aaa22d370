"""Decoders made for the models there are: a message's features become fixed fields in one pass of C."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, repeat
from typing import Annotated, Any
from weakref import WeakValueDictionary

import msgspec

from streamer.catalog import Model
from streamer.events import EpochMs, FeatureLog, Identifier, Origin, Prediction, Scalar

# Names beyond the configured ones that a model's events may bring before they are read the slow way.
MAX_LEARNED = 512
# The events of models beyond so many are read the slow way: a decoder of more fields would take long to make.
MAX_MODELS = 2_000

_MAX_LEARNED_LENGTH = 200

# What msgspec cannot look for among the keys of an object.
_has_odd_characters = re.compile(r'["\\\x00-\x1f]').search
values_of = msgspec.structs.astuple
# Of the layouts there are, and of no others: a struct of hundreds of fields takes as many kilobytes.
_FEATURES: WeakValueDictionary[Any, type[Any]] = WeakValueDictionary()


@dataclass(eq=False)
class Layout:
    """How one model's events lie in memory.

    Attributes
    ----------
    names : the features that have a field, in the order of the fields.
    numbers, texts : how many of them are configured as numbers, which come first, and as categories, which follow.
    decodable : whether JSON can be read into these fields at all.
    """

    model: Model
    names: tuple[str, ...]
    numbers: int
    texts: int
    decodable: bool
    features: type[Any]
    prediction: type[Any]
    feature_log: type[Any]
    index: dict[str, int] = field(default_factory=dict)

    @cached_property
    def pack(self) -> Callable[..., bytes]:
        """What makes an event's numbers bytes; struct.error or OverflowError where one of them is none."""
        return struct.Struct(f"{self.numbers}d").pack

    @cached_property
    def sliced(self) -> tuple[int, ...]:
        """The fields of the features whose values slice the traffic."""
        return tuple(self.index[name] for name in self.model.config.slices)

    def of_prediction(self, event: Prediction) -> Any:
        """Return a prediction that was decoded the slow way in this layout; its features may be of any kind."""
        return self.prediction(
            prediction_id=event.prediction_id,
            ts=event.ts,
            version=event.version,
            features=self._features(event.features),
            prediction=event.prediction,
            score=event.score,
            entity_id=event.entity_id,
            origin=event.origin,
            rollout_id=event.rollout_id,
            bucket=event.bucket,
            latency_ms=event.latency_ms,
            error=event.error,
        )

    def of_feature_log(self, event: FeatureLog) -> Any:
        """Return a feature log that was decoded the slow way in this layout."""
        return self.feature_log(
            ts=event.ts,
            version=event.version,
            features=self._features(event.features),
            prediction_id=event.prediction_id,
        )

    def _features(self, features: dict[str, Scalar]) -> Any:
        return self.features(*map(features.get, self.names))


def is_learnable(feature: str) -> bool:
    """Tell whether a feature that is not configured may have a field of its own."""
    return len(feature) <= _MAX_LEARNED_LENGTH and not _has_odd_characters(feature)


def _features_of(names: tuple[str, ...], exact: tuple[bool, ...], decodable: bool) -> type[Any]:
    """Return the struct of some features: first numbers, exact ones or floats, then anything at all.

    Models of the same features share it: a thousand structs do not stay in the processor's cache.
    """
    key = names, exact, decodable
    found = _FEATURES.get(key)
    if found is None:
        found = _FEATURES[key] = _made(names, exact, decodable)
    return found


def _made(names: tuple[str, ...], exact: tuple[bool, ...], decodable: bool) -> type[Any]:
    # Fields have names of their own, since a feature's may be no identifier, or one of msgspec's.
    renamed = {f"f{position}": name for position, name in enumerate(names)}
    kinds: list[Any] = [Scalar if scalar else float | None for scalar in exact]
    return msgspec.defstruct(
        "Features",
        [(field, kind, None) for field, kind in zip(renamed, chain(kinds, repeat(Scalar)), strict=False)],
        rename=renamed if decodable else None,
        # A feature that has no field must not pass unchecked.
        forbid_unknown_fields=True,
        gc=False,
    )


def layout_of(model: Model, learned: Iterable[str] = ()) -> Layout:
    """Make the layout of a model whose events also bring features that are not configured."""
    configured = model.config.features
    numbers = [name for name, feature in configured.items() if feature.kind == "numeric"]
    texts = [name for name, feature in configured.items() if feature.kind != "numeric"]
    names = (*numbers, *texts, *(name for name in learned if name not in configured))
    decodable = not any(map(_has_odd_characters, names))
    # A slice's name tells whole numbers beyond 2**53 apart, which floats do not.
    exact = [name in model.config.slices for name in numbers]
    features = _features_of(names, tuple(exact), decodable)
    tagged: dict[str, Any] = {"tag_field": "model", "tag": model.name, "kw_only": True, "gc": False}
    prediction = msgspec.defstruct(
        "BulkPrediction",
        [
            ("prediction_id", Identifier),
            ("ts", EpochMs),
            ("version", str, "_"),
            ("features", features, msgspec.field(default_factory=features)),
            ("prediction", Scalar, None),
            ("score", float | dict[str, float] | None, None),
            ("entity_id", str | None, None),
            ("origin", Origin, "live"),
            ("rollout_id", str | None, None),
            ("bucket", Annotated[int, msgspec.Meta(ge=0, lt=1000)] | None, None),
            ("latency_ms", float | None, None),
            ("error", str | None, None),
        ],
        **tagged,
    )
    feature_log = msgspec.defstruct(
        "BulkFeatureLog",
        [
            ("ts", EpochMs),
            ("features", features),
            ("version", str, "_"),
            ("prediction_id", str | None, None),
            ("entity_id", str | None, None),
        ],
        **tagged,
    )
    index = {name: position for position, name in enumerate(names)}
    return Layout(model, names, len(numbers), len(texts), decodable, features, prediction, feature_log, index)
