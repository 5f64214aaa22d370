from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from dags.steps.tables import TableError, inputs, split_by_time, typed
from streamer.models import parse_model
from tests.dags.toys import config, raw


def test_typed_keeps_labelled_rows_in_time_order_with_one_type_a_column() -> None:
    table = raw().sample(fraction=1.0, shuffle=True, seed=1)
    table = table.with_columns(pl.when(pl.col("ts") % 7 == 0).then(None).otherwise(pl.col("label")).alias("label"))
    made = typed(table, config())
    assert made["ts"].is_sorted()
    assert set(made["label"].unique()) == {"true", "false"}
    assert len(made) == table["label"].drop_nulls().len()
    assert made.schema["x"] == pl.Float64
    assert made.schema["city"] == pl.String


def test_categories_and_labels_become_the_text_the_monitor_counts_by() -> None:
    model = parse_model(
        {
            "name": "m",
            "task": "multiclass",
            "features": {"code": {"kind": "categorical"}, "flag": {"kind": "categorical"}},
        },
        "test",
    )
    frame = pl.DataFrame({"ts": [2, 1], "code": [3.0, 2.5], "flag": [True, None], "label": [1, 0]})
    made = typed(frame, model)
    assert made["code"].to_list() == ["2.5", "3"]
    assert made["flag"].to_list() == [None, "true"]
    assert made["label"].to_list() == ["0", "1"]


def test_what_is_no_number_is_missing() -> None:
    frame = raw(rows=4).with_columns(pl.Series("x", [1.0, math.nan, math.inf, 2.0]))
    assert typed(frame, config())["x"].null_count() == 2
    texts = raw(rows=2).with_columns(pl.Series("x", ["3.5", "n/a"]))
    assert sorted(typed(texts, config())["x"].to_list(), key=str) == [3.5, None]


def test_a_table_that_cannot_be_used_is_refused_by_name() -> None:
    with pytest.raises(TableError, match=r"lacks the columns \['x'\]"):
        typed(raw(rows=3).drop("x"), config())
    with pytest.raises(TableError, match="whole epoch milliseconds"):
        typed(raw(rows=3).with_columns(pl.col("ts").cast(pl.Float64)), config())
    clashing = parse_model({"name": "m", "task": "regression", "features": {"label": {"kind": "numeric"}}}, "test")
    with pytest.raises(TableError, match="rename"):
        typed(pl.DataFrame({"ts": [1], "label": [1.0]}), clashing)


def test_inputs_have_nan_for_whatever_is_missing() -> None:
    made = inputs(typed(raw(), config()), ["city", "x"])
    assert list(made.columns) == ["city", "x"]
    assert made["x"].dtype == np.float64
    assert made["city"].isna().sum() > 0
    assert not any(value is None for value in made["city"])


def test_the_split_puts_the_newest_share_aside_and_never_cuts_within_a_millisecond() -> None:
    table = typed(raw().with_columns(pl.col("ts") // 600_000 * 600_000), config())
    older, newest = split_by_time(table, 0.25)
    assert len(older) + len(newest) == len(table)
    assert older["ts"].max() < newest["ts"].min()  # type: ignore[operator]
    assert 0.2 < len(newest) / len(table) < 0.45
