from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from dags.steps import features
from dags.steps.tables import typed
from streamer.models import parse_model
from tests.dags.toys import config, raw


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_what_says_something_is_used_and_noise_is_not(task: str) -> None:
    chosen = features.select(typed(raw(task, 4_000), config(task)), config(task))
    assert chosen["x"]["used"]
    assert chosen["x"]["information"] > 10 * max(chosen["noise"]["information"], 1e-6)
    assert chosen["noise"]["information"] < 0.01


def test_a_feature_is_left_out_with_a_reason() -> None:
    model = parse_model(
        {
            "name": "m",
            "task": "binary",
            "positive": True,
            "features": {
                "x": {"kind": "numeric"},
                "copy": {"kind": "numeric"},
                "single": {"kind": "categorical"},
                "gone": {"kind": "numeric"},
            },
        },
        "test",
    )
    table = raw(rows=1_000).with_columns(
        copy=pl.col("x"), single=pl.lit("a"), gone=pl.when(pl.col("x") > 1.5).then(pl.col("x"))
    )
    chosen = features.select(typed(table, model), model)
    assert features.used(chosen) == ["x"]
    assert chosen["copy"]["reason"] == "is the same as x"
    assert chosen["single"]["reason"] == "has a single value"
    assert chosen["gone"]["reason"].startswith("missing in")


def test_where_nothing_says_anything_every_feature_with_values_is_used() -> None:
    rng = np.random.default_rng(0)
    table = raw(rows=400).with_columns(label=pl.Series(rng.random(400) < 0.5), x=pl.lit(1.0), noise=pl.lit(2.0))
    chosen = features.select(typed(table.with_columns(city=pl.lit("oslo")), config()), config())
    assert features.used(chosen) == ["x", "noise", "city"]


def test_a_rare_category_does_not_pass_for_information() -> None:
    table = raw(rows=600).with_columns(city=pl.Series([f"c{row}" for row in range(600)]))
    assert features.information(typed(table, config()), "city", regression=False) < 0.01
