"""Whether a challenger may have more traffic: the verdict on what both arms have shown, and its guardrails."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from monitors.comparison import CanaryPlan, Comparison
from monitors.contrast import BUCKETS, CHALLENGER, CHAMPION, Contrast
from monitors.sequential import expected_variance, step_alpha

# The p-value below which the logged assignment is not the one that was set, or the arms' labels are not alike.
MISMATCH_ALPHA = 0.001
# Coverage may differ by this much (a share) before it is "clearly different", however sure the difference is.
COVERAGE_FLOOR = 0.05


@dataclass(frozen=True)
class CanaryVerdict:
    """What the counts say of the challenger at one step of one deployment epoch.

    `delta` is the difference of mean outcomes, challenger − champion; `lower` holds with confidence
    1 − alpha and `upper` with 1 − alpha/2 at all looks at once; None while nothing can be said.
    """

    status: Literal["running", "pass", "fail", "inconclusive", "error"]
    reason: str
    delta: float | None
    lower: float | None
    upper: float | None
    effective_buckets: float
    n_champion: int
    n_challenger: int
    step: int
    epoch: int
    at_ms: int
    guardrails: dict[str, Any] = field(default_factory=dict)


def verdict(plan: CanaryPlan, comparison: Comparison, *, step: int, epoch: int, at_ms: int) -> CanaryVerdict:
    """Return what may be said of the challenger now, at the deployment's present step and epoch.

    Notes
    -----
    One sequence for the whole rollout, bounded at every look at once: a step passes when the lower bound
    (at α) is above −margin on enough buckets and enough new outcomes. Harm is an upper bound below
    −tolerance: of the whole rollout at α/2, or since the step began at its share of the other α/2, which
    finds harm that starts late. ρ is fixed by the plan: V* is the variance at which the radius would be
    the margin (`sequential.expected_variance` of outcome_variance). Guardrails have an α of their own.
    """
    overall, since = comparison.outcomes, comparison.since
    ready = overall.effective_buckets >= plan.min_buckets
    delta, lower, upper = overall.delta, None, None
    if delta is not None and ready:
        lower = delta - _radius(plan, overall, plan.alpha)
        upper = delta + _radius(plan, overall, plan.alpha / 2)
    guardrails = {
        "sample_ratio": _sample_ratio(plan, comparison),
        "label_coverage": _label_coverage(plan, comparison.coverage),
        "since_step": _since_step(plan, since, comparison.step),
        "error_increase": _error_increase(plan, comparison.errors),
        "latency_ratio": _latency_ratio(plan, comparison.latency),
    }
    status, reason = _judge(plan, comparison, step, lower, upper, guardrails)
    return CanaryVerdict(
        status=status,
        reason=reason,
        delta=delta,
        lower=lower,
        upper=upper,
        effective_buckets=overall.effective_buckets,
        n_champion=sum(tally.outcomes[CHAMPION] for tally in comparison.tallies),
        n_challenger=sum(tally.outcomes[CHALLENGER] for tally in comparison.tallies),
        step=step,
        epoch=epoch,
        at_ms=at_ms,
        guardrails=guardrails,
    )


def _judge(
    plan: CanaryPlan,
    comparison: Comparison,
    step: int,
    lower: float | None,
    upper: float | None,
    guardrails: dict[str, Any],
) -> tuple[Literal["running", "pass", "fail", "inconclusive", "error"], str]:
    """Return the status and why: faults of the comparison first, then harm, then whether the step is shown."""
    if comparison.left_out_run >= plan.max_panes:
        return "error", f"the last {comparison.left_out_run} panes had buckets on the wrong side of the split"
    if guardrails["sample_ratio"]["breached"]:
        return "error", f"sample ratio mismatch: p = {guardrails['sample_ratio']['p_value']:.2g}"
    if guardrails["label_coverage"]["breached"]:
        return "error", f"label coverage differs by {guardrails['label_coverage']['value']:+.3f} between the arms"
    for name in ("error_increase", "latency_ratio"):
        if guardrails[name]["breached"]:
            return "fail", f"{name}: at least {guardrails[name]['lower']:.4g}, allowed {guardrails[name]['limit']:.4g}"
    if upper is not None and upper < -plan.tolerance:
        return "fail", f"worse: difference at most {upper:+.4f}, tolerated {-plan.tolerance:+.4f}"
    if guardrails["since_step"]["breached"]:
        return "fail", f"worse since the step began: difference at most {guardrails['since_step']['upper']:+.4f}"
    tally = comparison.tally(step)
    at_end = step == plan.last_step and plan.control_percent > 0
    new = min(tally.outcomes) if at_end else tally.outcomes[CHALLENGER]
    if lower is not None and lower > -plan.margin and new >= plan.min_outcomes:
        return "pass", f"difference at least {lower:+.4f}, margin {-plan.margin:+.4f}, {new} new outcomes"
    if tally.panes >= plan.max_panes:
        return "inconclusive", f"undecided after {tally.panes} panes of this step"
    if lower is None:
        return "running", f"{comparison.outcomes.effective_buckets:.1f} effective buckets of {plan.min_buckets:g}"
    if new < plan.min_outcomes:
        return "running", f"{new} new outcomes of {plan.min_outcomes}"
    return "running", f"difference at least {lower:+.4f}, wanted above {-plan.margin:+.4f}"


def _radius(plan: CanaryPlan, contrast: Contrast, alpha: float) -> float:
    """Return the radius of an outcome contrast, with ρ from the plan."""
    expected = expected_variance(plan.outcome_variance, plan.margin, alpha=alpha)
    return contrast.radius(variance_at_verdict=expected, alpha=alpha)


def _since_step(plan: CanaryPlan, since: Contrast, step: int) -> dict[str, Any]:
    """Return the harm sequence that began with the newest step that has panes."""
    delta = since.delta
    if delta is None or since.effective_buckets < plan.min_buckets:
        return {"value": delta, "upper": None, "limit": -plan.tolerance, "breached": False}
    upper = delta + _radius(plan, since, step_alpha(plan.alpha, step + 1))
    return {"value": delta, "upper": upper, "limit": -plan.tolerance, "breached": upper < -plan.tolerance}


def _error_increase(plan: CanaryPlan, errors: Contrast) -> dict[str, Any]:
    """Return the challenger's share of failed predictions over the champion's."""
    limit = plan.max_error_increase
    lower = _guarded(plan, errors, expected_variance(limit, limit, alpha=plan.alpha / 2))
    breached = lower is not None and lower > limit
    return {"value": errors.delta, "lower": lower, "limit": limit, "breached": breached}


def _latency_ratio(plan: CanaryPlan, latency: Contrast) -> dict[str, Any]:
    """Return the ratio of geometric mean latencies; logarithms, since latencies have long tails."""
    limit = math.log(plan.max_latency_ratio)
    lower = _guarded(plan, latency, expected_variance(1.0, limit, alpha=plan.alpha / 2))
    return {
        "value": None if latency.delta is None else math.exp(latency.delta),
        "lower": None if lower is None else math.exp(lower),
        "limit": plan.max_latency_ratio,
        "breached": lower is not None and lower > limit,
    }


def _guarded(plan: CanaryPlan, contrast: Contrast, variance_at_verdict: float) -> float | None:
    """Return a guardrail's lower bound, at half of the guardrails' α; None on too few buckets."""
    if contrast.delta is None or contrast.effective_buckets < plan.min_buckets:
        return None
    return contrast.delta - contrast.radius(variance_at_verdict=variance_at_verdict, alpha=plan.alpha / 2)


def _label_coverage(plan: CanaryPlan, coverage: Contrast) -> dict[str, Any]:
    """Return the difference between the arms' shares of predictions that got a label."""
    found = {"value": coverage.delta, "limit": COVERAGE_FLOOR, "breached": False}
    if coverage.delta is None or coverage.effective_buckets < plan.min_buckets:
        return found
    alpha = MISMATCH_ALPHA / 2
    expected = expected_variance(0.25, COVERAGE_FLOOR, alpha=alpha)
    radius = coverage.radius(variance_at_verdict=expected, alpha=alpha)
    return found | {"breached": abs(coverage.delta) > max(radius, COVERAGE_FLOOR)}


