"""One feature against its reference: every statistic, what chance allows, and whether it alarms."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING, Literal, TypeAlias

from monitors import divergence, significance
from monitors.profile import FeatureProfile
from monitors.sketch import Counts

if TYPE_CHECKING:
    # `policy` holds looks, and looks hold drift: only the types go the other way.
    from monitors.policy import AlertPolicy

Missing: TypeAlias = Literal["no_reference", "too_few_events", "warming_up"]


@dataclass(frozen=True)
class FeatureDrift:
    """What a look found about one feature; numbers are nan where there is none.

    `threshold_psi` and `threshold_ks` are the lines the statistics must pass to alarm. `ks` and `wasserstein`
    (in the feature's unit) need an order: they are nan for categories. The statistics are over the values that
    are there; `missing_share` is of all events, `unseen_share` and `out_of_range_share` of those with a value.
    `missing` is why there are no statistics, None where there are.
    """

    feature: str
    psi: float
    ks: float
    jensen_shannon: float
    wasserstein: float
    p_psi: float
    p_ks: float
    threshold_psi: float
    threshold_ks: float
    alarm: bool
    n: int
    n_reference: int
    missing_share: float
    unseen_share: float
    out_of_range_share: float
    missing: Missing | None


def measure(
    profile: FeatureProfile,
    current: Counts,
    *,
    policy: AlertPolicy,
    alpha: float,
    current_design_effect: float = 1.0,
    min_events: int,
    name: str | None = None,
) -> FeatureDrift:
    """Compare a window of one feature with its reference.

    Parameters
    ----------
    profile : the feature's reference.
    current : (profile.binning.size,) counts of the window.
    policy : its `mode` and the floors `psi` and `ks`.
    alpha : the false-alarm probability this feature may spend at this look (`policy.look_alpha`); a feature
        with an order spends half on PSI and half on KS, a category all of it on PSI.
    current_design_effect : of the window's rows (`significance.design_effect`), ≥ 1.
    min_events : with fewer events in the window there are no statistics.
    name : the name the finding carries; the binning's own by default.

    Returns
    -------
    In mode "calibrated" the line is the larger of what chance explains and the policy's floor; in mode
    "fixed" it is the floor. Past the line of either statistic, the feature alarms.
    """
    binning = profile.binning
    n, n_reference = int(current.sum()), profile.rows
    present, present_reference = n - int(current[binning.missing]), n_reference - int(profile.counts[binning.missing])
    missing: Missing | None = None
    if present_reference == 0:
        missing = "no_reference"
    elif n < min_events or present == 0:
        missing = "too_few_events"
    psi = ks = jensen_shannon = wasserstein = p_psi = p_ks = threshold_psi = threshold_ks = nan
    if missing is None:
        effective_n = significance.effective(present_reference, profile.design_effect)
        effective_m = significance.effective(present, current_design_effect)
        calibrated = policy.mode == "calibrated"
        share = alpha / 2 if binning.ordered else alpha
        pooled = divergence.pool_by(profile.grouping, profile.counts, current)
        groups = len(pooled[0])
        psi = divergence.pooled_psi(*pooled)
        p_psi = significance.psi_p_value(psi, effective_n, effective_m, groups)
        null_psi = significance.psi_threshold(effective_n, effective_m, groups, share) if calibrated else 0.0
        threshold_psi = max(policy.psi, null_psi)
        # Over the pooled groups: over hundreds of cells chance alone would show a distance.
        jensen_shannon = divergence.pooled_jensen_shannon(*pooled)
        if binning.ordered:
            ks = divergence.ks(profile.counts, current)
            p_ks = significance.ks_p_value(ks, effective_n, effective_m)
            null_ks = significance.ks_threshold(effective_n, effective_m, share) if calibrated else 0.0
            threshold_ks = max(policy.ks, null_ks)
            positions = binning.positions
            assert positions is not None
            wasserstein = divergence.wasserstein(profile.counts, current, positions)
    return FeatureDrift(
        feature=binning.feature if name is None else name,
        psi=psi,
        ks=ks,
        jensen_shannon=jensen_shannon,
        wasserstein=wasserstein,
        p_psi=p_psi,
        p_ks=p_ks,
        threshold_psi=threshold_psi,
        threshold_ks=threshold_ks,
        # Comparisons with nan are false: what was not measured does not alarm.
        alarm=psi > threshold_psi or ks > threshold_ks,
        n=n,
        n_reference=n_reference,
        missing_share=int(current[binning.missing]) / n if n else nan,
        unseen_share=int(current[binning.unseen]) / present if present else nan,
        out_of_range_share=int(current[binning.below] + current[binning.above]) / present if present else nan,
        missing=missing,
    )
