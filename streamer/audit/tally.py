"""Counting events that lie in log order, by the plainest means: what the workers' counts are held against."""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitors.binning import Binning
from monitors.performance import canonical
from monitors.slices import bounded, kept_slices
from streamer.catalog import Catalog, Model
from streamer.counting.fold import is_sampled
from streamer.decode import Event
from streamer.evaluation.evaluate_state import CountKey, PaneCounts
from streamer.events import FeatureLog, Label, Prediction
from streamer.join.records import EXPIRY_GRAIN_MS, MAX_OF_A_KIND

# Model, version, origin, pane start in ms, kind, name; all of a model's panes have its present width.
Key = tuple[str, str, str, int, str, str]
# A model, version, origin and pane start, and a feature or slice of it.
Group = tuple[str, str, str, int, str]


class Place(NamedTuple):
    """An event with its place in the log; places compare as the log runs."""

    record_ms: int
    partition: int
    offset: int
    row: int
    event: Any


class Row(NamedTuple):
    """A labelled prediction."""

    label: str
    prediction: str
    score: float
    sign: int


@dataclass
class Tally:
    """Everything counted, value by value, until `panes` adds it up.

    Give it all predictions and features first, then all labels, each in log order.

    Attributes
    ----------
    events, labels : how many were counted; a repeated prediction is not.
    newest : model → the largest event time of live events, in ms.
    """

    catalog: Catalog
    events: int = 0
    labels: int = 0
    newest: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _numbers: dict[Key, int] = field(default_factory=lambda: defaultdict(int))
    _values: dict[Group, list[Any]] = field(default_factory=lambda: defaultdict(list))
    _rows: dict[Group, list[Row]] = field(default_factory=lambda: defaultdict(list))
    _first: set[tuple[str, str, str, str]] = field(default_factory=set)
    # What is joined, by model and prediction id: first predictions, feature logs that slice them, labels.
    _joined: dict[tuple[str, str], list[Place]] = field(default_factory=lambda: defaultdict(list))

    def add_predictions(self, places: Iterable[Place]) -> None:
        """Count predictions; of those that a label could join, the first of an identity."""
        for place in places:
            event: Prediction = place.event
            model = self._model(event)
            sampled = event.error is None and is_sampled(event.prediction_id, model.config.labels.share)
            if sampled and model.config.labels.mode == "join":
                identity = (event.model, event.prediction_id, event.version, event.origin)
                if identity in self._first:
                    continue
                self._first.add(identity)
                self._joined[event.model, event.prediction_id].append(place)
            self.events += 1
            if event.origin == "live":
                self.newest[event.model] = max(self.newest[event.model], event.ts)
            start = _pane(model, event.ts)
            pane = (event.model, event.version, str(event.origin), start)
            self._numbers[*pane, "events", ""] += 1
            self._numbers[*pane, "sampled", ""] += sampled
            for name, value in _watched(model, event).items():
                self._values[*pane, name].append(value)

    def add_features(self, places: Iterable[Place]) -> None:
        """Count features that are logged apart from predictions."""
        for place in places:
            event: FeatureLog = place.event
            model = self._model(event)
            self.newest[event.model] = max(self.newest[event.model], event.ts)
            for name, feature in model.config.features.items():
                if feature.source == "features":
                    group = (event.model, event.version, "live", _pane(model, event.ts), name)
                    self._values[group].append(event.features.get(name))
            if event.prediction_id and any(event.features.get(name) is not None for name in _logged(model)):
                self._joined[event.model, event.prediction_id].append(place)

    def add_labels(self, places: Iterable[Place]) -> None:
        """Give each first prediction its effective label and slices, and count the labels that need no join."""
        for place in places:
            label: Label = place.event
            model = self._model(label)
            self.labels += 1
            if model.config.labels.mode == "context":
                self._count_in_context(model, label)
            else:
                self._joined[label.model, label.prediction_id].append(place)
        for (name, _prediction_id), joined in self._joined.items():
            model = self._named(name)
            for together in _kept_together(joined, int(model.config.labels.horizon)):
                self._count_joined(model, together)

    def panes(self) -> PaneCounts:
        """Add everything up, by key."""
        return {
            CountKey(model, version, origin, int(self._named(model).config.time.pane), start, kind, name): counts
            for (model, version, origin, start, kind, name), counts in self._added_up().items()
        }

    def _added_up(self) -> dict[Key, NDArray[Any]]:
        panes: dict[Key, NDArray[Any]] = {key: np.array([count]) for key, count in self._numbers.items()}
        for (model, version, origin, start, name), column in self._values.items():
            profile = self.catalog.reference(model, version)
            known = None if profile is None else profile.features.get(name)
            if known is not None:
                cells = [_cell(known.binning, value) for value in column]
                panes[model, version, origin, start, "cells", name] = np.bincount(cells, minlength=known.binning.size)
        for (model, version, origin, start, slice_key), rows in self._rows.items():
            (vector,) = self._named(model).schema.fold(
                labels=[row.label for row in rows],
                predictions=[row.prediction for row in rows],
                scores=np.array([row.score for row in rows], dtype=np.float64),
                signs=np.array([row.sign for row in rows], dtype=np.int64),
                groups=np.zeros(len(rows), dtype=np.int64),
                n_groups=1,
            )
            panes[model, version, origin, start, "performance", slice_key] = vector
        return panes

    def _count_joined(self, model: Model, places: list[Place]) -> None:
        """Count the predictions among what is known of an id, with its effective label, in the slices they are in."""
        # A record has room for so many; what the log has after them is not joined.
        labels = [place for place in places if isinstance(place.event, Label)][:MAX_OF_A_KIND]
        if not labels:
            return
        label: Label = max(labels, key=lambda place: (place.event.revision, place.event.ts, place[1:4])).event
        if label.deleted:
            return
        logs = [place for place in places if isinstance(place.event, FeatureLog)][:MAX_OF_A_KIND]
        logged = {name: _newest(logs, name) for name in _logged(model)}
        for place in places:
            event: Any = place.event
            if isinstance(event, Prediction):
                pane = (event.model, event.version, str(event.origin), _pane(model, event.ts))
                row = _row(model, event.prediction, event.score, label.label, 1)
                self._numbers[*pane, "labelled", ""] += 1
                profile = self.catalog.reference(event.model, event.version)
                kept = kept_slices(model.config.slices, profile, model.config.slice_values)
                for slice_key in ("", *_slices(model, event, logged)):
                    self._rows[*pane, bounded(slice_key, kept)].append(row)

    def _count_in_context(self, model: Model, label: Label) -> None:
        """Take the previous label out and the new one in; the label brings its prediction's content."""
        pane = (label.model, label.version or "_", "live", _pane(model, label.prediction_ts or label.ts))
        changes: list[tuple[Any, int]] = [(label.previous, -1)] if label.previous is not None else []
        changes += [] if label.deleted else [(label.label, 1)]
        for truth, sign in changes:
            self._numbers[*pane, "labelled", ""] += sign
            self._rows[*pane, ""].append(_row(model, label.prediction, label.score, truth, sign))

    def _model(self, event: Event) -> Model:
        return self._named(event.model)

    def _named(self, name: str) -> Model:
        model = self.catalog.model(name)
        if model is None:
            raise LookupError(f"model: got {name!r}, wanted one that is configured")
        return model