def _sample_ratio(plan: CanaryPlan, comparison: Comparison) -> dict[str, Any]:
    """Test whether the step's exposures are split as the buckets are.

    Users differ in traffic, so exposures are no independent draws; buckets are, since the salted hash
    spreads users over them whatever they do. The Mann–Whitney test of exposures a bucket, challenger
    buckets against champion's, is right for any distribution of traffic over users.
    """
    found: dict[str, Any] = {"p_value": None, "share": None, "expected": None, "breached": False}
    if comparison.step < 0:
        return found
    expected = plan.percent_at(comparison.step) / 100
    cut = math.ceil(10 * plan.percent_at(comparison.step))
    exposed = comparison.exposed
    found |= {"share": float(exposed[:cut].sum() / max(exposed.sum(), 1)), "expected": expected}
    # The test's normal approximation wants some occupied buckets on both sides.
    if min(cut, BUCKETS - cut) / BUCKETS * np.count_nonzero(exposed) < 10 or np.ptp(exposed) == 0:
        return found
    # Two seconds of importing, which a worker without a canary need not spend.
    from scipy import stats

    p_value = float(stats.mannwhitneyu(exposed[:cut], exposed[cut:], method="asymptotic").pvalue)
    return found | {"p_value": p_value, "breached": p_value < MISMATCH_ALPHA}
