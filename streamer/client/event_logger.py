"""The calls that log: what a serving system gives is checked, encoded, and put into the outbox of its topic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import uuid_utils

from streamer.client.arguments import checked_features, checked_label, checked_prediction, encoded
from streamer.client.batch_encoding import BatchEncoding
from streamer.client.batches import LabelColumns, PredictionColumns, now_ms
from streamer.client.entry import BATCH_HEADERS, EVENT_HEADERS, Entry
from streamer.client.outbox import Outbox
from streamer.events import FeatureLog, Label, Origin, Prediction
from streamer.routing import UNKNOWN_VERSION, Choice


class EventLogger:
    """What logs for `streamer.sdk.Client`, which inherits it: handing on would cost a call for every event.

    Parameters
    ----------
    outbox : where events wait to be sent.
    batches : how columns are encoded.
    namespace : driftloop's, in front of each topic's name; "" for none.
    """

    def __init__(self, outbox: Outbox, batches: BatchEncoding, namespace: str) -> None:
        self._outbox = outbox
        self._batches = batches
        prefix = f"{namespace}." if namespace else ""
        self._predictions, self._features, self._labels = (
            f"{prefix}{topic}.v1" for topic in ("predictions", "features", "labels")
        )

    def log_prediction(
        self,
        *,
        model: str,
        features: Mapping[str, Any],
        prediction: Any,
        score: Any = None,
        version: str | None = None,
        entity_id: object = None,
        prediction_id: object = None,
        ts_ms: int | None = None,
        latency_ms: float | None = None,
        error: str | None = None,
        origin: Origin = "live",
        choice: Choice | None = None,
    ) -> str:
        """Log one answer of a model; return its id, by which its label finds it.

        Parameters
        ----------
        model : the model's name.
        features : feature → number, text, boolean or None; numpy scalars are taken, NaN becomes null.
        prediction : what the model said; None with an `error`.
        score : P(positive), the regression's value, or {class: probability}.
        version : which version said it; comes from `choice` where one is given, else "_".
        entity_id : who or what it was about.
        prediction_id : a UUIDv7 where not given.
        ts_ms : event time, epoch milliseconds UTC; now where not given.
        latency_ms : how long the model took.
        error : why there is no prediction.
        origin : live, shadow or backfill; only live ones are looked at.
        choice : what `choose` said, so that a rollout counts it.

        Raises
        ------
        TypeError, ValueError
            When an argument is wrong; the message names it.
        """
        event = checked_prediction(
            Prediction(
                prediction_id=str(uuid_utils.uuid7()) if prediction_id is None else str(prediction_id),
                model=model,
                ts=now_ms() if ts_ms is None else ts_ms,
                version=_version(version, choice),
                features=features,  # type: ignore[arg-type]  # a mapping becomes a dict when it is checked
                prediction=prediction,
                score=score,
                entity_id=entity_id,  # type: ignore[arg-type]
                origin=origin,
                rollout_id=None if choice is None else choice.rollout_id,
                bucket=None if choice is None else choice.bucket,
                latency_ms=latency_ms,
                error=error,
            )
        )
        self._outbox.put((Entry(self._predictions, event.prediction_id.encode(), encoded(event), EVENT_HEADERS),))
        return event.prediction_id

    def log_features(
        self,
        *,
        model: str,
        features: Mapping[str, Any],
        entity_id: object = None,
        prediction_id: object = None,
        version: str | None = None,
        ts_ms: int | None = None,
        choice: Choice | None = None,
    ) -> None:
        """Log features apart from a prediction, as a feature job computes them; arguments as for `log_prediction`.

        Give the `version` that is to be watched by them, or what `choose` says serves the entity as `choice`: without
        either they are counted and held against nothing. With a `prediction_id` they say which slices that prediction
        is in, by the features that have `source = "features"`.
        """
        event = checked_features(
            FeatureLog(
                model=model,
                ts=now_ms() if ts_ms is None else ts_ms,
                features=features,  # type: ignore[arg-type]
                version=_version(version, choice),
                prediction_id=None if prediction_id is None else str(prediction_id),
                entity_id=entity_id,  # type: ignore[arg-type]
            )
        )
        key = event.entity_id or event.prediction_id
        self._outbox.put((Entry(self._features, None if key is None else key.encode(), encoded(event), EVENT_HEADERS),))

    def log_label(
        self,
        prediction_id: object,
        *,
        model: str,
        label: Any = None,
        ts_ms: int | None = None,
        value: float | None = None,
        revision: int = 0,
        deleted: bool = False,
        version: str | None = None,
        prediction: Any = None,
        score: Any = None,
        prediction_ts_ms: int | None = None,
        previous: Any = None,
    ) -> None:
        """Log what turned out to be true of a prediction, before or after the prediction itself arrives.

        Parameters
        ----------
        prediction_id : which prediction.
        model : the model's name.
        label : the truth, in the terms of the prediction.
        ts_ms : when it became known, epoch milliseconds UTC; now where not given.
        value : what it was worth; kept in the log, and not read by driftloop yet.
        revision : a larger one corrects a smaller one.
        deleted : takes the label back.
        version, prediction, score, prediction_ts_ms, previous : the prediction's own, for models whose
            labels are counted without a join; `previous` is the label that this one corrects.

        Raises
        ------
        TypeError, ValueError
            When an argument is wrong; the message names it.
        """
        event = checked_label(
            Label(
                prediction_id=prediction_id,  # type: ignore[arg-type]
                model=model,
                ts=now_ms() if ts_ms is None else ts_ms,
                label=label,
                value=value,
                revision=revision,
                deleted=deleted,
                version=version,
                prediction=prediction,
                score=score,
                prediction_ts=prediction_ts_ms,
                previous=previous,
            )
        )
        self._outbox.put((Entry(self._labels, event.prediction_id.encode(), encoded(event), EVENT_HEADERS),))

    def log_predictions(self, predictions: Iterable[Prediction] | PredictionColumns) -> list[str]:
        """Log many predictions, as events or as columns; return their ids, in order.

        Raises
        ------
        TypeError, ValueError
            When a row is wrong: nothing is logged, and the message names the row and the field.
        """
        if isinstance(predictions, PredictionColumns):
            encoded_columns = self._batches.predictions(predictions)
            if encoded_columns is not None:
                ids, pieces = encoded_columns
                self._outbox.put(_batch_entries(self._predictions, pieces))
                return ids
            events = predictions.events()
        else:
            events = [checked_prediction(event, f"row {row}: ") for row, event in enumerate(predictions)]
        self._outbox.put(_entries(self._predictions, events))
        return [event.prediction_id for event in events]

    def log_labels(self, labels: Iterable[Label] | LabelColumns) -> None:
        """Log many labels, as events or as columns; errors as for `log_predictions`."""
        if isinstance(labels, LabelColumns):
            pieces = self._batches.labels(labels)
            if pieces is not None:
                self._outbox.put(_batch_entries(self._labels, pieces))
                return
            events = labels.events()
        else:
            events = [checked_label(event, f"row {row}: ") for row, event in enumerate(labels)]
        self._outbox.put(_entries(self._labels, events))


def _entries(topic: str, events: Sequence[Prediction | Label]) -> list[Entry]:
    return [
        Entry(topic, event.prediction_id.encode(), encoded(event, f"row {row}: "), EVENT_HEADERS)
        for row, event in enumerate(events)
    ]


def _batch_entries(topic: str, pieces: Iterable[tuple[bytes, int]]) -> list[Entry]:
    return [Entry(topic, None, body, BATCH_HEADERS, events) for body, events in pieces]


def _version(version: str | None, choice: Choice | None) -> str:
    if choice is None:
        return UNKNOWN_VERSION if version is None else version
    if version is not None and version != choice.version:
        raise ValueError(f"version: got {version!r}, but choice says {choice.version!r}; give one of them")
    return choice.version
