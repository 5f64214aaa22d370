"""Histograms as mergeable counts by cell, and their form on the wire."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Counts: TypeAlias = npt.NDArray[np.int64]
AnyCounts: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]
# Structured as one of `PAIRS`: cells that rise, and counts that are not negative.
Pairs: TypeAlias = npt.NDArray[np.void]

# How pairs of a cell and its count are written, by the byte in front of them: as a rule both are small.
_NARROW, _WIDE = b"\0", b"\1"
PAIRS = {
    _NARROW: np.dtype([("cell", "<u2"), ("count", "<u1")]),
    _WIDE: np.dtype([("cell", "<i4"), ("count", "<i4")]),
}
# In front of packed counts: the bytes of a count, and of the step from one cell to the next; 0 where all cells stand.
_PACKED = struct.Struct("<BB")
MAX_COUNT = 2**31 - 1
# Sixteen thousand features of the largest binning: a cell beyond it is a broken message, not a histogram.
MAX_CELLS = 2**22
# A count kept apart takes some hundred bytes: of so many cells one may be.
_CELLS_A_LARGE_ONE = 128
# So many additions are put off at most.
_MOST_LATER = 16
# Where there are more cells than so many for each pair, pairs are sorted by cell instead of counted in all cells.
_CELLS_A_COUNT = 16
_LARGEST = {np.dtype(width): int(np.iinfo(width).max) for width in (np.uint8, np.uint16, np.uint32, np.uint64)}


class FingerprintMismatchError(ValueError):
    """Two histograms are over different cells and cannot be added."""


@dataclass(eq=False, slots=True)
class HistogramSketch:
    """Counts over the cells of one reference; sketches of the same cells add up.

    Counts are kept as far as the last cell counted, in the narrowest unsigned integers that hold all but a few of them,
    and those few apart: a feature of three categories does not make the cells of a hundred numbers wider.

    Parameters
    ----------
    fingerprint : names the reference whose cells these are (`ReferenceProfile.fingerprint`).

    Notes
    -----
    Made by `empty` and `unpack`.
    """

    fingerprint: str
    _counts: AnyCounts
    _large: dict[int, int] = field(default_factory=dict)
    # Added when somebody asks: each of a thousand sketches is then fetched into the processor's cache once for many.
    _later: list[Pairs] = field(default_factory=list)

    @classmethod
    def empty(cls, fingerprint: str) -> HistogramSketch:
        """Return a sketch that has counted nothing."""
        return cls(fingerprint, np.zeros(0, dtype=np.uint8))

    @property
    def counts(self) -> AnyCounts:
        """(cells,) unsigned integers, 0 where `large` has the count; cells past the end have counted nothing."""
        self._settle()
        return self._counts

    @property
    def large(self) -> dict[int, int]:
        """Cell → count, where that is too large for those integers."""
        self._settle()
        return self._large

    @property
    def nbytes(self) -> int:
        """About what its counts take."""
        return self._counts.nbytes

    def add_later(self, pairs: Pairs) -> None:
        """Add what `read_many` has read: together with other such pairs, when somebody asks for the counts."""
        self._later.append(pairs)
        if len(self._later) >= _MOST_LATER:
            self._settle()

    def _settle(self) -> None:
        if not self._later:
            return
        later, self._later = self._later, []
        cells = np.concatenate([pairs["cell"] for pairs in later])
        counts = np.concatenate([pairs["count"] for pairs in later])
        if len(later) == 1:
            self.add(cells.astype(np.int64), counts.astype(np.int64))
        elif cells.max(initial=0) < _CELLS_A_COUNT * len(cells):
            # Sums of a few times 31 bits are exact as floats.
            self._add_whole(np.bincount(cells, counts).astype(np.int64))
        else:
            found, place = np.unique(cells, return_inverse=True)
            self.add(found.astype(np.int64), np.bincount(place, counts).astype(np.int64))

    def _add_whole(self, added: Counts) -> None:
        """Add a count for every cell from the first on."""
        self._reach(len(added))
        total = self.whole(len(self._counts))
        total[: len(added)] += added
        if not self._large and total.max(initial=0) <= _LARGEST[self._counts.dtype]:
            self._counts = total.astype(self._counts.dtype)
        else:
            self._put(np.arange(len(total)), total)

    def add_pairs(self, pairs: bytes) -> None:
        """Add counts that `encode_pairs` wrote, in place; ValueError as `decode_pairs`, and for negative counts."""
        cells, added = decode_pairs(pairs)
        if added.min(initial=0) < 0:
            raise ValueError(f"pairs: got a count of {added.min()}, wanted none below 0: events are not taken back")
        self.add(cells, added)

    def add(self, cells: Counts, added: Counts) -> None:
        """Add counts, none of them negative, to cells that rise, in place."""
        if not len(cells):
            return
        self._reach(int(cells[-1]) + 1)
        total = self._counts.take(cells) + added
        if self._large:
            large = np.array(list(self._large))
            places = np.minimum(np.searchsorted(cells, large), len(cells) - 1)
            there = cells[places] == large
            total[places[there]] += np.array(list(self._large.values()))[there]
        self._put(cells, total)

    def merge(self, other: HistogramSketch) -> None:
        """Add another sketch's counts to this one, in place.

        Raises
        ------
        FingerprintMismatchError
            The other is over other cells.
        """
        if other.fingerprint != self.fingerprint:
            raise FingerprintMismatchError(
                f"sketch.fingerprint: got {other.fingerprint}, wanted {self.fingerprint}; keep sketches of different "
                "references apart"
            )
        self._settle()
        self._add_whole(other.whole(len(other.counts)))

    def pack(self) -> bytes:
        """Return the counts as they are kept: all of them, or the cells that hold something, whichever is shorter."""
        counts = self.counts
        if self._large:
            counts = self.whole(len(counts)).astype(np.min_scalar_type(max(self._large.values())))
        # Of truth values these are found several times as fast as of small numbers.
        (cells,) = (counts != 0).nonzero()
        gaps = cells.copy()
        gaps[1:] -= cells[:-1]
        gaps = gaps.astype(np.min_scalar_type(int(gaps.max(initial=0))))
        if len(cells) * (gaps.itemsize + counts.itemsize) >= counts.nbytes:
            return _PACKED.pack(counts.itemsize, 0) + _little(counts)
        return _PACKED.pack(counts.itemsize, gaps.itemsize) + _little(gaps) + _little(counts[cells])

    @classmethod
    def unpack(cls, fingerprint: str, packed: bytes) -> HistogramSketch:
        """Read what `pack` wrote."""
        width, gap_width = _PACKED.unpack_from(packed)
        rest = memoryview(packed)[_PACKED.size :]
        if not gap_width:
            return cls._narrowed(fingerprint, np.frombuffer(rest, f"<u{width}").copy())
        number = len(rest) // (gap_width + width)
        cells = np.frombuffer(rest, f"<u{gap_width}", number).cumsum(dtype=np.int64)
        counts = np.zeros(int(cells[-1]) + 1 if number else 0, dtype=f"<u{width}")
        counts[cells] = np.frombuffer(rest, f"<u{width}", offset=number * gap_width)
        return cls._narrowed(fingerprint, counts)

    @classmethod
    def _narrowed(cls, fingerprint: str, counts: AnyCounts) -> HistogramSketch:
        for width in (np.uint8, np.uint16, np.uint32):
            if np.dtype(width).itemsize >= counts.itemsize:
                break
            beyond = np.flatnonzero(counts > _LARGEST[np.dtype(width)])
            if len(beyond) <= len(counts) // _CELLS_A_LARGE_ONE:
                large = dict(zip(beyond.tolist(), counts[beyond].tolist(), strict=True))
                counts[beyond] = 0
                return cls(fingerprint, counts.astype(width), large)
        return cls(fingerprint, counts)

    def whole(self, size: int) -> Counts:
        """Return the counts of all cells of the reference.

        Parameters
        ----------
        size : how many cells the reference has; ValueError when more have been counted.
        """
        if len(self.counts) > size:
            raise ValueError(
                f"sketch.counts: got {len(self._counts)} cells, wanted {size} as {self.fingerprint} has: another "
                "reference's cells?"
            )
        counts = np.zeros(size, dtype=np.int64)
        counts[: len(self._counts)] = self._counts
        if self._large:
            counts[list(self._large)] = list(self._large.values())
        return counts

    def _reach(self, size: int) -> None:
        """Make room for so many cells."""
        if size > len(self._counts):
            longer = np.zeros(size, dtype=self._counts.dtype)
            longer[: len(self._counts)] = self._counts
            self._counts = longer

    def _put(self, cells: Counts, counts: Counts) -> None:
        """Set the counts of some cells."""
        if np.count_nonzero(counts > _LARGEST[self._counts.dtype]):
            counts = self._put_large(cells, counts)
        # Cast first: beside a busy thread, assigning int64 to narrower cells took ten times as long as alone, and no
        # more CPU. That numpy lets go of the interpreter's lock for the cast would explain it.
        self._counts[cells] = counts.astype(self._counts.dtype, copy=False)
        if self._large:
            self._keep_few_large()

    def _put_large(self, cells: Counts, counts: Counts) -> Counts:
        """Put apart the counts that are too large, widening where these are many; return what is left to be put."""
        most = len(self._counts) // _CELLS_A_LARGE_ONE
        while np.count_nonzero(beyond := counts > _LARGEST[self._counts.dtype]) > most:
            self._widen()
        self._large.update(zip(cells[beyond].tolist(), counts[beyond].tolist(), strict=True))
        return np.where(beyond, 0, counts)

    def _keep_few_large(self) -> None:
        while len(self._large) > len(self._counts) // _CELLS_A_LARGE_ONE:
            self._widen()

    def _widen(self) -> None:
        self._counts = self._counts.astype(f"u{2 * self._counts.itemsize}")
        limit = _LARGEST[self._counts.dtype]
        for cell in [cell for cell, count in self._large.items() if count <= limit]:
            self._counts[cell] = self._large.pop(cell)


def _little(values: npt.NDArray[Any]) -> bytes:
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def count_cells(cells: npt.NDArray[np.int32], size: int) -> Counts:
    """Count how often each of `size` cells occurs.

    Parameters
    ----------
    cells : (rows,) integers in [0, size).
    size : the number of cells.

    Returns
    -------
    (size,) int64 counts.

    Raises
    ------
    ValueError
        A cell lies outside [0, size).
    """
    if len(cells) and (cells.min() < 0 or cells.max() >= size):
        raise ValueError(f"cells: got cells {cells.min()}..{cells.max()}, wanted them in [0, {size})")
    return np.bincount(cells, minlength=size).astype(np.int64, copy=False)


def pair_form(cells: npt.NDArray[Any], counts: npt.NDArray[Any]) -> bytes:
    """Return the byte in front of the shortest pairs that hold these, counts below 2**31."""
    is_narrow = cells.max(initial=0) < 2**16 and counts.min(initial=0) >= 0 and counts.max(initial=0) < 2**8
    return _NARROW if is_narrow else _WIDE


def encode_pairs(counts: npt.NDArray[Any]) -> bytes:
    """Write the cells that hold something as pairs (cell, count), little-endian: a byte for their form, then `PAIRS`.

    A count too large for one pair is spread over several of the same cell: reading adds them up. Nothing is b"".
    """
    counts = np.asarray(counts, dtype=np.int64)
    cells = np.flatnonzero(counts)
    form = pair_form(cells, counts[cells])
    parts = [form] if cells.size else []
    while cells.size:
        pairs = np.empty(cells.size, dtype=PAIRS[form])
        pairs["cell"] = cells
        pairs["count"] = written = np.clip(counts[cells], -MAX_COUNT, MAX_COUNT)
        parts.append(pairs.tobytes())
        counts = counts.copy()
        counts[cells] -= written
        cells = np.flatnonzero(counts)
    return b"".join(parts)


def decode_pairs(pairs: bytes) -> tuple[Counts, Counts]:
    """Read what `encode_pairs` wrote into (cells, counts), each cell once and in order; pairs of one cell add up.

    Raises
    ------
    ValueError
        The bytes are no whole pairs, or a cell lies outside [0, MAX_CELLS).
    """
    form = PAIRS.get(pairs[:1] or _NARROW)
    if form is None or len(pairs[1:]) % form.itemsize:
        raise ValueError(
            f"pairs: got {len(pairs)} bytes that begin with {pairs[:1]!r}, wanted 0 and pairs of 3 bytes, or 1 and "
            "pairs of 8"
        )
    read = np.frombuffer(pairs, dtype=form, offset=min(1, len(pairs)))
    cells, counts = read["cell"].astype(np.int64), read["count"].astype(np.int64)
    if not (cells[1:] > cells[:-1]).all():
        cells, place = np.unique(cells, return_inverse=True)
        counts = np.zeros(len(cells), dtype=np.int64)
        np.add.at(counts, place, read["count"])
    if len(cells) and (cells[0] < 0 or cells[-1] >= MAX_CELLS):
        raise ValueError(f"pairs: got cells {cells[0]}..{cells[-1]}, wanted them in [0, {MAX_CELLS})")
    return cells, counts


def read_many(many: Sequence[bytes]) -> list[Pairs] | None:
    """Read many histograms that `encode_pairs` wrote, in one pass, each as pairs for `HistogramSketch.add_later`.

    Returns
    -------
    None when one pass cannot read them: some are of another form than the rest, or none that `decode_pairs` reads,
    some cells come twice or do not rise, or some counts are negative. `decode_pairs` says of each what it is.
    """
    heads = {pairs[:1] for pairs in many} - {b""}
    form = PAIRS.get(heads.pop() if heads else _NARROW)
    sizes = np.array([len(pairs) - 1 if pairs else 0 for pairs in many], dtype=np.int64)
    if form is None or heads or (sizes % form.itemsize).any():
        return None
    read = np.frombuffer(b"".join([pairs[1:] for pairs in many]), dtype=form)
    cells, counts = read["cell"], read["count"]
    ends = np.cumsum(sizes // form.itemsize)
    rises = cells[1:] > cells[:-1]
    # From the last cell of one to the first of the next.
    rises[ends[(ends > 0) & (ends < len(cells))] - 1] = True
    if not rises.all() or cells.min(initial=0) < 0 or cells.max(initial=0) >= MAX_CELLS or counts.min(initial=0) < 0:
        return None
    return [read[start:end] for start, end in pairwise([0, *ends.tolist()])]
