"""What a trained pipeline answers, and how well, by the very counts the monitor will measure it with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from dags.steps.tables import LABEL, inputs
from monitors.performance import PerformanceSchema, canonical
from monitors.slices import slice_key
from streamer.catalog import describe
from streamer.models import ModelConfig

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """A model's answers to some rows.

    Attributes
    ----------
    predictions : (rows,) canonical texts. scores : (rows,) P(positive) for binary, P(of the true label)
        for multiclass, the number itself for regression.
    labels : (rows,) canonical texts.
    """

    labels: list[str]
    predictions: list[str]
    scores: Floats


def answer(config: ModelConfig, model: Any, features: Sequence[str], table: pl.DataFrame) -> Answers:
    """Have a trained pipeline answer the rows of a typed table."""
    return answer_inputs(config, model, inputs(table, features), labels_of(table))


def labels_of(table: pl.DataFrame) -> list[str]:
    """Return the rows' labels as canonical texts."""
    return [canonical(value) for value in table[LABEL].to_list()]


def answer_inputs(config: ModelConfig, model: Any, rows: Any, labels: list[str]) -> Answers:
    """Have a trained pipeline answer a pandas DataFrame of its features."""
    if config.task == "regression":
        numbers = np.asarray(model.predict(rows), dtype=np.float64)
        return Answers(labels, [canonical(value) for value in numbers.tolist()], numbers)
    classes = [canonical(value) for value in model.classes_]
    shares = np.asarray(model.predict_proba(rows), dtype=np.float64)
    predictions = [classes[index] for index in shares.argmax(axis=1)]
    if config.task == "binary":
        positive = canonical(config.positive)
        scores = shares[:, classes.index(positive)] if positive in classes else np.zeros(len(shares))
    else:
        place = {name: index for index, name in enumerate(classes)}
        columns = np.array([place.get(label, -1) for label in labels], dtype=np.int64)
        scores = np.where(columns >= 0, shares[np.arange(len(shares)), columns], 0.0)
    return Answers(labels, predictions, scores)


def measure(config: ModelConfig, answers: Answers) -> dict[str, float]:
    """Return the metrics of some answers, as `PerformanceSchema.metrics` names them."""
    groups = np.zeros(len(answers.labels), dtype=np.int64)
    return _metrics(describe(config).schema, answers, groups, 1)[0]


def measure_slices(config: ModelConfig, answers: Answers, table: pl.DataFrame) -> dict[str, dict[str, float]]:
    """Return the metrics of every slice (`feature=value`) of the model's slice features."""
    schema = describe(config).schema
    measured: dict[str, dict[str, float]] = {}
    for feature in config.slices:
        texts = [None if value is None else canonical(value) for value in table[feature].to_list()]
        names = sorted({text for text in texts if text is not None})
        place: dict[str | None, int] = {name: index for index, name in enumerate(names)}
        # Rows without a value are in no slice: they go to a group of their own, which is dropped.
        groups = np.array([place.get(text, len(names)) for text in texts], dtype=np.int64)
        metrics = _metrics(schema, answers, groups, len(names) + 1)
        measured |= {slice_key(feature, name): metrics[index] for index, name in enumerate(names)}
    return measured


def _metrics(
    schema: PerformanceSchema, answers: Answers, groups: npt.NDArray[np.int64], n_groups: int
) -> list[dict[str, float]]:
    vectors = schema.fold(
        labels=answers.labels,
        predictions=answers.predictions,
        scores=answers.scores,
        signs=np.ones(len(answers.labels), dtype=np.int64),
        groups=groups,
        n_groups=n_groups,
    )
    return [
        {name: float(value) for name, value in schema.metrics(vector).items() if math.isfinite(value)}
        for vector in vectors
    ]


def gain(config: ModelConfig, candidate: dict[str, float], champion: dict[str, float]) -> float:
    """Return by how much the candidate's primary metric is better: positive is better, whatever the task."""
    schema = describe(config).schema
    difference = candidate[schema.primary] - champion[schema.primary]
    return difference if schema.higher_is_better else -difference
