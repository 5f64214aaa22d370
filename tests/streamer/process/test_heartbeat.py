"""A worker's heartbeat tells its rate, what waits and what was set apart; one silent for a day is forgotten."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import redis

from streamer import telemetry
from streamer.process.heartbeat import Pulse
from streamer.settings import Settings, WorkerSettings
from streamer.state import Keys

DAY_MS = 24 * 3_600_000


def pulse(store: redis.Redis, steps: dict[str, Any]) -> Pulse:
    return Pulse(Settings(worker=WorkerSettings(replica="3")), "all", store, steps)


def test_a_beat_tells_what_was_counted_apart_and_what_waits(store: redis.Redis) -> None:
    steps: dict[str, Any] = {}
    one = pulse(store, steps)
    before = one.document(1)
    assert (before.lag, before.transaction_ms) == (0, {})
    steps["ingest"] = SimpleNamespace(lag=lambda: 40, transaction_s=0.012)
    steps["evaluate"] = SimpleNamespace(lag=lambda: 2, transaction_s=None)
    telemetry.EVENTS.labels("predictions").inc(10)
    telemetry.LATE.labels("m").inc(3)
    telemetry.DEAD_LETTERS.labels("labels", "ts").inc(2)
    telemetry.PARKED_LABELS.inc(5)
    one.beat()
    told = json.loads(store.hget(Keys("").workers(), "3") or "{}")
    assert (told["lag"], told["evaluate_lag"], told["transaction_ms"]) == (40, 2, {"ingest": 12.0})
    assert told["events"] - (before.events or 0) == 10
    assert told["late"] - (before.late or 0) == 3
    assert told["dead_letters"] - (before.dead_letters or 0) == 2
    assert told["parked_labels"] - (before.parked_labels or 0) == 5
    assert told["events_per_s"] > 0


def test_a_worker_silent_for_a_day_leaves_the_view_by_itself(store: redis.Redis) -> None:
    pulse(store, {}).beat()
    [left_ms] = store.hpttl(Keys("").workers(), "3")
    assert DAY_MS - 60_000 < left_ms <= DAY_MS
