from __future__ import annotations

import json
from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest

from streamer import partials, telemetry
from streamer.counting.fold import is_sampled
from streamer.evaluation.pane_store import in_threes
from streamer.events import Increment, Partial
from streamer.ingest import Ingest
from streamer.join.labels import JoinStore
from streamer.stage import Batch, Partition, Standing
from streamer.state import Keys
from tests.streamer.logs import SETTINGS, T0, catalog_of, config, reference
from tests.streamer.stores import MemoryRecords

PREDICTIONS, LABELS = Partition("predictions.v1", 0), Partition("labels.v1", 0)


class Feed:
    """An ingest stage with a store in memory, fed batches by hand."""

    def __init__(self, **sections: Any) -> None:
        self.store = JoinStore(None, Keys(), buckets=4, wait_aof=False, hold_ms=0)  # type: ignore[arg-type]
        self.store._records = MemoryRecords()  # type: ignore[assignment]
        self.catalog = catalog_of(config(**sections))
        self.start()
        self.next = {PREDICTIONS: 0, LABELS: 0}
        self.committed = dict(self.next)

    def start(self) -> None:
        self.ingest = Ingest(
            SETTINGS,
            self.catalog,
            self.store,
            replica="0",
            topic_ids={"predictions.v1": "AAAA", "features.v1": "BBBB", "labels.v1": "CCCC"},
            partition_counts=lambda: {"predictions.v1": 1, "labels.v1": 1},
        )
        standing = {p: Standing(getattr(self, "committed", {}).get(p, 0), 0) for p in (PREDICTIONS, LABELS)}
        self.next = self.ingest.restore(standing)

    def give(self, partition: Partition, *values: object, record_ms: int = T0 + 1_000) -> None:
        raw = [value if isinstance(value, bytes) else json.dumps(value).encode() for value in values]
        start = self.next[partition]
        n = len(raw)
        batch = Batch(
            partition,
            start,
            start + n,
            True,
            record_ms,
            list(range(start, start + n)),
            [record_ms] * n,
            [b"k"] * n,
            raw,
        )
        self.ingest.fold(batch)
        self.next[partition] = start + n

    def flush(self) -> tuple[Partial, list[Any]]:
        self.ingest.prepare()
        records = list(self.ingest.results(dict(self.next)))
        partials = [r for r in records if r.topic == "partials.v1"]
        dead = [r for r in records if r.topic == "dead-letters.v1"]
        self.committed = dict(self.next)
        self.ingest.committed()
        return msgspec.msgpack.decode(partials[0].value, type=Partial), dead


def prediction(**changes: Any) -> dict[str, Any]:
    event = {
        "prediction_id": "p1",
        "model": "churn",
        "version": "1",
        "ts": T0,
        "features": {"age": 40.0, "plan": "a"},
        "prediction": True,
        "score": 0.8,
    }
    return {**event, **changes}


def label(**changes: Any) -> dict[str, Any]:
    return {"prediction_id": "p1", "model": "churn", "ts": T0 + 5_000, "label": True, **changes}


def of(partial: Partial, source: str, version: str = "1") -> list[Increment]:
    return [i for i in partial.increments if i.source == source and i.version == version]


def test_a_flush_says_what_was_counted_and_how_far_it_has_read() -> None:
    feed = Feed()
    feed.give(PREDICTIONS, prediction(), prediction(prediction_id="p2"))
    partial, dead = feed.flush()
    (increment,) = of(partial, "predictions")
    assert increment.events == 2
    assert [(p.topic, p.start, p.end) for p in partial.progress] == [("predictions.v1", 0, 2), ("labels.v1", 0, 0)]
    assert [(mark.model, mark.times[1]) for mark in partial.marks] == [("churn", T0)]
    assert dead == []


def test_an_empty_flush_still_carries_progress() -> None:
    feed = Feed()
    feed.give(LABELS, record_ms=T0 + 9_000)
    partial, _dead = feed.flush()
    assert partial.increments == []
    assert {p.topic: p.read_up_to_ms for p in partial.progress}["labels.v1"] == T0 + 9_000


def test_labels_wait_in_their_topic_while_the_join_store_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = Feed()
    assert list(feed.ingest.held_back()) == []
    monkeypatch.setattr(MemoryRecords, "lost", lambda _self, buckets: list(buckets)[:1])
    feed.start()
    assert list(feed.ingest.held_back()) == [LABELS]
    assert telemetry.REGISTRY.get_sample_value("driftloop_labels_held_back") == 1
    feed.give(PREDICTIONS, prediction())
    partial, _ = feed.flush()
    assert [each.events for each in of(partial, "predictions")] == [1]
    monkeypatch.undo()
    feed.start()
    assert list(feed.ingest.held_back()) == []


