"""Messages of many events: what is read of them, what is refused, and that nothing of them costs without end."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.decode import Kind, decode
from streamer.decoding import arrow_stream
from streamer.decoding.arrow_batches import Batch, read
from streamer.decoding.arrow_stream import MAX_ROWS, Malformed
from streamer.decoding.singles import singles
from streamer.explain import explain_invalid
from tests.streamer.arrows import arrow_of, batch_of, stream
from tests.streamer.logs import T0

GOLDEN = Path(__file__).parent.parent / "golden"


def event(**changes: Any) -> dict[str, Any]:
    given = {"prediction_id": "p1", "model": "churn", "version": "1", "ts": T0, "prediction": True, "score": 0.5}
    return {**given, "features": {"age": 40.0, "plan": "a"}, **changes}


def fault_of(value: bytes, kind: Kind = "predictions") -> tuple[str, str]:
    with pytest.raises(Malformed) as refused:
        read(value, kind)
    return refused.value.fault


@pytest.mark.parametrize("kind", ["predictions", "features", "labels"])
def test_the_golden_batch_holds_the_golden_events(kind: Kind) -> None:
    raws = [raw for _row, raw in singles((GOLDEN / f"{kind}.arrow").read_bytes(), kind)]
    lines = (GOLDEN / f"{kind}.arrow.jsonl").read_bytes().splitlines()
    assert [decode(raw, kind) for raw in raws] == [decode(line, kind) for line in lines]


texts = st.text(max_size=8)
scalars = [
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.none() | st.booleans(),
    st.none() | texts,
]


@st.composite
def predictions(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Sound predictions whose columns each hold one kind of values."""
    n = draw(st.integers(1, 12))

    def column(values: Any) -> list[Any]:
        return draw(st.lists(values, min_size=n, max_size=n))

    said = draw(st.sampled_from(scalars))
    score = draw(
        st.sampled_from(
            [
                st.none() | st.floats(0, 1),
                st.none() | st.dictionaries(st.sampled_from("ab"), st.floats(0, 1), min_size=1),
            ]
        )
    )
    features = {name: column(draw(st.sampled_from(scalars))) for name in draw(st.sets(texts, max_size=3))}
    columns = {
        "prediction_id": column(st.text(min_size=1, max_size=8)),
        "model": column(st.sampled_from(["churn", "other"])),
        "version": column(st.sampled_from([None, "1", "_"])),
        "ts": column(st.integers(T0, T0 + 10**6)),
        "prediction": column(said),
        "error": column(st.just("e") | texts),
        "score": column(score),
        "entity_id": column(st.none() | texts),
        "origin": column(st.sampled_from([None, "live", "backfill"])),
        "bucket": column(st.none() | st.integers(0, 999)),
        "latency_ms": column(st.none() | st.floats(0, 10)),
    }
    return [
        {
            **{name: values[row] for name, values in columns.items() if values[row] is not None},
            "features": {name: values[row] for name, values in features.items()},
        }
        for row in range(n)
    ]


@given(predictions(), st.randoms(use_true_random=False))
def test_whatever_the_layout_the_events_are_those_that_were_put_in(given: list[Any], random: Random) -> None:
    raws = [raw for _row, raw in singles(arrow_of(given, random), "predictions")]
    wanted = [decode(msgspec.json.encode(one), "predictions") for one in given]
    assert [decode(raw, "predictions") for raw in raws] == wanted


def test_columns_lie_where_the_message_lies() -> None:
    value = stream(pa.record_batch({**dict(zip(*columns_of(3), strict=True)), "score": pa.array([1.0, 2.0, 3.0])}))
    score = read(value, "predictions").columns["score"].floats
    message = np.frombuffer(value, dtype=np.uint8)
    assert np.shares_memory(score, message)


def columns_of(rows: int) -> tuple[list[str], list[pa.Array]]:
    batch = batch_of([event(prediction_id=f"p{row}") for row in range(rows)])
    return batch.schema.names, batch.columns


def changed(**columns: pa.Array) -> bytes:
    return stream(pa.record_batch({**dict(zip(*columns_of(2), strict=True)), **columns}))


WRONG: list[tuple[str, pa.Array, str]] = [
    ("ts", pa.array(["a", "b"]), "got string, wanted an integer"),
    ("ts", pa.array([1.5, 2.5]), "got double, wanted an integer"),
    ("model", pa.array([1, 2]), "got int64, wanted utf8"),
    ("prediction_id", pa.array([b"a", b"b"]), "got binary, wanted utf8"),
    ("prediction", pa.array([[1], [2]]), "got list<item: int64>, wanted an integer, a floating"),
    ("score", pa.array(["a", "b"]), "got string, wanted a number, or a struct"),
    ("score", pa.array([True, False]), "got bool, wanted a number, or a struct"),
    ("features", pa.array([1, 2]), "got int64, wanted a struct"),
    ("latency_ms", pa.array([True, False]), "got bool, wanted an integer or a floating"),
    ("bucket", pa.array([1.0, 2.0]), "got double, wanted an integer"),
    ("error", pa.array([1, 2]), "got int64, wanted utf8"),
    ("version", pa.array([1, 2]).dictionary_encode(), "got dictionary<values=int64"),
]


