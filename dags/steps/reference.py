"""The reference of a new version: the cells of what it was trained on, and how well it did on what it never saw."""

from __future__ import annotations

import polars as pl

from dags.steps.measuring import Answers
from dags.steps.tables import LABEL, TIME
from monitors.profile import ReferenceProfile
from streamer.models import ModelConfig
from streamer.reference_table import OutputColumns, build

PREDICTED = "@prediction"
SCORED = "@score"


def build_reference(
    config: ModelConfig,
    *,
    version: str,
    trained_on: pl.DataFrame,
    held_out: pl.DataFrame,
    answers: Answers,
    created_ms: int,
) -> ReferenceProfile:
    """Build a version's reference.

    Parameters
    ----------
    trained_on : all rows the version was trained on: its features' cells and counts.
    held_out, answers : the newest rows and what a model that had not seen them answered: from them come the
        cells of the model's own output and the performance baseline, which rows seen in training would flatter.

    Notes
    -----
    The held-out answers are the candidate's; the version itself is the same pipeline trained once more on all rows.
    """
    time_only = OutputColumns(ts=TIME)
    whole = build(config, trained_on, time_only, version=version, created_ms=created_ms)
    answered = held_out.with_columns(
        pl.Series(PREDICTED, answers.predictions, dtype=pl.String), pl.Series(SCORED, answers.scores, dtype=pl.Float64)
    )
    columns = OutputColumns(
        prediction=PREDICTED, score=None if config.task == "multiclass" else SCORED, label=LABEL, ts=TIME
    )
    newest = build(config, answered, columns, version=version, created_ms=created_ms)
    outputs = {name: feature for name, feature in newest.features.items() if name not in config.features}
    return ReferenceProfile(
        model=config.name,
        version=version,
        features={**whole.features, **outputs},
        baseline=newest.baseline,
        rows=whole.rows,
        created_ms=created_ms,
    )
