"""A model's documents of the live view, computed from what evaluate holds of it."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import msgspec
import numpy as np

from monitors import lifecycle
from monitors.drift import FeatureDrift
from monitors.profile import ReferenceProfile
from streamer import documents
from streamer.catalog import Model
from streamer.evaluation import looks
from streamer.evaluation.model_record import Watched
from streamer.evaluation.pane_store import Pane


def summary(model: Model, watched: Watched, now_ms: int) -> documents.ModelSummary:
    """Return the model's line of the list of models."""
    record = watched.record
    deployment = record.life.deployment
    request = record.life.request
    return documents.ModelSummary(
        as_of_ms=now_ms,
        event_time_ms=record.clock.watermark_ms,
        n=watched.live_events,
        model=model.name,
        model_epoch=record.model_epoch,
        task=model.config.task,
        champion=deployment.champion or None,
        challenger=deployment.challenger,
        percent=deployment.percent,
        state=record.alert.phase,
        faulted=record.life.faulted is not None,
        stale=record.stale,
        open_request=request.request_id if request is not None and lifecycle.is_open(record.life) else None,
        watermark_ms=record.clock.watermark_ms,
        looked_ms=record.mature_looked_ms,
        tallies=dict(record.tallies),
    )


def _number(value: float | None) -> float | None:
    """Return a number JSON can carry; an absent one is null, never a zero."""
    return None if value is None or not math.isfinite(value) else float(value)


def drift(
    model: Model, profile: ReferenceProfile | None, watched: Watched, version: str, now_ms: int
) -> tuple[dict[str, documents.Document], dict[str, documents.Document]]:
    """Return what is live of a version's drift and quality, late counts taken in, by feature."""
    event_time_ms = watched.record.clock.watermark_ms
    if profile is None:
        events = sum(pane.events for _key, pane in watched.live(version, int(model.config.time.pane)))
        nothing = documents.FeatureDrift(as_of_ms=now_ms, event_time_ms=event_time_ms, n=events, missing="no_reference")
        return dict.fromkeys(model.config.features, nothing), {}
    pane_ms = int(model.config.time.pane)
    end_ms = event_time_ms - event_time_ms % pane_ms + pane_ms
    measured = looks.measure_window(model, profile, watched, version, end_ms=end_ms, late=True)
    drift: dict[str, documents.Document] = {
        name: _drift_document(found, measured, watched.record.psi_series.get(name, []), now_ms, event_time_ms)
        for name, found in measured.drift.items()
    }
    quality: dict[str, documents.Document] = {
        name: documents.FeatureQuality(
            as_of_ms=now_ms,
            event_time_ms=event_time_ms,
            n=measured.events,
            missing_share=_number(found.missing_share),
            reference_missing_share=_number(found.reference_missing_share),
            unseen_share=_number(found.unseen_share),
            fault=found.fault,
        )
        for name, found in measured.quality.items()
    }
    return drift, quality


def _drift_document(
    found: FeatureDrift, measured: looks.Measured, series: list[float | None], now_ms: int, event_time_ms: int
) -> documents.FeatureDrift:
    return documents.FeatureDrift(
        as_of_ms=now_ms,
        event_time_ms=event_time_ms,
        n=found.n,
        missing=found.missing,
        psi=_number(found.psi),
        ks=_number(found.ks),
        js=_number(found.jensen_shannon),
        wasserstein=_number(found.wasserstein),
        p_psi=_number(found.p_psi),
        p_ks=_number(found.p_ks),
        threshold_psi=_number(found.threshold_psi),
        threshold_ks=_number(found.threshold_ks),
        alarm=found.alarm,
        n_reference=found.n_reference,
        missing_share=_number(found.missing_share),
        unseen_share=_number(found.unseen_share),
        out_of_range_share=_number(found.out_of_range_share),
        window_start_ms=measured.start_ms,
        window_end_ms=measured.end_ms,
        series=series,
    )


