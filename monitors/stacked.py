"""A reference's features one after the other in vectors: a window of all of them is compared in a few passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import special

from monitors.divergence import along_line, grouping
from monitors.sketch import Counts

if TYPE_CHECKING:
    # A profile holds its vectors: only the types go the other way.
    from monitors.profile import FeatureProfile

Floats: TypeAlias = npt.NDArray[np.float64]
Flags: TypeAlias = npt.NDArray[np.bool_]


class Shares(NamedTuple):
    """How many events of each feature there are, and how many of them stand in the cells that are special.

    Attributes
    ----------
    n, present : (features,) all events, and those with a value.
    missing, unseen, out_of_range : (features,) those in such cells.
    """

    n: Counts
    present: Counts
    missing: Counts
    unseen: Counts
    out_of_range: Counts


class Divergences(NamedTuple):
    """What `monitors.divergence` says of each feature, (features,); nan where it says nothing.

    `groups` is over how many groups PSI and Jensen–Shannon were summed.
    """

    psi: Floats
    jensen_shannon: Floats
    ks: Floats
    wasserstein: Floats
    groups: Counts


@dataclass(frozen=True, eq=False)
class Stacked:
    """What of a reference does not change from window to window.

    Attributes
    ----------
    names : of the features, in the order of the vectors.
    starts : (features,) where each feature's cells begin.
    special_cells : (4, features) each feature's missing, below, above and unseen cell.
    ordered : (features,) whether KS and Wasserstein mean something.
    shares : of the reference.
    design_effects : (features,) of the reference.
    group_of : (cells,) the group of each cell; those of missing values have one past the last.
    feature_of_group : (groups,).
    groups : (groups,) the reference's counts.
    line : (line,) the cells that have an order, in that order (`divergence.along_line`), of features with an order.
    line_lengths : (features with an order,) how many cells of it are each one's.
    distribution : (line,) the reference's distribution function; nan where nothing of it has an order.
    steps : (line,) how far it is from there to the next cell, for Wasserstein.
    """

    names: tuple[str, ...]
    starts: Counts
    special_cells: Counts
    ordered: Flags
    shares: Shares
    design_effects: Floats
    group_of: npt.NDArray[np.int32]
    feature_of_group: Counts
    groups: Counts
    line: npt.NDArray[np.int32]
    line_lengths: Counts
    distribution: Floats
    steps: Floats

    @classmethod
    def of(cls, features: Mapping[str, FeatureProfile]) -> Stacked:
        """Put features one after the other, each in its binning's layout."""
        profiles = list(features.values())
        sizes = np.array([profile.binning.size for profile in profiles], dtype=np.int64)
        starts = np.cumsum(sizes) - sizes
        cells = [profile.binning for profile in profiles]
        numbers = [[each.missing, each.below, each.above, each.unseen] for each in cells]
        special_cells = np.array(numbers, dtype=np.int64).reshape(-1, 4).T + starts
        counts = _joined([profile.counts for profile in profiles], np.int64)
        group_of, feature_of_group = _grouped(profiles)
        in_order = [
            (start, each) for start, each in zip(starts.tolist(), profiles, strict=True) if each.binning.ordered
        ]
        lines = [along_line(np.arange(profile.binning.size)) + start for start, profile in in_order]
        lengths = np.array([len(line) for line in lines], dtype=np.int64)
        line = _joined(lines, np.int32)
        return cls(
            tuple(features),
            starts,
            special_cells,
            np.array([profile.binning.ordered for profile in profiles], dtype=np.bool_),
            _shares(counts, starts, special_cells),
            np.array([profile.design_effect for profile in profiles], dtype=np.float64),
            group_of,
            feature_of_group,
            _pooled(counts, group_of, len(feature_of_group)),
            line,
            lengths,
            _distribution(counts[line], lengths),
            _joined([_steps(profile) for _start, profile in in_order], np.float64),
        )

    def shares_of(self, current: Counts) -> Shares:
        """Return the shares of a window, (cells,) counts."""
        return _shares(current, self.starts, self.special_cells)

    def compare(self, current: Counts) -> Divergences:
        """Return what `divergence.psi` and its like say of each feature of a window, (cells,) counts, to rounding."""
        features = len(self.names)
        pooled = _pooled(current, self.group_of, len(self.groups))
        (held,) = np.nonzero((self.groups > 0) | (pooled > 0))
        of = self.feature_of_group[held]
        groups = np.bincount(of, minlength=features)
        before, after = self.groups[held], pooled[held]
        n, m = np.bincount(of, before, minlength=features), np.bincount(of, after, minlength=features)
        p, q = (before + 0.5) / (n + groups / 2)[of], (after + 0.5) / (m + groups / 2)[of]
        psi = np.bincount(of, (q - p) * np.log(q / p), minlength=features).astype(np.float64, copy=False)
        # Of a side without a value there are no shares.
        nothing = np.where((n > 0) & (m > 0), 0.0, np.nan)
        p, q = before / np.maximum(n, 1)[of], after / np.maximum(m, 1)[of]
        half = (p + q) / 2
        entropy = np.bincount(of, special.rel_entr(p, half) + special.rel_entr(q, half), minlength=features)
        # Rounding may leave a divergence of equal shares a hair under zero.
        jensen_shannon = np.sqrt(np.maximum(entropy, 0) / (2 * np.log(2)))
        ks, wasserstein = self._along_the_line(current)
        return Divergences(psi + nothing, jensen_shannon + nothing, ks, wasserstein, groups)

    def _along_the_line(self, current: Counts) -> tuple[Floats, Floats]:
        ks, wasserstein = (np.full(len(self.names), np.nan) for _ in range(2))
        if len(self.line):
            gaps = np.abs(self.distribution - _distribution(current[self.line], self.line_lengths))
            starts = np.cumsum(self.line_lengths) - self.line_lengths
            ks[self.ordered] = np.maximum.reduceat(gaps, starts)
            distances: Floats = np.add.reduceat(gaps * self.steps, starts)
            wasserstein[self.ordered] = distances
        return ks, wasserstein