@pytest.mark.parametrize(("name", "array", "reason"), WRONG)
def test_a_column_of_the_wrong_type_is_named(name: str, array: pa.Array, reason: str) -> None:
    got, field = fault_of(changed(**{name: array}))
    assert field == name
    assert got.startswith(reason)


@pytest.mark.parametrize(
    ("field", "inner", "said"),
    [
        ("features.x", pa.array([{"x": [1]}, {"x": [2]}]), "got list"),
        ("features.x", pa.array([{"x": {"y": 1}}, None]), "got struct"),
        ("features.at", pa.array([{"at": 1}, {"at": 2}], pa.struct([("at", pa.timestamp("ms"))])), "got timestamp[ms]"),
        ("score.a", pa.array([{"a": "x"}, {"a": "y"}]), "got string"),
    ],
)
def test_a_feature_or_class_of_the_wrong_type_is_named(field: str, inner: pa.Array, said: str) -> None:
    got, named = fault_of(changed(**{field.partition(".")[0]: inner}))
    assert named == field
    assert got.startswith(said)


def test_a_column_that_must_be_there_is_missed_and_one_that_is_twice_is_refused() -> None:
    names, columns = columns_of(2)
    table = pa.table(columns, names=names)
    assert fault_of(stream(table.drop_columns(["ts"]))) == ("missing: got no ts, wanted a column of an integer", "ts")
    twice = pa.Table.from_arrays([*columns, columns[0]], names=[*names, names[0]])
    assert fault_of(stream(twice))[1] == "prediction_id"
    inner = pa.StructArray.from_arrays([pa.array([1, 2]), pa.array([1, 2])], names=["x", "x"])
    assert fault_of(changed(features=inner)) == ("got two columns of this name, wanted one", "features.x")


def test_columns_that_are_not_of_the_contract_are_let_be() -> None:
    value = changed(whatever=pa.array([[1], [2]]), nested=pa.array([{"a": {"b": [1]}}, None]))
    assert [decode(raw, "predictions").prediction_id for _row, raw in singles(value, "predictions")] == ["p0", "p1"]


def test_a_column_of_nulls_alone_may_stand_for_any() -> None:
    value = changed(**dict.fromkeys(("version", "score", "error", "bucket", "latency_ms", "features"), pa.nulls(2)))
    (_row, raw), _ = singles(value, "predictions")
    assert set(json.loads(raw)) == {"prediction_id", "model", "ts", "prediction"}


def test_what_is_no_finite_number_is_missing() -> None:
    value = changed(
        score=pa.array([np.nan, np.inf]),
        features=pa.array([{"x": np.nan}, {"x": -np.inf}]),
        latency_ms=pa.array([np.inf, 1.0], pa.float32()),
    )
    first, second = [json.loads(raw) for _row, raw in singles(value, "predictions")]
    assert (first["features"], "score" in first, "latency_ms" in first) == ({"x": None}, False, False)
    assert (second["features"], "score" in second, second["latency_ms"]) == ({"x": None}, False, 1.0)


WHOLE = changed()


def test_a_stream_cut_anywhere_is_refused() -> None:
    for end in range(4, len(WHOLE)):
        assert fault_of(WHOLE[:end])[1] == ""


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(4, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_stream_with_wrong_bytes_is_read_or_refused(changes: list[tuple[int, int]]) -> None:
    value = bytearray(WHOLE)
    for at, byte in changes:
        value[at] = byte
    found = list(singles(bytes(value), "predictions"))
    try:
        rows = len(read(bytes(value), "predictions"))
    except Malformed as refused:
        reason, _field = refused.fault
        assert reason
        assert found == [(0, bytes(value))]
        return
    assert [row for row, _raw in found] == list(range(rows))
    for _row, raw in found:
        try:
            decode(raw, "predictions")
        except (msgspec.DecodeError, ValueError):
            assert explain_invalid(raw, "predictions")[0]


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_buffers_are_refused_before_they_grow(compression: str) -> None:
    rows = 50_000
    table = pa.table({"prediction_id": pa.array(["x"] * rows), "zeros": pa.array([0] * rows)})
    assert fault_of(stream(table, compression=compression))[0].startswith("compressed: ")
    coded = pa.table({"model": pa.array(["m" * 1_000] * 2).dictionary_encode()})
    assert fault_of(stream(coded, compression=compression))[0].startswith("compressed: ")


def test_declared_lengths_beyond_all_bounds_are_refused() -> None:
    rows = MAX_ROWS + 1
    assert fault_of(stream(pa.table({"x": pa.nulls(rows)})))[0].startswith("too many rows: ")
    # Nulls need no bytes, so a few of them may claim any number of rows.
    value = bytearray(stream(pa.table({"x": pa.nulls(77)})))
    at = value.find(struct.pack("<q", 77))
    while at >= 0:
        value[at : at + 8] = struct.pack("<q", 2**40)
        at = value.find(struct.pack("<q", 77))
    assert fault_of(bytes(value))[0].startswith("too many rows: ")


def test_many_small_record_batches_are_refused() -> None:
    part = pa.record_batch(dict(zip(*columns_of(1), strict=True)))
    table = pa.Table.from_batches([part] * (arrow_stream.MAX_RECORD_BATCHES + 1))
    assert "record batches" in fault_of(stream(table))[0]


def test_more_values_than_may_be_are_refused() -> None:
    inner = pa.StructArray.from_arrays([pa.nulls(50_000)] * 81, names=[str(n) for n in range(81)])
    names, columns = columns_of(50_000)
    given = dict(zip(names, columns, strict=True)) | {"features": inner}
    assert fault_of(stream(pa.record_batch(given))) == (
        "got 50000 rows of 81, wanted at most 4000000 values",
        "features",
    )


def test_views_of_one_large_text_do_not_fill_the_memory() -> None:
    rows = 1_000
    _validity, view, text = pa.array(["x" * 1_000_000], pa.string_view()).buffers()
    views = pa.Array.from_buffers(pa.string_view(), rows, [None, pa.py_buffer(view.to_pybytes() * rows), text])
    names, columns = columns_of(rows)
    given = dict(zip(names, columns, strict=True)) | {"entity_id": views}
    assert "too large" in fault_of(stream(pa.record_batch(given)))[0]


def test_codes_of_one_large_text_are_no_way_to_fill_the_memory_either() -> None:
    coded = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000), pa.array(["x" * 100_000]))
    names, columns = columns_of(1_000)
    given = dict(zip(names, columns, strict=True)) | {"entity_id": coded}
    assert "too large" in fault_of(stream(pa.record_batch(given)))[0]


