"""Faults in the data that are no drift: a burst of missing values, a dead feature, values nobody has seen."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, nan, sqrt
from typing import Literal, TypeAlias

from monitors.profile import FeatureProfile
from monitors.significance import effective
from monitors.sketch import Counts

Fault: TypeAlias = Literal["missing_burst", "dead_feature", "all_unseen"]

# With fewer events than this nothing is called a fault.
MIN_EVENTS = 30
# "Far above the reference": the odds of a missing value at least doubled, by more than four standard errors.
MISSING_ODDS_RATIO = 2.0
MISSING_Z = 4.0
# A feature is dead when chance would put every value into one cell less often than this...
DEAD_PROBABILITY = 1e-6
# ...and the reference is spread: no cell holds nearly all of it, neither overall nor within its panes.
SPREAD_SHARE = 0.9
ALL_SHARE = 0.99


@dataclass(frozen=True)
class QualityFinding:
    """One feature's data quality in a window; shares are nan where there are no events.

    `missing_share` is of all events, `unseen_share` of those with a value.
    """

    feature: str
    missing_share: float
    reference_missing_share: float
    unseen_share: float
    fault: Fault | None


def assess(profile: FeatureProfile, current: Counts, *, max_missing_share: float) -> QualityFinding:
    """Judge one feature's counts in a window.

    Parameters
    ----------
    profile : the feature's reference.
    current : (profile.binning.size,) counts of the window.
    max_missing_share : in (0, 1]; fewer missing values than this are never a burst.

    Returns
    -------
    `fault` is "missing_burst" when more values are missing than `max_missing_share` and far more than in the
    reference (or all of them, where the reference had values); "all_unseen" when no value is one the reference
    knew; "dead_feature" when every value falls into one cell though the reference is spread. The first that
    holds; None with fewer than 30 events.
    """
    binning = profile.binning
    n, n_reference = int(current.sum()), profile.rows
    missing, missing_reference = int(current[binning.missing]), int(profile.counts[binning.missing])
    present, unseen = n - missing, int(current[binning.unseen])
    missing_share = missing / n if n else nan
    reference_missing_share = missing_reference / n_reference if n_reference else nan
    unseen_share = unseen / present if present else nan

    fault: Fault | None = None
    if n >= MIN_EVENTS and n_reference:
        gone = missing == n and missing_reference < n_reference
        over_limit = missing_share > max_missing_share
        if gone or (over_limit and _far_more(missing, n, missing_reference, n_reference)):
            fault = "missing_burst"
        elif present >= MIN_EVENTS and unseen >= ALL_SHARE * present and _knew_its_values(profile):
            fault = "all_unseen"
        elif present >= MIN_EVENTS and _dead(profile, current, present):
            fault = "dead_feature"
    return QualityFinding(binning.feature, missing_share, reference_missing_share, unseen_share, fault)


def _far_more(missing: int, n: int, missing_reference: int, n_reference: int) -> bool:
    odds = (missing + 0.5) / (n - missing + 0.5)
    odds_reference = (missing_reference + 0.5) / (n_reference - missing_reference + 0.5)
    pooled = (missing + missing_reference) / (n + n_reference)
    error = sqrt(pooled * (1 - pooled) * (1 / n + 1 / n_reference))
    excess = missing / n - missing_reference / n_reference
    return odds >= MISSING_ODDS_RATIO * odds_reference and excess > MISSING_Z * error


def _knew_its_values(profile: FeatureProfile) -> bool:
    known = profile.rows - int(profile.counts[profile.binning.missing])
    return known > 0 and int(profile.counts[profile.binning.unseen]) < known / 2


def _dead(profile: FeatureProfile, current: Counts, present: int) -> bool:
    inner = current[: profile.binning.cells]
    if not len(inner) or int(inner.max()) < present:
        return False
    reference = profile.counts[: profile.binning.cells]
    known = profile.rows - int(profile.counts[profile.binning.missing])
    spread = int(reference.max()) < SPREAD_SHARE * known and profile.pane_concentration < SPREAD_SHARE
    share = (int(reference[int(inner.argmax())]) + 0.5) / (known + 1)
    return spread and float(effective(present, profile.design_effect)) * log(share) < log(DEAD_PROBABILITY)
