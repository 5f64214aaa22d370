"""The live view as it stands in Redis, read back as typed documents; nothing here writes."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import redis

from streamer.documents import (
    Alerts,
    CanaryView,
    FeatureDrift,
    FeatureQuality,
    Heartbeat,
    ModelSummary,
    ModelView,
    Performance,
    RequestView,
    SlicePerformance,
    TimelineEntry,
)
from streamer.events import Deployment
from streamer.state import Keys

T = TypeVar("T")


class ViewError(Exception):
    """A document of the live view is not what this release reads; the message names the key and the fault."""


class LiveView:
    """Reads one namespace's view; a model takes two round trips, whatever its features.

    Parameters
    ----------
    client : a redis-py client of the view's server (bytes or text answers).
    keys : the namespace's keys.

    Raises
    ------
    redis.exceptions.RedisError
        From any method, when the server does not answer.
    ViewError
        From any method, when a document cannot be read.
    """

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    def models(self) -> list[ModelSummary]:
        """Return every model's summary, by name."""
        key = self._keys.models()
        return sorted(_hash(key, self._client.hgetall(key), ModelSummary).values(), key=lambda each: each.model)

    def workers(self) -> list[Heartbeat]:
        """Return every worker's last heartbeat, by replica."""
        key = self._keys.workers()
        return sorted(_hash(key, self._client.hgetall(key), Heartbeat).values(), key=lambda each: each.replica)

    def model(self, name: str, *, version: str | None = None, timeline: int = 10) -> ModelView | None:
        """Return a model's documents, or None where the view does not know it.

        Parameters
        ----------
        version : whose statistics; the champion by default, else the one version there is.
        timeline : how many of the newest entries, oldest first.
        """
        key = self._keys.models()
        raw: Any = self._client.hget(key, name)
        if raw is None:
            return None
        summary = _decode(f"{key} {name}", raw, ModelSummary)
        version = version or summary.champion or self._only_version(name)
        keys = self._keys
        with self._client.pipeline(transaction=False) as pipe:
            pipe.hgetall(keys.drift(name, version))
            pipe.get(keys.performance(name, version))
            pipe.hgetall(keys.slices(name, version))
            pipe.hgetall(keys.quality(name, version))
            for one in (keys.alerts(name), keys.request(name), keys.split(name), keys.canary(name)):
                pipe.get(one)
            pipe.xrevrange(keys.timeline(name), count=timeline)
            drift, performance, slices, quality, alerts, request, split, canary, entries = pipe.execute()
        return ModelView(
            summary=summary,
            version=version,
            drift=_hash(keys.drift(name, version), drift, FeatureDrift),
            performance=_optional(keys.performance(name, version), performance, Performance),
            slices=_hash(keys.slices(name, version), slices, SlicePerformance),
            quality=_hash(keys.quality(name, version), quality, FeatureQuality),
            alerts=_optional(keys.alerts(name), alerts, Alerts),
            request=_optional(keys.request(name), request, RequestView),
            split=_optional(keys.split(name), split, Deployment),
            canary=_optional(keys.canary(name), canary, CanaryView),
            timeline=[_entry(keys.timeline(name), fields) for _, fields in reversed(entries)],
        )

    def versions(self, name: str) -> list[str]:
        """Return the versions of a model that have drift statistics."""
        prefix = self._keys.drift(name, "")
        return sorted(_text(key).removeprefix(prefix) for key in self._client.scan_iter(match=prefix + "*", count=1000))

    def split(self, name: str) -> Deployment | None:
        """Return the deployment routers follow, or None where none is published."""
        return _optional(self._keys.split(name), self._client.get(self._keys.split(name)), Deployment)

    def _only_version(self, name: str) -> str:
        """Return the version that has drift statistics, before a champion is named; "_" when none has."""
        return (self.versions(name) or ["_"])[-1]


def _hash(key: str, raw: Any, kind: type[T]) -> dict[str, T]:
    return {_text(field): _decode(f"{key} {_text(field)}", value, kind) for field, value in raw.items()}


def _optional(key: str, raw: Any, kind: type[T]) -> T | None:
    return None if raw is None else _decode(key, raw, kind)


def _decode(where: str, raw: bytes | str, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ViewError(
            f"Redis {where}: {error}; is another release of the worker writing here, or another namespace's data?"
        ) from error


def _entry(key: str, fields: Any) -> TimelineEntry:
    plain = {_text(name): _text(value) for name, value in fields.items()}
    data = plain.pop("data", "")
    try:
        entry = msgspec.convert(plain, TimelineEntry, strict=False)
        entry.data = msgspec.json.decode(data, type=dict[str, Any]) if data else None
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ViewError(f"Redis {key}: {error}; is another release of the worker writing here?") from error
    return entry


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
