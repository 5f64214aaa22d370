"""What a retraining trains on: the request's labelled window, and the champion's own training rows before it."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import Any

import polars as pl

from dags.steps.offsets import Read, read_events
from dags.steps.tables import ENTITY, IDENTITY, LABEL, TIME, TableError, typed
from streamer.events import RetrainRequest
from streamer.models import ModelConfig
from streamer.settings import Settings

Extracted = tuple[pl.DataFrame, dict[str, Any]]


def extract(settings: Settings, config: ModelConfig, request: RetrainRequest) -> Extracted:
    """Return the request's labelled rows as `dags.steps.tables.typed` describes them, and what was read.

    From `retrain.loader` where the model names one, else from the request's Kafka offset ranges.
    """
    if config.retrain.loader is not None:
        frame = load(config, request, allowed=settings.airflow.loaders)
        return typed(frame, config), {"source": config.retrain.loader, "rows": len(frame)}
    return from_kafka(settings, config, request)


def load(config: ModelConfig, request: RetrainRequest, *, allowed: Collection[str]) -> pl.DataFrame:
    """Call the user's own loader, `module:function`, as loader(config, request).

    Parameters
    ----------
    allowed : the packages it may be in. A model's configuration comes from a topic: whoever may write there must not
        have any code run that is installed here.

    Raises
    ------
    TableError
        When it may not be called, there is no such function, or what it returns is no polars DataFrame.
    """
    named = config.retrain.loader or ""
    module, _, function = named.partition(":")
    if not any(f"{module}.".startswith(f"{package}.") for package in allowed):
        listed = ", ".join(allowed) or "none"
        raise TableError(
            f"retrain.loader: got {named!r}, wanted a function in a package that airflow.loaders lists ({listed}); add "
            f"its package there, where Airflow's workers run"
        )
    try:
        loader = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise TableError(
            f"retrain.loader: {named!r} cannot be imported ({error}); wanted module:function, installed where "
            f"Airflow's workers run"
        ) from error
    frame = loader(config, request)
    if not isinstance(frame, pl.DataFrame):
        raise TableError(f"retrain.loader: {named} returned {type(frame).__name__}, wanted a polars.DataFrame")
    return frame


def from_kafka(settings: Settings, config: ModelConfig, request: RetrainRequest) -> Extracted:
    """Join the window's live predictions with their effective labels.

    The effective label of a prediction is the largest by (revision, label time, position in the log); where
    that one is a deletion, the prediction has none. The first copy of a prediction counts.
    """
    predictions = read_events(settings, config, request.offsets, "predictions")
    labels = read_events(settings, config, request.offsets, "labels")
    rows = window(predictions.table, request, config)
    logs = None
    if any(feature.source == "features" for feature in config.features.values()):
        logs = read_events(settings, config, request.offsets, "features")
        rows = with_logged_features(rows, logs.table, config)
    joined = rows.join(effective_labels(labels.table), on="@id", how="inner")
    table = joined.rename({"@ts": TIME, "@id": IDENTITY, "@entity": ENTITY, "@label": LABEL})
    reads = {"predictions": predictions, "labels": labels, **({} if logs is None else {"features": logs})}
    summary = {
        "source": "kafka",
        "predictions": len(rows),
        "labelled": len(table),
        **{name: _counts(read) for name, read in reads.items()},
    }
    return typed(table, config), summary


def _counts(read: Read) -> dict[str, int]:
    return {"messages": read.messages, "lost": read.lost, "invalid": read.invalid}


def window(predictions: pl.DataFrame, request: RetrainRequest, config: ModelConfig) -> pl.DataFrame:
    """Return the live, mature predictions of the request's window of event time, each id once: its first copy.

    Labels that come early are not like those that come late: a prediction counts once all have had the time to
    arrive. A request about performance ends its window with a mature pane; any other with the newest one.
    """
    immature_ms = 0 if request.kind == "performance" else int(config.labels.maturity)
    end_ms = request.window_end_ms - immature_ms
    inside = (pl.col("@ts") >= request.window_start_ms) & (pl.col("@ts") < end_ms)
    live = predictions.filter(inside & (pl.col("@origin") == "live"))
    return live.sort("@partition", "@offset", "@row").unique("@id", keep="first", maintain_order=True)


def effective_labels(labels: pl.DataFrame) -> pl.DataFrame:
    """Return `@id` and `@label` of every prediction that has one after corrections and deletions."""
    newest = labels.sort("@revision", "@label_ts", "@partition", "@offset", "@row").unique("@id", keep="last")
    return newest.filter(~pl.col("@deleted") & pl.col("@label").is_not_null()).select("@id", "@label")


def with_logged_features(rows: pl.DataFrame, logs: pl.DataFrame, config: ModelConfig) -> pl.DataFrame:
    """Add features that were logged apart: by prediction id, else the entity's newest at the prediction's time."""
    names = [name for name, feature in config.features.items() if feature.source == "features"]
    own = (
        logs.filter(pl.col("@id").is_not_null()).sort("@ts", "@partition", "@offset", "@row").unique("@id", keep="last")
    )
    rows = rows.join(own.select("@id", *names), on="@id", how="left")
    entity = logs.filter(pl.col("@id").is_null() & pl.col("@entity").is_not_null()).sort("@ts")
    if entity.is_empty():
        return rows
    latest = entity.select("@entity", "@ts", *(pl.col(name).alias(f"@{name}") for name in names))
    known = rows.filter(pl.col("@entity").is_not_null()).sort("@ts")
    found = known.join_asof(latest, on="@ts", by="@entity", strategy="backward", check_sortedness=False)
    filled = pl.concat([found, rows.filter(pl.col("@entity").is_null())], how="diagonal")
    return filled.with_columns(pl.coalesce(name, f"@{name}").alias(name) for name in names)


def append_history(table: pl.DataFrame, history: pl.DataFrame, config: ModelConfig) -> pl.DataFrame:
    """Return the champion's own training rows followed by the window's; of a prediction in both, the window's."""
    older = typed(history, config)
    if IDENTITY in older.columns and IDENTITY in table.columns:
        older = older.join(table.select(IDENTITY), on=IDENTITY, how="anti", nulls_equal=False)
    return pl.concat([older, table], how="diagonal").sort(TIME, maintain_order=True)
