"""Whether a challenger may have more traffic: what is counted of both arms, and the verdict on it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from monitors.contrast import BUCKETS, CHALLENGER, CHAMPION, Contrast
from monitors.sequential import expected_variance, step_alpha

OUTCOME_DTYPE = np.dtype([("bucket", "<i2"), ("n", "<i8"), ("total", "<f8"), ("total_sq", "<f8")])
EXPOSURE_DTYPE = np.dtype(
    [
        ("bucket", "<i2"),
        ("n", "<i8"),
        ("errors", "<i8"),
        ("latency_n", "<i8"),
        ("latency_total_ms", "<f8"),
        ("latency_log_total", "<f8"),
    ]
)
# The p-value below which the logged assignment is not the one that was set, or the arms' labels are not alike.
MISMATCH_ALPHA = 0.001
# Coverage may differ by this much (a share) before it is "clearly different", however sure the difference is.
COVERAGE_FLOOR = 0.05
# A clock too coarse to see a fast answer logs 0 ms; its logarithm is taken at a microsecond.
MIN_LATENCY_MS = 0.001
CONTRASTS = ("outcomes", "since", "errors", "latency", "coverage")
COUNTERS = ("step", "used", "left_out", "left_out_run", "last_pane_ms")

Rows = npt.NDArray[np.void]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def fold_outcomes(buckets: npt.ArrayLike, outcomes: npt.ArrayLike, signs: npt.ArrayLike) -> Rows:
    """Fold labelled events of one arm into rows of OUTCOME_DTYPE, one a bucket present, by bucket.

    Parameters
    ----------
    buckets : (events,) 0 to 999. outcomes : (events,) higher is better. signs : (events,) +1, or −1 to take back.
    """
    present, where = np.unique(np.asarray(buckets, dtype=np.int64), return_inverse=True)
    value, sign = np.asarray(outcomes, dtype=np.float64), np.asarray(signs, dtype=np.float64)
    rows = np.zeros(len(present), dtype=OUTCOME_DTYPE)
    rows["bucket"] = present
    for name, column in (("n", sign), ("total", sign * value), ("total_sq", sign * value**2)):
        rows[name] = np.bincount(where, weights=column, minlength=len(present))
    return rows


def fold_exposures(buckets: npt.ArrayLike, errors: npt.ArrayLike, latencies_ms: npt.ArrayLike) -> Rows:
    """Fold predictions of one arm into rows of EXPOSURE_DTYPE, one a bucket present, by bucket.

    Parameters
    ----------
    buckets : (events,) 0 to 999. errors : (events,) whether it failed. latencies_ms : (events,) nan or
        negative: not known.
    """
    present, where = np.unique(np.asarray(buckets, dtype=np.int64), return_inverse=True)
    latency = np.asarray(latencies_ms, dtype=np.float64)
    timed = np.isfinite(latency) & (latency >= 0)
    latency = np.where(timed, latency, 0.0)
    columns = {
        "n": np.ones(len(where)),
        "errors": np.asarray(errors, dtype=np.float64),
        "latency_n": timed.astype(np.float64),
        "latency_total_ms": latency,
        "latency_log_total": np.where(timed, np.log(np.maximum(latency, MIN_LATENCY_MS)), 0.0),
    }
    rows = np.zeros(len(present), dtype=EXPOSURE_DTYPE)
    rows["bucket"] = present
    for name, column in columns.items():
        rows[name] = np.bincount(where, weights=column, minlength=len(present))
    return rows


def merge_rows(a: Rows, b: Rows) -> Rows:
    """Add two sets of rows of one dtype by bucket; integers, and sums of whole numbers, exactly."""
    if a.dtype != b.dtype:
        raise ValueError(f"b: got rows of {b.dtype.names}, wanted those of a: {a.dtype.names}")
    both = np.concatenate([a, b])
    present, where = np.unique(both["bucket"], return_inverse=True)
    rows = np.zeros(len(present), dtype=a.dtype)
    rows["bucket"] = present
    for name in (a.dtype.names or ())[1:]:
        np.add.at(rows[name], where, both[name])
    return rows


@dataclass(frozen=True)
class CanaryPlan:
    """The ramp and what each of its steps must show.

    Attributes
    ----------
    steps : rising percentages of traffic. control_percent : what the champion keeps at the last of them.
    margin : the loss of mean outcome that would still be accepted, in the outcome's units.
    tolerance : harm is a loss that is surely more than this.
    alpha : one-sided error of a whole rollout; the guardrails together have another of the same size.
    min_outcomes : new labelled challenger events a step needs. min_buckets : effective buckets a verdict needs.
    max_latency_ratio : of geometric means, challenger over champion. max_error_increase : difference of shares.
    max_panes : panes with labels after which a step that is still open is inconclusive.
    outcome_variance : of one outcome, guessed before the rollout; ¼ is the most a 0/1 outcome can have. A
        wrong guess widens the bounds a little and keeps them valid; for regression give the baseline's.
    """

    steps: tuple[float, ...] = (5, 10, 25, 50, 100)
    control_percent: float = 2.0
    margin: float = 0.03
    tolerance: float = 0.0
    alpha: float = 0.05
    min_outcomes: int = 100
    min_buckets: float = 20.0
    max_latency_ratio: float = 2.0
    max_error_increase: float = 0.02
    max_panes: int = 60
    outcome_variance: float = 0.25

    def __post_init__(self) -> None:
        percents = [self.percent_at(step) for step in range(len(self.steps))]
        if not percents or any(later <= earlier for earlier, later in zip([0.0, *percents], percents, strict=False)):
            raise ValueError(
                f"steps: got {self.steps} with control_percent {self.control_percent}, wanted rising percentages, "
                f"all but the last below {100 - self.control_percent:g}"
            )

    @property
    def last_step(self) -> int:
        """Return the index of the last step."""
        return len(self.steps) - 1

    def percent_at(self, step: int) -> float:
        """Return the challenger's share of traffic at a step; 0 before the first; the last leaves the control."""
        if step < 0:
            return 0.0
        if step > self.last_step:
            raise ValueError(f"step: got {step}, wanted −1 to {self.last_step}; the plan has {len(self.steps)} steps")
        return float(min(self.steps[step], 100 - self.control_percent))


