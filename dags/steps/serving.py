"""A registered version as `streamer.scoring.Scorer` takes it: columns of plain values in, answers out."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from dags.steps.artefact import load
from dags.steps.measuring import answer_inputs
from dags.steps.registry import Registry, pipeline_file, signature_inputs
from dags.steps.tables import inputs
from monitors.performance import canonical
from streamer.models import ModelConfig
from streamer.scoring import Outputs, Predict
from streamer.settings import Settings


def loader(settings: Settings, config: ModelConfig) -> Callable[[str], Predict]:
    """Return what a `Scorer` loads versions with; a version is read from the registry when it first serves.

    Predictions are the labels' canonical texts ("true"), numbers for regression. Scores are P(positive), for
    a multiclass model absent.
    """
    registry = Registry(settings, config.name)

    def load_version(version: str) -> Predict:
        with tempfile.TemporaryDirectory() as directory:
            files = registry.fetch_model(version, Path(directory))
            features = list(signature_inputs(files))
            model = load(pipeline_file(files))
        return lambda table: _predict(config, model, features, table)

    return load_version


def _predict(config: ModelConfig, model: Any, features: list[str], table: Mapping[str, list[Any]]) -> Outputs:
    kinds = {name: config.features[name].kind for name in features}
    columns = {name: _number(table[name]) if kinds[name] == "numeric" else _text(table[name]) for name in features}
    rows = pl.DataFrame(columns)
    answers = answer_inputs(config, model, inputs(rows, features), [""] * len(rows))
    if config.task == "regression":
        return Outputs(answers.scores.tolist())
    return Outputs(answers.predictions, answers.scores.tolist() if config.task == "binary" else None)


def _number(values: list[Any]) -> pl.Series:
    numbers = [float(value) if isinstance(value, int | float) and math.isfinite(value) else None for value in values]
    return pl.Series(numbers, dtype=pl.Float64)


def _text(values: list[Any]) -> pl.Series:
    return pl.Series([None if value is None else canonical(value) for value in values], dtype=pl.String)
