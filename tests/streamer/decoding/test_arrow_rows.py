"""Rows of an Arrow message are counted, joined and refused as the same events are that come as JSON, one by one."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from streamer.counting.rows import Places
from streamer.decoding.arrow_batches import read
from streamer.decoding.arrow_checks import sorted_out
from streamer.models import parse_model
from streamer.stage import Partition
from tests.streamer.arrows import arrow_of
from tests.streamer.logs import SETTINGS, T0, catalog_of, config, reference
from tests.streamer.test_ingest import LABELS, PREDICTIONS, Feed, content, label, of, prediction

CONTEXT = {"version": "1", "prediction": True, "score": 0.75, "prediction_ts": T0}
AHEAD = T0 + 10**10


def garbled(random: Random, event: dict[str, Any], ways: list[dict[str, Any]]) -> dict[str, Any]:
    """Return an event, one time in ten with something that is wrong with it."""
    changed = {**event, **(random.choice(ways) if random.random() < 0.1 else {})}
    return {name: value for name, value in changed.items() if value is not None}


def some_predictions(random: Random, n: int, ids: int = 150) -> list[dict[str, Any]]:
    """Predictions whose columns each hold one kind of values: versions, failures, repeats, faults."""
    ages = random.choice([[30, 41, 2**60], [30.5, 41.0, None], ["x", "40"], [True, False, None], [None]])
    plans = random.choice([["a", "z", None], [1, 2, None], [1.0, 2.5], [True, None]])
    said = random.choice([[True, False], ["true", "no"], [0, 1], [0.25, 1.0]])
    scores = random.choice([[0.25, 0.75, None], [None], [1, 0], [{"true": 0.25, "false": 0.5}, {"false": 1.0}, None]])
    ways = [
        {"prediction_id": ""},
        {"prediction_id": "x" * 201},
        {"prediction_id": None},
        {"model": "nobody"},
        {"model": "Not A Name"},
        {"version": "UPPER"},
        {"ts": 1_700_000_000},
        {"ts": AHEAD},
        {"ts": None},
        {"prediction": None},
        {"origin": "dream"},
        {"bucket": 1_000},
        {"prediction": None, "error": "e"},
    ]
    return [
        garbled(
            random,
            {
                **prediction(prediction_id=f"p{random.randrange(ids)}", version=random.choice("112")),
                "origin": random.choice(["live", "live", "shadow", None]),
                "ts": T0 + random.randrange(4) * 60_000,
                "features": {"age": random.choice(ages), "plan": random.choice(plans), "spare": 1},
                "prediction": random.choice(said),
                "score": random.choice(scores),
                **random.choice([{}, {"rollout_id": "r", "bucket": random.randrange(9), "latency_ms": 2.5}]),
            },
            ways,
        )
        for _ in range(n)
    ]


def some_labels(random: Random, n: int) -> list[dict[str, Any]]:
    """Labels, with corrections, deletions and faults."""
    truths = random.choice([[True, False], ["true", "false"], [0, 1]])
    ways = [
        {"prediction_id": ""},
        {"model": "nobody"},
        {"label": None},
        {"label": None, "deleted": True},
        {"ts": 5},
        {"prediction_ts": 5},
        {"prediction_ts": AHEAD},
        {"version": None},
        {"prediction_ts": None},
    ]
    return [
        garbled(
            random,
            {
                **label(prediction_id=f"p{random.randrange(150)}", label=random.choice(truths)),
                "revision": random.choice([0, 1, 2, None]),
                **CONTEXT,
                "previous": random.choice([*truths, None]),
            },
            ways,
        )
        for _ in range(n)
    ]


def outcome(feed: Feed) -> tuple[Any, list[Any]]:
    """Return what a flush says, without the places in the log, and its dead letters."""
    partial, dead = feed.flush()
    found = content(partial)
    for fields in found["increments"].values():
        del fields["offsets"]
    headers = [dict(record.headers or ()) for record in dead]
    letters = [(each["reason"], each["field"], record.value) for each, record in zip(headers, dead, strict=True)]
    return found, [(reason, field, json.loads(value)) for reason, field, value in letters]


@pytest.mark.parametrize("mode", ["join", "context"])
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("seed", range(6))
def test_rows_are_what_the_events_one_by_one_would_be(task: str, mode: str, seed: int) -> None:
    random = Random(f"{task}{mode}{seed}")
    given: list[tuple[Partition, list[dict[str, Any]]]] = []
    for _ in range(5):
        given.append((PREDICTIONS, some_predictions(random, random.randrange(1, 120))))
        given.append((LABELS, some_labels(random, random.randrange(1, 60))))
    sections: dict[str, Any] = {"task": task, "labels": {"mode": mode}}
    if task != "binary":
        sections["positive"] = None
    alone, mixed = Feed(**sections), Feed(**sections)
    for partition, events in given:
        alone.give(partition, *events)
        cut = random.randrange(len(events) + 1)
        mixed.give(partition, *([arrow_of(events[:cut], random)] if cut else ()), *events[cut:])
        if random.random() < 0.4:
            assert outcome(mixed) == outcome(alone)
    assert outcome(mixed) == outcome(alone)


def test_a_wrong_row_is_a_dead_letter_alone_and_can_be_sent_again() -> None:
    feed = Feed()
    events = [prediction(), prediction(prediction_id="p2", ts=5), prediction(prediction_id="p3")]
    feed.give(PREDICTIONS, arrow_of(events))
    partial, (dead,) = feed.flush()
    assert [increment.events for increment in partial.increments] == [2]
    headers = dict(dead.headers)
    assert (headers["row"], headers["source-offset"], headers["field"]) == (b"1", b"0", b"ts")
    assert json.loads(dead.value) == events[1]
    feed.give(PREDICTIONS, {**json.loads(dead.value), "ts": T0})
    assert [increment.events for increment in feed.flush()[0].increments] == [1]


def test_a_message_that_cannot_be_read_is_one_dead_letter_with_its_bytes() -> None:
    feed = Feed()
    broken = arrow_of([prediction(ts="x"), prediction(ts="y")])
    feed.give(PREDICTIONS, prediction(), broken, prediction(prediction_id="p2"))
    partial, (dead,) = feed.flush()
    assert [increment.events for increment in partial.increments] == [2]
    headers = dict(dead.headers)
    assert (headers["row"], headers["field"], dead.value) == (b"", b"ts", broken)
    assert headers["reason"].endswith(b", wanted an integer")


def test_a_row_has_a_place_of_its_own_and_is_known_when_it_is_read_again() -> None:
    feed = Feed()
    batch = arrow_of([prediction(), prediction(), prediction(prediction_id="p2")])
    feed.give(PREDICTIONS, batch)
    first, _dead = feed.flush()
    assert sum(increment.events for increment in first.increments) == 2
    assert first.tallies == {"churn": {"repeated": 1}}
    feed.committed = {PREDICTIONS: 0, LABELS: 0}
    feed.start()
    feed.give(PREDICTIONS, batch)
    again, _dead = feed.flush()
    assert content(again) == content(first)


def test_feature_logs_in_a_batch_are_counted_as_features() -> None:
    model = config(features={"age": {"kind": "numeric", "source": "features"}})
    feed = Feed()
    feed.catalog.put_model("churn", model.to_json())
    logs = Partition("features.v1", 0)
    feed.next[logs] = 0
    event = {"model": "churn", "version": "1", "ts": T0, "features": {"age": 30.0}}
    feed.give(logs, arrow_of([event, {**event, "features": None}, {**event, "features": {"age": None}}]))
    feed.ingest._progress[logs] = 0
    partial, (dead,) = feed.flush()
    assert [(i.source, i.events, bool(i.cells)) for i in partial.increments] == [("features", 2, True)]
    assert dict(dead.headers)["field"] == b"features"


@pytest.mark.parametrize("as_batch", [True, False])
def test_feature_logs_slice_the_predictions_they_name_in_a_batch_and_one_by_one(as_batch: bool) -> None:
    feed = Feed(features={"plan": {"kind": "categorical", "source": "features"}})
    logs = Partition("features.v1", 0)
    feed.next[logs] = feed.ingest._progress[logs] = 0
    feed.give(PREDICTIONS, *(prediction(prediction_id=f"p{n}", features={"age": 40.0}) for n in range(4)))
    feed.give(LABELS, *(label(prediction_id=f"p{n}") for n in range(4)))
    feed.flush()
    log = {"model": "churn", "version": "1", "ts": T0, "features": {"plan": "b", "age": 1.0}}
    events = [
        {**log, "prediction_id": "p0"},
        {**log, "prediction_id": "p1", "features": {"plan": "c", "age": 1.0}},
        {**log, "prediction_id": "p2", "features": {"plan": None, "age": 1.0}},
        {**log, "prediction_id": None},
    ]
    feed.give(logs, *([arrow_of(events)] if as_batch else events))
    (increment,) = of(feed.flush()[0], "labels")
    counts = {name: int(np.frombuffer(raw, "<i8")[0]) for name, raw in increment.performance.items()}
    assert counts == {"plan=b": 1, "plan=c": 1}
    assert increment.labelled == 0


def test_numbers_are_told_apart_as_slices_though_no_float_could() -> None:
    feed = Feed()
    large = 2**53
    known = reference(config(), plans=[str(large), str(large + 1)])
    for part, value in known.to_parts().items():
        feed.catalog.put_reference(f"churn/1/{part}", value)
    events = [prediction(prediction_id=f"p{n}", features={"plan": large + n}) for n in range(2)]
    feed.give(PREDICTIONS, arrow_of(events))
    feed.give(LABELS, arrow_of([label(prediction_id="p0"), label(prediction_id="p1")]))
    partial, _dead = feed.flush()
    (increment,) = [each for each in partial.increments if each.source == "labels" and each.version == "1"]
    assert sorted(increment.performance) == ["", f"plan={large}", f"plan={large + 1}"]


def test_each_model_of_a_batch_has_its_rows() -> None:
    catalog = catalog_of(config())
    other = parse_model({**config().model_dump(mode="json", by_alias=True), "name": "other"}, "test")
    catalog.put_model("other", other.to_json())
    names = ["churn", "other", "other", "nobody", "churn"]
    events = [prediction(prediction_id=f"p{n}", model=name) for n, name in enumerate(names)]
    place = Places([("predictions.v1", "AAAA", 0)], np.array([0]), np.array([7]), np.array([T0]))
    rows, buried = sorted_out(read(arrow_of(events), "predictions"), catalog, place, SETTINGS.worker.max_future_ms)
    named = [rows.models[number].name for number in rows.model_of.tolist()]
    assert list(zip(named, rows.prediction_ids, strict=True)) == [
        ("churn", "p0"),
        ("other", "p1"),
        ("other", "p2"),
        ("churn", "p4"),
    ]
    assert rows.places.positions() == ["AAAA:0:7:0", "AAAA:0:7:1", "AAAA:0:7:2", "AAAA:0:7:4"]
    assert [(each.row, each.fault[1]) for each in buried] == [(3, "model")]


def test_what_is_kept_of_wrong_rows_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.decoding.arrow_checks.MAX_BURIED_BYTES", 400)
    feed = Feed()
    feed.give(PREDICTIONS, arrow_of([prediction(prediction_id=f"p{n}", model="nobody") for n in range(5)]))
    _partial, dead = feed.flush()
    modes = [dict(record.headers)["mode"] for record in dead]
    assert modes == [b"raw", b"raw", b"redacted", b"redacted", b"redacted"]
    assert [dict(record.headers)["row"] for record in dead] == [b"0", b"1", b"2", b"3", b"4"]


def test_a_batch_of_too_many_wrong_rows_is_put_aside_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.decoding.arrow_checks.MAX_BURIED_ROWS", 3)
    for wrong, letters, counted in ((3, 3, 2), (4, 1, 0)):
        feed = Feed()
        events = [prediction(prediction_id=f"p{n}", model="nobody" if n < wrong else "churn") for n in range(wrong + 2)]
        feed.give(PREDICTIONS, arrow_of(events))
        partial, dead = feed.flush()
        assert len(dead) == letters
        assert sum(each.events for each in partial.increments) == counted
    (letter,) = dead
    headers = dict(letter.headers)
    assert (headers["field"], letter.value) == (b"model", arrow_of(events))
    assert headers["reason"].startswith(b"got more than 3 rows that cannot be counted, row 3 among them (model: got")


def test_an_empty_batch_counts_nothing() -> None:
    feed = Feed()
    whole = read(arrow_of([prediction()]), "predictions")
    assert len(whole) == 1
    sink = pa.BufferOutputStream()
    schema = pa.schema([("prediction_id", pa.string()), ("model", pa.string()), ("ts", pa.int64())])
    with pa.ipc.new_stream(sink, schema):
        pass
    feed.give(PREDICTIONS, sink.getvalue().to_pybytes())
    partial, dead = feed.flush()
    assert (partial.increments, dead) == ([], [])
