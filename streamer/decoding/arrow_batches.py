"""The events of one Arrow message as columns: numpy arrays where they lie, Python values where those are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streamer.counting.columns import Coded
from streamer.decode import Kind
from streamer.decoding.arrow_schema import COLUMNS, Form
from streamer.decoding.arrow_stream import MAX_TEXT_BYTES, Malformed, is_text, read_stream

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

# Rows are made into documents so many at a time.
_DOCUMENTS = 64
# What a byte of text, and a number, may grow to in JSON.
_JSON_BYTES = 6
_NUMBER_BYTES = 8
# What a column of nulls alone stands for.
_TYPES: dict[Form, pa.DataType] = {
    "text": pa.large_string(),
    "whole": pa.int64(),
    "number": pa.float64(),
    "score": pa.float64(),
    "flag": pa.bool_(),
    "scalar": pa.float64(),
}

_encode = msgspec.json.Encoder().encode


class Column:
    """One column of a batch, as numpy arrays and as Python's values; each is made once, when asked for.

    Attributes
    ----------
    array : numbers, booleans, large_string, or a dictionary of them.
    """

    def __init__(self, array: pa.Array) -> None:
        self.array = array
        self._is_coded = pa.types.is_dictionary(array.type)

    def __len__(self) -> int:
        return len(self.array)

    @property
    def is_text(self) -> bool:
        """Whether it holds texts."""
        return is_text(self.array.type)

    @property
    def is_flag(self) -> bool:
        """Whether it holds booleans."""
        return bool(pa.types.is_boolean(self.array.type))

    @property
    def is_unsigned(self) -> bool:
        """Whether it holds whole numbers that 64 bits with a sign may not."""
        return bool(pa.types.is_unsigned_integer(self.array.type))

    @cached_property
    def missing(self) -> BoolArray:
        """Which rows have no value: null, and of numbers nan and the infinite."""
        if pa.types.is_floating(self.array.type):
            return np.isnan(self.floats)
        if self._is_coded and self.array.dictionary.null_count:
            return self.coded.equal(None)
        return nulls_of(self.array)

    @cached_property
    def floats(self) -> NDArray[np.float64]:
        """Numbers, nan where there is none; booleans as 0 and 1."""
        array = self.array.cast(pa.uint8()) if self.is_flag else self.array
        if array.type != pa.float64():
            array = array.cast(pa.float64(), safe=False)
        if array.null_count:
            array = array.fill_null(np.nan)
        values: NDArray[np.float64] = array.to_numpy()
        infinite = np.isinf(values)
        return np.where(infinite, np.nan, values) if infinite.any() else values

    @cached_property
    def whole(self) -> IntArray:
        """Whole numbers; one that is null, or too large for 64 bits, is negative."""
        array = self.array
        if array.type != pa.int64():
            array = array.cast(pa.int64(), safe=False)
        if array.null_count:
            array = array.fill_null(-1)
        values: IntArray = array.to_numpy()
        return values

    @cached_property
    def coded(self) -> Coded:
        """Values by their codes, None for what is missing."""
        array = self.array if self._is_coded else self.array.dictionary_encode()
        values = _plain(array.dictionary.to_pylist())
        codes = array.indices.cast(pa.int64())
        if codes.null_count:
            codes = codes.fill_null(len(values))
            values.append(None)
        return compact(values, codes.to_numpy())

    @cached_property
    def values(self) -> list[Any]:
        """Python's own values, None for what is missing."""
        if self._is_coded:
            return self.coded.tolist()
        if pa.types.is_floating(self.array.type):
            values: list[Any] = self.floats.tolist()
            return [None if value != value else value for value in values] if self.missing.any() else values
        if self.is_text or self.array.null_count:
            listed: list[Any] = self.array.to_pylist()
            return listed
        return list(self.array.to_numpy(zero_copy_only=False).tolist())

    @cached_property
    def lengths(self) -> IntArray:
        """The length in bytes of each text, 0 for null."""
        lengths = self._distinct_lengths
        if not self._is_coded:
            return lengths
        codes = self.array.indices
        if codes.null_count:
            codes = codes.cast(pa.int64()).fill_null(len(lengths))
        of_rows: IntArray = np.append(lengths, 0)[codes.to_numpy()]
        return of_rows

    @property
    def text_bytes(self) -> int:
        """The bytes of all texts, each as often as it stands in a row."""
        if not self._is_coded:
            return int(pc.sum(pc.binary_length(self.array)).as_py() or 0)
        return int(self.lengths.sum())

    @cached_property
    def longest(self) -> int:
        """The most bytes that one value takes, unquoted."""
        if not self.is_text:
            return _NUMBER_BYTES
        return int(self._distinct_lengths.max(initial=0))

    @cached_property
    def _distinct_lengths(self) -> IntArray:
        texts = self.array.dictionary if self._is_coded else self.array
        found = pc.binary_length(texts)
        lengths: IntArray = (found.fill_null(0) if found.null_count else found).to_numpy()
        return lengths

    def listed(self, start: int, rows: int) -> list[Any]:
        """Return some rows' values, None for what is missing."""
        return _plain(self.array.slice(start, rows).to_pylist())


