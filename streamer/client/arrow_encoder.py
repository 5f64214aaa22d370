"""Columns of predictions or labels to messages of many events each, where every column is checked as a whole.

What cannot be told sound at a glance is left to the row by row form, which says what is wrong, or takes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from streamer.client.arguments import features as checked_features
from streamer.client.arguments import name as checked_name
from streamer.client.arguments import origin as checked_origin
from streamer.client.arguments import score as checked_score
from streamer.client.batches import LabelColumns, PredictionColumns, made_ids, now_ms
from streamer.events import EARLIEST_MS, LATEST_MS
from streamer.routing import UNKNOWN_VERSION

# Below what producers send and topics take if nobody says otherwise, a million bytes, with room for the headers.
MAX_BATCH_BYTES = 900_000
# Half of what the reader takes (`streamer.decoding.arrow_stream`).
MAX_BATCH_ROWS = 50_000
MAX_BATCH_CELLS = 2_000_000

# So many rows tell how large a row is; and what is cut by that is mostly small enough.
_SAMPLE = 1_000
_FILLED = 0.95

_MAX_IDENTIFIER = 200
_BUCKETS = 1_000
_MAX_CLASSES = 1_000
# Written as they are: a dictionary would hold every one of them.
_IDENTIFIERS = frozenset({"prediction_id", "entity_id"})
_INDICES = ((2**7, pa.int8()), (2**15, pa.int16()), (2**31, pa.int32()))
_DOUBTS = (pa.ArrowException, TypeError, ValueError, OverflowError)


class Doubt(Exception):  # noqa: N818 - it is no error: the rows are looked at one by one
    """Something that a column's type does not settle."""


class Piece(NamedTuple):
    """A message's bytes, and how many events it holds."""

    body: bytes
    events: int


def encode_predictions(columns: PredictionColumns, max_rows: int) -> tuple[list[str], list[Piece]] | None:
    """Return the predictions' ids and their messages; None where the rows must be looked at one by one."""
    try:
        rows = len(columns.prediction)
        ids = made_ids(rows) if columns.prediction_id is None else None
        table = {
            "prediction_id": _array(ids) if ids is not None else _identifiers(columns.prediction_id),
            "ts": _times(columns.ts_ms, rows),
            "features": _features(columns.features, rows),
            "prediction": _scalars(columns.prediction),
            "score": _scores(columns.score),
            "entity_id": _identifiers(columns.entity_id, nulls=True),
            "latency_ms": _numbers(columns.latency_ms),
            "error": _texts(columns.error),
            **_routing(columns, rows),
        }
        _require(table["prediction"], table["error"])
        constants = {"model": checked_name(columns.model, "model")}
        if checked_origin(columns.origin) != "live":
            constants["origin"] = columns.origin
        record = _record(table, rows)
        known = record.column("prediction_id").to_pylist() if ids is None else ids
        return known, list(_pieces(record, constants, max_rows))
    except (Doubt, *_DOUBTS):
        return None


def encode_labels(columns: LabelColumns, max_rows: int) -> list[Piece] | None:
    """Return the labels' messages; None where the rows must be looked at one by one."""
    try:
        rows = len(columns.label)
        table = {
            "prediction_id": _identifiers(columns.prediction_id),
            "ts": _times(columns.ts_ms, rows),
            "label": _scalars(columns.label),
            "value": _numbers(columns.value),
            "revision": _whole(columns.revision, -(2**63), 2**63 - 1),
            "deleted": _flags(columns.deleted),
            "version": _names(columns.version),
            "prediction": _scalars(columns.prediction),
            "score": _scores(columns.score),
            "prediction_ts": _whole(columns.prediction_ts_ms, EARLIEST_MS, LATEST_MS, nulls=True),
            "previous": _scalars(columns.previous),
        }
        _require(table["label"], table["deleted"])
        constants = {"model": checked_name(columns.model, "model")}
        return list(_pieces(_record(table, rows), constants, max_rows))
    except (Doubt, *_DOUBTS):
        return None


