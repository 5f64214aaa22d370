"""The bytes of a message to an Arrow record batch of the contract's columns, without trusting what they claim."""

from __future__ import annotations

import struct
from itertools import pairwise

import pyarrow as pa

from streamer.decode import Kind
from streamer.decoding.arrow_schema import COLUMNS, END, WANTED, Form
from streamer.kafka.topics import MAX_MESSAGE_BYTES

# What bounds the work and the memory that one message can cost.
MAX_ROWS = 100_000
MAX_CELLS = 4_000_000
MAX_RECORD_BATCHES = 100
MAX_DECODED_BYTES = 4 * MAX_MESSAGE_BYTES
# Of all rows, each code's text counted anew.
MAX_TEXT_BYTES = 8 * MAX_MESSAGE_BYTES
# A type of many children is not written out whole.
_MAX_SAID = 60
_MAX_NAME = 100

# Buffers are read where they lie; only what a hostile stream puts at odd addresses is copied.
_OPTIONS = pa.ipc.IpcReadOptions(ensure_alignment=pa.ipc.Alignment.DataTypeSpecific, use_threads=False)
_READ_ERRORS = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, RecursionError, struct.error)

_u16, _u32, _i32, _i64 = (struct.Struct(f"<{code}").unpack_from for code in "HIiq")


class Malformed(Exception):  # noqa: N818 - it says what the message is
    """A message that is no batch of events: why, and which column is meant ("" for the whole)."""

    def __init__(self, reason: str, field: str = "") -> None:
        super().__init__(reason)
        self.fault = (reason, field)


def read_stream(value: bytes, kind: Kind) -> pa.RecordBatch:
    """Return the columns a message has of those the contract knows, every one of a type that it may have.

    Raises
    ------
    Malformed
        It is no such message; nothing of it can be counted.

    Notes
    -----
    The stream is first walked without decoding it: buffers that are compressed, which may grow without end, and
    rows or record batches beyond the limits are refused there.
    """
    if len(value) > MAX_MESSAGE_BYTES:
        raise Malformed(f"too large: got {len(value)} bytes, wanted at most {MAX_MESSAGE_BYTES}; send several messages")
    try:
        _inspect(value)
        table = pa.ipc.open_stream(value, options=_OPTIONS).read_all()
        table.validate()
        table = _known(table, kind)
        if table.nbytes > MAX_DECODED_BYTES:
            raise Malformed(f"too large: got {table.nbytes} bytes once read, wanted at most {MAX_DECODED_BYTES}")
        table.validate(full=True)
        return _one(table)
    except _READ_ERRORS as error:
        said = str(error).partition("\n")[0][:200]
        raise Malformed(f"not an Arrow stream that can be read: {said}, wanted one of events") from None


def _inspect(value: bytes) -> None:
    """Refuse a stream that would cost too much, or does not end where the message ends."""
    source = pa.BufferReader(value)
    batches = rows = 0
    for message in pa.ipc.MessageReader.open_stream(source):
        length, compressed = _declared(message.metadata.to_pybytes(), message.type)
        if compressed:
            raise Malformed(
                "compressed: got compressed Arrow buffers, wanted plain ones; let Kafka's producer compress"
            )
        if not 0 <= length <= MAX_ROWS:
            raise Malformed(f"too many rows: got {length}, wanted at most {MAX_ROWS}; send several messages")
        if message.type == "record batch":
            batches, rows = batches + 1, rows + length
    if batches > MAX_RECORD_BATCHES:
        raise Malformed(f"got {batches} record batches, wanted at most {MAX_RECORD_BATCHES}; make them larger")
    if rows > MAX_ROWS:
        raise Malformed(f"too many rows: got {rows}, wanted at most {MAX_ROWS}; send several messages")
    if not value.endswith(END):
        raise Malformed("truncated: got no end-of-stream mark, wanted one; close the stream's writer")
    if source.tell() != len(value):
        raise Malformed(f"got {len(value) - source.tell()} bytes after the stream's end, wanted one stream a message")


