"""Arrow messages made of plain events, in the many ways that a producer may lay them out."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pyarrow as pa


def stream(table: pa.Table | pa.RecordBatch, **options: Any) -> bytes:
    """Return the bytes of an Arrow IPC stream of these columns."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        if len(table) or isinstance(table, pa.RecordBatch):
            writer.write(table)
    written: bytes = sink.getvalue().to_pybytes()
    return written


def laid_out(array: pa.Array, random: Random) -> pa.Array:
    """Return the same values in one of the types that hold them."""
    kind = array.type
    if pa.types.is_string(kind):
        ways = [
            lambda: array,
            lambda: array.cast(pa.large_string()),
            lambda: array.cast(pa.string_view()),
            array.dictionary_encode,
            lambda: pa.DictionaryArray.from_arrays(
                array.dictionary_encode().indices.cast(pa.int64()),
                array.dictionary_encode().dictionary.cast(pa.large_string()),
            ),
        ]
        return random.choice(ways)()
    return array


def batch_of(events: Sequence[dict[str, Any]], random: Random | None = None) -> pa.RecordBatch:
    """Return events as a record batch; a field that none of them has is no column."""
    random = random or Random(0)
    columns: dict[str, pa.Array] = {}
    for name in dict.fromkeys(name for event in events for name in event):
        values = [event.get(name) for event in events]
        if name == "features" or any(isinstance(value, dict) for value in values):
            keys = list(dict.fromkeys(key for value in values for key in value or ()))
            inner = [laid_out(pa.array([(value or {}).get(key) for value in values]), random) for key in keys]
            mask = pa.array([value is None for value in values])
            if inner:
                columns[name] = pa.StructArray.from_arrays(inner, names=keys, mask=mask)
        else:
            columns[name] = laid_out(pa.array(values), random)
    return pa.record_batch(columns)


def arrow_of(events: Sequence[dict[str, Any]], random: Random | None = None) -> bytes:
    """Return events as one Arrow message, in one record batch or several."""
    random = random or Random(0)
    batch = batch_of(events, random)
    table = pa.Table.from_batches([batch])
    cut = random.randrange(len(events) + 1)
    parts = [batch] if random.random() < 0.5 else [batch.slice(0, cut), batch.slice(cut)]
    if any(pa.types.is_dictionary(field.type) for field in table.schema):
        parts = parts[:1] if len(parts) == 1 else [pa.Table.from_batches(parts).combine_chunks().to_batches()[0]]
    return stream(pa.Table.from_batches(parts))