def _pane(model: Model, at_ms: int) -> int:
    return at_ms // int(model.config.time.pane) * int(model.config.time.pane)


def _watched(model: Model, event: Prediction) -> dict[str, Any]:
    """Return the values drift is watched by: the prediction's features, and what the model said."""
    watched = {
        name: event.features.get(name)
        for name, feature in model.config.features.items()
        if feature.source == "predictions"
    }
    if model.config.task == "multiclass":
        return watched | {"@prediction": event.prediction}
    if isinstance(event.score, dict):
        return watched | {"@score": event.score.get(model.schema.positive or "")}
    return watched | {"@score": event.prediction if event.score is None else event.score}


def _kept_together(places: list[Place], horizon_ms: int) -> Iterator[list[Place]]:
    """Part what came of an id by when its record in the join store expires: later ones know nothing of earlier."""
    together: list[Place] = []
    until = 0
    for place in sorted(places, key=lambda place: place.record_ms):
        if together and place.record_ms >= until:
            yield together
            together = []
        together.append(place)
        until = -(-(place.record_ms + horizon_ms) // EXPIRY_GRAIN_MS) * EXPIRY_GRAIN_MS
    yield together


def _logged(model: Model) -> list[str]:
    """Return the slice features whose values come in feature logs."""
    joined = model.config.labels.mode == "join"
    return [name for name in model.config.slices if joined and model.config.features[name].source == "features"]


def _newest(logs: list[Place], name: str) -> Any:
    """Return what the feature logs of a prediction say of a feature, by time and place; None where they do not."""
    given = [log for log in logs if log.event.features.get(name) is not None]
    return max(given, key=lambda log: (log.event.ts, log[1:4])).event.features[name] if given else None


def _slices(model: Model, event: Prediction, logged: dict[str, Any]) -> list[str]:
    """Return the slices a prediction is in: by its own features, and by those logged that it does not carry."""
    own = {name: event.features.get(name) for name in model.config.slices}
    given = {name: logged.get(name) if value is None else value for name, value in own.items()}
    return [f"{name}={canonical(value)}" for name, value in given.items() if value is not None]


def _row(model: Model, prediction: Any, score: float | dict[str, float] | None, truth: Any, sign: int) -> Row:
    label = canonical(truth)
    if isinstance(score, dict):
        score = score.get(label if model.schema.positive is None else model.schema.positive)
    return Row(label, canonical(prediction), math.nan if score is None else score, sign)


def _cell(binning: Binning, value: Any) -> int:
    """Return the cell of one value; text is no number, whatever it says."""
    if binning.kind == "categorical":
        return int(binning.assign(np.array([None if value is None else canonical(value)], dtype=object))[0])
    if isinstance(value, str):
        return binning.unseen
    number = math.nan if value is None else max(min(value, sys.float_info.max), -sys.float_info.max)
    return int(binning.assign(np.array([number], dtype=np.float64))[0])