def performance(
    model: Model, profile: ReferenceProfile | None, watched: Watched, version: str, now_ms: int
) -> tuple[documents.Document, dict[str, documents.Document]]:
    """Live performance of the performance window: every label that has come, mature or not."""
    record = watched.record
    pane_ms = int(model.config.time.pane)
    event_time_ms = record.clock.watermark_ms
    oldest = event_time_ms - int(model.config.policy.performance_window)
    panes = sorted(
        (key.start_ms, pane) for key, pane in watched.live(version, pane_ms) if key.start_ms + pane_ms > oldest
    )
    totals: dict[str, np.ndarray[Any, Any]] = {}
    for _start, pane in panes:
        for key, vector in pane.performance.items():
            totals[key] = totals[key] + vector if key in totals else vector
    reached_ms = max((start + pane_ms for start, pane in panes if pane.labelled), default=None)
    labelled, predicted = sum(pane.labelled for _s, pane in panes), sum(pane.sampled for _s, pane in panes)
    look = record.performance if version == looks.served(watched) else None
    baseline = None if profile is None else profile.baseline
    whole = documents.Performance(
        as_of_ms=now_ms,
        event_time_ms=event_time_ms,
        n=labelled,
        missing=None if labelled else "no_labels_yet",
        metrics=_metrics(model, totals.get("")),
        baseline={} if baseline is None else {name: _number(value) for name, value in baseline.metrics.items()},
        drop=None if look is None else _number(look.drop),
        drop_lower=None if look is None else _number(look.lower),
        drop_upper=None if look is None else _number(look.upper),
        labelled=labelled,
        predicted=predicted,
        coverage=labelled / predicted if predicted else None,
        label_lag_ms=None if reached_ms is None else max(event_time_ms - reached_ms, 0),
        maturity_ms=int(model.config.labels.maturity),
        window_start_ms=panes[0][0] if panes else None,
        window_end_ms=panes[-1][0] + pane_ms if panes else None,
        series=[_point(model, start, pane) for start, pane in panes[-60:] if pane.labelled],
    )
    slices: dict[str, documents.Document] = {
        key: documents.SlicePerformance(
            as_of_ms=now_ms, event_time_ms=event_time_ms, n=int(vector[0]), metrics=_metrics(model, vector)
        )
        for key, vector in totals.items()
        if key
    }
    return whole, slices


def _metrics(model: Model, vector: np.ndarray[Any, Any] | None) -> dict[str, float | None]:
    if vector is None:
        return {}
    return {name: _number(value) for name, value in model.schema.metrics(vector).items()}


def _point(model: Model, start_ms: int, pane: Pane) -> dict[str, Any]:
    metrics = _metrics(model, pane.performance.get(""))
    return {"pane_start_ms": start_ms, "n": pane.labelled, model.schema.primary: metrics.get(model.schema.primary)}


def alerts(watched: Watched, now_ms: int) -> documents.Alerts:
    """Return how the alert stands."""
    alert = watched.record.alert
    return documents.Alerts(
        as_of_ms=now_ms,
        event_time_ms=watched.record.clock.watermark_ms,
        phase=alert.phase,
        streaks={"drift": alert.drift_streak, "performance": alert.performance_streak},
        since_ms=alert.since_ms,
        cooling_until_ms=alert.cooling_until_ms,
        fault=alert.fault,
        faulted=watched.record.life.faulted is not None,
    )


def request(watched: Watched, now_ms: int) -> documents.RequestView | None:
    """Return the newest request; None where there has been none."""
    record = watched.record
    state, event = record.life.request, record.request
    if state is None:
        return None
    return documents.RequestView(
        as_of_ms=now_ms,
        event_time_ms=record.clock.watermark_ms,
        request_id=state.request_id,
        state=state.state,
        kind=state.kind,
        version=state.version,
        raised_at_ms=state.raised_at_ms,
        window_start_ms=None if event is None else event.window_start_ms,
        window_end_ms=None if event is None else event.window_end_ms,
        findings=[] if event is None else msgspec.to_builtins(event.findings),
        run_id=state.run_id,
        reason="" if event is None else event.reason,
        history=[asdict(step) for step in state.history],
    )


def canary(model: Model, watched: Watched, now_ms: int) -> documents.CanaryView | None:
    """Return the rollout and what it has shown; None where there has been none."""
    record = watched.record
    rollout = record.life.rollout
    if rollout is None:
        return None
    verdict = record.verdict
    return documents.CanaryView(
        as_of_ms=now_ms,
        event_time_ms=record.clock.watermark_ms,
        n=0 if verdict is None else verdict.n_challenger,
        rollout_id=rollout.rollout_id,
        state=rollout.state,
        request_id=rollout.request_id,
        step=rollout.step,
        percent=rollout.percent,
        epoch=record.life.deployment.epoch,
        steps=list(model.config.canary.steps),
        verdict=None if verdict is None else msgspec.convert(asdict(verdict), documents.Verdict),
        history=[asdict(entry) for entry in record.verdicts],
    )
