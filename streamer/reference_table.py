"""From a table of past predictions to a reference: columns read as the stream would carry them, cells, baseline."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from monitors.performance import PerformanceSchema, canonical
from monitors.profile import PerformanceBaseline, ReferenceProfile, build_profile
from streamer.catalog import describe
from streamer.counting.columns import PREDICTION, SCORE
from streamer.models import ModelConfig
from streamer.references import ProfileError

# How numeric columns of a text file say that a number is missing, beside leaving it empty.
_NO_NUMBER = ("NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?")
_WHOLE = re.compile(r"-?(0|[1-9]\d*)(\.0+)?")
_TRUTH = {"True": "true", "False": "false", "TRUE": "true", "FALSE": "false", "true": "true", "false": "false"}
# Epoch seconds of our days are nine or ten digits; as milliseconds they would lie in January 1970.
_OLDEST_MS = 100_000_000_000


@dataclass(frozen=True)
class OutputColumns:
    """Which columns of a table hold the model's answers, the truth and the time; None for what it has not."""

    prediction: str | None = None
    score: str | None = None
    label: str | None = None
    ts: str | None = None

    @classmethod
    def find(
        cls,
        table: pl.DataFrame,
        config: ModelConfig,
        *,
        prediction: str | None = None,
        score: str | None = None,
        label: str | None = None,
        ts: str | None = None,
    ) -> OutputColumns:
        """Return the columns named; where none is, a column called as the field is, unless it is a feature.

        Raises
        ------
        ProfileError
            When a named column is not in the table.
        """
        named = {"prediction": prediction, "score": score, "label": label, "ts": ts}
        for field, column in named.items():
            if column is not None and column not in table.columns:
                raise ProfileError(f"--{field}-column: got {column!r}, the table has {', '.join(table.columns)}")
            if column is None and field in table.columns and field not in config.features:
                named[field] = field
        return cls(**named)


def read_table(path: Path) -> pl.DataFrame:
    """Read a Parquet file, or a CSV file (.csv, .tsv, gzip too) whose columns all stay text.

    A text file has no types: what a column means is known only from the model's configuration.

    Raises
    ------
    ProfileError
        When the file cannot be read or is empty.
    """
    name = path.name.removesuffix(".gz")
    try:
        if name.endswith((".parquet", ".pq")):
            table = pl.read_parquet(path)
        elif name.endswith((".csv", ".tsv", ".txt")):
            table = pl.read_csv(path, separator="," if name.endswith(".csv") else "\t", infer_schema=False)
        else:
            raise ProfileError(f"{path}: wanted a .parquet, .csv or .tsv file")
    except OSError as error:
        # polars gives the system's error as one text, with the path at its end.
        why = error.strerror or str(error).removesuffix(f": {path}")
        raise ProfileError(f"{path}: {why}; give a Parquet or CSV file") from error
    except pl.exceptions.PolarsError as error:
        raise ProfileError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error
    if table.is_empty():
        raise ProfileError(f"{path}: has no rows; a reference needs the rows a version was trained or tested on")
    return table


def build(
    config: ModelConfig, table: pl.DataFrame, columns: OutputColumns, *, version: str, created_ms: int
) -> ReferenceProfile:
    """Build a version's reference from a table of its training or test data, one row a prediction.

    Parameters
    ----------
    columns : without `ts` rows count as independent of each other; without `label` and `prediction`
        there is no baseline, so performance is shown but not judged.

    Raises
    ------
    ProfileError
        Naming the column, the value that came and what was wanted.
    """
    missing = [name for name in config.features if name not in table.columns]
    if missing:
        raise ProfileError(f"columns: {', '.join(missing)} not in the table; it has {', '.join(table.columns)}")
    values: dict[str, npt.NDArray[Any]] = {}
    kinds: dict[str, str] = {}
    for name, feature in config.features.items():
        values[name] = numbers(table[name]) if feature.kind == "numeric" else texts(table[name])
        kinds[name] = feature.kind
    output = _output(config, table, columns)
    if output is not None:
        name, values[name] = output
        kinds[name] = "categorical" if name == PREDICTION else "numeric"
    panes = None if columns.ts is None else times_ms(table[columns.ts]) // int(config.time.pane)
    return build_profile(
        model=config.name,
        version=version,
        columns=values,
        kinds=kinds,
        panes=panes,
        baseline=_baseline(config, table, columns, panes),
        created_ms=created_ms,
    )


def numbers(column: pl.Series) -> npt.NDArray[np.float64]:
    """Return a column as numbers, nan for missing; truth values are 1 and 0."""
    if column.dtype == pl.String:
        plain = column.str.strip_chars()
        plain = plain.set(plain.is_in(["", *_NO_NUMBER]), None)
        distinct = set(plain.drop_nulls().to_list())
        if distinct and distinct <= set(_TRUTH):
            plain = plain.replace_strict(_TRUTH).replace_strict({"true": "1", "false": "0"})
        converted = plain.cast(pl.Float64, strict=False)
        odd = plain.filter(converted.is_null() & plain.is_not_null())
        if len(odd):
            raise ProfileError(
                f"{column.name}: got {odd[0]!r}, wanted a number; correct the file, or declare the feature categorical"
            )
    elif column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null):
        converted = column.cast(pl.Float64)
    else:
        raise ProfileError(f"{column.name}: got {column.dtype}, wanted numbers; declare the feature categorical")
    return np.asarray(converted.fill_null(math.nan).to_numpy(), dtype=np.float64)


