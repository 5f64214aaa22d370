"""What of an event the label join keeps, and which events of a known model cannot be used at all."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from monitors.performance import canonical
from monitors.slices import slice_keys
from streamer.catalog import Model
from streamer.events import FeatureLog, Label, Prediction
from streamer.fold import Located, is_sampled
from streamer.labels import Contribution, LabelEntry, PredictionEntry


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
        expires_at_ms=located.record_times_ms[row] + labels.horizon,
    )


def label_entry(model: Model, located: Located, row: int) -> LabelEntry:
    """Return what the join keeps of a label."""
    event: Label = located.events[row]
    return LabelEntry(
        model=model.name,
        model_epoch=model.epoch,
        prediction_id=event.prediction_id,
        position=position(located, row),
        ts=event.ts,
        revision=event.revision,
        label=canonical(event.label),
        deleted=event.deleted,
        expires_at_ms=located.record_times_ms[row] + model.config.labels.horizon,
    )


def context_contributions(model: Model, labels: Iterable[Label]) -> list[Contribution]:
    """Return what labels that bring their prediction's content change, without a join."""
    rows: list[Contribution] = []
    for label in labels:
        if label.previous is not None:
            rows.append(_context_row(model, label, label.previous, -1))
        if not label.deleted:
            rows.append(_context_row(model, label, label.label, 1))
    return rows


def _context_row(model: Model, label: Label, value: Any, sign: int) -> Contribution:
    score, scores = _score(label.score, model.schema.positive)
    truth = canonical(value)
    return Contribution(
        model=model.name,
        model_epoch=model.epoch,
        version=label.version or "_",
        origin="live",
        event_time_ms=label.prediction_ts or label.ts,
        prediction=canonical(label.prediction),
        score=scores.get(truth, math.nan) if scores is not None else score,
        slices=[],
        rollout_id=None,
        bucket=-1,
        label=truth,
        sign=sign,
        labelled=sign,
    )


def position(located: Located, row: int) -> str:
    """Return where in the log an event stands: topic incarnation, partition, offset, row."""
    _topic, topic_id, partition = located.source
    return f"{topic_id[:8]}:{partition}:{located.offsets[row]}:0"


def _score(score: float | dict[str, float] | None, positive: str | None) -> tuple[float, dict[str, float] | None]:
    if isinstance(score, dict):
        if positive is not None:
            return score.get(positive, math.nan), None
        return math.nan, score
    return (math.nan if score is None else float(score)), None
