"""What a worker knows of models and references: kept live from the control topics, read by both stages."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property

import structlog

from monitors.performance import PerformanceSchema, canonical
from monitors.profile import FEATURE_PREFIX, FeatureProfile, ReferenceProfile, digest_of
from streamer.events import UNREADABLE
from streamer.models import ModelConfig, parse_stored_model
from streamer.settings import ConfigError

log = structlog.get_logger(__name__)

# Of what a stranger wrote into a control topic, the log says so much.
_MAX_REASON = 1_000


@dataclass(frozen=True)
class Model:
    """A model's configuration with what is derived from it once."""

    config: ModelConfig
    schema: PerformanceSchema

    # Asked for a thousand models at a time, when a configuration lies nowhere near.
    @cached_property
    def name(self) -> str:
        """The model's name."""
        return self.config.name

    @cached_property
    def epoch(self) -> int:
        """The model's epoch: a model deleted and made again is another."""
        return self.config.model_epoch

    @cached_property
    def logged_slices(self) -> frozenset[str]:
        """The slice features that come in feature logs, to be joined with the predictions they name."""
        if self.config.labels.mode != "join":
            return frozenset()
        return frozenset(name for name in self.config.slices if self.config.features[name].source == "features")

    @cached_property
    def uses_features(self) -> bool:
        """Whether some of its features are logged apart from predictions."""
        return any(feature.source == "features" for feature in self.config.features.values())


def describe(config: ModelConfig) -> Model:
    """Return the model a configuration describes."""
    positive = None if config.positive is None else canonical(config.positive)
    return Model(config, PerformanceSchema(config.task, positive))


@dataclass
class _Held:
    """What has come of a reference, by part: the features that were read, and what none was read of (yet)."""

    parts: dict[str, bytes] = field(default_factory=dict)
    features: dict[str, FeatureProfile] = field(default_factory=dict)

    def has(self, part: str, value: bytes) -> bool:
        """Tell whether a part is the one that is there: a reference that is published again is no new one."""
        if part in self.parts or part not in self.features:
            return self.parts.get(part) == value
        return self.features[part].digest == digest_of(value)

    def settle(self, profile: ReferenceProfile) -> None:
        """Keep the features of a reference that is whole instead of what they were read from."""
        self.features = {FEATURE_PREFIX + name: feature for name, feature in profile.features.items()}
        for part in self.features:
            self.parts.pop(part, None)


class Catalog:
    """Models by name and reference profiles by (model, version); written by the control tables' thread.

    `revision` rises with every change of a model, `references_revision` with every change of a reference.
    """

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._deleted: set[str] = set()
        self._models: dict[str, Model] = {}
        self._held: dict[tuple[str, str], _Held] = defaultdict(_Held)
        self._profiles: dict[tuple[str, str], ReferenceProfile] = {}
        self.revision = self.references_revision = 0

    def model(self, name: str) -> Model | None:
        """Return a model, or None when it is not configured."""
        return self._models.get(name)

    def is_deleted(self, name: str) -> bool:
        """Tell whether a model was configured and is no more: it is not one that is unknown, or refused."""
        return name in self._deleted

    def await_model(self, name: str, timeout_s: float) -> Model | None:
        """Return a model that another worker knows already and this one is about to; None when it does not come."""
        with self._lock:
            self._lock.wait_for(lambda: name in self._models or name in self._deleted, timeout_s)
        return self._models.get(name)

    def models(self) -> list[Model]:
        """Return every configured model."""
        return list(self._models.values())

    def reference(self, model: str, version: str) -> ReferenceProfile | None:
        """Return a version's reference profile, or None until all its parts are there."""
        return self._profiles.get((model, version))

    def versions(self, model: str) -> list[str]:
        """Return the versions of a model that have a reference."""
        return [version for name, version in list(self._profiles) if name == model]

    def put_model(self, name: str, value: bytes | None) -> None:
        """Take in one record of `models.v1`; None deletes. A configuration that is not valid is logged and ignored."""
        if value is None:
            with self._lock:
                self._models.pop(name, None)
                self._deleted.add(name)
                self.revision += 1
                self._lock.notify_all()
            return
        try:
            config = parse_stored_model(value, name, "models.v1")
        except ConfigError as error:
            stays = "none" if (held := self._models.get(name)) is None else f"model_epoch {held.epoch}, as it was"
            log.error("model_refused", model=name[:100], reason=str(error)[:_MAX_REASON], stays=stays)
            return
        with self._lock:
            self._models[name] = describe(config)
            self._deleted.discard(name)
            self.revision += 1
            self._lock.notify_all()
        log.info("model_known", model=name, model_epoch=config.model_epoch)

    def put_reference(self, key: str, value: bytes | None) -> None:
        """Take in one record of `references.v1`, keyed model/version/part; None deletes the part."""
        if key.count("/") < 2:
            log.error("reference_refused", key=key[:100], reason="wanted the key <model>/<version>/<part>")
            return
        model, version, part = key.split("/", 2)
        identity = (model, version)
        with self._lock:
            held = self._held[identity]
            if value is None:
                held.parts.pop(part, None)
                held.features.pop(part, None)
                self._profiles.pop(identity, None)
                self.references_revision += 1
                return
            if identity in self._profiles and held.has(part, value):
                return
            held.parts[part] = value
            try:
                profile = ReferenceProfile.from_parts(held.parts, held.features)
            except (*UNREADABLE, LookupError, TypeError, AttributeError, ArithmeticError) as error:
                reason = str(error)[:_MAX_REASON]
                log.error("reference_refused", model=model, version=version, part=part[:100], reason=reason)
                return
            if profile is not None:
                self._profiles[identity] = profile
                # After it: who reads that it is as before has not seen another.
                self.references_revision += 1
                held.settle(profile)
                log.info("reference_known", model=model, version=version, fingerprint=profile.fingerprint)