def texts(column: pl.Series) -> npt.NDArray[Any]:
    """Return a column as the texts events are counted by, None for missing.

    In a text file True and False become true and false, and 3.0 becomes 3, if the whole column is such:
    what JSON events carry as values. "007" stays as it is.
    """
    values = column.to_list()
    if column.dtype == pl.String:
        distinct = {value for value in values if value}
        if distinct <= set(_TRUTH):
            spelling = _TRUTH
        elif all(_WHOLE.fullmatch(value) for value in distinct):
            spelling = {value: canonical(float(value)) for value in distinct}
        else:
            spelling = {}
        values = [spelling.get(value, value) if value else None for value in values]
    array = np.empty(len(values), dtype=object)
    array[:] = [value if value is None or isinstance(value, str) else canonical(value) for value in values]
    return array


def times_ms(column: pl.Series) -> npt.NDArray[np.int64]:
    """Return a column of times as epoch milliseconds: numbers are that already, dates and ISO texts are UTC."""
    wanted = "wanted epoch milliseconds or ISO 8601 times (UTC where they do not say)"
    if column.dtype == pl.String and not column.drop_nulls().str.contains(r"^\d+(\.0+)?$").all():
        try:
            column = column.str.to_datetime(time_unit="ms", time_zone="UTC")
        except pl.exceptions.PolarsError as error:
            raise ProfileError(f"{column.name}: got {column[0]!r}, {wanted}") from error
    if column.dtype in (pl.Date, pl.Datetime):
        found = column.dt.epoch("ms")
    else:
        found = pl.Series(column.name, np.nan_to_num(numbers(column), nan=-1.0)).cast(pl.Int64)
        found = found.set(found < 0, None)
    if found.null_count():
        raise ProfileError(f"{column.name}: {found.null_count()} rows have no time; {wanted} in every row")
    times = np.asarray(found.to_numpy(), dtype=np.int64)
    if times.max() < _OLDEST_MS:
        raise ProfileError(f"{column.name}: got {times.max()}, which looks like seconds; {wanted}")
    return times


def _output(config: ModelConfig, table: pl.DataFrame, columns: OutputColumns) -> tuple[str, npt.NDArray[Any]] | None:
    """Return the model's output as it is watched: its classes, else its score, else a prediction that is a number."""
    if config.task == "multiclass":
        return None if columns.prediction is None else (PREDICTION, texts(table[columns.prediction]))
    if columns.score is not None:
        return SCORE, numbers(table[columns.score])
    if columns.prediction is None:
        return None
    try:
        return SCORE, numbers(table[columns.prediction])
    except ProfileError:
        if config.task == "regression":
            raise
        # A binary model that answers with words and gives no score has no number to be watched by.
        return None


def _baseline(
    config: ModelConfig, table: pl.DataFrame, columns: OutputColumns, panes: npt.NDArray[np.int64] | None
) -> PerformanceBaseline | None:
    if columns.label is None or columns.prediction is None:
        return None
    schema = describe(config).schema
    labels, predictions = _comparable(schema, table[columns.label]), _comparable(schema, table[columns.prediction])
    scores = np.full(len(table), math.nan)
    if config.task == "binary" and columns.score is not None:
        scores = numbers(table[columns.score])
    known = np.array([a is not None and b is not None for a, b in zip(labels, predictions, strict=True)])
    if not known.any():
        raise ProfileError(f"{columns.label}: no row has both a label and a prediction; leave the columns out")
    labels, predictions, scores = labels[known], predictions[known], scores[known]
    if schema.task == "binary" and schema.positive not in set(labels):
        raise ProfileError(
            f"{columns.label}: got {', '.join(sorted(set(labels))[:5])}; none is the positive label "
            f"{schema.positive!r} that the model's file names (positive)"
        )
    n = len(labels)
    vector = schema.fold(
        labels=labels.tolist(),
        predictions=predictions.tolist(),
        scores=scores,
        signs=np.ones(n, dtype=np.int64),
        groups=np.zeros(n, dtype=np.int64),
        n_groups=1,
    )[0]
    metrics = {name: float(value) for name, value in schema.metrics(vector).items() if math.isfinite(value)}
    outcomes = schema.outcomes(labels.tolist(), predictions.tolist(), scores)
    error = _standard_error(outcomes, None if panes is None else panes[known])
    return PerformanceBaseline(metrics, schema.primary, metrics[schema.primary], error, n)


def _comparable(schema: PerformanceSchema, column: pl.Series) -> npt.NDArray[Any]:
    if schema.task != "regression":
        return texts(column)
    array = np.empty(len(column), dtype=object)
    array[:] = [canonical(value) if math.isfinite(value) else None for value in numbers(column).tolist()]
    return array


def _standard_error(outcomes: npt.NDArray[np.float64], panes: npt.NDArray[np.int64] | None) -> float:
    """Return the standard error of the mean outcome, with panes as its units where they are known.

    K/(K−1) · Σ (s_t − mean · n_t)² / n² over panes t, never below that of independent rows: see
    `monitors.performance.performance_drop`.
    """
    n, mean = len(outcomes), float(outcomes.mean())
    variance = float(outcomes.var()) / n
    if panes is not None:
        index = np.unique(panes, return_inverse=True)[1]
        residuals = np.bincount(index, weights=outcomes - mean)
        if len(residuals) > 1:
            between = len(residuals) / (len(residuals) - 1) * float((residuals**2).sum()) / n**2
            variance = max(variance, between)
    return math.sqrt(variance)
