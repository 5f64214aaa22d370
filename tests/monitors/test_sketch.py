"""Counts add up in any order, survive the wire, and never mix with another reference's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from monitors.sketch import FingerprintMismatchError, HistogramSketch, count_cells, decode_pairs, encode_pairs

SIZE = 7
counts = hnp.arrays(np.int64, SIZE, elements=st.integers(0, 2**33))
cells = hnp.arrays(np.int32, st.integers(0, 40), elements=st.integers(0, SIZE - 1))


@given(cells, cells)
def test_counting_two_batches_is_counting_them_together(first: np.ndarray, second: np.ndarray):
    together = count_cells(np.concatenate([first, second]), SIZE)
    assert (count_cells(first, SIZE) + count_cells(second, SIZE) == together).all()
    assert together.dtype == np.int64


@given(st.lists(counts, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_merging_does_not_depend_on_the_order(batches: list[np.ndarray], random):
    shuffled = list(batches)
    random.shuffle(shuffled)
    merged = [HistogramSketch.empty("f", SIZE), HistogramSketch.empty("f", SIZE)]
    for sketch, order in zip(merged, (batches, shuffled), strict=True):
        for batch in order:
            sketch.merge(HistogramSketch("f", batch.copy()))
    assert (merged[0].counts == merged[1].counts).all()
    assert (merged[0].counts == sum(batches)).all()


@given(counts)
def test_counts_survive_the_wire_even_over_32_bits(batch: np.ndarray):
    assert (decode_pairs(encode_pairs(batch), SIZE) == batch).all()


@given(counts, counts)
def test_adding_pairs_is_merging(first: np.ndarray, second: np.ndarray):
    sketch = HistogramSketch("f", first.copy())
    sketch.add_pairs(HistogramSketch("f", second).to_pairs())
    assert (sketch.counts == first + second).all()


def test_pairs_are_little_endian_cell_and_count_of_the_cells_that_hold_something():
    assert encode_pairs(np.array([0, 3, 0, 258])) == bytes([1, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 2, 1, 0, 0])
    assert encode_pairs(np.zeros(4, dtype=np.int64)) == b""


def test_merging_leaves_the_other_sketch_as_it_was():
    one, other = HistogramSketch("f", np.array([1, 2])), HistogramSketch("f", np.array([3, 4]))
    one.merge(other)
    assert (one.counts.tolist(), other.counts.tolist()) == ([4, 6], [3, 4])


def test_another_fingerprint_is_refused_and_changes_nothing():
    sketch = HistogramSketch("aaaa", np.array([1, 2]))
    with pytest.raises(FingerprintMismatchError, match="got bbbb with 2 cells, wanted aaaa"):
        sketch.merge(HistogramSketch("bbbb", np.array([1, 2])))
    assert sketch.counts.tolist() == [1, 2]


def test_another_size_is_refused():
    with pytest.raises(FingerprintMismatchError, match="3 cells"):
        HistogramSketch("f", np.array([1, 2])).merge(HistogramSketch("f", np.array([1, 2, 3])))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (b"\0" * 7, "got 7 bytes"),
        (encode_pairs(np.array([0, 0, 0, 1])), r"wanted them in \[0, 3\)"),
        (b"\xff\xff\xff\xff\x01\0\0\0", "got cells -1"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(pairs: bytes, message: str):
    with pytest.raises(ValueError, match=message):
        decode_pairs(pairs, 3)


@pytest.mark.parametrize("cell", [-1, 3])
def test_a_cell_outside_the_histogram_is_refused(cell: int):
    with pytest.raises(ValueError, match=r"wanted them in \[0, 3\)"):
        count_cells(np.array([0, cell], dtype=np.int32), 3)
