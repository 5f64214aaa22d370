"""What of an event the label join keeps, and which events of a known model cannot be used at all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitors.performance import canonical
from monitors.slices import slice_feature, slice_keys
from streamer.catalog import Model
from streamer.counting.columns import IntArray
from streamer.counting.fold import is_sampled
from streamer.counting.rows import Located, Rows
from streamer.events import FeatureLog, Label, Prediction
from streamer.join.bulk import Entries, Given
from streamer.join.changes import Contribution
from streamer.join.entries import FeaturesEntry, LabelEntry, PredictionEntry
from streamer.join.records import (
    EXPIRY_GRAIN_MS,
    EntryKind,
    encode_entry,
    features_key,
    label_key,
    position_of,
    prediction_key,
)

_PLAIN_SCORES = frozenset({float, type(None)})


def unusable(model: Model, event: Prediction | FeatureLog | Label) -> tuple[str, str] | None:
    """Return why an event that is well formed cannot be counted for this model, and which field; None if it can."""
    if isinstance(event, FeatureLog):
        return None
    in_context = isinstance(event, Label) and model.config.labels.mode == "context"
    if model.config.task == "regression":
        folded = ("label", "previous", "prediction") if in_context else (_said(event),)
        for field in folded:
            value = getattr(event, field)
            if value is not None and not _is_number(value):
                return f"got {_shortened(value)}, wanted a finite number (task = regression)", field
    return _without_context(event) if isinstance(event, Label) and in_context else None


def _said(event: Prediction | Label) -> str:
    return "label" if isinstance(event, Label) else "prediction"


def _shortened(value: object) -> str:
    return "a text" if isinstance(value, str) else f"{str(value)[:40]}"


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _without_context(label: Label) -> tuple[str, str] | None:
    for field in ("version", "prediction", "prediction_ts"):
        if getattr(label, field) is None:
            return f"{field}: missing; labels.mode = context needs the prediction's {field}", field
    return None


def prediction_entry(model: Model, located: Located, row: int) -> PredictionEntry | None:
    """Return what the join keeps of a prediction; None when it is not joined (context mode, error, not sampled)."""
    event: Prediction = located.events[row]
    labels = model.config.labels
    if labels.mode != "join" or event.error is not None or not is_sampled(event.prediction_id, labels.share):
        return None
    score, scores = _score(event.score, model.schema.positive)
    return PredictionEntry(
        model=model.name,
        model_epoch=model.epoch,
        prediction_id=event.prediction_id,
        position=position(located, row),
        version=event.version,
        origin=event.origin,
        event_time_ms=event.ts,
        prediction=canonical(event.prediction),
        score=score,
        scores=scores,
        slices=slice_keys(
            {
                name: canonical(event.features[name])
                for name in model.config.slices
                if event.features.get(name) is not None
            }
        ),
        rollout_id=event.rollout_id,
        bucket=-1 if event.bucket is None else event.bucket,
        record_ms=located.record_times_ms[row],
        expires_at_ms=located.record_times_ms[row] + labels.horizon,
    )


def label_entry(model: Model, located: Located, row: int) -> LabelEntry | None:
    """Return what the join keeps of a label; None for one whose prediction is not sampled."""
    event: Label = located.events[row]
    if not is_sampled(event.prediction_id, model.config.labels.share):
        return None
    return LabelEntry(
        model=model.name,
        model_epoch=model.epoch,
        prediction_id=event.prediction_id,
        position=position(located, row),
        ts=event.ts,
        revision=event.revision,
        label=canonical(event.label),
        deleted=event.deleted,
        record_ms=located.record_times_ms[row],
        expires_at_ms=located.record_times_ms[row] + model.config.labels.horizon,
    )


def features_entry(model: Model, located: Located, row: int) -> FeaturesEntry | None:
    """Return what the join keeps of a feature log; None where it says nothing of the slices of a prediction."""
    event: FeatureLog = located.events[row]
    logged = model.logged_slices
    slices = slice_keys(
        {
            name: canonical(event.features[name])
            for name in model.config.slices
            if name in logged and event.features.get(name) is not None
        }
    )
    if not slices or not event.prediction_id or not is_sampled(event.prediction_id, model.config.labels.share):
        return None
    return FeaturesEntry(
        model=model.name,
        model_epoch=model.epoch,
        prediction_id=event.prediction_id,
        position=position(located, row),
        ts=event.ts,
        slices=slices,
        record_ms=located.record_times_ms[row],
        expires_at_ms=located.record_times_ms[row] + model.config.labels.horizon,
    )


def joins(rows: Rows) -> NDArray[np.bool_]:
    """Return which rows are of models whose labels are joined."""
    found: NDArray[np.bool_] = rows.models.joins[rows.model_of]
    return found


def given_predictions(rows: Rows, *, buckets: int) -> Given:
    """Return what the join keeps of many predictions, all of them joined: `prediction_entry`, row for row."""
    said = rows.scores
    scores: Sequence[dict[str, float] | None] = [None] * len(rows)
    if not set(map(type, said)) <= _PLAIN_SCORES:
        positives = rows.models.positives
        both = [_score(score, positives[at]) for score, at in zip(said, rows.model_of.tolist(), strict=True)]
        said, scores = [None if math.isnan(number) else number for number, _ in both], [known for _, known in both]
    versions, origins = rows.versions, rows.origins
    # In the order of `StoredPrediction`; a tuple is written as the struct is, and sooner made.
    stored = zip(
        *_placed(rows),
        versions.tolist(),
        origins.tolist(),
        rows.times_ms.tolist(),
        _canonical_column(rows.predictions),
        said,
        scores,
        rows.slices,
        rows.rollouts.tolist(),
        [-1 if bucket is None else bucket for bucket in rows.buckets],
        strict=True,
    )
    pairs = [(version, origin) for version in versions.values for origin in origins.values]
    keys = [prediction_key(*pair) for pair in pairs]
    key_of = versions.codes * len(origins.values) + origins.codes
    return _given("prediction", rows, stored, keys, key_of, buckets=buckets)


def given_features(rows: Rows, *, buckets: int) -> Given | None:
    """Return what the join keeps of many feature logs, None for nothing: `features_entry`, row for row."""
    (of_joined,) = np.nonzero(rows.models.joins_features[rows.model_of])
    if not len(of_joined):
        return None
    rows = rows.take(of_joined)
    models = [rows.models[number] for number in rows.model_of.tolist()]
    slices = [
        [key for key in keys if slice_feature(key) in model.logged_slices]
        for model, keys in zip(models, rows.slices, strict=True)
    ]
    given = zip(models, rows.prediction_ids, slices, strict=True)
    chosen = [
        row
        for row, (model, id_, keys) in enumerate(given)
        if keys and id_ and is_sampled(id_, model.config.labels.share)
    ]
    if not chosen:
        return None
    rows = rows.take(chosen)
    positions, *minutes = _placed(rows)
    # In the order of `StoredFeatures`.
    stored = zip(positions, *minutes, rows.times_ms.tolist(), [slices[row] for row in chosen], strict=True)
    return _given("features", rows, stored, list(map(features_key, positions)), np.arange(len(rows)), buckets=buckets)


def given_labels(rows: Rows, *, buckets: int) -> Given:
    """Return what the join keeps of many labels, all of them sampled: `label_entry`, row for row."""
    positions, *minutes = _placed(rows)
    # In the order of `StoredLabel`.
    columns = (rows.revisions, rows.times_ms.tolist(), _canonical_column(rows.labels), rows.deleted)
    keys = list(map(label_key, positions))
    stored = zip(positions, *minutes, *columns, strict=True)
    return _given("label", rows, stored, keys, np.arange(len(keys)), buckets=buckets)


def _given(
    kind: EntryKind, rows: Rows, stored: Iterable[Any], keys: list[bytes], key_of: IntArray, *, buckets: int
) -> Given:
    expires = _expires_ms(rows)
    bodies = list(map(encode_entry, stored))
    entries = Entries(kind, rows.prediction_ids, bodies, keys, key_of, expires)
    return Given.of(rows.models.owners, rows.model_of, entries, buckets=buckets)


def _placed(rows: Rows) -> tuple[list[str], list[int], list[int]]:
    """Return where each row stands in the log, the minute it came in, and the one until which it waits."""
    came = rows.places.record_times_ms // EXPIRY_GRAIN_MS
    return rows.places.positions(), came.tolist(), (-(-_expires_ms(rows) // EXPIRY_GRAIN_MS)).tolist()


def _expires_ms(rows: Rows) -> IntArray:
    expires: IntArray = rows.places.record_times_ms + rows.models.horizons_ms[rows.model_of]
    return expires


def _canonical_column(values: Sequence[Any]) -> Sequence[Any]:
    """Return the canonical text of each value."""
    kinds = set(map(type, values))
    if kinds <= {str}:
        return values
    if kinds <= {bool}:
        return ["true" if value else "false" for value in values]
    return list(map(canonical, values))


def context_contributions(rows: Rows) -> list[Contribution]:
    """Return what labels that bring their prediction's content change, without a join."""
    found = list[Contribution]()
    predictions, labels = _canonical_column(rows.predictions), _canonical_column(rows.labels)
    said = zip(rows.versions.tolist(), rows.prediction_times_ms, predictions, rows.scores, strict=True)
    columns = (said, labels, rows.deleted, rows.previous, rows.model_of.tolist())
    for prediction, label, deleted, previous, at in zip(*columns, strict=True):
        if previous is not None:
            found.append(_context_row(rows.models[at], prediction, canonical(previous), -1))
        if not deleted:
            found.append(_context_row(rows.models[at], prediction, label, 1))
    return found


def _context_row(model: Model, prediction: tuple[str, Any, str, Any], truth: str, sign: int) -> Contribution:
    version, event_time_ms, said, given = prediction
    score, scores = _score(given, model.schema.positive)
    return Contribution(
        model=model.name,
        model_epoch=model.epoch,
        version=version,
        origin="live",
        event_time_ms=event_time_ms,
        prediction=said,
        score=scores.get(truth, math.nan) if scores is not None else score,
        slices=[],
        rollout_id=None,
        bucket=-1,
        label=truth,
        sign=sign,
        labelled=sign,
    )


def position(located: Located, row: int) -> str:
    """Return where in the log an event stands: topic incarnation, partition, offset, row of its message."""
    _topic, topic_id, partition = located.source
    return position_of(topic_id, partition, located.offsets[row], located.rows[row])


def _score(score: float | dict[str, float] | None, positive: str | None) -> tuple[float, dict[str, float] | None]:
    if isinstance(score, dict):
        if positive is not None:
            return score.get(positive, math.nan), None
        return math.nan, score
    return (math.nan if score is None else float(score)), None
