"""Small models with an answer to learn, and tables of their rows."""

from __future__ import annotations

import numpy as np
import polars as pl

from streamer.models import ModelConfig, parse_model

PANE_MS = 60_000
T0 = 1_700_000_040_000 // PANE_MS * PANE_MS
CITIES = np.array(["oslo", "rome", "lima"], dtype=object)


def config(task: str = "binary", **retrain: object) -> ModelConfig:
    return parse_model(
        {
            "name": f"toy-{task}",
            "task": task,
            **({"positive": True} if task == "binary" else {}),
            "features": {"x": {"kind": "numeric"}, "noise": {"kind": "numeric"}, "city": {"kind": "categorical"}},
            "slices": ["city"],
            "time": {"pane": "1m"},
            "retrain": {"max_trials": 1, "min_rows": 200, "holdout_share": 0.25, **retrain},
        },
        "test",
    )


def raw(task: str = "binary", rows: int = 1_200, *, seed: int = 0, flipped: bool = False) -> pl.DataFrame:
    """Rows as a user has them: missing values among them, labels of their own type."""
    rng = np.random.default_rng(seed)
    x, city = rng.normal(size=rows), CITIES[rng.integers(0, 3, rows)]
    signal = (-3 if flipped else 3) * x + np.where(city == "rome", 1.0, 0.0)
    if task == "regression":
        label: object = signal + rng.normal(size=rows)
    elif task == "multiclass":
        label = np.array(["low", "middle", "high"], dtype=object)[np.digitize(signal, [-2, 2])].tolist()
    else:
        label = rng.random(rows) < 1 / (1 + np.exp(-signal))
    missing = rng.random(rows) < 0.05
    return pl.DataFrame(
        {
            "prediction_id": [f"{seed}-{row}" for row in range(rows)],
            "entity_id": [f"user-{row % 97}" for row in range(rows)],
            "ts": np.sort(rng.integers(T0, T0 + 60 * PANE_MS, rows)),
            "x": pl.Series([None if gone else value for gone, value in zip(missing, x, strict=True)], dtype=pl.Float64),
            "noise": rng.normal(size=rows),
            "city": [None if gone else value for gone, value in zip(missing[::-1], city, strict=True)],
            "label": label,
        }
    )
