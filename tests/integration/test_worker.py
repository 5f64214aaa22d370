"""The worker on real Kafka and Valkey: what goes in comes out counted, once, whatever happens in between."""

from __future__ import annotations

import json

import pytest
import redis

from streamer.settings import Settings
from streamer.state import Keys
from tests.integration.events import MODEL, T0, publish, send_events
from tests.integration.running import running_worker, wait_for

pytestmark = pytest.mark.integration


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
        # The view alone: the join store is none, and a worker that finds it emptied ends.
        store.delete(*(key for key in store.scan_iter(f"{keys.root}:*") if "{j:" not in key))
        again = wait_for(lambda: store.hget(keys.drift("churn", "1"), "age"), lambda found: found is not None)
        assert json.loads(again)["psi"] == drift["psi"]
