"""Whether extracted rows can be trained on at all: enough of them, with both classes, and not mostly missing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from dags.steps.tables import LABEL, TIME
from streamer.models import ModelConfig

# Of the rarest class, in all; fewer cannot be split into folds that hold some each.
MIN_CLASS_ROWS = 20
MIN_SPAN_PANES = 2


@dataclass(frozen=True)
class Check:
    """One check of the data: what came and what was wanted."""

    name: str
    value: float
    threshold: float
    passed: bool
    detail: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the check as JSON has it."""
        return asdict(self)


def check(table: pl.DataFrame, config: ModelConfig) -> list[Check]:
    """Return every check of a typed table."""
    checks = [
        Check("rows", len(table), config.retrain.min_rows, len(table) >= config.retrain.min_rows, {}),
        _span(table, config),
    ]
    if config.task == "regression":
        values = table[LABEL].n_unique()
        checks.append(Check("label_values", values, 2, values >= 2, {}))
    else:
        checks.append(_classes(table, config))
    checks += [
        Check(f"missing:{name}", share, config.policy.max_missing_share, True, {"note": "left out by the selection"})
        for name in config.features
        if (share := table[name].null_count() / max(len(table), 1)) > config.policy.max_missing_share
    ]
    present = [name for name in config.features if table[name].null_count() < len(table)]
    checks.append(Check("features_with_values", len(present), 1, len(present) >= 1, {}))
    return checks


def _span(table: pl.DataFrame, config: ModelConfig) -> Check:
    panes = (table[TIME] // int(config.time.pane)).n_unique()
    return Check("panes", panes, MIN_SPAN_PANES, panes >= MIN_SPAN_PANES, {})


def _classes(table: pl.DataFrame, config: ModelConfig) -> Check:
    counts = dict(table[LABEL].value_counts().iter_rows())
    rarest = min(counts.values(), default=0)
    passed = len(counts) >= 2 and rarest >= MIN_CLASS_ROWS
    if config.task == "binary":
        passed = passed and len(counts) == 2
    return Check("rarest_class_rows", rarest, MIN_CLASS_ROWS, passed, {"classes": counts})


def failed(checks: list[Check]) -> list[str]:
    """Return what failed, for people."""
    return [
        f"{each.name}: got {each.value:g}, wanted at least {each.threshold:g}" for each in checks if not each.passed
    ]
