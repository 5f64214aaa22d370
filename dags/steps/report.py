"""Evidently's report of the new training data against the champion's: a page for people, kept with the model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import polars as pl

from dags.steps.tables import LABEL, inputs
from streamer.models import ModelConfig

# Its tests and pictures do not change beyond this many rows a side, its memory and time do.
MAX_ROWS = 3_000


def write_report(path: Path, current: pl.DataFrame, reference: pl.DataFrame, config: ModelConfig) -> dict[str, Any]:
    """Write the report as one HTML page; return the features Evidently calls drifted, as evidence beside our own.

    Parameters
    ----------
    current, reference : typed tables; samples are taken of both.
    """
    # Evidently takes seconds to import: only the task that writes the report pays for it.
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    names = [name for name in config.features if current[name].null_count() < len(current)]
    definition = DataDefinition(
        numerical_columns=[name for name in names if config.features[name].kind == "numeric"],
        categorical_columns=[name for name in names if config.features[name].kind == "categorical"],
    )
    with warnings.catch_warnings():
        # numpy's own, of empty slices in Evidently's histograms.
        warnings.simplefilter("ignore", RuntimeWarning)
        sides = [
            Dataset.from_pandas(inputs(_sample(side), [*names]), data_definition=definition)
            for side in (current, reference)
        ]
        snapshot = Report([DataDriftPreset()]).run(*sides)
    snapshot.save_html(str(path))
    return {"rows": [len(current), len(reference)], "label": LABEL, "columns": len(names)}


def _sample(table: pl.DataFrame) -> pl.DataFrame:
    return table.gather_every(max(1, -(-len(table) // MAX_ROWS)))
