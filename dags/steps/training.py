"""Training one family: a small search that only ever predicts the future from the past, then a fit of the best."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits

from dags.steps.measuring import answer, measure
from dags.steps.pipelines import Parameters, pipeline, trials
from dags.steps.tables import LABEL, inputs
from streamer.models import ModelConfig

FOLDS = 3
# The search tells parameters apart; it does not need every row. The fit of the winner does.
SEARCH_ROWS = 20_000
LOSS = {"binary": "log_loss", "multiclass": "log_loss", "regression": "mae"}


@dataclass(frozen=True)
class Candidate:
    """A family's best: its parameters, what the search saw, and the pipeline trained on all training rows.

    `metrics` are means over the folds, `seconds` what the final fit took.
    """

    family: str
    parameters: Parameters
    metrics: dict[str, float]
    tried: list[dict[str, Any]]
    seconds: float
    model: Pipeline

    def summary(self) -> dict[str, Any]:
        """Return everything but the pipeline, for the record."""
        return {
            "family": self.family,
            "parameters": self.parameters,
            "metrics": self.metrics,
            "tried": self.tried,
            "seconds": self.seconds,
        }


def train_family(config: ModelConfig, table: pl.DataFrame, features: Sequence[str], family: str) -> Candidate:
    """Search a family's parameters by expanding windows and fit the best on the whole table.

    Parameters
    ----------
    table : the training part, typed and in time order.

    Notes
    -----
    Half the cores: families are trained side by side, and threads that fight for a core are slower than one.
    """
    sample = table.gather_every(max(1, -(-len(table) // SEARCH_ROWS)))
    tried = []
    with threadpool_limits(threads()):
        for parameters in trials(family, config.retrain.max_trials):
            scores = [
                measure(config, answer(config, fit(config, old, features, family, parameters), features, new))
                for old, new in expanding_windows(sample)
            ]
            tried.append({"parameters": parameters, "metrics": _means(scores)})
        best = min(tried, key=lambda trial: trial["metrics"][LOSS[config.task]])
        started = time.perf_counter()
        model = fit(config, table, features, family, best["parameters"])
        seconds = time.perf_counter() - started
    return Candidate(family, best["parameters"], best["metrics"], tried, seconds, model)


def threads() -> int:
    """Return how many threads a fit may use."""
    return max(1, (os.cpu_count() or 1) // 2)


def fit(
    config: ModelConfig, table: pl.DataFrame, features: Sequence[str], family: str, parameters: Parameters
) -> Pipeline:
    """Fit one pipeline on the rows of a typed table; labels are canonical texts, numbers for regression."""
    model = pipeline(config, features, family, parameters, seed=config.retrain.seed)
    return model.fit(inputs(table, features), table[LABEL].to_numpy())


def expanding_windows(table: pl.DataFrame, folds: int = FOLDS) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Yield (older rows, the block after them), each time with one block more.

    Blocks have equal numbers of rows; a first part that lacks a class is passed over as long as a later one is left.
    """
    size = len(table) // (folds + 1)
    for fold in range(1, folds + 1):
        old = table.head(fold * size)
        new = table.slice(fold * size, size if fold < folds else None)
        if fold == folds or old[LABEL].n_unique() > 1:
            yield old, new


def _means(scores: list[dict[str, float]]) -> dict[str, float]:
    names = set.intersection(*(set(score) for score in scores)) - {"n"}
    return {name: sum(score[name] for score in scores) / len(scores) for name in sorted(names)}
