"""Looking at completed and mature panes: what they show, and whether the policy makes it a decision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monitors.arms import EXPOSURE_DTYPE, OUTCOME_DTYPE
from monitors.canary import verdict
from monitors.comparison import CanaryPlan, Comparison, add_pane, new_comparison
from monitors.drift import FeatureDrift, measure
from monitors.lifecycle import is_open
from monitors.panes import window
from monitors.performance import performance_drop
from monitors.policy import AlertPolicy, Decision, Look, PerformanceLook, decide, look_alpha
from monitors.profile import ReferenceProfile
from monitors.quality import QualityFinding, assess
from monitors.significance import design_effect
from streamer.catalog import Model
from streamer.evaluation.model_record import ModelRecord, Watched
from streamer.evaluation.pane_store import Pane, PaneKey
from streamer.models import ModelConfig

_ENOUGH_PANES = 5


def policy_of(config: ModelConfig) -> AlertPolicy:
    """Return the policy the configuration describes."""
    policy = config.policy
    return AlertPolicy(
        mode=policy.mode,
        triggers=policy.triggers,
        psi=policy.psi,
        ks=policy.ks,
        min_features=policy.min_features,
        performance_drop=policy.performance_drop,
        false_requests=policy.false_requests,
        per_ms=int(policy.per),
        consecutive=policy.consecutive,
        clear_ratio=policy.clear_ratio,
        cooldown_ms=int(policy.cooldown),
        max_missing_share=policy.max_missing_share,
    )


def plan_of(config: ModelConfig) -> CanaryPlan:
    """Return the canary's plan the configuration describes."""
    canary = config.canary
    return CanaryPlan(
        steps=canary.steps,
        control_percent=canary.control_percent,
        margin=canary.margin,
        tolerance=canary.tolerance,
        alpha=canary.alpha,
        min_outcomes=canary.min_outcomes,
        min_buckets=canary.min_buckets,
        max_latency_ratio=canary.max_latency_ratio,
        max_error_increase=canary.max_error_increase,
        max_panes=canary.max_panes,
    )


def alerting(model: Model, feature: str) -> bool:
    """Tell whether the policy may act on a feature's drift; a model's own output counts as one that it may."""
    configured = model.config.features.get(feature)
    return configured is None or configured.alert


@dataclass(frozen=True)
class Measured:
    """One window of one version: each feature's drift and quality, and the window itself."""

    start_ms: int
    end_ms: int
    events: int
    drift: dict[str, FeatureDrift]
    quality: dict[str, QualityFinding]


def measure_window(
    model: Model, profile: ReferenceProfile, watched: Watched, version: str, *, end_ms: int, late: bool
) -> Measured:
    """Measure the window that ends at `end_ms`; `late` takes late counts in as well (live numbers, not decisions)."""
    config = model.config
    pane_ms = int(config.time.pane)
    held = {key.start_ms: pane for key, pane in watched.live(version, pane_ms)}
    events = {start: pane.events if late else pane.on_time.events for start, pane in held.items()}
    starts = window(
        events,
        end_ms=end_ms,
        pane_ms=pane_ms,
        min_events=config.window.min_events,
        max_age_ms=int(config.window.max_age),
    )
    panes = [held[start] for start in starts]
    policy = policy_of(config)
    alpha = look_alpha(policy, features=len(profile.features), look_every_ms=pane_ms)
    counts = _counts_by_pane(panes, profile, late=late)
    total = counts.sum(axis=0)
    drift = measure(
        profile,
        total,
        policy=policy,
        alpha=alpha,
        design_effects=_design_effects(counts, profile)
        if len(panes) >= _ENOUGH_PANES
        else profile.stacked.design_effects,
        min_events=config.window.min_events,
    )
    places = profile.layout.places
    quality = {
        name: assess(feature, total[places[name]], max_missing_share=policy.max_missing_share)
        for name, feature in profile.features.items()
        if not name.startswith("@")
    }
    start_ms = min(starts, default=end_ms)
    return Measured(start_ms, end_ms, sum(events[start] for start in starts), drift, quality)


def _design_effects(counts: NDArray[np.int64], profile: ReferenceProfile) -> NDArray[np.float64]:
    """Return those of the window's panes, never below the reference's; (features,) in the layout's order."""
    seen = [design_effect(counts[:, place]) for place in profile.layout.places.values()]
    return np.maximum(seen, profile.stacked.design_effects)


def _counts_by_pane(panes: Sequence[Pane], profile: ReferenceProfile, *, late: bool) -> NDArray[np.int64]:
    """Return (panes, cells of all features) counts; one empty row where there are no panes."""
    if not panes:
        return np.zeros((1, profile.layout.size), dtype=np.int64)
    return np.stack([pane.counts(profile, late=late) for pane in panes])


def drift_look(model: Model, profile: ReferenceProfile, watched: Watched, version: str, end_ms: int) -> Look:
    """Look at the window that ends with a completed pane."""
    measured = measure_window(model, profile, watched, version, end_ms=end_ms, late=False)
    for name, drift in measured.drift.items():
        watched.record.note_psi(name, None if math.isnan(drift.psi) else drift.psi)
    faults = [f"{name}: {finding.fault}" for name, finding in measured.quality.items() if finding.fault]
    acted_on = tuple(drift for name, drift in measured.drift.items() if alerting(model, name))
    return Look(end_ms, acted_on, None, "; ".join(faults) or None)


