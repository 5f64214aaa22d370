"""When findings become a decision: the policy, its false-alarm budget, and the alert state machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from monitors.drift import FeatureDrift

Trigger: TypeAlias = Literal["drift", "performance"]
Mode: TypeAlias = Literal["calibrated", "fixed"]
Phase: TypeAlias = Literal["quiet", "suspected", "raised", "cooling"]
Finding: TypeAlias = Literal["alarm", "between", "clear"]

# However generous the budget, no single test runs at a laxer level than this.
MAX_ALPHA = 0.05


@dataclass(frozen=True)
class AlertPolicy:
    """What a model's owner calls worth a retraining.

    Parameters
    ----------
    mode : "calibrated" (past chance and past the floor) or "fixed" (past the floor).
    triggers : which kinds of look may lead to a decision.
    psi, ks : floors: smaller effects are of no practical interest.
    min_features : a drift look alarms when at least this many features do.
    performance_drop : the drop of the primary metric worth acting on, in its units.
    false_requests, per_ms : the budget: at most this many false requests per this time, in milliseconds.
    consecutive : alarming looks before a decision.
    clear_ratio : in (0, 1]; below this share of the line a streak ends, between it and the line it holds.
    cooldown_ms : after a request has ended, event time in which nothing is decided.
    max_missing_share : see `quality.assess`.
    """

    mode: Mode = "calibrated"
    triggers: tuple[Trigger, ...] = ("drift", "performance")
    psi: float = 0.1
    ks: float = 0.1
    min_features: int = 1
    performance_drop: float = 0.03
    false_requests: float = 1.0
    per_ms: int = 30 * 86_400_000
    consecutive: int = 3
    clear_ratio: float = 0.8
    cooldown_ms: int = 86_400_000
    max_missing_share: float = 0.5


@dataclass(frozen=True)
class PerformanceLook:
    """The primary metric against the baseline; `drop` > 0 is worse. `missing` is why there is no number (nan)."""

    value: float
    baseline: float
    drop: float
    lower: float
    upper: float
    alarm: bool
    n: int
    panes: int
    missing: str | None


@dataclass(frozen=True)
class Look:
    """What one look found.

    Parameters
    ----------
    pane_end_ms : the event time looked up to.
    drift : the features the policy may act on; None when the look was not at drift.
    performance : None when the look was not at performance.
    fault : a data fault that stands, or None.
    """

    pane_end_ms: int
    drift: tuple[FeatureDrift, ...] | None
    performance: PerformanceLook | None
    fault: str | None


@dataclass(frozen=True)
class AlertState:
    """Where a model's alert stands, in event time.

    `cooling_until_ms` stays after the cooldown: a late look at an older pane (performance matures long after
    drift) is still before it and decides nothing. A data fault that stands is `fault` while it blocks, and
    `allowed_fault` while a person lets it pass.
    """

    phase: Phase = "quiet"
    drift_streak: int = 0
    performance_streak: int = 0
    since_ms: int = 0
    cooling_until_ms: int | None = None
    fault: str | None = None
    allowed_fault: str | None = None


@dataclass(frozen=True)
class Decision:
    """A request is to be raised, because of what the pane ending here completed."""

    kind: Trigger
    pane_end_ms: int


def look_alpha(policy: AlertPolicy, *, features: int, look_every_ms: int) -> float:
    """Return the false-alarm probability one feature may spend at one look.

    Parameters
    ----------
    features : how many features are looked at together; 1 for performance.
    look_every_ms : the time between looks (the pane's width).

    Returns
    -------
    budget · consecutive · min_features / (features · looks), at most 0.05, where looks = per_ms / look_every_ms
    and budget = false_requests / number of triggers.

    Notes
    -----
    It holds however dependent features and looks are (windows overlap, so they are): at most features · alpha /
    min_features of the looks show min_features false alarms (Markov), and every false request uses up
    `consecutive` alarming looks of its own, so that false requests ≤ looks · features · alpha /
    (min_features · consecutive). That repeated alarms would be rarer, were looks independent, is not relied on.
    """
    if features < 1 or look_every_ms < 1:
        raise ValueError(f"features, look_every_ms: got {features}, {look_every_ms}, wanted both at least 1")
    looks = max(1.0, policy.per_ms / look_every_ms)
    budget = policy.false_requests / max(1, len(policy.triggers))
    return min(MAX_ALPHA, budget * policy.consecutive * min(policy.min_features, features) / (features * looks))


def decide(
    policy: AlertPolicy, state: AlertState, look: Look, *, request_open: bool, fault_allowed: bool = False
) -> tuple[AlertState, Decision | None]:
    """Move the alert on by one look.

    Parameters
    ----------
    state : as the last look, or `ended`, left it.
    look : looks come in pane order, drift and performance each in its own.
    request_open : whether the model has a request that has not ended.
    fault_allowed : whether a person lets a fault pass now; see `under_permission`.

    Returns
    -------
    The new state, and a decision when a streak has become long enough: at most one, never while a request is
    open, a fault stands, or the look's pane ends before the cooldown does. Where both kinds are due it is
    performance, the harm itself.

    Notes
    -----
    A fault blocks: streaks stand still, and it is kept until a drift look finds it gone, whoever allows it
    meanwhile. A look without numbers leaves its streak as it is.
    """
    at_ms = look.pane_end_ms
    if look.fault is not None or look.drift is not None:
        state = replace(state, fault=look.fault, allowed_fault=None)
    state = under_permission(state, fault_allowed=fault_allowed)
    if request_open:
        return _calm(state, "raised", at_ms), None
    if state.phase == "raised":
        # Whoever ended the request did not say so: it cools down from here.
        state = ended(policy, state, at_ms=at_ms)
    if state.cooling_until_ms is not None and at_ms < state.cooling_until_ms:
        return state, None
    if state.phase == "cooling":
        state = _calm(state, "quiet", at_ms)
    if state.fault is not None:
        return state, None
    found: dict[Trigger, Finding] = {
        "performance": _performance_finding(policy, look.performance),
        "drift": _drift_finding(policy, look.drift),
    }
    streaks = {
        "performance": _streak(state.performance_streak, found["performance"]),
        "drift": _streak(state.drift_streak, found["drift"]),
    }
    for kind, finding in found.items():
        if finding == "alarm" and streaks[kind] >= policy.consecutive:
            return _calm(state, "raised", at_ms), Decision(kind, at_ms)
    phase: Phase = "suspected" if any(streaks.values()) else "quiet"
    return replace(
        state,
        phase=phase,
        drift_streak=streaks["drift"],
        performance_streak=streaks["performance"],
        since_ms=state.since_ms if phase == state.phase else at_ms,
    ), None


def under_permission(state: AlertState, *, fault_allowed: bool) -> AlertState:
    """Let the fault that stands pass, or block again once nobody allows it any more."""
    standing = state.allowed_fault if state.fault is None else state.fault
    if fault_allowed:
        return replace(state, fault=None, allowed_fault=standing)
    return replace(state, fault=standing, allowed_fault=None)


def ended(policy: AlertPolicy, state: AlertState, *, at_ms: int) -> AlertState:
    """Begin the cooldown: the model's request has ended, whichever way, at this event time."""
    return replace(_calm(state, "cooling", at_ms), cooling_until_ms=at_ms + policy.cooldown_ms)


def _calm(state: AlertState, phase: Phase, at_ms: int) -> AlertState:
    """Return the state in a phase without streaks, since now unless it was in that phase already."""
    since_ms = state.since_ms if phase == state.phase else at_ms
    return replace(state, phase=phase, drift_streak=0, performance_streak=0, since_ms=since_ms)


def _streak(streak: int, finding: Finding) -> int:
    return streak + 1 if finding == "alarm" else streak if finding == "between" else 0


def _drift_finding(policy: AlertPolicy, drift: tuple[FeatureDrift, ...] | None) -> Finding:
    measured = [feature for feature in drift or () if feature.missing is None]
    if "drift" not in policy.triggers or not measured:
        return "between"
    if sum(feature.alarm for feature in measured) >= policy.min_features:
        return "alarm"
    return "between" if sum(_lingers(policy, feature) for feature in measured) >= policy.min_features else "clear"


def _lingers(policy: AlertPolicy, feature: FeatureDrift) -> bool:
    """Tell whether a feature is not yet clearly back under its line; a statistic that is nan never lingers."""
    ratio = policy.clear_ratio
    return feature.psi >= ratio * feature.threshold_psi or feature.ks >= ratio * feature.threshold_ks


def _performance_finding(policy: AlertPolicy, performance: PerformanceLook | None) -> Finding:
    if "performance" not in policy.triggers or performance is None or performance.missing is not None:
        return "between"
    if performance.alarm:
        return "alarm"
    return "between" if performance.drop >= policy.clear_ratio * policy.performance_drop else "clear"
