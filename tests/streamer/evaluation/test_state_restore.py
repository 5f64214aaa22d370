"""Evaluate stopped anywhere, restored from its state log as compaction left it, ends as one that never stopped."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest
import structlog
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from monitors.sketch import encode_pairs
from streamer.catalog import describe
from streamer.evaluation import pane_store
from streamer.evaluation.model_record import encode_record
from streamer.evaluation.pane_store import encode_pane
from streamer.evaluation.shard import Shard, restore_shard
from streamer.events import Increment, ModelMark, Partial, SourceProgress
from tests.streamer.logs import PANE, PARTIALS, T0, Log, Player, catalog_of, config

CONFIG = config(
    time={"retention": "5m", "lateness": "10s"},
    window={"min_events": 50, "min_new_events": 1},
    labels={"maturity": "1m", "min_labels": 5},
    policy={"consecutive": 1, "cooldown": "1m", "triggers": ["drift", "performance"], "performance_window": "10m"},
    deadlines={"republish": "1m", "accept": "3m"},
)
CATALOG = catalog_of(CONFIG)
SCHEMA = describe(CONFIG).schema


@pytest.fixture(autouse=True, scope="module")
def silent() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield


def increment(random: Random, pane: int, *, late: int, fingerprint: str) -> Increment:
    """Counts that were drawn: of predictions, or the signed ones of labels."""
    shared: dict[str, Any] = {
        "model": "churn",
        "model_epoch": 1,
        "version": random.choice("112"),
        "origin": random.choice(["live", "live", "live", "shadow"]),
        "pane_start_ms": T0 + max(pane - late, 0) * PANE,
        "pane_ms": PANE,
    }
    if random.random() < 0.3:
        truth = [random.choice(["true", "false"]) for _ in range(20)]
        (vector,) = SCHEMA.fold(
            labels=truth,
            predictions=["true"] * 20,
            scores=np.full(20, 0.7),
            signs=np.ones(20, dtype=np.int64),
            groups=np.zeros(20, dtype=np.int64),
            n_groups=1,
        )
        return Increment(**shared, source="labels", labelled=20, performance={"": vector.tobytes()})
    counts = np.zeros(600, dtype=np.int64)
    start = random.choice([0, 200])
    counts[start : start + 90] = random.choice([1, 1, 1, 200])
    return Increment(
        **shared,
        source="predictions",
        events=100,
        sampled=20,
        errors=1,
        fingerprint=fingerprint,
        cells=encode_pairs(counts[: random.choice([250, 260])]),
        offsets=[0, pane, pane + 9],
    )


class StoppedAnywhere(RuleBasedStateMachine):
    """One evaluate that is killed, and one that is not, over the same log."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = pytest.MonkeyPatch()
        # Small enough for most panes to take several records, and fewer or more of them as they change.
        self.patches.setattr(pane_store, "_PART_BYTES", 60)
        self.log = Log(CATALOG)
        self.pane = 0
        self.whole = Player(self.log, self.patches)
        self.stopped = Player(self.log, self.patches)

    @rule(seed=st.integers(0, 2**32), step=st.integers(0, 2), late=st.integers(0, 6), n=st.integers(0, 3))
    def flush(self, seed: int, step: int, late: int, n: int) -> None:
        random = Random(seed)
        profile = CATALOG.reference("churn", "1")
        assert profile is not None
        self.pane += step
        self.log.now_ms += 3_000
        newest = T0 + self.pane * PANE + random.randrange(PANE)
        flush = Partial(
            ingest="0",
            progress=[
                SourceProgress("predictions.v1", "id", 0, self.log.read, self.log.read + n, self.log.now_ms),
                SourceProgress("labels.v1", "id2", 0, 0, 0, self.log.now_ms - random.choice([0, 0, 5_000])),
            ],
            partition_counts={"predictions.v1": 1, "labels.v1": 1},
            increments=[
                increment(random, self.pane, late=late, fingerprint=random.choice([profile.fingerprint] * 3 + ["old"]))
                for _ in range(n)
            ],
            marks=[ModelMark("churn", [0, newest, self.log.now_ms])] if n else [],
            sources=[("predictions.v1", "id", 0)],
            tallies={"churn": {"duplicates": 1}} if n == 3 else {},
        )
        self.log.read += n
        self.log.records.append((PARTIALS, self.log.now_ms, msgspec.msgpack.encode(flush)))
        for player in (self.whole, self.stopped):
            player.play()

    @rule(kind=st.sampled_from(["set_champion", "request", "clear_fault", "accept"]))
    def command(self, kind: str) -> None:
        raised = self.whole.values("retrain-requests.v1")
        self.log.command(kind, raised[-1]["request_id"] if raised and kind == "accept" else "churn", version="1")
        for player in (self.whole, self.stopped):
            player.play()

    @rule()
    def commit(self) -> None:
        self.stopped.commit()

    @rule(seed=st.integers(0, 2**32))
    def stop(self, seed: int) -> None:
        random = Random(seed)
        self.stopped.compact(lambda: random.random() < 0.5)
        self.stopped.restart()
        self.stopped.play()

    def teardown(self) -> None:
        try:
            for player in (self.whole, self.stopped):
                player.commit()
            restored = restore_shard(0, self.stopped.state)
            (whole,) = self.whole.evaluate._shards.values()
            assert held(restored) == held(whole)
            # What is gone, or has become smaller, leaves nothing behind.
            assert restored.stored_parts.keys() == whole.stored_parts.keys()
            assert {key for key in self.stopped.state if key.startswith("pane|")} == set(keys(restored))
            for topic in ("retrain-requests.v1", "ledger.v1", "deployments.v1"):
                assert self.stopped.values(topic) == self.whole.values(topic)
        finally:
            self.patches.undo()


def held(shard: Shard) -> tuple[Any, ...]:
    """Return all that is known of a partition, in a form that can be compared."""
    panes = {key: encode_pane(pane) for watched in shard.models.values() for key, pane in watched.panes.items()}
    records = {name: encode_record(watched.record) for name, watched in shard.models.items()}
    events = {name: watched.live_events for name, watched in shard.models.items()}
    return shard.position, panes, records, events


def keys(shard: Shard) -> Iterator[str]:
    """Return the keys that hold the parts of a partition's panes."""
    for first, number in shard.stored_parts.items():
        yield from (f"{first.rsplit('|', 1)[0]}|{part}" for part in range(number))


TestStoppedAnywhere = StoppedAnywhere.TestCase
TestStoppedAnywhere.settings = settings(max_examples=300, stateful_step_count=25, deadline=None)
