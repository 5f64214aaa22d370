"""A window against its reference, feature by feature: every statistic, what chance allows, and whether it alarms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from monitors import significance
from monitors.profile import ReferenceProfile
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
    profile: ReferenceProfile,
    current: Counts,
    *,
    policy: AlertPolicy,
    alpha: float,
    design_effects: npt.NDArray[np.float64] | float = 1.0,
    min_events: int,
) -> dict[str, FeatureDrift]:
    """Compare a window of all features with their reference.

    Parameters
    ----------
    current : (profile.layout.size,) counts of the window.
    policy : its `mode` and the floors `psi` and `ks`.
    alpha : the false-alarm probability each feature may spend at this look (`policy.look_alpha`); a feature
        with an order spends half on PSI and half on KS, a category all of it on PSI.
    design_effects : (features,) of the window's rows (`significance.design_effect`), ≥ 1, in the layout's order.
    min_events : of a feature with fewer events in the window there are no statistics.

    Returns
    -------
    Each feature's finding, in the profile's order. In mode "calibrated" the line is the larger of what chance
    explains and the policy's floor; in mode "fixed" it is the floor. Past the line of either statistic, a feature
    alarms.
    """
    stacked = profile.stacked
    reference, shares = stacked.shares, stacked.shares_of(current)
    found = stacked.compare(current)
    n = significance.effective(reference.present, stacked.design_effects)
    m = significance.effective(shares.present, design_effects)
    null_psi = null_ks = 0.0
    if policy.mode == "calibrated":
        share = np.where(stacked.ordered, alpha / 2, alpha)
        null_psi = significance.psi_threshold(n, m, found.groups, share)
        null_ks = significance.ks_threshold(n, m, alpha / 2)
    missing = [
        "no_reference" if not known else "too_few_events" if events < min_events or not there else None
        for known, events, there in zip(
            reference.present.tolist(), shares.n.tolist(), shares.present.tolist(), strict=True
        )
    ]
    measured = np.where([each is None for each in missing], 0.0, np.nan)
    with_order = np.where(stacked.ordered, measured, np.nan)
    psi, ks = found.psi + measured, found.ks + with_order
    line_psi, line_ks = np.maximum(policy.psi, null_psi) + measured, np.maximum(policy.ks, null_ks) + with_order
    with np.errstate(invalid="ignore"):
        of_present = np.stack([shares.unseen, shares.out_of_range]) / shares.present
        missing_share = shares.missing / shares.n
    columns = (
        psi,
        ks,
        found.jensen_shannon + measured,
        found.wasserstein + with_order,
        significance.psi_p_value(psi, n, m, found.groups),
        significance.ks_p_value(ks, n, m),
        line_psi,
        line_ks,
        # Comparisons with nan are false: what was not measured does not alarm.
        (psi > line_psi) | (ks > line_ks),
        shares.n,
        reference.n,
        missing_share,
        *of_present,
    )
    rows = zip(stacked.names, *(column.tolist() for column in columns), missing, strict=True)
    by_name = {row[0]: FeatureDrift(*row) for row in rows}
    return {name: by_name[name] for name in profile.features}
