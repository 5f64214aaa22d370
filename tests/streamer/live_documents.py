"""A live view as a worker leaves it, for tests that read one."""

from __future__ import annotations

import msgspec
import redis

from streamer import documents
from streamer.events import Deployment, encode
from streamer.state import Keys

NOW = 1_700_000_000_000
SUMMARY = documents.ModelSummary(
    model="churn",
    task="binary",
    champion="1",
    state="raised",
    watermark_ms=NOW - 5_000,
    as_of_ms=NOW,
    n=1_000,
    tallies={"late": 5, "repeated": 2},
)
DRIFT = {
    "age": documents.FeatureDrift(
        psi=0.31, ks=0.2, threshold_psi=0.1, threshold_ks=0.15, alarm=True, n=900, missing_share=0.02, unseen_share=0.0,
        series=[0.01, None, 0.3], window_start_ms=NOW - 60_000, window_end_ms=NOW,
    ),
    "plan": documents.FeatureDrift(psi=0.01, threshold_psi=0.1, n=900),
    "tenure": documents.FeatureDrift(missing="too_few_events", n=3),
}  # fmt: skip
PERFORMANCE = documents.Performance(
    metrics={"n": 400.0, "accuracy": 0.8, "auc": 0.9},
    baseline={"accuracy": 0.85},
    drop=0.05, drop_lower=0.01, drop_upper=0.09, labelled=400, predicted=1_000, coverage=0.4,
    label_lag_ms=1_800_000, maturity_ms=3_600_000,
    series=[{"pane_start_ms": NOW, "n": 200, "accuracy": 0.9}, {"pane_start_ms": NOW, "n": 200, "accuracy": 0.7}],
)  # fmt: skip
REQUEST = documents.RequestView(
    request_id="rq-1", state="canary", kind="drift", raised_at_ms=NOW - 90_000,
    findings=[{"subject": "age", "statistic": "psi", "value": 0.31, "threshold": 0.05, "floor": 0.1,
               "n_reference": 4_000, "n_current": 300}],
    history=[{"state": "raised"}, {"state": "accepted"}, {"state": "canary"}],
)  # fmt: skip
CANARY = documents.CanaryView(
    rollout_id="canary-rq-1", request_id="rq-1", state="canary", step=1, percent=10, steps=[5, 10, 25, 50, 100],
    verdict=documents.Verdict(
        status="running", reason="more outcomes are needed", delta=0.01, lower=-0.02, upper=0.04,
        n_champion=900, n_challenger=100,
    ),
)  # fmt: skip
SPLIT = Deployment(
    model="churn", model_epoch=1, epoch=7, champion="1", challenger="2", percent=10.0, step=1,
    since_ms=NOW - 1_000, rollout_id="canary-rq-1", salt="canary-rq-1",
)  # fmt: skip
WORKER = documents.Heartbeat(
    replica="0", role="all", as_of_ms=NOW, events_per_s=1_234.0, lag=56, evaluate_lag=7, started_ms=NOW - 3_600_000,
    transaction_ms={"ingest": 12.4, "evaluate": 45.0}, events=98_765, late=21, too_late=3, dead_letters=4,
    parked_labels=1_050,
)  # fmt: skip


def fill(client: redis.Redis, keys: Keys, *, now_ms: int = NOW) -> None:
    """Write the documents above; the worker's last beat is at `now_ms`."""
    json = msgspec.json.encode
    client.hset(keys.models(), "churn", json(SUMMARY))
    for feature, document in DRIFT.items():
        client.hset(keys.drift("churn", "1"), feature, json(document))
    client.hset(keys.quality("churn", "1"), "plan", json(documents.FeatureQuality(fault="all_unseen")))
    client.hset(keys.slices("churn", "1"), "plan=a", json(documents.SlicePerformance(n=10, metrics={"accuracy": 0.5})))
    client.set(keys.performance("churn", "1"), json(PERFORMANCE))
    alerts = documents.Alerts(
        phase="raised", since_ms=NOW - 65_000, event_time_ms=NOW - 5_000, fault="plan: all unseen"
    )
    client.set(keys.alerts("churn"), json(alerts))
    client.set(keys.request("churn"), json(REQUEST))
    client.set(keys.canary("churn"), json(CANARY))
    client.set(keys.split("churn"), encode(SPLIT))
    for number in range(3):
        entry = {"at_ms": str(NOW + number), "kind": "look", "text": f"look {number}", "data": '{"pane": 1}'}
        client.xadd(keys.timeline("churn"), entry, id=f"{number + 1}-1")
    heartbeat = msgspec.structs.replace(WORKER, as_of_ms=now_ms)
    client.hset(keys.workers(), "0", json(heartbeat))
