"""Rows of an Arrow message held to the contract: what JSON is refused for they are, and the others are counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from streamer.catalog import Catalog, Model
from streamer.counting.fleet import Fleet
from streamer.counting.labelling import unusable
from streamer.counting.rows import Places
from streamer.decode import MAX_EVENT_BYTES, Kind, decode, is_name
from streamer.decoding.arrow_batches import Batch, BoolArray, Column
from streamer.decoding.arrow_rows import ArrowRows
from streamer.decoding.arrow_stream import Malformed
from streamer.events import EARLIEST_MS, LATEST_MS
from streamer.explain import explain_future, explain_invalid, explain_unknown

Fault = tuple[str, str]

# A few bytes of Arrow may be many of JSON: so much of one message's wrong rows is kept.
MAX_BURIED_BYTES = 16_000_000
# With more wrong rows than this a message is put aside whole: a row of few bytes would be a dead letter of many.
MAX_BURIED_ROWS = 1_000
_MAX_IDENTIFIER = 200
_BUCKETS = 1_000
_ORIGINS = frozenset({None, "live", "shadow", "backfill"})


class Buried(NamedTuple):
    """A row that cannot be counted, and why.

    Attributes
    ----------
    raw : the row as the JSON message it could have come as; None where the rows before it are enough to keep.
    """

    row: int
    raw: bytes | None
    fault: Fault


def sorted_out(batch: Batch, catalog: Catalog, place: Places, max_future_ms: int) -> tuple[ArrowRows, list[Buried]]:
    """Return the sound rows of a batch, and those that are dead letters.

    Parameters
    ----------
    place : where the message stands.

    Raises
    ------
    Malformed
        More than `MAX_BURIED_ROWS` of the rows are wrong.

    Notes
    -----
    Whole columns tell which rows may be wrong; each of those is then read as JSON would be, so that what is
    refused, and why, is the same.
    """
    limit_ms = int(place.record_times_ms[0]) + max_future_ms
    doubtful = _doubtful(batch)
    for name in batch.columns.keys() & {"ts", "prediction_ts"}:
        doubtful |= _outside(batch.columns[name], EARLIEST_MS, limit_ms)
    names = batch.columns["model"].coded
    models = [None if name is None else catalog.model(name) for name in names.values]
    found = [model for model in models if model is not None]
    number_of = np.cumsum([model is not None for model in models]) - 1
    doubtful |= np.array([model is None for model in models], dtype=np.bool_)[names.codes]
    for code, model in enumerate(models):
        if model is not None and (doubts := _unusable(batch, model)) is not None:
            doubtful |= doubts & (names.codes == code)
    buried = list(_faulty(batch, catalog, np.flatnonzero(doubtful).tolist(), limit_ms, max_future_ms))
    sound = np.ones(len(batch), dtype=np.bool_)
    sound[[each.row for each in buried]] = False
    chosen = np.flatnonzero(sound)
    return ArrowRows.of(Fleet(found), number_of[names.codes[chosen]], batch, place, chosen), buried


def _doubtful(batch: Batch) -> BoolArray:
    """Return the rows that no column's type settles and the contract may not allow."""
    columns, kind = batch.columns, batch.kind
    doubtful = np.full(len(batch), batch.longest > MAX_EVENT_BYTES)
    if kind != "features":
        lengths = columns["prediction_id"].lengths
        doubtful |= (lengths == 0) | (lengths > _MAX_IDENTIFIER)
    doubtful |= _outside(columns["ts"], EARLIEST_MS, LATEST_MS) | columns["ts"].missing
    doubtful |= _others(columns["model"], is_name) | columns["model"].missing
    if "version" in columns:
        doubtful |= _others(columns["version"], is_name)
    if kind == "predictions":
        doubtful |= _missing(batch, "prediction") & _missing(batch, "error")
        if "origin" in columns:
            doubtful |= _others(columns["origin"], _ORIGINS.__contains__)
        if "bucket" in columns:
            doubtful |= _outside(columns["bucket"], 0, _BUCKETS - 1)
    elif kind == "features":
        doubtful |= batch.without["features"]
    else:
        doubtful |= _missing(batch, "label") & ~_flags(batch, "deleted")
        if "revision" in columns and columns["revision"].is_unsigned:
            doubtful |= _outside(columns["revision"], 0, 2**63 - 1)
        if "prediction_ts" in columns:
            doubtful |= _outside(columns["prediction_ts"], EARLIEST_MS, LATEST_MS)
    return doubtful


def _unusable(batch: Batch, model: Model) -> BoolArray | None:
    """Return the rows that this model may not be able to use (`labelling.unusable`), None for none."""
    in_context = batch.kind == "labels" and model.config.labels.mode == "context"
    if batch.kind == "features" or not (in_context or model.config.task == "regression"):
        return None
    doubtful = np.zeros(len(batch), dtype=np.bool_)
    if in_context:
        for name in ("version", "prediction", "prediction_ts"):
            doubtful |= _missing(batch, name)
    if model.config.task == "regression":
        said = "label" if batch.kind == "labels" else "prediction"
        for name in ("label", "previous", "prediction") if in_context else (said,):
            column = batch.columns.get(name)
            if column is not None and (column.is_text or column.is_flag):
                doubtful |= ~column.missing
    return doubtful


def _faulty(batch: Batch, catalog: Catalog, rows: Sequence[int], limit_ms: int, max_future_ms: int) -> Iterator[Buried]:
    kept = wrong = 0
    for row, raw in batch.documents(rows):
        fault = _fault(raw, batch.kind, catalog, limit_ms - max_future_ms, max_future_ms)
        if fault is not None:
            kept, wrong = kept + len(raw), wrong + 1
            if wrong > MAX_BURIED_ROWS:
                reason, field = fault
                raise Malformed(
                    f"got more than {MAX_BURIED_ROWS} rows that cannot be counted, row {row} among them ({reason}); "
                    "nothing of the message was counted: send it again once they are right",
                    field,
                )
            yield Buried(row, raw if kept <= MAX_BURIED_BYTES else None, fault)


def _fault(raw: bytes, kind: Kind, catalog: Catalog, record_ms: int, max_future_ms: int) -> Fault | None:
    """Return why one event cannot be counted, and the field that is meant."""
    try:
        event = decode(raw, kind)
    except (msgspec.DecodeError, ValueError):
        return explain_invalid(raw, kind)
    model = catalog.model(event.model)
    if model is None:
        return explain_unknown(event.model)
    return unusable(model, event) or explain_future(event, record_ms, max_future_ms)


def _outside(column: Column, least: int, most: int) -> BoolArray:
    values = column.whole
    return ((values < least) | (values > most)) & ~column.missing


def _others(column: Column, may_be: Any) -> BoolArray:
    """Return the rows whose text is there and is none that may be."""
    coded = column.coded
    odd = [code for code, value in enumerate(coded.values) if value is not None and not may_be(value)]
    return np.isin(coded.codes, odd) if odd else np.zeros(len(column), dtype=np.bool_)


def _missing(batch: Batch, name: str) -> BoolArray:
    column = batch.columns.get(name)
    return np.ones(len(batch), dtype=np.bool_) if column is None else column.missing


def _flags(batch: Batch, name: str) -> BoolArray:
    column = batch.columns.get(name)
    return np.zeros(len(batch), dtype=np.bool_) if column is None else column.floats == 1.0
