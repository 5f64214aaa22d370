"""The worker on real Kafka and Valkey: what goes in comes out counted, once, whatever happens in between."""

from __future__ import annotations

import json
import uuid

import numpy as np
import pytest
import redis
from confluent_kafka import Producer

from monitors.profile import PerformanceBaseline, build_profile
from streamer.models import ModelConfig, parse_model
from streamer.settings import Settings
from streamer.state import Keys
from tests.integration.running import running_worker, wait_for

pytestmark = pytest.mark.integration

T0 = 1_700_000_040_000 // 60_000 * 60_000
MODEL = parse_model(
    {
        "name": "churn",
        "task": "binary",
        "positive": True,
        "features": {"age": {"kind": "numeric"}, "plan": {"kind": "categorical"}},
        "slices": ["plan"],
        "time": {"pane": "1m", "lateness": "10s", "idle": "500ms", "retention": "10d"},
        "window": {"min_events": 200, "max_age": "1h"},
        "labels": {"maturity": "1m", "min_labels": 10},
        "policy": {"consecutive": 2, "cooldown": "10m", "triggers": ["drift"]},
    },
    "test",
)


def rows(rng: np.random.Generator, n: int, shift: float) -> dict[str, np.ndarray]:
    return {
        "age": rng.normal(40 + shift, 10, n),
        "plan": np.array(["a", "b", "c"], dtype=object)[rng.integers(0, 3, n)],
        "@score": rng.uniform(0, 1, n),
    }


def publish(settings: Settings, config: ModelConfig, version: str) -> None:
    rng = np.random.default_rng(0)
    profile = build_profile(
        model=config.name,
        version=version,
        columns=rows(rng, 5_000, 0.0),
        kinds={"age": "numeric", "plan": "categorical", "@score": "numeric"},
        panes=np.arange(5_000) // 100,
        baseline=PerformanceBaseline({"accuracy": 0.9}, "accuracy", 0.9, 0.01, 1000),
        created_ms=T0,
    )
    producer = Producer({**settings.kafka.properties()})
    producer.produce(settings.topic("models"), config.to_json(), config.name)
    for part, value in profile.to_parts().items():
        producer.produce(settings.topic("references"), value, f"{config.name}/{version}/{part}")
    assert producer.flush(10) == 0


def send_events(settings: Settings, *, panes: int, per_pane: int, shift_from: int, labels: bool = True) -> int:
    rng = np.random.default_rng(1)
    producer = Producer({**settings.kafka.properties(), "compression.type": "lz4"})
    sent = 0
    for pane in range(panes):
        columns = rows(rng, per_pane, 30.0 if pane >= shift_from else 0.0)
        for row in range(per_pane):
            prediction_id = str(uuid.UUID(int=pane * 100_000 + row))
            ts = T0 + pane * 60_000 + row * 60_000 // per_pane
            event = {
                "prediction_id": prediction_id,
                "model": "churn",
                "version": "1",
                "ts": ts,
                "features": {"age": float(columns["age"][row]), "plan": str(columns["plan"][row])},
                "prediction": bool(columns["@score"][row] > 0.5),
                "score": float(columns["@score"][row]),
            }
            producer.produce(settings.topic("predictions"), json.dumps(event), prediction_id)
            if labels:
                label = {"prediction_id": prediction_id, "model": "churn", "ts": ts + 5_000, "label": row % 2 == 0}
                producer.produce(settings.topic("labels"), json.dumps(label), prediction_id)
            sent += 1
        producer.poll(0)
    assert producer.flush(30) == 0
    return sent


def test_drift_is_counted_shown_and_becomes_one_request(settings: Settings) -> None:
    publish(settings, MODEL, "1")
    keys = Keys(settings.namespace)
    store = redis.Redis.from_url(settings.redis.url, decode_responses=True)
    with running_worker(settings):
        sent = send_events(settings, panes=12, per_pane=300, shift_from=5)
        summary = wait_for(
            lambda: json.loads(store.hget(keys.models(), "churn") or "{}"), lambda found: found.get("n") == sent
        )
        assert summary["watermark_ms"] > T0
        drift = json.loads(store.hget(keys.drift("churn", "1"), "age"))
        assert drift["psi"] > 0.5
        assert drift["alarm"]
        performance = wait_for(
            lambda: json.loads(store.get(keys.performance("churn", "1")) or "{}"),
            lambda found: found.get("labelled") == sent,
        )
        assert performance["coverage"] == 1.0
        request = wait_for(lambda: json.loads(store.get(keys.request("churn")) or "{}"), lambda found: bool(found))
        assert request["state"] == "raised"
        assert request["kind"] == "drift"
        assert request["findings"][0]["subject"] in ("age", "@score")
