"""The recount: what it makes of a log by hand, that ingest makes the same of any log, and how they are compared."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest

from monitors.profile import PerformanceBaseline, build_profile
from monitors.sketch import HistogramSketch
from streamer.audit.recount import Recount, compare, report
from streamer.audit.tally import Place, Tally
from streamer.catalog import Catalog
from streamer.decode import Kind, decode
from streamer.evaluation.evaluate_state import CountKey, PaneCounts
from streamer.events import Partial
from streamer.ingest import Ingest
from streamer.join.labels import JoinStore
from streamer.join.records import MAX_OF_A_KIND
from streamer.stage import Batch, Partition, Standing
from streamer.state import Keys
from tests.streamer.logs import PANE, SETTINGS, T0, catalog_of, config
from tests.streamer.stores import MemoryRecords

KINDS: tuple[Kind, ...] = ("predictions", "features", "labels")
Log = dict[Kind, list[list[dict[str, Any]]]]


def prediction(**changes: Any) -> dict[str, Any]:
    event = {"prediction_id": "p1", "model": "churn", "version": "1", "ts": T0, "prediction": True, "score": 0.8}
    return {**event, "features": {"age": 40.0, "plan": "a"}, **changes}


def label(**changes: Any) -> dict[str, Any]:
    return {"prediction_id": "p1", "model": "churn", "ts": T0 + 5_000, "label": True, **changes}


def tallied(catalog: Catalog, log: Log) -> Tally:
    """Count a log of one list of events a partition; its record times are all the same."""
    places: dict[Kind, list[Place]] = {
        kind: [
            Place(T0, partition, offset, 0, decode(json.dumps(event).encode(), kind))
            for partition, events in enumerate(log.get(kind, []))
            for offset, event in enumerate(events)
        ]
        for kind in KINDS
    }
    tally = Tally(catalog)
    tally.add_predictions(places["predictions"])
    tally.add_features(places["features"])
    tally.add_labels(places["labels"])
    return tally


def counted(log: Log, **sections: Any) -> dict[tuple[str, str], Any]:
    panes = tallied(catalog_of(config(**sections)), log).panes()
    return {(key.kind, key.name): counts.tolist() for key, counts in panes.items()}


def test_events_and_cells_are_counted_by_pane() -> None:
    catalog = catalog_of(config())
    log: Log = {"predictions": [[prediction(), prediction(prediction_id="p2", ts=T0 + PANE, features={"plan": "zz"})]]}
    panes = tallied(catalog, log).panes()
    assert panes["churn", "1", "live", PANE, T0, "events", ""].tolist() == [1]
    assert panes["churn", "1", "live", PANE, T0, "cells", "plan"].tolist() == [1, 0, 0, 0, 0, 0, 0]
    later = [panes["churn", "1", "live", PANE, T0 + PANE, "cells", name] for name in ("age", "plan")]
    assert later[0][-4:].tolist() == [1, 0, 0, 0]
    assert later[1][-4:].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("label_ms", "labelled"),
    [([30_000], 1), ([180_000], 0), ([-20_000], 1), ([-180_000], 0), ([50_000, 110_000], 1), ([50_000, 300_000], 1)],
)
def test_a_label_further_from_its_prediction_than_the_horizon_is_not_counted(
    label_ms: list[int], labelled: int
) -> None:
    tally = Tally(catalog_of(config(labels={"horizon": "30s"})))
    tally.add_predictions([Place(T0, 0, 0, 0, decode(json.dumps(prediction()).encode(), "predictions"))])
    truths = [decode(json.dumps(label(revision=number)).encode(), "labels") for number in range(len(label_ms))]
    tally.add_labels(
        Place(T0 + ms, 0, at, 0, truth) for at, (ms, truth) in enumerate(zip(label_ms, truths, strict=True))
    )
    found = tally.panes().get(("churn", "1", "live", PANE, T0, "labelled", ""))
    assert (0 if found is None else int(found[0])) == labelled


def test_a_number_in_a_text_is_unseen() -> None:
    cells = counted({"predictions": [[prediction(features={"age": "40"})]]})["cells", "age"]
    assert cells[-1] == 1


def test_the_first_prediction_counts_and_its_copies_do_not() -> None:
    log: Log = {"predictions": [[prediction(), prediction(), prediction(origin="shadow")], [prediction()]]}
    tally = tallied(catalog_of(config()), log)
    assert tally.events == 2


def test_a_failed_prediction_is_an_event_but_no_sample() -> None:
    found = counted({"predictions": [[prediction(prediction=None, error="down")] * 2]})
    assert (found["events", ""], found["sampled", ""]) == ([2], [0])


def test_the_effective_label_is_the_largest_by_revision_time_and_place() -> None:
    log: Log = {
        "predictions": [[prediction()]],
        "labels": [
            [label(label=True, revision=1), label(label=False, revision=0, ts=T0 + 9_000)],
            [label(label=False)],
        ],
    }
    vector = counted(log)["performance", ""]
    assert vector[:4] == [1, 1, 0, 0]
    assert counted(log)["performance", "plan=a"] == vector


def sliced(logs: list[list[dict[str, Any]]], **changes: Any) -> set[str]:
    """Return the slices a labelled prediction is counted in, with these feature logs."""
    apart = {"plan": {"kind": "categorical", "source": "features"}}
    log: Log = {"predictions": [[prediction(**changes)]], "features": logs, "labels": [[label()]]}
    found = counted(log, features=apart)
    return {name for (kind, name) in found if kind == "performance" and name}


def feature_log(**changes: Any) -> dict[str, Any]:
    return {"prediction_id": "p1", "model": "churn", "ts": T0, "features": {"plan": "b"}, **changes}


def test_a_prediction_is_in_the_slices_that_are_logged_of_it_and_that_it_does_not_say_itself() -> None:
    assert sliced([[feature_log()]], features={"age": 40.0}) == {"plan=b"}
    assert sliced([[feature_log()]]) == {"plan=a"}
    assert sliced([[feature_log(prediction_id="p2"), feature_log(prediction_id=None)]], features={}) == set()


def test_the_newest_feature_log_that_says_a_feature_slices_its_prediction() -> None:
    later = feature_log(features={"plan": "c"}, ts=T0 + 1)
    silent = feature_log(features={"plan": None}, ts=T0 + 2)
    assert sliced([[later, feature_log(), silent]], features={}) == {"plan=c"}
    assert sliced([[feature_log()], [feature_log(features={"plan": "a"})]], features={}) == {"plan=a"}


def test_a_value_that_the_reference_does_not_know_is_in_the_slice_of_the_others() -> None:
    assert sliced([[feature_log(features={"plan": "d"})]], features={}) == {"plan (other)"}
    assert sliced([[feature_log()]], features={}, version="9") == {"plan (other)"}


def test_a_deleted_label_leaves_nothing() -> None:
    log: Log = {"predictions": [[prediction()]], "labels": [[label(), label(label=None, deleted=True, revision=1)]]}
    assert ("labelled", "") not in counted(log)
    assert ("performance", "") not in counted(log)


def test_labels_in_context_count_without_their_prediction() -> None:
    context = {"version": "1", "prediction": True, "score": 0.9, "prediction_ts": T0}
    log: Log = {"labels": [[label(**context), label(**context, label=False, previous=True)]]}
    found = counted({**log}, labels={"mode": "context"})
    assert found["labelled", ""] == [1]
    assert found["performance", ""][:4] == [1, 0, 1, 0]


def catalog_for(task: str, mode: str) -> Catalog:
    """A model with two features of its own and one logged apart, a slice each, and a reference of version 1 alone."""
    model = config(
        task=task,
        positive=True if task == "binary" else None,
        features={"apart": {"kind": "numeric", "source": "features"}},
        slices=["plan", "apart"],
        labels={"mode": mode, "share": 0.8},
    )
    rng = np.random.default_rng(0)
    said: dict[str, Any] = {"@score": rng.uniform(0, 1, 500)}
    if task == "multiclass":
        said = {"@prediction": np.array(["x", "y"], dtype=object)[rng.integers(0, 2, 500)]}
    plans = np.array(["a", "1", "true"], dtype=object)[rng.integers(0, 3, 500)]
    columns = {"age": rng.normal(40, 10, 500), "plan": plans, "apart": rng.integers(0, 3, 500).astype(float), **said}
    kinds: dict[str, Any] = dict.fromkeys(columns, "numeric") | {
        "plan": "categorical",
        "@prediction": "categorical",
    }
    profile = build_profile(
        model=model.name,
        version="1",
        columns=columns,
        kinds={name: kinds[name] for name in columns},
        panes=None,
        baseline=PerformanceBaseline({"accuracy": 0.9}, "accuracy", 0.9, 0.01, 1_000),
        created_ms=T0,
    )
    catalog = Catalog()
    catalog.put_model(model.name, model.to_json())
    for part, value in profile.to_parts().items():
        catalog.put_reference(f"{model.name}/1/{part}", value)
    return catalog


def random_log(random: Random, task: str, mode: str) -> Log:
    """Events with every oddity that still counts, spread over two partitions, ids over few predictions."""
    log: Log = {kind: [[], []] for kind in KINDS}
    odd = [None, "text", "40.5", True, 10**400, -5, 1e300, 40.25, 0, 2.0]
    said: list[Any] = {"binary": [True, False, "yes"], "regression": [0.5, 40, -1.25]}.get(task, ["x", "y", 1])
    scores: list[Any] = [None, 0.0, 0.25, 1.0, 7.5]
    scores += [{"x": 0.25, "y": 0.75}] if task == "multiclass" else [{"true": 0.25}] * (task == "binary")
    for _ in range(random.randrange(60)):
        number = random.randrange(12)
        shared = {"prediction_id": f"p{number}", "model": "churn", "version": random.choice(["1", "2"])}
        moment = T0 + number * 17_000
        kind = random.choice(KINDS)
        if kind == "predictions":
            # All copies of an id and version say the same, as a producer that repeats itself does.
            same = Random(f"{number}{shared['version']}")
            values = {name: same.choice(odd) for name in ("age", "plan", "other", "apart") if same.random() < 0.9}
            failed = same.random() < 0.1
            event = {**shared, "ts": moment, "features": values, "origin": random.choice(["live", "shadow"])}
            event |= {"prediction": None, "error": "x"} if failed else {"prediction": same.choice(said)}
            event["score"] = same.choice(scores)
        elif kind == "features":
            event = {**shared, "ts": moment + random.randrange(3), "features": {"apart": random.choice(odd), "age": 1}}
            event["features"] |= {"plan": "b"} if random.random() < 0.5 else {}
            if random.random() < 0.1:
                event["prediction_id"] = random.choice([None, ""])
        else:
            event = {**shared, "ts": T0 + random.randrange(4), "revision": random.randrange(2)}
            event |= {"deleted": True} if random.random() < 0.2 else {"label": random.choice(said)}
            if mode == "context":
                event |= {"prediction": random.choice(said), "score": random.choice(scores), "prediction_ts": moment}
                event |= {"previous": random.choice(said)} if random.random() < 0.2 else {}
        log[kind][random.randrange(2)].append(event)
    return log


def test_of_more_labels_than_a_record_has_room_for_the_first_are_counted_as_ingest_does() -> None:
    catalog = catalog_of(config(labels={"horizon": "1d"}))
    labels = [label(ts=T0 + number, label=number < MAX_OF_A_KIND) for number in range(MAX_OF_A_KIND + 3)]
    log: Log = {"predictions": [[prediction()], []], "features": [[], []], "labels": [labels, []]}
    truth = Recount(panes=tallied(catalog, log).panes())
    for seed in range(5):
        assert compare(truth, ingested(catalog, log, Random(seed))) == []


def ingested(catalog: Catalog, log: Log, random: Random, changed: bytes | None = None) -> PaneCounts:
    """Feed a log to ingest in batches of any size, and add up what it sends; by and by its model is `changed`."""
    store = JoinStore(None, Keys(), buckets=4, wait_aof=False, hold_ms=0)  # type: ignore[arg-type]
    store._records = MemoryRecords()  # type: ignore[assignment]
    names = {f"{kind}.v1": kind for kind in KINDS}
    counts = dict.fromkeys(names, 2)
    ids = {name: f"{name[:4]}id" for name in names}
    ingest = Ingest(SETTINGS, catalog, store, replica="0", topic_ids=ids, partition_counts=lambda: counts)
    partitions = [Partition(name, number) for name in names for number in range(2)]
    at = ingest.restore({partition: Standing(None, 0) for partition in partitions})
    panes: PaneCounts = {}
    while True:
        left = [p for p in partitions if at[p] < len(log[names[p.topic]][p.number])]
        if left:
            partition = random.choice(left)
            start, end = at[partition], at[partition] + random.randrange(1, 10)
            values = [json.dumps(event).encode() for event in log[names[partition.topic]][partition.number][start:end]]
            at[partition] = start + len(values)
            offsets = list(range(start, at[partition]))
            n = len(values)
            ingest.fold(Batch(partition, start, at[partition], True, T0, offsets, [T0] * n, [b""] * n, values))
        if changed is not None and random.random() < 0.2:
            catalog.put_model("churn", changed)
            changed = None
        if not left or random.random() < 0.3:
            ingest.prepare()
            records = list(ingest.results(dict(at)))
            assert [record.topic for record in records] == ["partials.v1"]
            add(catalog, panes, msgspec.msgpack.decode(records[0].value or b"", type=Partial))
            ingest.committed()
        if not left:
            return panes


def add(catalog: Catalog, panes: PaneCounts, flush: Partial) -> None:
    model = catalog.model("churn")
    assert model is not None
    for increment in flush.increments:
        pane = (increment.model, increment.version, increment.origin, increment.pane_ms, increment.pane_start_ms)
        found: dict[tuple[str, str], Any] = {("labelled", ""): np.array([increment.labelled])}
        if increment.source == "predictions":
            found |= {("events", ""): np.array([increment.events]), ("sampled", ""): np.array([increment.sampled])}
        profile = catalog.reference(increment.model, increment.version)
        if profile is not None:
            sketch = HistogramSketch.empty(profile.fingerprint)
            sketch.add_pairs(increment.cells)
            cells = sketch.whole(profile.layout.size)
            found |= {("cells", name): cells[place] for name, place in profile.layout.places.items()}
        for name, raw in increment.performance.items():
            found["performance", name] = np.frombuffer(raw, model.schema.dtype)
        for (kind, name), array in found.items():
            key = CountKey(*pane, kind, name)
            panes[key] = panes[key] + array if key in panes else array


@pytest.mark.parametrize("mode", ["join", "context"])
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_ingest_counts_any_log_as_the_recount_does(task: str, mode: str) -> None:
    catalog = catalog_for(task, mode)
    for seed in range(60):
        random = Random(f"{task}{mode}{seed}")
        log = random_log(random, task, mode)
        truth = Recount(panes=tallied(catalog, log).panes())
        assert compare(truth, ingested(catalog, log, random)) == [], f"seed {seed}"


@pytest.mark.parametrize("pane", ["7m", "20s", "90s"])
@pytest.mark.parametrize("mode", ["join", "context"])
def test_a_change_of_the_panes_width_midway_is_no_difference(mode: str, pane: str) -> None:
    mixed = 0
    for seed in range(20):
        random, catalog = Random(f"{mode}{pane}{seed}"), catalog_for("binary", mode)
        log = random_log(random, "binary", mode)
        model = catalog.model("churn")
        assert model is not None
        changed = msgspec.json.decode(model.config.to_json())
        changed["time"]["pane"] = pane
        counts = ingested(catalog, log, random, msgspec.json.encode(changed))
        told = report(Recount(panes=tallied(catalog, log).panes()), counts)
        assert told.differences == [], f"seed {seed}"
        mixed += told.spanned > 0
    assert mixed > 5


KEY = CountKey("churn", "1", "live", PANE, T0, "cells", "age")


def test_what_one_side_does_not_have_is_zero() -> None:
    empty = Recount(panes={KEY: np.array([0, 0])})
    assert compare(empty, {}) == []
    assert compare(Recount(), {KEY: np.array([0])}) == []
    assert compare(Recount(panes={KEY: np.array([1, 2, 0])}), {KEY: np.array([1, 2])}) == []


def test_panes_of_a_former_width_are_compared_with_all_of_their_span() -> None:
    old, other = KEY._replace(pane_ms=2 * PANE), KEY._replace(model="other")
    truth = {KEY._replace(pane_start_ms=T0 + number * PANE): np.array([1, number]) for number in range(8)}
    truth[other] = np.array([4])
    span = T0 - T0 % (6 * PANE)
    assert span + 6 * PANE < T0 + 7 * PANE, "the last pane is in a span without a former one"
    start = (T0 + PANE) - (T0 + PANE) % (2 * PANE)
    in_old = {key for key in truth if key.model == "churn" and start <= key.pane_start_ms < start + 2 * PANE}
    kept = {key: counts for key, counts in truth.items() if key not in in_old}
    kept[old._replace(pane_start_ms=start)] = np.array([len(in_old), sum(int(truth[key][1]) for key in in_old)])
    assert compare(Recount(panes=truth), kept) == []
    kept[old._replace(pane_start_ms=start)] += 1
    (found,) = compare(Recount(panes=truth), kept)
    assert (found.pane_ms, found.pane_start_ms) == (2 * PANE, start)
    assert (np.array(found.got) - found.wanted).tolist() == [1, 1]


def test_panes_of_widths_that_do_not_divide_each_other_are_compared_where_both_begin() -> None:
    start = T0 // (6 * PANE) * 6 * PANE
    wide = KEY._replace(pane_ms=3 * PANE, pane_start_ms=start)
    narrow = KEY._replace(pane_ms=2 * PANE, pane_start_ms=start + 4 * PANE)
    truth = Recount(panes={narrow: np.array([5]), narrow._replace(pane_start_ms=start): np.array([2])})
    assert compare(truth, {wide: np.array([2]), narrow: np.array([5])}) == []
    (found,) = compare(truth, {wide: np.array([2]), narrow: np.array([4])})
    assert (found.pane_ms, found.pane_start_ms, found.wanted, found.got) == (6 * PANE, start, [7.0], [6.0])
    assert (report(truth, {wide: np.array([7])}).compared, report(truth, {wide: np.array([7])}).spanned) == (1, 1)
    truth.floors["churn"] = start + 1
    told = report(truth, {wide: np.array([1])})
    assert told.equal, "what workers have forgotten part of is passed over"
    assert (told.compared, told.spanned, told.left_out) == (0, 0, 1)


def test_a_difference_says_where_and_what_was_wanted_and_got() -> None:
    (found,) = compare(Recount(panes={KEY: np.array([1, 2])}), {KEY: np.array([1, 3])})
    assert (found.model, found.pane_start_ms, found.kind, found.name) == ("churn", T0, "cells", "age")
    assert (found.wanted, found.got) == ([1.0, 2.0], [1.0, 3.0])
    (lost,) = compare(Recount(panes={KEY: np.array([5])}), {})
    assert lost.got == [0.0]


def test_panes_that_workers_may_have_forgotten_are_passed_over() -> None:
    assert compare(Recount(panes={KEY: np.array([5])}, floors={"churn": T0 + 1}), {}) == []
    assert len(compare(Recount(panes={KEY: np.array([5])}, floors={"churn": T0}), {})) == 1


def test_float_sums_may_differ_by_rounding_alone() -> None:
    key = KEY._replace(kind="performance", name="")
    sums = np.array([10.0, 1e6, 1e9])
    truth = Recount(panes={key: sums})
    assert compare(truth, {key: sums + 1e-3}) == []
    assert len(compare(truth, {key: sums + 10})) == 1
