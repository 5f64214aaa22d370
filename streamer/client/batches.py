"""Many events at once as columns: what a batch scorer has at hand, turned into the events they stand for."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import uuid_utils

from streamer.client.arguments import checked_label, checked_prediction
from streamer.events import Label, Origin, Prediction
from streamer.routing import UNKNOWN_VERSION, Choice

# A list, a tuple, or anything of numpy, pandas, polars or Arrow; no type of their four libraries says it all.
Column = Any


@dataclass(frozen=True, kw_only=True)
class PredictionColumns:
    """Predictions of one model as columns of the same length: lists, tuples, numpy arrays, or Series.

    Parameters
    ----------
    model : the model's name.
    features : feature → column.
    prediction, score : (rows,) what the model said; a score is a number or a mapping from class to number.
    version : one for all, or a column.
    choices : (rows,) what `Client.choose` said; they give version, rollout and bucket.
    entity_id, prediction_id, ts_ms, latency_ms, error : (rows,) each; ids and times are made where not given.
    origin : one for all.
    """

    model: str
    features: Mapping[str, Column]
    prediction: Column
    score: Column | None = None
    version: str | Column | None = None
    choices: Sequence[Choice] | None = None
    entity_id: Column | None = None
    prediction_id: Column | None = None
    ts_ms: Column | None = None
    latency_ms: Column | None = None
    error: Column | None = None
    origin: Origin = "live"

    def events(self) -> list[Prediction]:
        """Return the predictions, checked.

        Raises
        ------
        TypeError, ValueError
            Naming the column, the row, what came and what was wanted.
        """
        predictions = column(self.prediction, "prediction")
        rows = len(predictions)
        if self.version is not None and self.choices is not None:
            raise ValueError("version: got both version and choices; the choices give the versions")
        choices = self._choices(rows)
        at_ms = now_ms()
        names = list(self.features)
        values = [column(self.features[name], f"features[{name!r}]", rows) for name in names]
        feature_rows: Iterator[tuple[Any, ...]] = zip(*values, strict=True) if names else iter([()] * rows)
        ids = made_ids(rows) if self.prediction_id is None else column(self.prediction_id, "prediction_id", rows)
        parts = zip(
            ids,
            feature_rows,
            predictions,
            optional(self.score, "score", rows),
            choices,
            optional(self.entity_id, "entity_id", rows),
            optional(self.ts_ms, "ts_ms", rows, at_ms),
            optional(self.latency_ms, "latency_ms", rows),
            optional(self.error, "error", rows),
            strict=True,
        )
        return [
            checked_prediction(
                Prediction(
                    prediction_id=prediction_id,
                    model=self.model,
                    ts=ts_ms,
                    version=choice.version,
                    features=dict(zip(names, row, strict=True)),
                    prediction=prediction,
                    score=score,
                    entity_id=entity_id,
                    origin=self.origin,
                    rollout_id=choice.rollout_id,
                    bucket=choice.bucket,
                    latency_ms=latency_ms,
                    error=error,
                ),
                f"row {number}: ",
            )
            for number, (
                prediction_id,
                row,
                prediction,
                score,
                choice,
                entity_id,
                ts_ms,
                latency_ms,
                error,
            ) in enumerate(parts)
        ]

    def _choices(self, rows: int) -> Sequence[Choice]:
        if self.choices is not None:
            return column(self.choices, "choices", rows)
        if self.version is None or isinstance(self.version, str):
            return [Choice(self.version or UNKNOWN_VERSION)] * rows
        return [Choice(version) for version in column(self.version, "version", rows)]


@dataclass(frozen=True, kw_only=True)
class LabelColumns:
    """Labels of one model as columns of the same length.

    Parameters
    ----------
    model : the model's name.
    prediction_id, label : (rows,) which prediction, and what turned out to be true.
    ts_ms, value, revision, deleted : (rows,) each; the time is now where not given.
    version, prediction, score, prediction_ts_ms, previous : (rows,) the prediction's own, for models whose
        labels are counted without a join.
    """

    model: str
    prediction_id: Column
    label: Column
    ts_ms: Column | None = None
    value: Column | None = None
    revision: Column | None = None
    deleted: Column | None = None
    version: Column | None = None
    prediction: Column | None = None
    score: Column | None = None
    prediction_ts_ms: Column | None = None
    previous: Column | None = None

    def events(self) -> list[Label]:
        """Return the labels, checked; errors name the column and the row."""
        labels = column(self.label, "label")
        rows = len(labels)
        parts = zip(
            column(self.prediction_id, "prediction_id", rows),
            labels,
            optional(self.ts_ms, "ts_ms", rows, now_ms()),
            optional(self.value, "value", rows),
            optional(self.revision, "revision", rows, 0),
            optional(self.deleted, "deleted", rows, False),
            optional(self.version, "version", rows),
            optional(self.prediction, "prediction", rows),
            optional(self.score, "score", rows),
            optional(self.prediction_ts_ms, "prediction_ts_ms", rows),
            optional(self.previous, "previous", rows),
            strict=True,
        )
        return [
            checked_label(
                Label(
                    prediction_id=prediction_id,
                    model=self.model,
                    ts=ts_ms,
                    label=label,
                    value=value,
                    revision=revision,
                    deleted=deleted,
                    version=version,
                    prediction=prediction,
                    score=score,
                    prediction_ts=prediction_ts_ms,
                    previous=previous,
                ),
                f"row {number}: ",
            )
            for number, (
                prediction_id,
                label,
                ts_ms,
                value,
                revision,
                deleted,
                version,
                prediction,
                score,
                prediction_ts_ms,
                previous,
            ) in enumerate(parts)
        ]


def made_ids(rows: int) -> list[str]:
    """Return new ids, which rise with time."""
    return [str(uuid_utils.uuid7()) for _ in range(rows)]


def now_ms() -> int:
    """Return the time, epoch milliseconds UTC."""
    return time.time_ns() // 1_000_000


def column(values: Any, argument: str, rows: int | None = None) -> list[Any]:
    """Return a column as a list of Python's own values.

    Raises
    ------
    TypeError
        When it is not a column of one dimension.
    ValueError
        When its length is not `rows`.
    """
    # numpy and pandas say tolist, polars and arrow to_list and to_pylist: each makes plain values at C speed.
    for method in ("tolist", "to_list", "to_pylist"):
        if hasattr(values, method):
            values = getattr(values, method)()
            break
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Sequence):
        raise TypeError(f"{argument}: got {type(values).__name__}, wanted a column: a list, an array or a Series")
    if rows is not None and len(values) != rows:
        raise ValueError(f"{argument}: got {len(values)} values, wanted {rows}, as many as the other columns")
    return values if isinstance(values, list) else list(values)


def optional(values: Any, argument: str, rows: int, absent: Any = None) -> list[Any]:
    """Return a column, or `rows` times `absent` where it was not given."""
    return [absent] * rows if values is None else column(values, argument, rows)