@dataclass(frozen=True)
class StepTally:
    """What one step has seen: panes with outcomes in them, and each arm's outcomes and exposures; Σw of its panes."""

    panes: int = 0
    outcomes: tuple[int, int] = (0, 0)
    exposures: tuple[int, int] = (0, 0)
    weight: float = 0.0


@dataclass(frozen=True, eq=False)
class Comparison:
    """All that is kept of one rollout: sums over its mature panes, never an event.

    `since` restarts with the step, `exposed` (exposures a bucket) too; the other contrasts go on.
    `left_out_run` counts the panes left out since the last one used.
    """

    outcomes: Contrast = field(default_factory=Contrast)
    since: Contrast = field(default_factory=Contrast)
    errors: Contrast = field(default_factory=Contrast)
    latency: Contrast = field(default_factory=Contrast)
    coverage: Contrast = field(default_factory=Contrast)
    step: int = -1
    tallies: tuple[StepTally, ...] = ()
    exposed: Integers = field(default_factory=lambda: np.zeros(BUCKETS, dtype=np.int64))
    used: int = 0
    left_out: int = 0
    left_out_run: int = 0
    last_pane_ms: int | None = None

    def tally(self, step: int) -> StepTally:
        """Return what a step has seen; nothing before its first pane."""
        return self.tallies[step] if 0 <= step < len(self.tallies) else StepTally()

    def to_state(self) -> dict[str, Any]:
        """Return the comparison as builtins and bytes, for msgpack."""
        return {
            **{name: getattr(self, name).to_state() for name in CONTRASTS},
            **{name: getattr(self, name) for name in COUNTERS},
            "tallies": [[t.panes, list(t.outcomes), list(t.exposures), t.weight] for t in self.tallies],
            "exposed": self.exposed.astype("<i8").tobytes(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Comparison:
        """Return what `to_state` was taken of."""
        return cls(
            **{name: Contrast.from_state(state[name]) for name in CONTRASTS},  # type: ignore[arg-type]
            **{name: state[name] for name in COUNTERS},
            tallies=tuple(
                StepTally(panes, (outcomes[0], outcomes[1]), (exposures[0], exposures[1]), weight)
                for panes, outcomes, exposures, weight in state["tallies"]
            ),
            exposed=np.frombuffer(state["exposed"], dtype="<i8").astype(np.int64),
        )


def new_comparison(plan: CanaryPlan) -> Comparison:
    """Return the comparison of a rollout that has not seen a pane."""
    return Comparison(tallies=(StepTally(),) * len(plan.steps))


def add_pane(
    plan: CanaryPlan,
    comparison: Comparison,
    *,
    pane_start_ms: int,
    champion_outcomes: Rows,
    challenger_outcomes: Rows,
    champion_exposures: Rows,
    challenger_exposures: Rows,
) -> Comparison:
    """Return the comparison with one more pane, mature in both arms, in it.

    A pane without challenger is before the ramp and changes nothing. One in which the split changed,
    or was not one the plan sets, is left out and counted. Panes come in the order of their time; a
    pane's step is told from its buckets, and it adds to the since-step sums if that is the newest.
    """
    top = max(_buckets(challenger_outcomes, challenger_exposures), default=-1)
    if top < 0:
        return comparison
    lowest = min(_buckets(champion_outcomes, champion_exposures), default=BUCKETS)
    step = _step_of(plan, comparison.step, top, lowest)
    if step is None:
        return replace(comparison, left_out=comparison.left_out + 1, left_out_run=comparison.left_out_run + 1)
    labelled, totals = (
        _by_bucket("n", champion_outcomes, challenger_outcomes),
        _by_bucket("total", champion_outcomes, challenger_outcomes),
    )
    shown = {
        name: _by_bucket(name, champion_exposures, challenger_exposures) for name in (EXPOSURE_DTYPE.names or ())[1:]
    }
    if step > comparison.step:
        comparison = replace(comparison, step=step, since=Contrast(), exposed=np.zeros(BUCKETS, dtype=np.int64))
    if step == comparison.step:
        comparison = replace(
            comparison,
            since=comparison.since.add(labelled, totals),
            exposed=comparison.exposed + shown["n"].sum(axis=0).astype(np.int64),
        )
    outcomes = comparison.outcomes.add(labelled, totals)
    tally = _counted(comparison.tally(step), labelled, shown["n"], outcomes.weight - comparison.outcomes.weight)
    return replace(
        comparison,
        outcomes=outcomes,
        errors=comparison.errors.add(shown["n"], shown["errors"]),
        latency=comparison.latency.add(shown["latency_n"], shown["latency_log_total"]),
        coverage=comparison.coverage.add(shown["n"], labelled),
        tallies=(*comparison.tallies[:step], tally, *comparison.tallies[step + 1 :]),
        used=comparison.used + 1,
        left_out_run=0,
        last_pane_ms=pane_start_ms,
    )


def _step_of(plan: CanaryPlan, newest: int, top: int, lowest: int) -> int | None:
    """Return the step whose share lies between the arms' buckets, None when none does.

    The smallest that does, but none before the newest seen: a ramp only rises, and few users may all
    happen to be in low buckets.
    """
    fitting = [step for step in range(len(plan.steps)) if top < 10 * plan.percent_at(step) <= lowest]
    return next((step for step in fitting if step >= newest), fitting[0] if fitting else None)


def _buckets(*arrays: Rows) -> list[int]:
    """Return the buckets that have rows."""
    return [int(bucket) for rows in arrays for bucket in rows["bucket"][rows["n"] > 0]]


def _by_bucket(name: str, champion: Rows, challenger: Rows) -> Floats:
    """Return (arms, buckets) one field of both arms' rows."""
    table = np.zeros((2, BUCKETS))
    for arm, rows in ((CHAMPION, champion), (CHALLENGER, challenger)):
        table[arm, rows["bucket"]] = rows[name]
    return table


def _counted(tally: StepTally, labelled: Floats, exposed: Floats, weight: float) -> StepTally:
    """Return the tally with a pane's rows added."""
    outcomes, exposures = labelled.sum(axis=1).astype(int), exposed.sum(axis=1).astype(int)
    return StepTally(
        panes=tally.panes + bool(outcomes.any()),
        outcomes=(tally.outcomes[0] + int(outcomes[0]), tally.outcomes[1] + int(outcomes[1])),
        exposures=(tally.exposures[0] + int(exposures[0]), tally.exposures[1] + int(exposures[1])),
        weight=tally.weight + weight,
    )


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
