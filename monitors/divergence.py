"""How far apart two histograms over the same cells are: PSI, KS, Jensen–Shannon, KL, Wasserstein, chi-square.

Every function takes (reference, current) counts in a `Binning`'s layout: k inner cells, then missing,
below, above, unseen. All of them compare the values that are there: missing values are a matter of
quality (`monitors.quality`), not of divergence. For a plain histogram append four zeros.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from monitors.binning import SPECIAL_CELLS

Histogram: TypeAlias = npt.NDArray[Any]
Shares: TypeAlias = npt.NDArray[np.float64]


def psi(reference: Histogram, current: Histogram, *, groups: int = 10, ordered: bool = True) -> float:
    """Population stability index between two histograms over the same cells.

    Parameters
    ----------
    reference, current : (size,) integer arrays, counts; the same binning.
    groups : cells are pooled into about this many (see `grouping`).
    ordered : whether neighbouring cells may be pooled (numbers) or rare ones are (categories).

    Returns
    -------
    The index in nats, ≥ 0; 0 for equal shares. nan when either side is empty.

    Notes
    -----
    Σ (q − p) · ln(q / p) over groups, with half a count added to each so that an empty group stays
    finite. Under no drift it is about (1/n + 1/m) · χ²(groups − 1) [1].

    [1] B. Yurdakul, *Statistical Properties of Population Stability Index*, 2018.
    """
    return pooled_psi(*pool(reference, current, groups=groups, ordered=ordered))


def pooled_psi(reference: Histogram, current: Histogram) -> float:
    """PSI of counts that are already pooled: (groups,) on both sides, as `pool` returns them."""
    if not reference.sum() or not current.sum():
        return float("nan")
    p, q = _smoothed(reference), _smoothed(current)
    return float(np.sum((q - p) * np.log(q / p)))


def ks(reference: Histogram, current: Histogram) -> float:
    """Two-sample Kolmogorov–Smirnov distance over the cells that have an order: below, inner, above.

    Returns
    -------
    The largest difference of the two distribution functions at the cells' edges, in [0, 1]: never more
    than on the raw values, and less by at most the mass of the heaviest cell. nan when a side is empty.

    Notes
    -----
    D = sup |F(x) − G(x)| [1].

    [1] F. J. Massey, *The Kolmogorov–Smirnov Test for Goodness of Fit*, JASA 46 (1951).
    """
    _same_cells(reference, current)
    before, after = along_line(reference), along_line(current)
    if not before.sum() or not after.sum():
        return float("nan")
    return float(np.abs(np.cumsum(_shares(before)) - np.cumsum(_shares(after))).max())


def jensen_shannon(reference: Histogram, current: Histogram) -> float:
    """Jensen–Shannon distance: the square root of the divergence to base 2, in [0, 1].

    Returns
    -------
    0 for equal shares, 1 when no cell holds values of both; nan when a side is empty.

    Notes
    -----
    √(½ KL(p‖h) + ½ KL(q‖h)) with h = (p + q) / 2 [1]; needs no smoothing.

    [1] D. M. Endres, J. E. Schindelin, *A New Metric for Probability Distributions*, 2003.
    """
    return pooled_jensen_shannon(*_present(reference, current))


def pooled_jensen_shannon(reference: Histogram, current: Histogram) -> float:
    """`jensen_shannon` of counts that are already pooled: (groups,) on both sides, as `pool` returns them."""
    if not reference.sum() or not current.sum():
        return float("nan")
    p, q = _shares(reference), _shares(current)
    half = (p + q) / 2
    # Rounding may leave a divergence of equal shares a hair under zero.
    return float(np.sqrt(max(0.0, (_relative_entropy(p, half) + _relative_entropy(q, half)) / 2 / np.log(2))))


def kl(reference: Histogram, current: Histogram) -> float:
    """Kullback–Leibler divergence of the current shares from the reference's, in nats.

    Returns
    -------
    A number ≥ 0; nan when either side is empty.

    Notes
    -----
    Σ q · ln(q / p), with half a count added to each cell that holds anything on either side [1].

    [1] S. Kullback, R. A. Leibler, *On Information and Sufficiency*, 1951.
    """
    before, after = _present(reference, current)
    if not before.sum() or not after.sum():
        return float("nan")
    return max(0.0, _relative_entropy(_smoothed(after), _smoothed(before)))


def wasserstein(reference: Histogram, current: Histogram, positions: Shares) -> float:
    """Earth mover's distance, in the feature's own unit.

    Parameters
    ----------
    reference, current : (size,) counts.
    positions : (k,) where the inner cells stand (`Binning.positions`). What lies below or above the
        reference's range is taken to stand at its outermost cell, so far outliers are understated.

    Returns
    -------
    ∫ |F(x) − G(x)| dx; nan when either side has no value in order.

    Notes
    -----
    L. N. Vaserstein, 1969; on the line it is the area between the distribution functions.
    """
    _same_cells(reference, current)
    before, after = along_line(reference), along_line(current)
    if not before.sum() or not after.sum() or not len(positions):
        return float("nan")
    # Cell i of `along_line` ends before inner cell i: its cumulative share holds up to that cell's position.
    gaps = np.abs(np.cumsum(_shares(before)) - np.cumsum(_shares(after)))[1:-2]
    return float(np.sum(gaps * np.diff(positions)))


def chi_square(reference: Histogram, current: Histogram) -> float:
    """Pearson's statistic for both sides coming from the same shares.

    Returns
    -------
    Σ (observed − expected)² / expected over both sides and the cells that hold anything; under no drift
    about χ²(cells that hold anything − 1). nan when either side is empty.

    Notes
    -----
    K. Pearson, 1900; the two-sample (homogeneity) form, without Yates' correction.
    """
    before, after = _present(reference, current)
    n, m = float(before.sum()), float(after.sum())
    if not n or not m:
        return float("nan")
    both = (before + after) / (n + m)
    return float(np.sum((before - n * both) ** 2 / (n * both)) + np.sum((after - m * both) ** 2 / (m * both)))


def pool(
    reference: Histogram, current: Histogram, *, groups: int = 10, ordered: bool = True
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pool both sides by the reference's `grouping` and leave out the groups that hold nothing on either side."""
    _same_cells(reference, current)
    group_of = grouping(reference, groups=groups, ordered=ordered)
    inside = group_of >= 0
    count = int(group_of.max(initial=0)) + 1
    before, after = (
        np.bincount(group_of[inside], weights=side[inside], minlength=count).astype(np.int64)
        for side in (reference, current)
    )
    held = (before > 0) | (after > 0)
    return before[held], after[held]


