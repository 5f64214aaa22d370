"""A small model with a known reference, and seeded events of it, for tests against the real servers."""

from __future__ import annotations

import json
import uuid
from typing import Any

import numpy as np
from confluent_kafka import Producer

from monitors.profile import PerformanceBaseline, ReferenceProfile, build_profile
from streamer.models import ModelConfig, parse_model
from streamer.settings import Settings
from tests.streamer.arrows import arrow_of

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


def profile_of(config: ModelConfig, version: str) -> ReferenceProfile:
    rng = np.random.default_rng(0)
    return build_profile(
        model=config.name,
        version=version,
        columns=rows(rng, 5_000, 0.0),
        kinds={"age": "numeric", "plan": "categorical", "@score": "numeric"},
        panes=np.arange(5_000) // 100,
        baseline=PerformanceBaseline({"accuracy": 0.9}, "accuracy", 0.9, 0.01, 1000),
        created_ms=T0,
    )


def publish(settings: Settings, config: ModelConfig, version: str) -> None:
    profile = profile_of(config, version)
    producer = Producer({**settings.kafka.properties()})
    producer.produce(settings.topic("models"), config.to_json(), config.name)
    for part, value in profile.to_parts().items():
        producer.produce(settings.topic("references"), value, f"{config.name}/{version}/{part}")
    assert producer.flush(10) == 0


def send_events(
    settings: Settings, *, panes: int, per_pane: int, shift_from: int, first: int = 0, as_batches: bool = False
) -> int:
    """Send predictions and their labels, one a message or all of a pane in one; return how many."""
    rng = np.random.default_rng(first + 1)
    producer = Producer({**settings.kafka.properties(), "compression.type": "lz4"})
    sent = 0
    for pane in range(first, first + panes):
        columns = rows(rng, per_pane, 30.0 if pane >= shift_from else 0.0)
        events: dict[str, list[dict[str, Any]]] = {"predictions": [], "labels": []}
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
            label = {"prediction_id": prediction_id, "model": "churn", "ts": ts + 5_000, "label": row % 2 == 0}
            events["predictions"].append(event)
            events["labels"].append(label)
            sent += 1
        for topic, each in events.items():
            if as_batches:
                producer.produce(settings.topic(topic), arrow_of(each))
            for event in () if as_batches else each:
                producer.produce(settings.topic(topic), json.dumps(event), event["prediction_id"])
        producer.poll(0)
    assert producer.flush(30) == 0
    return sent


def send_features(settings: Settings, *, prediction_id: str, **features: Any) -> None:
    """Send one feature log of a prediction."""
    event = {"prediction_id": prediction_id, "model": "churn", "version": "1", "ts": T0, "features": features}
    producer = Producer({**settings.kafka.properties()})
    producer.produce(settings.topic("features"), json.dumps(event), prediction_id)
    assert producer.flush(10) == 0
