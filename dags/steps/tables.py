"""Training tables: which columns they have, of which types, and how scikit-learn gets to see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from dags.steps.outcomes import Unmendable
from monitors.performance import canonical
from streamer.models import ModelConfig

if TYPE_CHECKING:
    import pandas as pd

TIME = "ts"
LABEL = "label"
ENTITY = "entity_id"
IDENTITY = "prediction_id"
RESERVED = (TIME, LABEL, ENTITY, IDENTITY)


class TableError(Unmendable):
    """A training table lacks a column or has one of the wrong type; the message names it."""


def typed(frame: pl.DataFrame, config: ModelConfig) -> pl.DataFrame:
    """Return the table every step works on: known columns only, in time order, with one type each.

    Parameters
    ----------
    frame : `ts` (epoch ms), every feature of the model, `label`, and perhaps `entity_id` and `prediction_id`.
        Rows without a label are left out.

    Returns
    -------
    `ts` Int64; numeric features Float64 (nan and what is no number become null); categorical features
    String (canonical text); `label` String, Float64 for regression; `entity_id` and `prediction_id`
    String where given.

    Raises
    ------
    TableError
        For a missing column, a feature with a reserved name, or a `ts` that is not whole milliseconds.
    """
    clashing = sorted(set(RESERVED) & set(config.features))
    if clashing:
        raise TableError(f"features: {clashing} are names of a training table's own columns; rename the features")
    missing = [name for name in (TIME, LABEL, *config.features) if name not in frame.columns]
    if missing:
        raise TableError(f"the training table lacks the columns {missing}; it has {frame.columns}")
    if not frame.schema[TIME].is_integer():
        raise TableError(f"{TIME}: got {frame.schema[TIME]}, wanted whole epoch milliseconds (Int64)")
    columns = [pl.col(TIME).cast(pl.Int64)]
    columns += [_feature(frame, name, feature.kind) for name, feature in config.features.items()]
    columns.append(_number(LABEL) if config.task == "regression" else _text(frame, LABEL))
    columns += [pl.col(name).cast(pl.String) for name in (ENTITY, IDENTITY) if name in frame.columns]
    return frame.select(columns).filter(pl.col(LABEL).is_not_null()).sort(TIME, maintain_order=True)


def _feature(frame: pl.DataFrame, name: str, kind: str) -> pl.Expr:
    return _number(name) if kind == "numeric" else _text(frame, name)


def _number(name: str) -> pl.Expr:
    number = pl.col(name).cast(pl.Float64, strict=False)
    return pl.when(number.is_finite()).then(number).otherwise(None).alias(name)


def _text(frame: pl.DataFrame, name: str) -> pl.Expr:
    """Return the canonical text of a column: the same text the monitor counts by."""
    dtype = frame.schema[name]
    if dtype == pl.String:
        return pl.col(name)
    if dtype == pl.Boolean or dtype.is_integer() or dtype in (pl.Categorical, pl.Enum):
        return pl.col(name).cast(pl.String)
    return pl.col(name).map_elements(canonical, return_dtype=pl.String, skip_nulls=True)


def inputs(frame: pl.DataFrame, features: Sequence[str]) -> pd.DataFrame:
    """Return feature columns as a pipeline takes them: float64 with nan, and text with nan for what is missing."""
    import numpy as np
    import pandas as pd

    columns: dict[str, Any] = {}
    for name in features:
        if frame.schema[name] == pl.Float64:
            columns[name] = frame[name].to_numpy().astype(np.float64)
        else:
            # None and nan are two categories to an encoder: nan alone stands for missing.
            values = frame[name].to_numpy().astype(object)
            values[frame[name].is_null().to_numpy()] = np.nan
            columns[name] = values
    return pd.DataFrame(columns)


def split_by_time(frame: pl.DataFrame, share: float) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split a table in time order into the older rows and the newest `share`, never within one millisecond."""
    cut = int(len(frame) * (1 - share))
    boundary = frame[TIME][min(cut, len(frame) - 1)]
    return frame.filter(pl.col(TIME) < boundary), frame.filter(pl.col(TIME) >= boundary)
