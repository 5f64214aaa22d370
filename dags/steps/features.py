"""Which features a retraining uses, each with the reason why or why not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl

from dags.steps.tables import LABEL
from streamer.models import ModelConfig

# Groups a numeric feature is cut into, and the most categories looked at, to see what it says about the label.
GROUPS = 20
# A category seen less often than this is counted with the rare ones: one row says all about itself.
MIN_GROUP_ROWS = 10
# With half an observation added to each cell, a feature that says nothing stays well below this.
MIN_INFORMATION = 1e-4


def select(table: pl.DataFrame, config: ModelConfig) -> dict[str, dict[str, Any]]:
    """Return, for each feature, whether it is used, why, its missing share and what it says about the label.

    A feature is left out when it is missing too often (`policy.max_missing_share`), has one value, repeats
    another, or says next to nothing about the label. If that leaves none, every feature with values is used.
    """
    chosen: dict[str, dict[str, Any]] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, feature in config.features.items():
        column = table[name]
        missing = column.null_count() / max(len(column), 1)
        said = information(table, name, regression=config.task == "regression")
        reason = "used"
        mark = (feature.kind, int(column.hash(seed=0).sum() or 0))
        if missing > config.policy.max_missing_share:
            reason = f"missing in {missing:.0%} of the rows"
        elif column.drop_nulls().n_unique() < 2:
            reason = "has a single value"
        elif mark in seen and column.equals(table[seen[mark]], null_equal=True, check_names=False):
            reason = f"is the same as {seen[mark]}"
        elif said < MIN_INFORMATION:
            reason = "says next to nothing about the label"
        else:
            seen[mark] = name
        chosen[name] = {"used": reason == "used", "reason": reason, "missing_share": missing, "information": said}
    if not any(entry["used"] for entry in chosen.values()):
        for name, entry in chosen.items():
            if table[name].null_count() < len(table):
                entry |= {"used": True, "reason": "used, for want of a better one"}
    return chosen


def used(selection: dict[str, dict[str, Any]]) -> list[str]:
    """Return the names of the features that are used, in the configuration's order."""
    return [name for name, entry in selection.items() if entry["used"]]


def information(table: pl.DataFrame, name: str, *, regression: bool) -> float:
    """Return what a feature alone says about the label, corrected for what chance would show.

    Notes
    -----
    Classification: mutual information in nats between the feature's groups and the label, less its
    expectation (groups − 1)(classes − 1) / 2n when there is none [1]. Regression: −½ ln(1 − η²), its Gaussian
    counterpart, from the share η² of the label's variance that lies between groups, less (groups − 1) / 2n.

    [1] G. A. Miller, *Note on the bias of information estimates*, 1955.
    """
    rows = table.select(_groups(table, name).alias("@group"), pl.col(LABEL))
    n, groups = len(rows), rows["@group"].n_unique()
    if n < 2 or groups < 2:
        return 0.0
    if regression:
        parts = rows.group_by("@group").agg(pl.len().alias("n"), pl.col(LABEL).mean().alias("mean"))
        truth = rows[LABEL].to_numpy()
        mean, total = float(truth.mean()), float(truth.var())
        if total <= 0:
            return 0.0
        between = float((parts["n"] * (parts["mean"] - mean) ** 2).sum()) / n
        said = -0.5 * math.log(max(1 - between / total, 1e-12))
        return max(said - (groups - 1) / (2 * n), 0.0)
    joint = (
        rows.group_by("@group", LABEL)
        .agg(pl.len().alias("n"))
        .with_columns(pl.col("n").sum().over("@group").alias("group_n"), pl.col("n").sum().over(LABEL).alias("label_n"))
    )
    said = float((joint["n"] / n * (joint["n"] * n / (joint["group_n"] * joint["label_n"])).log()).sum())
    classes = rows[LABEL].n_unique()
    return max(said - (groups - 1) * (classes - 1) / (2 * n), 0.0)


def _groups(table: pl.DataFrame, name: str) -> pl.Series:
    """Return each row's group: quantile cells of a number, the frequent categories; missing is a group too."""
    column = table[name]
    if column.dtype == pl.Float64:
        numbers = column.to_numpy()
        present = numbers[~np.isnan(numbers)]
        steps = np.arange(1, GROUPS) / GROUPS
        cuts = np.unique(np.quantile(present, steps, method="nearest")) if len(present) else present
        return pl.Series(np.where(np.isnan(numbers), -1, np.searchsorted(cuts, numbers)))
    counts = column.drop_nulls().value_counts(sort=True).filter(pl.col("count") >= MIN_GROUP_ROWS)
    frequent = counts.head(5 * GROUPS)[name]
    kept = table.select(
        pl.when(pl.col(name).is_null())
        .then(pl.lit("@missing"))
        .when(pl.col(name).is_in(frequent.implode()))
        .then(pl.col(name))
        .otherwise(pl.lit("@rare"))
    )
    return kept.to_series()
