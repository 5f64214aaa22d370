"""Evidently's report of the new training data against the champion's: a page for people, kept with the model."""

from __future__ import annotations

import html
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from dags.steps.tables import LABEL, inputs
from streamer.models import ModelConfig

# Its tests and pictures do not change beyond this many rows a side, its memory and time do.
MAX_ROWS = 3_000


_BODY = "<body>"


def write_report(
    path: Path, current: pl.DataFrame, reference: pl.DataFrame, config: ModelConfig, title: str, about: Sequence[str]
) -> dict[str, Any]:
    """Write the report as one HTML page, headed by what is compared with what; return its sizes.

    Parameters
    ----------
    current, reference : typed tables; samples are taken of both.
    title, about : what stands above Evidently's page, in plain text: a heading and paragraphs.
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
    page = path.read_text(encoding="utf-8")
    path.write_text(page.replace(_BODY, _BODY + _heading(title, about), 1), encoding="utf-8")
    return {"rows": [len(current), len(reference)], "label": LABEL, "columns": len(names)}


def _heading(title: str, about: Sequence[str]) -> str:
    paragraphs = "".join(f"<p>{html.escape(each)}</p>" for each in about)
    style = "font-family: Roboto, Helvetica, Arial, sans-serif; max-width: 60em; margin: 1.5em auto 0; padding: 0 1em"
    return f'<header style="{style}"><h1>{html.escape(title)}</h1>{paragraphs}</header>'


def _sample(table: pl.DataFrame) -> pl.DataFrame:
    return table.gather_every(max(1, -(-len(table) // MAX_ROWS)))