def grouping(reference: Histogram, *, groups: int = 10, ordered: bool = True) -> npt.NDArray[np.int64]:
    """Return the group each cell is pooled into, from the reference alone; −1 for the missing cell.

    Ordered cells: neighbours make up about equal reference mass, and what lies out of range joins the
    outermost group; with no more filled cells than groups each stands alone. Categories: the most frequent
    stand alone, the others (under a tenth of an equal share, or over the number of groups) and whatever was
    unseen are one group. Numbers unseen within the range are a group of their own.
    """
    size = len(reference)
    cells = size - SPECIAL_CELLS
    below, above, unseen = range(cells + 1, size)
    group_of = np.full(size, -1, dtype=np.int64)
    if not ordered:
        inner = np.asarray(reference[:cells])
        frequent = np.argsort(-inner, kind="stable")[: groups - 1]
        frequent = frequent[inner[frequent] * 10 * groups >= max(1, inner.sum())]
        group_of[:cells] = group_of[unseen] = len(frequent)
        group_of[frequent] = np.arange(len(frequent))
        return group_of
    line = along_line(reference)
    mass = float(line.sum())
    filled = line > 0
    if np.count_nonzero(filled) <= groups:
        slots = np.arange(len(line))
    else:
        middle = np.cumsum(line) - line / 2
        slots = np.where(filled, np.minimum(groups * middle / mass, groups - 1).astype(np.int64), -1)
        # An empty cell goes with the neighbour before it; the leading ones with the first that holds something.
        slots = np.maximum(np.maximum.accumulate(slots), slots[filled][0])
    group_of[below], group_of[:cells], group_of[above] = slots[0], slots[1:-1], slots[-1]
    group_of[unseen] = slots[-1] + 1
    return group_of


def along_line(counts: Histogram) -> Histogram:
    """Return the counts that have an order, in that order: below, the inner cells, above; (k + 2,)."""
    cells = len(counts) - SPECIAL_CELLS
    return np.concatenate([counts[cells + 1 : cells + 2], counts[:cells], counts[cells + 2 : cells + 3]])


def _present(reference: Histogram, current: Histogram) -> tuple[Histogram, Histogram]:
    """Return both sides without the missing cell and without cells that are empty on both."""
    _same_cells(reference, current)
    held = (reference > 0) | (current > 0)
    held[len(reference) - SPECIAL_CELLS] = False
    return reference[held], current[held]


def _same_cells(reference: Histogram, current: Histogram) -> None:
    if reference.ndim != 1 or reference.shape != current.shape or len(reference) < SPECIAL_CELLS:
        raise ValueError(
            f"current: got counts of shape {current.shape} against a reference of {reference.shape}, wanted the "
            f"same (k + {SPECIAL_CELLS},); count both over one binning"
        )


def _shares(counts: Histogram) -> Shares:
    shares: Shares = counts / counts.sum()
    return shares


def _smoothed(counts: Histogram) -> Shares:
    return _shares(counts + 0.5)


def _relative_entropy(p: Shares, q: Shares) -> float:
    held = p > 0
    return float(np.sum(p[held] * np.log(p[held] / q[held])))
