"""Histograms as mergeable counts by cell, and their form on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Counts: TypeAlias = npt.NDArray[np.int64]

PAIR = np.dtype([("cell", "<i4"), ("count", "<i4")])
MAX_COUNT = 2**31 - 1


class FingerprintMismatchError(ValueError):
    """Two histograms are over different cells and cannot be added."""


@dataclass(eq=False)
class HistogramSketch:
    """Counts over the cells of one binning; sketches of the same cells add up.

    Parameters
    ----------
    fingerprint : names the reference whose cells these are (`ReferenceProfile.fingerprint`).
    counts : (size,) integers.
    """

    fingerprint: str
    counts: Counts

    @classmethod
    def empty(cls, fingerprint: str, size: int) -> HistogramSketch:
        """Return a sketch over `size` cells that has counted nothing."""
        return cls(fingerprint, np.zeros(size, dtype=np.int64))

    def merge(self, other: HistogramSketch) -> None:
        """Add another sketch's counts to this one, in place.

        Raises
        ------
        FingerprintMismatchError
            The other is over other cells.
        """
        if other.fingerprint != self.fingerprint or other.counts.shape != self.counts.shape:
            raise FingerprintMismatchError(
                f"sketch.fingerprint: got {other.fingerprint} with {len(other.counts)} cells, wanted "
                f"{self.fingerprint} with {len(self.counts)}; keep sketches of different references apart"
            )
        self.counts += other.counts

    def add_pairs(self, pairs: bytes) -> None:
        """Add counts that `encode_pairs` wrote, in place; ValueError as `decode_pairs`."""
        self.counts += decode_pairs(pairs, len(self.counts))

    def to_pairs(self) -> bytes:
        """Return the counts as `encode_pairs` does."""
        return encode_pairs(self.counts)


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


def encode_pairs(counts: npt.NDArray[Any]) -> bytes:
    """Write the cells that hold something as little-endian int32 pairs (cell, count).

    A count too large for one pair is spread over several of the same cell: reading adds them up.
    """
    counts = np.asarray(counts, dtype=np.int64)
    parts = []
    while (cells := np.flatnonzero(counts)).size:
        pairs = np.empty(cells.size, dtype=PAIR)
        pairs["cell"] = cells
        pairs["count"] = written = np.clip(counts[cells], -MAX_COUNT, MAX_COUNT)
        parts.append(pairs.tobytes())
        counts = counts.copy()
        counts[cells] -= written
    return b"".join(parts)


def decode_pairs(pairs: bytes, size: int) -> Counts:
    """Read what `encode_pairs` wrote into (size,) int64 counts; pairs of one cell add up.

    Raises
    ------
    ValueError
        The bytes are no whole pairs, or a cell lies outside [0, size).
    """
    if len(pairs) % PAIR.itemsize:
        raise ValueError(f"pairs: got {len(pairs)} bytes, wanted a multiple of {PAIR.itemsize}")
    read = np.frombuffer(pairs, dtype=PAIR)
    counts = np.zeros(size, dtype=np.int64)
    if read.size:
        low, high = read["cell"].min(), read["cell"].max()
        if low < 0 or high >= size:
            raise ValueError(f"pairs: got cells {low}..{high}, wanted them in [0, {size}): another reference's cells?")
        np.add.at(counts, read["cell"], read["count"])
    return counts