def test_feature_logs_wait_with_the_labels_where_they_slice_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    logs = Partition("features.v1", 0)
    monkeypatch.setattr(MemoryRecords, "lost", lambda _self, buckets: list(buckets)[:1])
    standing = {place: Standing(0, 0) for place in (PREDICTIONS, logs, LABELS)}
    for feed, waiting in (
        (Feed(), [LABELS]),
        (Feed(features={"plan": {"kind": "categorical", "source": "features"}}), [logs, LABELS]),
    ):
        feed.ingest.restore(standing)
        assert list(feed.ingest.held_back()) == waiting


def test_a_repeated_prediction_counts_once() -> None:
    feed = Feed()
    feed.give(PREDICTIONS, prediction(), prediction())
    feed.flush()
    feed.give(PREDICTIONS, prediction())
    partial, _dead = feed.flush()
    assert sum(i.events for i in of(partial, "predictions")) == 0
    assert partial.tallies == {"churn": {"repeated": 1}}


def test_a_label_is_joined_whether_it_comes_before_or_after() -> None:
    feed = Feed()
    feed.give(LABELS, label())
    partial, _ = feed.flush()
    assert of(partial, "labels") == []
    feed.give(PREDICTIONS, prediction())
    partial, _ = feed.flush()
    assert of(partial, "labels")[0].labelled == 1
    feed.give(PREDICTIONS, prediction(prediction_id="p2"))
    feed.give(LABELS, label(prediction_id="p2"))
    partial, _ = feed.flush()
    assert of(partial, "labels")[0].labelled == 1


def test_a_batch_read_again_after_a_crash_gives_what_it_gave_before() -> None:
    feed = Feed()
    feed.give(PREDICTIONS, prediction())
    feed.give(LABELS, label())
    before = list(feed.ingest.results(dict(feed.next)))
    feed.start()
    feed.give(PREDICTIONS, prediction())
    feed.give(LABELS, label())
    assert [r.value for r in feed.ingest.results(dict(feed.next))] == [r.value for r in before]


def test_what_was_read_before_partitions_were_taken_over_anew_is_not_counted_with_what_is_read_again() -> None:
    feed = Feed()
    feed.give(PREDICTIONS, prediction())
    feed.give(LABELS, label(), b"{")
    feed.ingest.idle()
    feed.next = feed.ingest.restore({PREDICTIONS: Standing(0, 0), LABELS: Standing(0, 0)})
    partial, dead = feed.flush()
    assert (partial.increments, partial.marks, dead) == ([], [], [])


def test_what_cannot_be_read_is_a_dead_letter_and_its_neighbours_count() -> None:
    feed = Feed()
    feed.give(PREDICTIONS, prediction(), b"{", prediction(prediction_id="p2", ts="now"), prediction(prediction_id="p3"))
    partial, dead = feed.flush()
    assert of(partial, "predictions")[0].events == 2
    assert len(dead) == 2
    headers = dict(dead[1].headers)
    assert headers["field"] == b"ts"
    assert headers["source-offset"] == b"2"
    assert dead[0].value == b"{"


@pytest.mark.parametrize(
    ("event", "field"),
    [
        (prediction(model="nobody"), "model"),
        (prediction(ts=T0 + 10 * 86_400_000), "ts"),
    ],
)
def test_events_no_model_can_use_are_dead_letters(event: dict[str, Any], field: str) -> None:
    feed = Feed()
    feed.give(PREDICTIONS, event)
    partial, (dead,) = feed.flush()
    assert dict(dead.headers)["field"] == field.encode()
    assert partial.increments == []
    assert partial.marks == []


def test_a_regression_needs_numbers() -> None:
    feed = Feed(task="regression")
    feed.give(PREDICTIONS, prediction(prediction="much"))
    feed.give(LABELS, label(label="little"))
    _partial, dead = feed.flush()
    assert [dict(letter.headers)["field"] for letter in dead] == [b"prediction", b"label"]


def test_labels_with_their_context_need_no_join() -> None:
    feed = Feed(labels={"mode": "context"})
    feed.give(LABELS, label(version="1", prediction=True, score=0.8, prediction_ts=T0))
    feed.give(LABELS, label(version="1", prediction=True, prediction_ts=T0, label=False, previous=True))
    feed.give(LABELS, label())
    partial, dead = feed.flush()
    (increment,) = of(partial, "labels")
    assert increment.labelled == 1
    assert dict(dead[0].headers)["field"] == b"version"


