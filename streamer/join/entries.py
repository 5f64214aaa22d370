"""Predictions, labels and feature logs as the join needs them, and the record each belongs to."""

from __future__ import annotations

import math
from hashlib import blake2b

import msgspec

from streamer.join.records import (
    FIELD_BYTES,
    Stored,
    StoredFeatures,
    StoredLabel,
    StoredPrediction,
    minutes,
)


class PredictionEntry(msgspec.Struct, array_like=True):
    """A prediction as the join needs it.

    `position` is its place in the log (`position_of`), `prediction` canonical text, `score` nan where there
    is none, `scores` the multiclass probabilities by canonical class, `slices` "feature=value" texts,
    `bucket` the routing bucket (-1: none), `record_ms` when the log took it, in epoch ms, and `expires_at_ms` from
    which record time on no label is waited for.
    """

    model: str
    model_epoch: int
    prediction_id: str
    version: str
    origin: str
    position: str
    event_time_ms: int
    prediction: str
    score: float
    slices: list[str]
    rollout_id: str | None
    bucket: int
    record_ms: int
    expires_at_ms: int
    scores: dict[str, float] | None = None


class LabelEntry(msgspec.Struct, array_like=True):
    """A label as the join needs it: `label` is canonical text, `ts` the label's own time in epoch ms."""

    model: str
    model_epoch: int
    prediction_id: str
    position: str
    ts: int
    revision: int
    label: str
    deleted: bool
    record_ms: int
    expires_at_ms: int


class FeaturesEntry(msgspec.Struct, array_like=True):
    """A feature log as the join needs it: `slices` are "feature=value" texts, `ts` the log's own time in epoch ms."""

    model: str
    model_epoch: int
    prediction_id: str
    position: str
    ts: int
    slices: list[str]
    record_ms: int
    expires_at_ms: int


Entry = PredictionEntry | FeaturesEntry | LabelEntry


def stored_entry(entry: Entry) -> Stored:
    """Return what a record holds of an entry."""
    place = entry.position, *minutes(entry.record_ms, entry.expires_at_ms)
    if isinstance(entry, LabelEntry):
        return StoredLabel(*place, entry.revision, entry.ts, entry.label, entry.deleted)
    if isinstance(entry, FeaturesEntry):
        return StoredFeatures(*place, entry.ts, entry.slices)
    return StoredPrediction(
        *place,
        entry.version,
        entry.origin,
        entry.event_time_ms,
        entry.prediction,
        None if math.isnan(entry.score) else entry.score,
        entry.scores,
        entry.slices,
        entry.rollout_id,
        entry.bucket,
    )


def record_field(entry: Entry) -> bytes:
    """Return what the record of an entry is kept under."""
    name = f"{entry.model}\0{entry.model_epoch}\0{entry.prediction_id}"
    return blake2b(name.encode(), digest_size=FIELD_BYTES).digest()