def test_text_that_is_no_unicode_is_refused() -> None:
    wrong = pa.Array.from_buffers(pa.string(), 2, [None, *pa.array([b"\xff\xfe", b"ok"]).buffers()[1:]])
    assert "UTF8" in fault_of(changed(entity_id=wrong))[0]
    coded = pa.DictionaryArray.from_arrays(pa.array([0, 1]), wrong)
    assert "UTF8" in fault_of(changed(version=coded))[0]


def test_codes_and_offsets_that_point_outside_are_refused() -> None:
    coded = pa.DictionaryArray.from_arrays(pa.array([0, 7], pa.int32()), pa.array(["a"]), safe=False)
    assert fault_of(changed(version=coded))[1] == ""
    offsets = pa.array([0, 900, 5], pa.int32()).buffers()[1]
    wrong = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"hello")])
    assert fault_of(changed(entity_id=wrong))[1] == ""


def test_more_than_one_stream_in_a_message_is_refused() -> None:
    assert fault_of(WHOLE + WHOLE)[0] == f"got {len(WHOLE)} bytes after the stream's end, wanted one stream a message"


def test_a_message_larger_than_any_topic_takes_is_refused_unread() -> None:
    assert fault_of(b"\xff\xff\xff\xff" + bytes(8_000_000))[0].startswith("too large: got 8000004 bytes")


def test_a_batch_without_rows_is_no_event_and_no_fault() -> None:
    names, columns = columns_of(1)
    empty = pa.record_batch(columns, names=names).slice(0, 0)
    assert list(singles(stream(empty), "predictions")) == []
    assert list(singles(stream(pa.Table.from_batches([empty])), "predictions")) == []


def test_a_message_that_is_no_batch_is_given_as_it_is() -> None:
    assert [tuple(single) for single in singles(b"{}", "labels")] == [(0, b"{}")]
    assert [tuple(single) for single in singles(WHOLE[:100], "labels")] == [(0, WHOLE[:100])]


def test_several_record_batches_with_dictionaries_of_their_own_are_one_batch() -> None:
    def part(version: str) -> pa.RecordBatch:
        columns = dict(zip(*columns_of(2), strict=True))
        coded, views = pa.array([version] * 2).dictionary_encode(), pa.array([version] * 2, pa.string_view())
        return pa.record_batch({**columns, "version": coded, "entity_id": views})

    table = pa.Table.from_batches([part("1"), part("2")])
    batch = read(stream(table), "predictions")
    assert isinstance(batch, Batch)
    assert batch.columns["version"].coded.tolist() == batch.columns["entity_id"].values == ["1", "1", "2", "2"]


def test_what_polars_writes_can_be_read() -> None:
    answers = pl.DataFrame({"id": ["a", "b"], "age": [31.0, None], "plan": ["basic", "gold"], "said": [True, False]})
    table = answers.select(
        prediction_id="id",
        model=pl.lit("churn").cast(pl.Categorical),
        ts=pl.lit(T0),
        features=pl.struct("age", "plan"),
        prediction="said",
    )
    for frame in (table, pl.concat([table, table.clear(), table], rechunk=False)):
        sink = io.BytesIO()
        frame.write_ipc_stream(sink)
        events = [decode(raw, "predictions") for _row, raw in singles(sink.getvalue(), "predictions")]
        assert [event.features for event in events[:2]] == [
            {"age": 31.0, "plan": "basic"},
            {"age": None, "plan": "gold"},
        ]
        assert {event.model for event in events} == {"churn"}
        assert len(events) == len(frame)
