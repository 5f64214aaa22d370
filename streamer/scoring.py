"""Reference serving: route entities by the split, score each version's rows in one call, log what it said."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from monitors.performance import canonical
from streamer.client.batches import PredictionColumns, column
from streamer.routing import UNKNOWN_VERSION, Choice

log = logging.getLogger(__name__)

# Champion, challenger, and the two of the rollout before, whose requests may still be under way.
_KEPT_VERSIONS = 4


class Outputs(NamedTuple):
    """What a model says of a batch: (rows,) predictions, and scores where it has them."""

    prediction: Sequence[Any]
    score: Sequence[Any] | None = None


Predict = Callable[[Mapping[str, list[Any]]], Outputs]


class Logger(Protocol):
    """What a scorer needs of `streamer.sdk.Client`."""

    def choose(self, model: str, entity_id: object) -> Choice:
        """Return which version serves an entity."""

    def log_predictions(self, predictions: PredictionColumns) -> list[str]:
        """Log a batch; return its ids."""


@dataclass(frozen=True)
class Scored:
    """A scored batch, by row; a row with an `error` has no prediction."""

    prediction_id: list[str]
    choice: list[Choice]
    prediction: list[Any]
    score: list[Any]
    error: list[str | None]


class NotDeployedError(LookupError):
    """No version of the model has been made champion yet."""


class Scorer:
    """Serves one model: champion and challenger side by side, as the split says.

    Parameters
    ----------
    client : chooses and logs.
    model : the model's name.
    load : version → what scores a batch; called once a version, whose result is kept.
    damage : applied to what a challenger says, for a demonstration that has to end in a rollback.

    Notes
    -----
    A version that cannot be loaded, or fails on a batch, costs its own rows: they are logged with the
    error, which the canary's guardrail counts, and the other version's rows are served.
    """

    def __init__(
        self,
        client: Logger,
        model: str,
        *,
        load: Callable[[str], Predict],
        damage: Callable[[Outputs], Outputs] | None = None,
    ) -> None:
        self._client = client
        self._model = model
        self._load = load
        self._damage = damage
        self._models: OrderedDict[str, Predict] = OrderedDict()
        # What a version failed of is logged when it begins, not with every batch.
        self._failing: dict[str, str] = {}

    def score(
        self,
        features: Mapping[str, Sequence[Any]],
        *,
        entity_id: Sequence[Any],
        ts_ms: Sequence[int] | None = None,
        prediction_id: Sequence[Any] | None = None,
    ) -> Scored:
        """Score a batch and log it.

        Parameters
        ----------
        features : feature → (rows,) column; a list, an array or a Series.
        entity_id : (rows,) whom each row is about.
        ts_ms, prediction_id : (rows,) as for `Client.log_prediction`.

        Raises
        ------
        TypeError, ValueError
            When a column is wrong; the message names it.
        """
        entities = column(entity_id, "entity_id")
        rows = len(entities)
        table = {name: column(values, f"features[{name!r}]", rows) for name, values in features.items()}
        choices = [self._client.choose(self._model, entity) for entity in entities]
        scored = Scored([], choices, [None] * rows, [None] * rows, [None] * rows)
        latency_ms = [0.0] * rows
        for (version, arm), places in _by_version(choices).items():
            started = time.perf_counter()
            self._score_version(version, arm, table, places, scored)
            # What a caller waited: a share of it would make the arm with fewer rows look slow.
            spent_ms = (time.perf_counter() - started) * 1000
            for place in places:
                latency_ms[place] = spent_ms
        ids = self._client.log_predictions(
            PredictionColumns(
                model=self._model,
                features=table,
                prediction=scored.prediction,
                score=scored.score,
                choices=choices,
                entity_id=entities,
                prediction_id=prediction_id,
                ts_ms=ts_ms,
                latency_ms=latency_ms,
                error=scored.error,
            )
        )
        scored.prediction_id.extend(ids)
        return scored

    def _score_version(
        self,
        version: str,
        arm: Literal["champion", "challenger"],
        table: Mapping[str, list[Any]],
        places: list[int],
        scored: Scored,
    ) -> None:
        """Have one version answer its rows, in one call."""
        try:
            predict = self._model_of(version)
            outputs = predict({name: [values[place] for place in places] for name, values in table.items()})
            if self._damage is not None and arm == "challenger":
                outputs = self._damage(outputs)
            predictions = column(outputs.prediction, "prediction", len(places))
            no_scores = [None] * len(places)
            scores = no_scores if outputs.score is None else column(outputs.score, "score", len(places))
        except Exception as error:  # noqa: BLE001 - whatever a model fails of costs its own rows, and is logged
            self._note_failure(version, error)
            for place in places:
                scored.error[place] = f"{type(error).__name__}: {error}"[:500]
            return
        if self._failing.pop(version, None):
            log.info("driftloop: %s %s answers again", self._model, version)
        for place, prediction, score in zip(places, predictions, scores, strict=True):
            scored.prediction[place] = prediction
            scored.score[place] = score

    def _note_failure(self, version: str, error: Exception) -> None:
        fault = f"{type(error).__name__}: {error}"
        if self._failing.get(version) != fault:
            self._failing[version] = fault
            expected = isinstance(error, NotDeployedError)
            log.error("driftloop: %s %s cannot answer: %s", self._model, version, fault, exc_info=not expected)

    def _model_of(self, version: str) -> Predict:
        if version == UNKNOWN_VERSION:
            raise NotDeployedError(f"{self._model}: no version is deployed; send set_champion first")
        if version not in self._models:
            self._models[version] = self._load(version)
        self._models.move_to_end(version)
        while len(self._models) > _KEPT_VERSIONS:
            self._models.popitem(last=False)
        return self._models[version]


def _by_version(choices: Sequence[Choice]) -> dict[tuple[str, Literal["champion", "challenger"]], list[int]]:
    places: dict[tuple[str, Literal["champion", "challenger"]], list[int]] = {}
    for place, choice in enumerate(choices):
        places.setdefault((choice.version, choice.arm), []).append(place)
    return places


def predict_with(
    model: Any,
    *,
    task: Literal["binary", "multiclass", "regression"],
    features: Sequence[str],
    positive: object = None,
    threshold: float = 0.5,
) -> Predict:
    """Return what scores a batch with a scikit-learn pipeline or an MLflow pyfunc model.

    Parameters
    ----------
    model : has `predict`, and for a classifier's scores `predict_proba` and `classes_`.
    task : as in the model's configuration.
    features : the columns the model takes, in its order.
    positive : the class whose probability a binary model's score is.
    threshold : a binary model predicts `positive` at this score and above.

    Raises
    ------
    ValueError
        When `positive` is not one of a binary classifier's two classes.
    """
    # The serving side of an MLflow model is pandas: its signature is checked against a DataFrame.
    import pandas as pd

    def frame(rows: Mapping[str, list[Any]]) -> Any:
        return pd.DataFrame({name: rows[name] for name in features})

    if task == "regression":
        return lambda rows: _twice(model.predict(frame(rows)))
    if not hasattr(model, "predict_proba"):
        return lambda rows: Outputs(column(model.predict(frame(rows)), "prediction"))
    classes = [value.item() if hasattr(value, "item") else value for value in model.classes_]
    if task == "multiclass":
        names = [canonical(value) for value in classes]
        return lambda rows: _by_class(names, classes, model.predict_proba(frame(rows)))
    places = [place for place, value in enumerate(classes) if canonical(value) == canonical(positive)]
    if len(classes) != 2 or not places:
        raise ValueError(f"positive: got {positive!r}, wanted one of two classes, and the model has {classes}")
    place = places[0]

    def binary(rows: Mapping[str, list[Any]]) -> Outputs:
        scores = model.predict_proba(frame(rows))[:, place]
        yes, no = classes[place], classes[1 - place]
        return Outputs([yes if score >= threshold else no for score in scores], scores)

    return binary


def _twice(predictions: Any) -> Outputs:
    """A regression's score is its prediction."""
    values = column(predictions, "prediction")
    return Outputs(values, values)


def _by_class(names: list[str], classes: list[Any], shares: Any) -> Outputs:
    scores = [dict(zip(names, row, strict=True)) for row in shares.tolist()]
    return Outputs([classes[place] for place in shares.argmax(axis=1)], scores)