class Batch:
    """The events of one message as columns, every one of a type that the contract knows.

    Attributes
    ----------
    columns : by field; what the message does not have is not there.
    features, scores : by feature, and, where the score is a struct, by class.
    without : "features" and "score" → which rows have none at all, where they are structs.
    """

    def __init__(self, kind: Kind, record: pa.RecordBatch) -> None:
        self.kind = kind
        self._record = record
        self.columns: dict[str, Column] = {}
        self.features: dict[str, Column] = {}
        self.scores: dict[str, Column] = {}
        self.without: dict[str, BoolArray] = {}
        for field, array in zip(record.schema, record.columns, strict=True):
            form = COLUMNS[kind][field.name].form
            if pa.types.is_struct(field.type):
                inner = self.features if form == "features" else self.scores
                for child, part in zip(field.type, array.flatten(), strict=True):
                    inner[child.name] = Column(_settled(part, "scalar" if form == "features" else "number"))
                self.without[field.name] = nulls_of(array)
            elif form == "features":
                self.without["features"] = np.ones(len(record), dtype=np.bool_)
            else:
                self.columns[field.name] = Column(_settled(array, form))
        columns = (*self.columns.values(), *self.features.values())
        if sum(column.text_bytes for column in columns if column.is_text) > MAX_TEXT_BYTES:
            raise Malformed(f"too large: got more than {MAX_TEXT_BYTES} bytes of text; send several messages")

    def __len__(self) -> int:
        return len(self._record)

    @cached_property
    def longest(self) -> int:
        """The most bytes that one row may take as JSON."""
        named = [*self.columns.items(), *self.features.items(), *self.scores.items()]
        return sum(_JSON_BYTES * (len(name.encode()) + column.longest + 1) for name, column in named)

    def documents(self, rows: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """Give some rows, which rise, each as the JSON message that it could have come as."""
        at = 0
        while at < len(rows):
            start = rows[at] - rows[at] % _DOCUMENTS
            found = self._documents(start, min(_DOCUMENTS, len(self) - start))
            while at < len(rows) and rows[at] < start + _DOCUMENTS:
                yield rows[at], _encode(found[rows[at] - start])
                at += 1

    def _documents(self, start: int, rows: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [{} for _ in range(rows)]
        for name, column in self.columns.items():
            for document, value in zip(found, column.listed(start, rows), strict=True):
                if value is not None:
                    document[name] = value
        for field, inner in (("features", self.features), ("score", self.scores)):
            if field not in self.without:
                continue
            names, columns = list(inner), [column.listed(start, rows) for column in inner.values()]
            given = zip(*columns, strict=True) if columns else iter([()] * rows)
            absent = self.without[field][start : start + rows].tolist()
            for document, values, is_absent in zip(found, given, absent, strict=True):
                if not is_absent:
                    pairs = zip(names, values, strict=True)
                    document[field] = {name: v for name, v in pairs if v is not None or field == "features"}
        return found


def read(value: bytes, kind: Kind) -> Batch:
    """Read a message of many events; Malformed when it is none."""
    return Batch(kind, read_stream(value, kind))


def compact(values: list[Any], codes: IntArray) -> Coded:
    """Return a coded column whose values all occur, each once, in any order."""
    occurring = np.flatnonzero(np.bincount(codes, minlength=len(values)))
    kept = [values[code] for code in occurring.tolist()]
    known: dict[tuple[type, Any], int] = {}
    # An Arrow dictionary may hold a value twice; and True is no 1, though Python takes them for equal.
    places = [known.setdefault((type(value), value), len(known)) for value in kept]
    if len(known) == len(values):
        return Coded(values, codes)
    lookup = np.zeros(len(values), dtype=np.int64)
    lookup[occurring] = places
    return Coded([value for _, value in known], lookup[codes])


def nulls_of(array: pa.Array) -> BoolArray:
    """Return which values are null."""
    if not array.null_count:
        return np.zeros(len(array), dtype=np.bool_)
    values: BoolArray = array.is_null().to_numpy(zero_copy_only=False)
    return values


def _plain(values: list[Any]) -> list[Any]:
    """Return values as JSON has them: what is no finite number is missing."""
    if not values or float not in set(map(type, values)):
        return values
    return [None if type(value) is float and value - value != 0 else value for value in values]


def _settled(array: pa.Array, form: Form) -> pa.Array:
    """Return a column in one of the few types that `Column` knows."""
    held = array.type
    if pa.types.is_null(held):
        return array.cast(_TYPES[form])
    if pa.types.is_dictionary(held):
        return pa.DictionaryArray.from_arrays(array.indices, _settled(array.dictionary, form))
    if pa.types.is_string_view(held) and _shown(array) > MAX_TEXT_BYTES:
        # As texts of their own they would fill the memory.
        raise Malformed(f"too large: got views of more than {MAX_TEXT_BYTES} bytes of text; send several messages")
    return array.cast(pa.large_string()) if is_text(held) and held != pa.large_string() else array


def _shown(views: pa.Array) -> int:
    """Return how many bytes of text views show, which may all show the same."""
    # A view is 16 bytes, the first four of them its length; what stands where there is none says nothing.
    heads = np.frombuffer(views.buffers()[1], dtype="<i4")[4 * views.offset : 4 * (views.offset + len(views)) : 4]
    return int(heads[~nulls_of(views)].sum(dtype=np.int64))
