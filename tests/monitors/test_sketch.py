"""Counts add up in any order, survive the wire, and never mix with another reference's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from monitors.sketch import (
    PAIRS,
    FingerprintMismatchError,
    HistogramSketch,
    count_cells,
    decode_pairs,
    encode_pairs,
    read_many,
)

SIZE = 7
counts = hnp.arrays(np.int64, SIZE, elements=st.integers(0, 2**33))
cells = hnp.arrays(np.int32, st.integers(0, 40), elements=st.integers(0, SIZE - 1))


@given(cells, cells)
def test_counting_two_batches_is_counting_them_together(first: np.ndarray, second: np.ndarray):
    together = count_cells(np.concatenate([first, second]), SIZE)
    assert (count_cells(first, SIZE) + count_cells(second, SIZE) == together).all()
    assert together.dtype == np.int64


def sketch_of(*batches: np.ndarray) -> HistogramSketch:
    sketch = HistogramSketch.empty("f")
    for batch in batches:
        sketch.add_pairs(encode_pairs(batch))
    return sketch


@given(st.lists(counts, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_merging_does_not_depend_on_the_order(batches: list[np.ndarray], random):
    shuffled = list(batches)
    random.shuffle(shuffled)
    merged = [HistogramSketch.empty("f"), HistogramSketch.empty("f")]
    for sketch, order in zip(merged, (batches, shuffled), strict=True):
        for batch in order:
            sketch.merge(sketch_of(batch))
    assert (merged[0].counts == merged[1].counts).all()
    assert (merged[0].whole(SIZE) == sum(batches)).all()


@given(counts)
def test_counts_survive_the_wire_even_over_32_bits(batch: np.ndarray):
    assert (sketch_of(batch).whole(SIZE) == batch).all()


few_or_many = st.one_of(counts, hnp.arrays(np.int64, st.integers(0, 600), elements=st.sampled_from([0, 0, 0, 1, 300])))


@given(few_or_many)
def test_packed_counts_come_back_whether_they_are_few_or_many(batch: np.ndarray):
    sketch = sketch_of(batch)
    back = HistogramSketch.unpack("f", sketch.pack())
    assert back.counts.dtype == sketch.counts.dtype
    assert (back.whole(len(batch)) == batch).all()
    back.add_pairs(encode_pairs(batch))
    assert (back.whole(len(batch)) == 2 * batch).all()


def test_few_counts_pack_to_fewer_bytes_than_cells():
    few = np.zeros(5_000, dtype=np.int64)
    few[[7, 4_000]] = 9
    assert len(sketch_of(few).pack()) < 10


@given(counts, counts)
def test_adding_pairs_is_merging(first: np.ndarray, second: np.ndarray):
    assert (sketch_of(first, second).whole(SIZE) == first + second).all()


@given(st.lists(counts, max_size=5))
def test_counts_are_as_wide_as_the_largest_needs(batches: list[np.ndarray]):
    largest = int(sum(batches).max()) if batches else 0
    assert sketch_of(*batches).counts.dtype == np.min_scalar_type(largest)


wide = hnp.arrays(np.int64, st.integers(1, 600), elements=st.sampled_from([0, 1, 200, 255, 256, 70_000, 2**33]))
mostly_small = st.tuples(wide, st.integers(0, 5)).map(lambda drawn: _with_few_large(*drawn))


def _with_few_large(counts: np.ndarray, kept: int) -> np.ndarray:
    large = np.flatnonzero(counts > 255)
    counts[large[kept:]] = 3
    return counts


@given(st.lists(st.one_of(wide, mostly_small), min_size=1, max_size=5))
def test_counts_add_up_however_many_are_kept_apart(batches: list[np.ndarray]):
    total = np.zeros(600, dtype=np.int64)
    sketch, merged = HistogramSketch.empty("f"), HistogramSketch.empty("f")
    for batch in batches:
        sketch.add_pairs(encode_pairs(batch))
        merged.merge(sketch_of(batch))
        total[: len(batch)] += batch
        for each in (sketch, merged, HistogramSketch.unpack("f", sketch.pack())):
            assert (each.whole(600) == total).all()
            assert len(each.large) <= len(each.counts) // 128


def test_a_feature_of_few_categories_does_not_widen_the_cells_of_many_numbers():
    counts = np.full(26_000, 40)
    counts[-16:] = 1_250
    for sketch in (sketch_of(counts), HistogramSketch.unpack("f", sketch_of(counts).pack())):
        assert (sketch.counts.dtype, len(sketch.large)) == (np.uint8, 16)
    assert sketch_of(np.full(26_000, 300)).counts.dtype == np.uint16


def test_pairs_of_one_cell_in_any_order_add_up():
    pairs = b"\1" + np.array([(3, 1), (0, 2), (3, 4)], dtype=PAIRS[b"\1"]).tobytes()
    assert [column.tolist() for column in decode_pairs(pairs)] == [[0, 3], [2, 5]]


def test_pairs_are_little_endian_cell_and_count_of_the_cells_that_hold_something():
    assert encode_pairs(np.array([0, 3, 0, 255])) == bytes([0, 1, 0, 3, 3, 0, 255])
    assert encode_pairs(np.array([0, 3, 0, 258])) == bytes([1, 1, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 2, 1, 0, 0])
    assert encode_pairs(np.zeros(4, dtype=np.int64)) == b""


def test_merging_leaves_the_other_sketch_as_it_was():
    one, other = sketch_of(np.array([1, 2])), sketch_of(np.array([3, 4, 300]))
    one.merge(other)
    assert (one.whole(3).tolist(), other.whole(3).tolist()) == ([4, 6, 300], [3, 4, 300])


def test_another_fingerprint_is_refused_and_changes_nothing():
    sketch = sketch_of(np.array([1, 2]))
    with pytest.raises(FingerprintMismatchError, match="got bbbb, wanted f"):
        sketch.merge(HistogramSketch.empty("bbbb"))
    assert sketch.whole(2).tolist() == [1, 2]


def test_more_cells_than_the_reference_has_are_refused():
    with pytest.raises(ValueError, match="got 3 cells, wanted 2 as f has"):
        sketch_of(np.array([1, 2, 3])).whole(2)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (b"\0" * 7 + b"\0", "got 8 bytes that begin with"),
        (b"\2\0\0\0", "got 4 bytes that begin with"),
        (b"\1\0\0\0\x7f\x01\0\0\0", "got cells 2130706432..2130706432"),
        (b"\1\xff\xff\xff\xff\x01\0\0\0", "got cells -1"),
        (b"\1\0\0\0\0\xff\xff\xff\xff", "got a count of -1"),
    ],
)
def test_pairs_that_make_no_histogram_are_refused(pairs: bytes, message: str):
    with pytest.raises(ValueError, match=message):
        HistogramSketch.empty("f").add_pairs(pairs)
    assert read_many([b"", pairs, encode_pairs(np.array([1]))]) is None


@given(st.lists(counts, max_size=5))
def test_reading_many_is_reading_each(batches: list[np.ndarray]):
    many = [encode_pairs(np.minimum(batch, 2**31 - 1)) for batch in batches]
    read = read_many(many)
    if read is None:
        assert len({pairs[:1] for pairs in many if pairs}) == 2
        return
    wanted = [[column.tolist() for column in decode_pairs(pairs)] for pairs in many]
    assert [[each["cell"].tolist(), each["count"].tolist()] for each in read] == wanted


narrow = hnp.arrays(np.int64, st.integers(0, 600), elements=st.sampled_from([0, 0, 0, 0, 0, 0, 1, 255]))
additions = st.lists(
    st.tuples(st.sampled_from(["now", "later", "merged", "asked"]), st.one_of(narrow, wide)), max_size=40
)


@given(additions)
def test_what_is_added_later_is_there_when_it_is_asked_for(drawn: list[tuple[str, np.ndarray]]):
    total = np.zeros(600, dtype=np.int64)
    sketch = HistogramSketch.empty("f")
    for how, batch in drawn:
        added = np.minimum(batch, 2**31 - 1)
        read = read_many([encode_pairs(added)])
        assert read is not None
        if how == "asked":
            assert (sketch.whole(600) == total).all()
            continue
        if how == "now":
            sketch.add_pairs(encode_pairs(added))
        elif how == "later":
            sketch.add_later(read[0])
        else:
            other = HistogramSketch.empty("f")
            other.add_later(read[0])
            sketch.merge(other)
        total[: len(added)] += added
    assert (HistogramSketch.unpack("f", sketch.pack()).whole(600) == total).all()
    assert (sketch.whole(600) == total).all()


def test_pairs_that_do_not_rise_are_not_read_with_others():
    form = b"\0"
    first, second = (form + np.array([pair], dtype=PAIRS[form]).tobytes() for pair in [(3, 1), (0, 2)])
    assert read_many([first, second]) is not None
    assert read_many([first + second[1:]]) is None


@pytest.mark.parametrize("cell", [-1, 3])
def test_a_cell_outside_the_histogram_is_refused(cell: int):
    with pytest.raises(ValueError, match=r"wanted them in \[0, 3\)"):
        count_cells(np.array([0, cell], dtype=np.int32), 3)