def test_a_label_of_a_prediction_far_in_the_future_makes_no_pane_there() -> None:
    feed = Feed(labels={"mode": "context"})
    context = {"version": "1", "prediction": True}
    feed.give(LABELS, label(**context, prediction_ts=T0 + SETTINGS.worker.max_future_ms + 1_001), record_ms=T0 + 1_000)
    feed.give(LABELS, label(**context, prediction_ts=T0 + SETTINGS.worker.max_future_ms + 1_000), record_ms=T0 + 1_000)
    partial, (letter,) = feed.flush()
    assert [each.labelled for each in of(partial, "labels")] == [1]
    assert dict(letter.headers)["field"] == b"prediction_ts"
    assert b"(worker.max_future_ms)" in dict(letter.headers)["reason"]


def test_backfilled_events_are_counted_and_move_no_watermark() -> None:
    feed = Feed()
    feed.give(PREDICTIONS, prediction(origin="backfill"))
    partial, _dead = feed.flush()
    assert of(partial, "predictions")[0].origin == "backfill"
    assert partial.marks == []


def test_routed_predictions_leave_their_bucket_in_the_increment() -> None:
    feed = Feed()
    feed.give(PREDICTIONS, prediction(rollout_id="canary-1", bucket=17, latency_ms=3.0))
    feed.give(LABELS, label())
    partial, _dead = feed.flush()
    assert set(of(partial, "predictions")[0].exposures) == {"canary-1"}
    assert set(of(partial, "labels")[0].outcomes) == {"canary-1"}


def test_slices_are_those_of_the_configured_features() -> None:
    feed = Feed()
    feed.give(PREDICTIONS, prediction())
    feed.give(LABELS, label())
    partial, _dead = feed.flush()
    assert set(of(partial, "labels")[0].performance) == {"", "plan=a"}


@pytest.mark.parametrize("most", [1, 2])
def test_values_of_a_slice_feature_beyond_the_most_frequent_of_the_reference_count_together(most: int) -> None:
    feed = Feed(slice_values=most)
    plans = ["a", "b", "c", *(f"new-{number}" for number in range(40))]
    ids = [f"p{number}" for number in range(len(plans))]
    features = [{"age": 30, "plan": plan} for plan in plans]
    feed.give(PREDICTIONS, *(prediction(prediction_id=i, features=f) for i, f in zip(ids, features, strict=True)))
    feed.give(LABELS, *(label(prediction_id=id_) for id_ in ids))
    partial, _dead = feed.flush()
    (counted,) = of(partial, "labels")
    often = feed.catalog.reference("churn", "1").features["plan"].counts[:3]  # type: ignore[union-attr]
    kept = [f"plan={'abc'[cell]}" for cell in np.argsort(-often)[:most]]
    assert set(counted.performance) == {"", *kept, "plan (other)"}
    rows = {key: np.frombuffer(vector, np.int64)[0] for key, vector in counted.performance.items()}
    assert rows == {"": len(plans), **dict.fromkeys(kept, 1), "plan (other)": len(plans) - most}
    # A label that is taken back finds the slice it was counted in.
    feed.give(LABELS, *(label(prediction_id=id_, label=None, deleted=True, revision=1) for id_ in ids))
    partial, _dead = feed.flush()
    (back,) = of(partial, "labels")
    assert {key: np.frombuffer(vector, np.int64)[0] for key, vector in back.performance.items()} == {
        key: -n for key, n in rows.items()
    }


def test_a_flush_too_large_for_a_message_goes_in_several_and_time_passes_with_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(partials, "MAX_PARTIAL_BYTES", 2_000)
    feed = Feed()
    days = 40
    feed.give(PREDICTIONS, *(prediction(prediction_id=f"p{day}", ts=T0 - day * 86_400_000) for day in range(days)))
    feed.ingest.prepare()
    records = [record for record in feed.ingest.results(dict(feed.next)) if record.topic == "partials.v1"]
    found = [msgspec.msgpack.decode(record.value, type=Partial) for record in records]
    mine = [partial for partial in found if partial.increments]
    assert len(mine) > 1
    assert all(len(record.value) <= 2_000 for record in records)
    assert sum(increment.events for partial in mine for increment in partial.increments) == days
    assert len({increment.pane_start_ms for partial in mine for increment in partial.increments}) == days
    # Of each evaluate partition exactly one message, the last, carries progress and marks.
    assert len([partial for partial in found if partial.progress]) == SETTINGS.internal_partitions
    assert [bool(partial.progress) for partial in mine] == [False] * (len(mine) - 1) + [True]
    assert [len(partial.marks) for partial in mine] == [0] * (len(mine) - 1) + [1]