def _routing(columns: PredictionColumns, rows: int) -> dict[str, pa.Array | None]:
    """Return what the choices say, or else the versions alone."""
    if columns.choices is None:
        version = columns.version
        if version is None or isinstance(version, str):
            version = None if version in {None, UNKNOWN_VERSION} else [version] * rows
        return {"version": _names(version)}
    _settle(columns.version is None)
    return {
        "version": _names([choice.version for choice in columns.choices]),
        "rollout_id": _texts([choice.rollout_id for choice in columns.choices]),
        "bucket": _whole([choice.bucket for choice in columns.choices], 0, _BUCKETS - 1, nulls=True),
    }


def _record(table: Mapping[str, pa.Array | None], rows: int) -> pa.RecordBatch:
    given = {name: array for name, array in table.items() if array is not None}
    _settle(rows > 0 and all(len(array) == rows for array in given.values()))
    return pa.record_batch(given)


def _pieces(record: pa.RecordBatch, constants: Mapping[str, str], max_rows: int) -> Iterator[Piece]:
    """Cut a record batch into messages that are small enough; dictionaries are each message's own."""
    width = sum(len(column.type) if pa.types.is_struct(column.type) else 1 for column in record.columns)
    most = max(min(max_rows, MAX_BATCH_ROWS, MAX_BATCH_CELLS // width), 1)
    few = record.slice(0, _SAMPLE)
    row_bytes = len(_stream(few, constants)) / len(few)
    step = max(min(int(_FILLED * MAX_BATCH_BYTES / row_bytes), most), 1)
    for start in range(0, len(record), step):
        yield from _written(record.slice(start, step), constants)


def _written(record: pa.RecordBatch, constants: Mapping[str, str]) -> Iterator[Piece]:
    body = _stream(record, constants)
    if len(body) <= MAX_BATCH_BYTES or len(record) == 1:
        yield Piece(body, len(record))
        return
    half = len(record) // 2
    yield from _written(record.slice(0, half), constants)
    yield from _written(record.slice(half), constants)


def _stream(record: pa.RecordBatch, constants: Mapping[str, str]) -> bytes:
    columns = {name: _constant(value, len(record)) for name, value in constants.items()}
    for name, array in zip(record.schema.names, record.columns, strict=True):
        if pa.types.is_struct(array.type):
            inner = [_smallest(child) for child in array.flatten()]
            names = [child.name for child in array.type]
            mask = array.is_null() if array.null_count else None
            columns[name] = pa.StructArray.from_arrays(inner, names=names, mask=mask)
        else:
            columns[name] = array if name in _IDENTIFIERS else _smallest(array)
    batch = pa.record_batch(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def _constant(value: str, rows: int) -> pa.Array:
    codes = pa.Array.from_buffers(pa.int8(), rows, [None, pa.py_buffer(bytes(rows))])
    return pa.DictionaryArray.from_arrays(codes, pa.array([value]))


def _smallest(array: pa.Array) -> pa.Array:
    """Return texts by their codes, as narrow as can be, where they repeat."""
    if pa.types.is_large_string(array.type) or pa.types.is_string(array.type):
        coded = array.dictionary_encode()
        if 2 * len(coded.dictionary) > len(array):
            return array
        narrow = next(held for limit, held in _INDICES if len(coded.dictionary) <= limit)
        return pa.DictionaryArray.from_arrays(coded.indices.cast(narrow), coded.dictionary)
    return array


def _array(values: Any) -> pa.Array:
    """Return a column as Arrow has it, its texts plain; Doubt where it is no column, or none of plain values."""
    _settle(not isinstance(values, (str, bytes, Mapping)))
    if hasattr(values, "to_arrow"):
        values = values.to_arrow()
    if not isinstance(values, (pa.Array, pa.ChunkedArray)):
        _settle(isinstance(values, Sequence) or hasattr(values, "__array__"))
        values = pa.array(values)
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_string_view(values.type):
        values = values.cast(pa.large_string())
    return values


def _scalars(values: Any) -> pa.Array | None:
    """Return numbers, texts or booleans."""
    if values is None:
        return None
    array = _array(values)
    kinds = pa.types
    plain = (kinds.is_boolean, kinds.is_integer, kinds.is_floating, kinds.is_string, kinds.is_large_string)
    _settle(any(is_kind(array.type) for is_kind in plain) or kinds.is_null(array.type))
    return array.cast(pa.float64()) if kinds.is_null(array.type) else array


def _numbers(values: Any) -> pa.Array | None:
    array = _scalars(values)
    _settle(array is None or pa.types.is_integer(array.type) or pa.types.is_floating(array.type))
    return array


def _texts(values: Any) -> pa.Array | None:
    array = None if values is None else _array(values)
    if array is None or array.null_count == len(array):
        return None
    _settle(pa.types.is_string(array.type) or pa.types.is_large_string(array.type))
    return array


def _identifiers(values: Any, *, nulls: bool = False) -> pa.Array | None:
    """Return ids of 1 to 200 characters; whole numbers are their texts."""
    if values is None and nulls:
        return None
    array = _array(values)
    if pa.types.is_null(array.type) and nulls:
        return None
    if pa.types.is_integer(array.type):
        array = array.cast(pa.string())
    _settle(pa.types.is_string(array.type) or pa.types.is_large_string(array.type))
    lengths = pc.min_max(pc.utf8_length(array)).as_py()
    _settle(nulls or not array.null_count)
    _settle(lengths["min"] is None or (lengths["min"] > 0 and lengths["max"] <= _MAX_IDENTIFIER))
    return array


def _names(values: Any) -> pa.Array | None:
    if values is None:
        return None
    array = _texts(values)
    _settle(array is not None and not array.null_count)
    for value in pc.unique(array).to_pylist():
        checked_name(value, "version")
    return array


def _whole(values: Any, least: int, most: int, *, nulls: bool = False) -> pa.Array | None:
    if values is None:
        return None
    array = _array(values)
    if pa.types.is_null(array.type) and nulls:
        return None
    _settle(pa.types.is_integer(array.type) and (nulls or not array.null_count))
    found = pc.min_max(array).as_py()
    _settle(found["min"] is None or (least <= found["min"] and found["max"] <= most))
    return array


def _times(values: Any, rows: int) -> pa.Array:
    if values is None:
        return pa.repeat(pa.scalar(now_ms(), pa.int64()), rows)
    return _whole(values, EARLIEST_MS, LATEST_MS)


def _flags(values: Any) -> pa.Array | None:
    if values is None:
        return None
    array = _array(values)
    _settle(pa.types.is_boolean(array.type) and not array.null_count)
    return array


def _scores(values: Any) -> pa.Array | None:
    """Return scores: numbers, or a struct of them by class."""
    if values is None:
        return None
    if not isinstance(values, Sequence) or not any(isinstance(value, Mapping) for value in values):
        return _numbers(values)
    shares = [checked_score(value) for value in values]
    _settle(all(share is None or isinstance(share, dict) for share in shares))
    classes = dict.fromkeys(name for share in shares if isinstance(share, dict) for name in share)
    _settle(0 < len(classes) <= _MAX_CLASSES)
    return pa.array(shares, pa.struct([(name, pa.float64()) for name in classes]))


def _features(features: Mapping[str, Any], rows: int) -> pa.Array | None:
    if not features:
        return None
    checked_features(dict.fromkeys(features))
    arrays = [_scalars(values) for values in features.values()]
    _settle(all(array is not None and len(array) == rows for array in arrays))
    return pa.StructArray.from_arrays(arrays, names=list(features))


def _require(said: pa.Array | None, otherwise: pa.Array | None) -> None:
    """See that every row has a prediction or an error, a label or its deletion."""
    if said is None or pa.types.is_floating(said.type):
        there = None if said is None else pc.is_finite(said).fill_null(False)
    else:
        there = said.is_valid()
    if there is not None and pc.all(there).as_py():
        return
    if otherwise is None:
        raise Doubt
    excused = otherwise if pa.types.is_boolean(otherwise.type) else otherwise.is_valid()
    _settle(pc.all(excused if there is None else pc.or_(there, excused)).as_py())


def _settle(sound: Any) -> None:
    if not sound:
        raise Doubt
