"""The documents of the live view: what each Redis value holds, as typed structs (the README documents them)."""

from __future__ import annotations

from typing import Any

import msgspec

from streamer.events import Deployment

FINAL_STATES = frozenset({"rejected", "promoted", "rolled_back", "failed", "expired"})


class Document(msgspec.Struct, kw_only=True, omit_defaults=False):
    """What every document carries: when it was written, up to which event time, over how many events."""

    as_of_ms: int | None = None
    event_time_ms: int | None = None
    n: int | None = None
    missing: str | None = None


class ModelSummary(Document, kw_only=True):
    """One line of `driftloop:models`: where a model stands.

    `stale`: no live event has come for the model's `time.stale`. `watermark_ms` is the newest event time seen,
    `looked_ms` the end of the newest pane looked at for performance.
    `tallies` are the events that did not count as the others did, by reason, since the model was made: late, too_late,
    other_epoch, repeated and the like.
    """

    model: str
    model_epoch: int = 1
    task: str = ""
    champion: str | None = None
    challenger: str | None = None
    percent: float = 0.0
    state: str = ""
    faulted: bool = False
    stale: bool = False
    open_request: str | None = None
    watermark_ms: int | None = None
    looked_ms: int | None = None
    tallies: dict[str, int] = {}


class FeatureDrift(Document, kw_only=True):
    """One feature of `…:drift:<version>`: its statistics, what they are held against, and its recent course."""

    psi: float | None = None
    ks: float | None = None
    js: float | None = None
    wasserstein: float | None = None
    p_psi: float | None = None
    p_ks: float | None = None
    threshold_psi: float | None = None
    threshold_ks: float | None = None
    alarm: bool = False
    n_reference: int | None = None
    missing_share: float | None = None
    unseen_share: float | None = None
    out_of_range_share: float | None = None
    window_start_ms: int | None = None
    window_end_ms: int | None = None
    series: list[float | None] = []

    @property
    def strain(self) -> float:
        """Return the larger of PSI and KS over its own threshold: above 1 is past it; −1 where nothing is known."""
        ratios = [
            value / threshold
            for value, threshold in ((self.psi, self.threshold_psi), (self.ks, self.threshold_ks))
            if value is not None and threshold
        ]
        return max(ratios, default=self.psi if self.psi is not None else -1.0)


class Performance(Document, kw_only=True):
    """`…:performance:<version>`: how well a version does, on how many of its answers' labels.

    `label_lag_ms`: how far the newest pane that has a label lies behind the newest event, 0 where it is the same pane.
    """

    metrics: dict[str, float | None] = {}
    baseline: dict[str, float | None] = {}
    drop: float | None = None
    drop_lower: float | None = None
    drop_upper: float | None = None
    labelled: int | None = None
    predicted: int | None = None
    coverage: float | None = None
    label_lag_ms: int | None = None
    maturity_ms: int | None = None
    window_start_ms: int | None = None
    window_end_ms: int | None = None
    series: list[dict[str, Any]] = []


class SlicePerformance(Document, kw_only=True):
    """One slice ("feature=value") of `…:slices:<version>`."""

    metrics: dict[str, float | None] = {}
    baseline: dict[str, float | None] = {}


class FeatureQuality(Document, kw_only=True):
    """One feature of `…:quality:<version>`: missing and unseen shares, and the data fault if it is one."""

    missing_share: float | None = None
    reference_missing_share: float | None = None
    unseen_share: float | None = None
    fault: str | None = None


class Alerts(Document, kw_only=True):
    """`…:alerts`: the alert state machine."""

    phase: str = "quiet"
    streaks: dict[str, Any] | int | None = None
    since_ms: int | None = None
    cooling_until_ms: int | None = None
    fault: Any = None
    faulted: bool = False


class RequestView(Document, kw_only=True):
    """`…:request`: the model's newest request and how it got where it is."""

    request_id: str
    state: str
    kind: str = ""
    version: str = ""
    raised_at_ms: int | None = None
    window_start_ms: int | None = None
    window_end_ms: int | None = None
    findings: list[dict[str, Any]] = []
    run_id: str | None = None
    reason: str = ""
    history: list[dict[str, Any]] = []

    @property
    def open(self) -> bool:
        """Whether the request still waits for something."""
        return self.state not in FINAL_STATES


class Verdict(msgspec.Struct, kw_only=True):
    """What a canary step has shown so far; the bounds are challenger minus champion."""

    status: str
    reason: str = ""
    delta: float | None = None
    lower: float | None = None
    upper: float | None = None
    effective_buckets: float | None = None
    n_champion: int | None = None
    n_challenger: int | None = None
    step: int | None = None
    epoch: int | None = None
    at_ms: int | None = None
    guardrails: dict[str, Any] = {}


class CanaryView(Document, kw_only=True):
    """`…:canary`: the newest rollout, its step and its verdict."""

    rollout_id: str
    state: str
    request_id: str = ""
    step: int = -1
    percent: float = 0.0
    epoch: int = 0
    steps: list[float] = []
    verdict: Verdict | None = None
    history: list[dict[str, Any]] = []


class Heartbeat(msgspec.Struct, kw_only=True):
    """One worker of `driftloop:workers`.

    `lag` is what the raw topics hold that it has not read, `evaluate_lag` the same of partials and commands;
    `transaction_ms` how long each stage's last transaction took. From `events` on, all is counted since `started_ms`.
    """

    replica: str
    as_of_ms: int
    role: str = ""
    pid: int | None = None
    events_per_s: float | None = None
    lag: int | dict[str, int] | None = None
    evaluate_lag: int | None = None
    transaction_ms: dict[str, float] = {}
    started_ms: int | None = None
    events: int | None = None
    late: int | None = None
    too_late: int | None = None
    dead_letters: int | None = None
    parked_labels: int | None = None

    @property
    def total_lag(self) -> int | None:
        """Return how many messages the worker still has to read, over all its partitions."""
        return sum(self.lag.values()) if isinstance(self.lag, dict) else self.lag


class TimelineEntry(msgspec.Struct, kw_only=True):
    """One line of `…:timeline`: a completed look or a transition."""

    at_ms: int
    kind: str
    text: str
    event_time_ms: int | None = None
    data: dict[str, Any] | None = None


class ModelView(msgspec.Struct, kw_only=True):
    """Everything the view holds about one model; `version` is the one the statistics are of."""

    summary: ModelSummary
    version: str
    drift: dict[str, FeatureDrift] = {}
    performance: Performance | None = None
    slices: dict[str, SlicePerformance] = {}
    quality: dict[str, FeatureQuality] = {}
    alerts: Alerts | None = None
    request: RequestView | None = None
    split: Deployment | None = None
    canary: CanaryView | None = None
    timeline: list[TimelineEntry] = []