def _declared(metadata: bytes, kind: str) -> tuple[int, bool]:
    """Return how many rows an IPC message says it has, and whether its buffers are compressed.

    Arrow has checked that the offsets of this flatbuffer lie inside it, and says neither thing itself.
    """
    header = _entry(metadata, _u32(metadata, 0)[0], 2)
    if header is None or kind not in {"record batch", "dictionary"}:
        return 0, False
    batch = _reference(metadata, header)
    if kind == "dictionary":
        data = _entry(metadata, batch, 1)
        if data is None:
            return 0, False
        batch = _reference(metadata, data)
    length = _entry(metadata, batch, 0)
    return 0 if length is None else _i64(metadata, length)[0], _entry(metadata, batch, 3) is not None


def _entry(metadata: bytes, table: int, number: int) -> int | None:
    """Return where a flatbuffer's table keeps its field of this number; None where it has none."""
    vtable = table - _i32(metadata, table)[0]
    at = 4 + 2 * number
    if at >= _u16(metadata, vtable)[0]:
        return None
    offset = _u16(metadata, vtable + at)[0]
    return table + offset if offset else None


def _reference(metadata: bytes, at: int) -> int:
    return int(at + _u32(metadata, at)[0])


def _known(table: pa.Table, kind: Kind) -> pa.Table:
    """Return the columns of the contract; Malformed names one that is missing, there twice, or of another type."""
    known, names = COLUMNS[kind], table.column_names
    for name, (form, required) in known.items():
        count = names.count(name)
        if count > 1:
            raise Malformed(f"got {count} columns of this name, wanted one", name)
        if required and not count:
            raise Malformed(f"missing: got no {name}, wanted a column of {WANTED[form]}", name)
        if required and count and pa.types.is_null(table.schema.field(name).type):
            # It would cost no byte a row.
            raise Malformed(f"got a column of nulls, wanted one of {WANTED[form]}", name)
        if count:
            _check(table.schema.field(name), form, len(table))
    return table.select([name for name in names if name in known])


def _check(field: pa.Field, form: Form, rows: int) -> None:
    if not (pa.types.is_struct(field.type) and form in {"features", "score"}):
        if not _fits(field.type, form):
            raise Malformed(f"got {str(field.type)[:_MAX_SAID]}, wanted {WANTED[form]}", field.name)
        return
    names = sorted(child.name for child in field.type)
    for name, after in pairwise(names):
        if name == after:
            raise Malformed("got two columns of this name, wanted one", f"{field.name}.{name[:_MAX_NAME]}")
    if rows * len(names) > MAX_CELLS:
        raise Malformed(f"got {rows} rows of {len(names)}, wanted at most {MAX_CELLS} values", field.name)
    inner: Form = "scalar" if form == "features" else "number"
    for child in field.type:
        if not _fits(child.type, inner):
            said = str(child.type)[:_MAX_SAID]
            raise Malformed(f"got {said}, wanted {WANTED[inner]}", f"{field.name}.{child.name[:_MAX_NAME]}")


def _fits(held: pa.DataType, form: Form) -> bool:
    """Tell whether a column of this type may stand where one of this form is wanted."""
    types = pa.types
    number = types.is_integer(held) or types.is_floating(held)
    fits = {
        "text": is_text(held),
        "whole": types.is_integer(held),
        "number": number,
        "score": number,
        "flag": types.is_boolean(held),
        "scalar": number or is_text(held) or types.is_boolean(held),
        "features": False,
    }
    return bool(types.is_null(held) or fits[form])


def is_text(held: pa.DataType) -> bool:
    """Tell whether a type is text, plain or dictionary-encoded."""
    value = held.value_type if pa.types.is_dictionary(held) else held
    return bool(pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value))


def _one(table: pa.Table) -> pa.RecordBatch:
    """Return the table as one record batch: without a copy where the stream had one."""
    batches = table.to_batches()
    if len(batches) > 1:
        batches = table.unify_dictionaries().combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