def _joined(parts: list[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype=dtype), *parts]).astype(dtype, copy=False)


def _steps(profile: FeatureProfile) -> Floats:
    """Return how far it is from each cell's edge to the next; what is out of range stands at the outermost cell."""
    positions = profile.binning.positions
    assert positions is not None
    steps = np.zeros(len(positions) + 2)
    steps[1:-2] = np.diff(positions)
    return steps if len(positions) else np.full(2, np.nan)


def _grouped(profiles: list[FeatureProfile]) -> tuple[npt.NDArray[np.int32], Counts]:
    """Return the group of each cell, and the feature of each group."""
    found = [grouping(profile.counts, ordered=profile.binning.ordered) for profile in profiles]
    counts = np.array([int(groups.max(initial=0)) + 1 for groups in found], dtype=np.int64)
    starts, past = np.cumsum(counts) - counts, int(counts.sum())
    parts = [np.where(groups >= 0, groups + start, past) for groups, start in zip(found, starts, strict=True)]
    return _joined(parts, np.int32), np.repeat(np.arange(len(counts)), counts)


def _pooled(counts: Counts, group_of: npt.NDArray[np.int32], groups: int) -> Counts:
    # Whole numbers below 2**53, which weights are added up as exactly.
    return np.bincount(group_of, counts, minlength=groups + 1)[:groups].astype(np.int64)


def _shares(counts: Counts, starts: Counts, special: Counts) -> Shares:
    n = np.add.reduceat(counts, starts) if len(starts) else starts
    missing, below, above, unseen = counts[special]
    return Shares(n, n - missing, missing, unseen, below + above)


def _distribution(along: Counts, lengths: Counts) -> Floats:
    """Return the distribution functions of counts along some lines; nan where there are none."""
    ends, summed = np.cumsum(lengths), np.append(0, np.cumsum(along))
    before = summed[ends - lengths]
    with np.errstate(invalid="ignore"):
        shares: Floats = (summed[1:] - np.repeat(before, lengths)) / np.repeat(summed[ends] - before, lengths)
    return shares