def test_one_pane_of_more_slices_than_a_message_holds_goes_in_several_that_add_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(partials, "MAX_PARTIAL_BYTES", 4_000)
    feed = Feed()
    known = reference(config(), plans=[f"plan-{number}" for number in range(30)])
    for part, value in known.to_parts().items():
        feed.catalog.put_reference(f"churn/1/{part}", value)
    ids = [f"p{number}" for number in range(30)]
    plans = [{"age": 30, "plan": f"plan-{number}"} for number in range(30)]
    feed.give(PREDICTIONS, *(prediction(prediction_id=i, features=f) for i, f in zip(ids, plans, strict=True)))
    feed.give(LABELS, *(label(prediction_id=id_) for id_ in ids))
    feed.ingest.prepare()
    records = [record for record in feed.ingest.results(dict(feed.next)) if record.topic == "partials.v1"]
    assert max(len(record.value) for record in records) <= 4_000
    found = [msgspec.msgpack.decode(record.value, type=Partial) for record in records]
    labels = [each for partial in found for each in partial.increments if each.performance]
    assert len(labels) > 1
    assert sorted(key for each in labels for key in each.performance) == [
        "",
        *sorted(f"plan=plan-{n}" for n in range(30)),
    ]
    assert sum(each.labelled for each in labels) == len(ids)


def busy_traffic(random: Random) -> list[tuple[Partition, list[Any]]]:
    """Reads of some hundred events: versions, origins, failures, repeats, corrections, garbage, odd features."""
    reads: list[tuple[Partition, list[Any]]] = []
    for _ in range(6):
        found: list[Any] = []
        for _ in range(random.randrange(1, 120)):
            event = prediction(
                prediction_id=f"p{random.randrange(150)}",
                version=random.choice("112"),
                origin=random.choice(["live", "live", "shadow"]),
                ts=T0 + random.randrange(4) * 60_000,
                features={"age": random.choice([30, 41.5, None, "x"]), "plan": random.choice(["a", "z", 3, None])},
                prediction=random.random() < 0.5,
            )
            if random.random() < 0.1:
                event |= {"prediction": None, "error": "e"}
            if random.random() < 0.1:
                event |= {"rollout_id": "r", "bucket": random.randrange(9), "latency_ms": 2}
            found.append(b"{" if random.random() < 0.03 else event)
        reads.append((PREDICTIONS, found))
        labels = [
            label(prediction_id=f"p{random.randrange(150)}", revision=random.randrange(2), label=random.random() < 0.5)
            for _ in range(random.randrange(1, 60))
        ]
        reads.append((LABELS, labels))
    return reads


SLOT = ("model", "model_epoch", "version", "origin", "source", "pane_start_ms", "pane_ms", "fingerprint")


def named(numbers: list[int], sources: list[tuple[str, str, int]]) -> list[Any]:
    return sorted((sources[at], first, last) for at, first, last in in_threes(numbers))


def content(partial: Partial) -> dict[Any, Any]:
    found = {}
    for each in partial.increments:
        fields = msgspec.structs.asdict(each)
        slot = tuple(fields.pop(name) for name in SLOT)
        fields["offsets"] = named(each.offsets, partial.sources)
        # What came and was taken back may leave zeros, or nothing at all.
        fields["performance"] = {key: vector for key, vector in each.performance.items() if any(vector)}
        if any(fields.values()):
            found[slot] = fields
    marks = sorted((mark.model, named(mark.times, partial.sources)) for mark in partial.marks)
    return {"increments": found, "marks": marks, "tallies": partial.tallies}


@pytest.mark.parametrize("seed", range(15))
def test_however_a_read_is_cut_the_flush_is_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    flushes = []
    for slice_, together in ((4_000, False), (1, False), (33, True)):
        monkeypatch.setattr("streamer.ingest._SLICE", slice_)
        feed = Feed()
        found = []
        for number, (partition, events) in enumerate(busy_traffic(Random(seed))):
            feed.give(partition, *events)
            if not together:
                feed.ingest.idle()
            if number % 4 == 3:
                partial, dead = feed.flush()
                letters = sorted((dict(record.headers)["source-offset"], record.topic, record.value) for record in dead)
                found.append((content(partial), letters))
        flushes.append(found)
    assert flushes[0] == flushes[1] == flushes[2]


def test_a_label_is_kept_where_its_prediction_is_sampled_and_nowhere_else() -> None:
    feed = Feed(labels={"share": 0.3})
    ids = [f"p{number}" for number in range(200)]
    sampled = [id_ for id_ in ids if is_sampled(id_, 0.3)]
    feed.give(PREDICTIONS, *(prediction(prediction_id=id_) for id_ in ids))
    feed.give(LABELS, *(label(prediction_id=id_) for id_ in ids))
    partial, _ = feed.flush()
    assert len(feed.store._records.records) == len(sampled)  # type: ignore[attr-defined]
    assert sum(each.labelled for each in partial.increments) == len(sampled)
    assert 20 < len(sampled) < 100