def performance_look(
    model: Model, profile: ReferenceProfile, watched: Watched, version: str, end_ms: int
) -> PerformanceLook:
    """Hold the mature panes of the performance window against the reference's baseline."""
    config = model.config
    pane_ms = int(config.time.pane)
    oldest = end_ms - int(config.policy.performance_window)
    panes = [
        pane
        for key, pane in watched.live(version, pane_ms)
        if oldest <= key.start_ms < end_ms and pane.looked == "yes" and "" in pane.performance
    ]
    baseline = profile.baseline
    if baseline is None:
        return _no_performance("no_reference")
    if len(panes) < 2:
        return _no_performance("warming_up")
    policy = policy_of(config)
    drop = performance_drop(
        model.schema,
        baseline_value=baseline.value,
        baseline_se=baseline.standard_error,
        pane_vectors=np.stack([pane.performance[""] for pane in panes]),
        alpha=look_alpha(policy, features=1, look_every_ms=pane_ms),
    )
    warm = _covers(panes, config, pane_ms)
    surely = drop.lower > 0 if policy.mode == "calibrated" else True
    alarm = warm and surely and drop.drop >= policy.performance_drop
    return PerformanceLook(
        drop.value,
        drop.baseline,
        drop.drop,
        drop.lower,
        drop.upper,
        alarm,
        drop.n,
        drop.panes,
        None if warm else "warming_up",
    )


def _covers(panes: Sequence[Pane], config: ModelConfig, pane_ms: int) -> bool:
    """Tell whether the window is at least half filled: a young one shows the weather of its first days."""
    return 2 * len(panes) * pane_ms >= int(config.policy.performance_window)


def _no_performance(reason: str) -> PerformanceLook:
    nan = math.nan
    return PerformanceLook(nan, nan, nan, nan, nan, False, 0, 0, reason)


def mature(model: Model, watched: Watched, key: PaneKey, pane: Pane) -> None:
    """Judge once whether a mature pane has labels enough to be looked at."""
    labels = model.config.labels
    covered = pane.sampled > 0 and pane.labelled / pane.sampled >= labels.min_coverage
    pane.looked = "yes" if covered and pane.labelled >= labels.min_labels else "low_coverage"
    watched.pane(key)


def compare_arms(model: Model, watched: Watched, start_ms: int, now_ms: int) -> None:
    """Add a mature pane to the running rollout's comparison, and judge the present step again."""
    record = watched.record
    rollout = record.life.rollout
    deployment = record.life.deployment
    if rollout is None or rollout.state != "active" or deployment.challenger is None:
        return
    plan = plan_of(model.config)
    pane_ms = int(model.config.time.pane)
    comparison = record.restored_comparison() or new_comparison(plan)
    champion = watched.panes.get(PaneKey(deployment.champion, "live", pane_ms, start_ms), Pane())
    challenger = watched.panes.get(PaneKey(deployment.challenger, "live", pane_ms, start_ms), Pane())
    rollout_id = rollout.rollout_id
    if rollout_id in champion.exposures or rollout_id in challenger.exposures:
        comparison = _add(plan, comparison, start_ms, rollout_id, champion, challenger)
    record.comparison = comparison.to_state()
    judge(model, record, comparison, now_ms)


def judge(model: Model, record: ModelRecord, comparison: Comparison, now_ms: int) -> None:
    """Give the present step's verdict on what has been compared so far."""
    rollout = record.life.rollout
    if rollout is None or rollout.step < 0:
        return
    plan = plan_of(model.config)
    record.verdict = verdict(plan, comparison, step=rollout.step, epoch=record.life.deployment.epoch, at_ms=now_ms)


def _add(
    plan: CanaryPlan, comparison: Comparison, start_ms: int, rollout_id: str, champion: Pane, challenger: Pane
) -> Comparison:
    no_outcomes, no_exposures = np.zeros(0, OUTCOME_DTYPE), np.zeros(0, EXPOSURE_DTYPE)
    return add_pane(
        plan,
        comparison,
        pane_start_ms=start_ms,
        champion_outcomes=champion.outcomes.get(rollout_id, no_outcomes),
        challenger_outcomes=challenger.outcomes.get(rollout_id, no_outcomes),
        champion_exposures=champion.exposures.get(rollout_id, no_exposures),
        challenger_exposures=challenger.exposures.get(rollout_id, no_exposures),
    )


def take(model: Model, record: ModelRecord, look: Look, *, fault_allowed: bool) -> Decision | None:
    """Put a look to the policy: the alert state moves on, and a decision may come of it."""
    record.alert, decision = decide(
        policy_of(model.config),
        record.alert,
        look,
        request_open=is_open(record.life),
        fault_allowed=fault_allowed,
    )
    return decision


def served(watched: Watched) -> str:
    """Return the version looks are taken at: the champion, or where none is set the one with the newest events."""
    champion = watched.record.life.deployment.champion
    if champion:
        return champion
    newest = max(
        ((key.start_ms, pane.events, key.version) for key, pane in watched.panes.items() if pane.events),
        default=(0, 0, "_"),
    )
    return newest[2]
