"""Whether the registered version is the one that passed: read by its version, and asked the golden rows again."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from dags.steps.artefact import load
from dags.steps.measuring import answer_inputs, labels_of
from dags.steps.outcomes import Unmendable
from dags.steps.registry import Registry, pipeline_file, signature_inputs
from dags.steps.tables import inputs
from streamer.models import ModelConfig

GOLDEN_ROWS = 50
_TYPES = {"numeric": "double", "categorical": "string"}


class StagingError(Unmendable):
    """The registered version is not what was trained; the message says how."""


def golden_answers(config: ModelConfig, model: Any, features: Sequence[str], table: pl.DataFrame) -> dict[str, Any]:
    """Return what a model answers to some rows, spread over the table, to be compared with later."""
    rows = golden_rows(table)
    found = answer_inputs(config, model, inputs(rows, features), labels_of(rows))
    return {"features": list(features), "predictions": found.predictions, "scores": found.scores.tolist()}


def golden_rows(table: pl.DataFrame) -> pl.DataFrame:
    """Return the rows golden answers are given to."""
    return table.gather_every(max(1, len(table) // GOLDEN_ROWS)).head(GOLDEN_ROWS)


def stage(
    registry: Registry, version: str, config: ModelConfig, table: pl.DataFrame, golden: dict[str, Any]
) -> dict[str, Any]:
    """Read a version back from the registry, and check its signature and its answers to the golden rows.

    Raises
    ------
    StagingError
        When a column of the signature or an answer is another.
    """
    with tempfile.TemporaryDirectory() as directory:
        files = registry.fetch_model(version, Path(directory))
        columns = signature_inputs(files)
        wanted = {name: _TYPES[config.features[name].kind] for name in golden["features"]}
        if columns != wanted:
            raise StagingError(f"{config.name} {version}: its signature takes {columns}, wanted {wanted}")
        model = load(pipeline_file(files))
    rows = golden_rows(table)
    found = answer_inputs(config, model, inputs(rows, golden["features"]), labels_of(rows))
    if found.predictions != golden["predictions"]:
        changed = sum(a != b for a, b in zip(found.predictions, golden["predictions"], strict=True))
        raise StagingError(f"{config.name} {version}: {changed} of {len(rows)} golden predictions are others")
    difference = float(np.abs(found.scores - np.asarray(golden["scores"])).max())
    if difference > 1e-9:
        raise StagingError(f"{config.name} {version}: golden scores differ by up to {difference:g}")
    return {"golden_rows": len(rows), "largest_difference": difference, "columns": len(columns)}
