"""What sample sizes allow: null distributions of PSI and KS, thresholds, p-values, effective sizes.

Numbers may be arrays wherever `Numbers` are taken: one a feature, of shapes that go together, which the answer has too.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import special

Numbers: TypeAlias = float | npt.NDArray[Any]
# np.float64 for one, an array for arrays.
OneOrMany: TypeAlias = Any

# Batch means are taken over longer and longer blocks of panes while at least this many blocks remain.
MIN_BLOCKS = 20
TRIMMED_SHARE = 0.1


def psi_threshold(n: Numbers, m: Numbers, groups: Numbers, alpha: Numbers) -> OneOrMany:
    """Return the PSI that equal populations exceed with probability alpha.

    Parameters
    ----------
    n, m : (effective) numbers of events of the reference and of the current side.
    groups : the number of groups PSI was summed over.
    alpha : in (0, 1).

    Returns
    -------
    (1/n + 1/m) · χ²(groups − 1; 1 − alpha) [1]; inf when a side is empty, 0 with a single group.

    Notes
    -----
    [1] B. Yurdakul, *Statistical Properties of Population Stability Index*, 2018.
    """
    _check_alpha(alpha)
    noise = _noise(n, m)
    line = noise * special.chdtri(_degrees(groups), alpha)
    return _numbers(np.where(np.less(groups, 2) & np.isfinite(noise), 0.0, line))


def psi_p_value(value: Numbers, n: Numbers, m: Numbers, groups: Numbers) -> OneOrMany:
    """Return the probability that equal populations show a PSI of at least `value` (see `psi_threshold`)."""
    noise = _noise(n, m)
    chance = np.where(np.less(groups, 2), 1.0, special.chdtrc(_degrees(groups), value / noise))
    return _numbers(np.where(np.isnan(value) | np.isinf(noise), np.nan, chance))


def ks_threshold(n: Numbers, m: Numbers, alpha: Numbers) -> OneOrMany:
    """Return the KS distance that equal populations exceed with probability at most alpha.

    Parameters
    ----------
    n, m : (effective) numbers of events of the reference and of the current side.
    alpha : in (0, 1).

    Returns
    -------
    K⁻¹(alpha) · √(1/n + 1/m), at most 1, with K the Kolmogorov distribution's tail [1]; inf when a side
    is empty. On binned or discrete values it is conservative: their distance is never larger.

    Notes
    -----
    [1] N. Smirnov, *Table for Estimating the Goodness of Fit of Empirical Distributions*, 1948.
    """
    _check_alpha(alpha)
    noise = _noise(n, m)
    return _numbers(np.where(np.isinf(noise), np.inf, np.minimum(1.0, special.kolmogi(alpha) * np.sqrt(noise))))


def ks_p_value(d: Numbers, n: Numbers, m: Numbers) -> OneOrMany:
    """Return the probability that equal populations show a KS distance of at least `d` (see `ks_threshold`)."""
    noise = _noise(n, m)
    return _numbers(np.where(np.isinf(noise), np.nan, special.kolmogorov(d / np.sqrt(noise))))


def effective(n: Numbers, design_effect: Numbers) -> OneOrMany:
    """Return how many independent events `n` correlated ones are worth: n / design_effect.

    Raises
    ------
    ValueError
        A design effect is under 1.
    """
    if not np.all(np.greater_equal(design_effect, 1)):
        raise ValueError(f"design_effect: got {design_effect}, wanted at least 1")
    return _numbers(np.divide(n, design_effect))


def design_effect(pane_counts: npt.NDArray[Any], *, groups: int = 10) -> float:
    """Estimate by how much correlated rows inflate the variance of the cells' shares.

    Parameters
    ----------
    pane_counts : (panes, cells) counts, panes in order of time.
    groups : cells are pooled into about this many of equal mass first, so that rare cells add no noise.

    Returns
    -------
    The observed variance of shares between panes over what independent rows would show, ≥ 1; 1 when there
    are fewer than two panes or groups that hold anything.

    Notes
    -----
    A pane of n rows shows X² = Σ (c − nπ)² / (nπ) over groups, with π the shares over all panes; independent
    rows make its mean (groups − 1)(1 − n/N). The ratio is averaged over panes without the largest and smallest
    tenth, so a single broken pane does not hide drift [1]. Rows of neighbouring panes are correlated too
    (weather lasts): the same is done over blocks of 2, 4, 8… panes while 20 blocks remain, and the largest
    counts (batch means, [2]).

    [1] J. N. K. Rao, A. J. Scott, *The Analysis of Categorical Data From Complex Sample Surveys*, 1981.
    [2] C. J. Geyer, *Practical Markov Chain Monte Carlo*, 1992.
    """
    counts = _equal_mass_columns(np.asarray(pane_counts, dtype=np.float64), groups)
    counts = counts[counts.sum(axis=1) > 0]
    if counts.shape[0] < 2 or counts.shape[1] < 2:
        return 1.0
    largest = max(1.0, _dispersion(counts))
    while counts.shape[0] // 2 >= MIN_BLOCKS:
        even = counts.shape[0] // 2 * 2
        counts = counts[:even:2] + counts[1:even:2]
        largest = max(largest, _dispersion(counts))
    return largest


def _dispersion(counts: npt.NDArray[np.float64]) -> float:
    rows, total = counts.sum(axis=1), counts.sum()
    expected = np.outer(rows, counts.sum(axis=0) / total)
    # A group may have been filled only by the odd pane that a block of two left out.
    held = expected[0] > 0
    if np.count_nonzero(held) < 2:
        return 1.0
    x2 = ((counts - expected)[:, held] ** 2 / expected[:, held]).sum(axis=1)
    ratio = x2 / ((np.count_nonzero(held) - 1) * (1 - rows / total))
    cut = int(TRIMMED_SHARE * ratio.size)
    return float(np.sort(ratio)[cut : ratio.size - cut].mean())


def _equal_mass_columns(counts: npt.NDArray[np.float64], groups: int) -> npt.NDArray[np.float64]:
    mass = counts.sum(axis=0)
    counts, mass = counts[:, mass > 0], mass[mass > 0]
    if len(mass) <= groups:
        return counts
    slots = (groups * (np.cumsum(mass) - mass / 2) / mass.sum()).astype(np.int64)
    starts = np.flatnonzero(np.diff(slots, prepend=-1))
    pooled: npt.NDArray[np.float64] = np.add.reduceat(counts, starts, axis=1)
    return pooled


def _noise(n: Numbers, m: Numbers) -> npt.NDArray[np.float64]:
    """Return 1/n + 1/m; inf where a side is empty."""
    with np.errstate(divide="ignore"):
        return np.asarray(1 / np.maximum(n, 0.0) + 1 / np.maximum(m, 0.0))


def _degrees(groups: Numbers) -> npt.NDArray[np.int64]:
    degrees: npt.NDArray[np.int64] = np.maximum(groups, 2) - 1
    return degrees


def _numbers(values: npt.NDArray[np.float64]) -> OneOrMany:
    """Return numbers as they came: one for one, an array for arrays."""
    one: OneOrMany = values[()]
    return one


def _check_alpha(alpha: Numbers) -> None:
    if not np.all(np.greater(alpha, 0) & np.less(alpha, 1)):
        raise ValueError(f"alpha: got {alpha}, wanted a probability between 0 and 1")
