"""Structs made for the features of the models there are: a message's become fixed fields in one pass of C."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, repeat
from types import GenericAlias
from typing import Annotated, Any, Generic, NamedTuple, TypeVar
from weakref import WeakValueDictionary

import msgspec
import numpy as np

from streamer.counting.columns import IntArray
from streamer.events import EpochMs, FeatureLog, Identifier, Origin, Prediction, Scalar
from streamer.models import ModelConfig

# Names beyond the configured ones that a model's events may bring before they are read the slow way.
MAX_LEARNED = 512
# So many layouts are kept, and a decoder each: what models beyond bring is read the slow way.
MAX_LAYOUTS = 2_000

_MAX_LEARNED_LENGTH = 200

# What msgspec cannot look for among the keys of an object.
_has_odd_characters = re.compile(r'["\\\x00-\x1f]').search
values_of = msgspec.structs.astuple
# Of the layouts there are, and of no others: a struct of hundreds of fields takes as many kilobytes.
_LAYOUTS: WeakValueDictionary[Any, Layout] = WeakValueDictionary()
F = TypeVar("F")
_ABSENT: Any = None


class BulkPrediction(msgspec.Struct, Generic[F], kw_only=True, gc=False):
    """A prediction of any model; only what its features are read into is the model's own.

    One class, not one a model: the interpreter finds the attributes of a few classes fast, and not those of hundreds.
    """

    prediction_id: Identifier
    model: str
    ts: EpochMs
    version: str = "_"
    # None where there are none; nobody has said yet what struct they would be.
    features: F = _ABSENT
    prediction: Scalar = None
    score: float | dict[str, float] | None = None
    entity_id: str | None = None
    origin: Origin = "live"
    rollout_id: str | None = None
    bucket: Annotated[int, msgspec.Meta(ge=0, lt=1000)] | None = None
    latency_ms: float | None = None
    error: str | None = None


class BulkFeatureLog(msgspec.Struct, Generic[F], kw_only=True, gc=False):
    """A feature log of any model, likewise."""

    model: str
    ts: EpochMs
    features: F
    version: str = "_"
    prediction_id: str | None = None
    entity_id: str | None = None


@dataclass(frozen=True, eq=False)
class Layout:
    """How the events of models of the same features lie in memory; such models share it.

    Attributes
    ----------
    names : the features that have a field, in the order of the fields.
    numbers, texts : how many of them are configured as numbers, which come first, and as categories, which follow.
    slices : the features whose values slice the traffic.
    decodable : whether JSON can be read into these fields at all.
    features : the struct of those fields.
    """

    names: tuple[str, ...]
    numbers: int
    texts: int
    slices: tuple[str, ...]
    decodable: bool
    features: type[Any]
    index: dict[str, int] = field(default_factory=dict)

    @cached_property
    def sliced(self) -> tuple[int, ...]:
        """The fields of the features whose values slice the traffic."""
        return tuple(self.index[name] for name in self.slices)

    @property
    def prediction(self) -> GenericAlias:
        """What a prediction is read into."""
        # Written with brackets, typing would remember it, and the structs of layouts that are no longer.
        return GenericAlias(BulkPrediction, (self.features,))

    @property
    def feature_log(self) -> GenericAlias:
        """What a feature log is read into."""
        return GenericAlias(BulkFeatureLog, (self.features,))

    def with_fields(self, learned: Iterable[str]) -> Layout:
        """Return this layout with fields for the features that are configured, and for these."""
        configured = self.names[: self.numbers + self.texts]
        return _layout(configured[: self.numbers], configured[self.numbers :], self.slices, tuple(learned))

    def of_prediction(self, event: Prediction) -> Any:
        """Return a prediction that was decoded the slow way in this layout; its features may be of any kind."""
        return BulkPrediction(
            prediction_id=event.prediction_id,
            model=event.model,
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
        return BulkFeatureLog(
            model=event.model,
            ts=event.ts,
            version=event.version,
            features=self._features(event.features),
            prediction_id=event.prediction_id,
        )

    def _features(self, features: dict[str, Scalar]) -> Any:
        return self.features(*map(features.get, self.names))


class Slicing(NamedTuple):
    """The features whose values slice the traffic, and their fields."""

    names: tuple[str, ...]
    places: tuple[int, ...]


class Layouts(Sequence[Layout]):
    """The layout of each of some models, by their numbers.

    Attributes
    ----------
    kinds : the layouts there are, each once; `kind_of` is each model's index among them.
    """

    def __init__(self, of_models: Iterable[Layout] = ()) -> None:
        self._of_models = list(of_models)
        index = {layout: kind for kind, layout in enumerate(dict.fromkeys(self._of_models))}
        self.kinds = list(index)
        self.kind_of: IntArray = np.array([index[layout] for layout in self._of_models], dtype=np.int64)

    @cached_property
    def slicings(self) -> list[Slicing]:
        """How the kinds slice the traffic, each way once."""
        return list(dict.fromkeys(Slicing(layout.slices, layout.sliced) for layout in self.kinds))

    @cached_property
    def slicing_of(self) -> IntArray:
        """Each model's index among `slicings`."""
        index = {slicing: number for number, slicing in enumerate(self.slicings)}
        of_kind = [index[Slicing(layout.slices, layout.sliced)] for layout in self.kinds]
        return np.array(of_kind, dtype=np.int64)[self.kind_of]

    def __getitem__(self, number: Any) -> Any:
        return self._of_models[number]

    def __len__(self) -> int:
        return len(self._of_models)


def is_learnable(feature: str) -> bool:
    """Tell whether a feature that is not configured may have a field of its own."""
    return len(feature) <= _MAX_LEARNED_LENGTH and not _has_odd_characters(feature)


def fields_of(config: ModelConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the configured features as they lie in a layout: those that are numbers, then the others."""
    kinds = {name: feature.kind == "numeric" for name, feature in config.features.items()}
    return (
        tuple(name for name, is_number in kinds.items() if is_number),
        tuple(name for name, is_number in kinds.items() if not is_number),
    )


def layout_of(config: ModelConfig) -> Layout:
    """Return the layout of a model's configured features."""
    return _layout(*fields_of(config), tuple(config.slices), ())


def _layout(
    numbers: tuple[str, ...], texts: tuple[str, ...], slices: tuple[str, ...], learned: tuple[str, ...]
) -> Layout:
    """Return the one layout of these fields: as many structs as models do not stay in the processor's cache."""
    key = numbers, texts, slices, learned
    found = _LAYOUTS.get(key)
    if found is None:
        found = _LAYOUTS[key] = _made(*key)
    return found


def _made(
    numbers: tuple[str, ...], texts: tuple[str, ...], slices: tuple[str, ...], learned: tuple[str, ...]
) -> Layout:
    names = (*numbers, *texts, *learned)
    decodable = not any(map(_has_odd_characters, names))
    # A slice's name tells whole numbers beyond 2**53 apart, which floats do not.
    features = _features_of(names, [name in slices for name in numbers], decodable)
    index = {name: position for position, name in enumerate(names)}
    return Layout(names, len(numbers), len(texts), slices, decodable, features, index)


def _features_of(names: Sequence[str], exact: Sequence[bool], decodable: bool) -> type[Any]:
    """Make the struct of some features: first numbers, exact ones or floats, then anything at all."""
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
