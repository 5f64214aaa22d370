from __future__ import annotations

import math
from collections import Counter
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors.binning import Binning
from monitors.cells import NO_CELL, CellTable
from monitors.performance import PerformanceSchema
from monitors.profile import build_profile
from monitors.sketch import HistogramSketch
from streamer.audit.tally import Place, Tally
from streamer.catalog import Catalog
from streamer.counting import increments
from streamer.counting.column_blocks import column_blocks
from streamer.counting.columns import Coded, TextCells, Watched
from streamer.counting.fold import Counted, Folder, is_sampled
from streamer.counting.lanes import number_cells
from streamer.evaluation.pane_store import Pane, Source, decode_pane, encode_pane, in_threes, offset_ranges
from streamer.events import FeatureLog, Increment, Prediction
from streamer.models import ModelConfig, parse_model
from tests.streamer.logs import PANE, T0, catalog_of, config, contribution, predictions, reference, rows_of

SOURCE = ("predictions.v1", "id", 0)


def folded(catalog: Catalog, events: list[Prediction], *, pieces: int = 1) -> list[Increment]:
    folder = Folder(catalog)
    for piece in np.array_split(np.arange(len(events)), pieces):
        if len(piece):
            folder.predictions(rows_of(catalog, [events[i] for i in piece], SOURCE[0], piece.tolist()))
    return folder.counted().increments


def pane_of(increments: list[Increment], start_ms: int, late: bool = False) -> Pane:
    pane = Pane()
    for increment in increments:
        if increment.pane_start_ms == start_ms:
            pane.add(increment, [SOURCE], late=late, schema=PerformanceSchema("binary", "1"))
    return pane


def test_counts_are_those_of_a_loop_over_the_events() -> None:
    catalog = catalog_of(config())
    events = predictions(0, 50) + predictions(1, 30)
    profile = catalog.reference("churn", "1")
    assert profile is not None
    slots = folded(catalog, events)
    assert sorted(increment.pane_start_ms for increment in slots) == [T0, T0 + PANE]
    plan = profile.features["plan"].binning
    cells = Counter(int(plan.assign(np.array([e.features["plan"]], dtype=object))[0]) for e in events[:50])
    counts = pane_of(slots, T0).counts(profile, late=False)[profile.layout.places["plan"]]
    assert {cell: int(n) for cell, n in enumerate(counts) if n} == dict(cells)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.integers(1, 60))
def test_however_a_batch_is_cut_the_panes_are_the_same(pieces: int, n: int) -> None:
    catalog = catalog_of(config())
    events = predictions(0, n) + predictions(2, n)
    whole, cut = folded(catalog, events), folded(catalog, events, pieces=pieces)
    assert encode_pane(pane_of(whole, T0)) == encode_pane(pane_of(cut, T0))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 50), st.booleans())
def test_a_pane_comes_back_from_its_stored_parts(n: int, late: bool) -> None:
    catalog = catalog_of(config())
    events = predictions(0, n, rollout_id="r", bucket=7, latency_ms=1.5)
    pane = pane_of(folded(catalog, events), T0, late)
    pane.looked = "yes"
    parts = encode_pane(pane)
    back = decode_pane(dict(enumerate(parts)))
    assert encode_pane(back) == parts
    assert back.events == n
    assert back.offsets == {SOURCE: (0, n - 1)}


def test_a_regression_s_sums_come_back_as_the_numbers_they_were() -> None:
    pane = Pane(performance={"": np.array([1.0, 2.5]), "plan=a": np.array([0.1, -3e9])})
    back = decode_pane(dict(enumerate(encode_pane(pane))))
    assert {key: vector.tolist() for key, vector in back.performance.items()} == {"": [1.0, 2.5], "plan=a": [0.1, -3e9]}


def test_a_large_pane_is_stored_in_parts_small_enough_for_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.evaluation.pane_store._PART_BYTES", 200)
    pane = pane_of(folded(catalog_of(config()), predictions(0, 100)), T0)
    parts = encode_pane(pane)
    assert len(parts) > 1
    back = decode_pane(dict(enumerate(parts)))
    assert encode_pane(back) == parts


def test_a_version_without_a_reference_is_counted_and_not_binned() -> None:
    slots = folded(catalog_of(config(), "1"), predictions(0, 20, version="7"))
    (increment,) = slots
    assert increment.fingerprint == ""
    assert increment.events == 20
    assert increment.cells == b""


def test_values_of_another_kind_are_counted_not_refused() -> None:
    catalog = catalog_of(config())
    events = predictions(0, 4)
    events[0].features["age"] = "forty"
    events[1].features["age"] = None
    events[2].features["plan"] = 3
    del events[3].features["plan"]
    profile = catalog.reference("churn", "1")
    assert profile is not None
    pane = pane_of(folded(catalog, events), T0)
    age, plan = profile.features["age"].binning, profile.features["plan"].binning
    counts = pane.counts(profile, late=False)
    ages, plans = counts[profile.layout.places["age"]], counts[profile.layout.places["plan"]]
    assert (ages[age.unseen], ages[age.missing]) == (1, 1)
    assert (plans[plan.unseen], plans[plan.missing]) == (1, 1)


def test_failed_predictions_are_errors_and_wait_for_no_label() -> None:
    events = predictions(0, 10)
    for event in events[:3]:
        event.error, event.prediction = "time-out", None
    (increment,) = folded(catalog_of(config()), events)
    assert (increment.events, increment.errors, increment.sampled) == (10, 3, 7)


def test_feature_logs_fill_the_features_they_are_the_source_of() -> None:
    model: ModelConfig = config(features={"age": {"kind": "numeric", "source": "features"}})
    catalog = catalog_of(model)
    folder = Folder(catalog)
    logs = [FeatureLog(model="churn", ts=T0, features={"age": 30.0}, version="1") for _ in range(5)]
    folder.features(rows_of(catalog, logs, "features.v1", range(5)))
    folder.predictions(rows_of(catalog, predictions(0, 5), SOURCE[0], range(5)))
    profile = catalog.reference("churn", "1")
    assert profile is not None
    filled = {}
    for increment in folder.counted().increments:
        sketch = HistogramSketch.empty(increment.fingerprint)
        sketch.add_pairs(increment.cells)
        counts = sketch.whole(profile.layout.size)
        filled[increment.source] = {name for name, place in profile.layout.places.items() if counts[place].sum() == 5}
    assert filled == {"features": {"age"}, "predictions": {"plan", "@score"}}


def test_a_correction_takes_back_what_the_first_label_gave() -> None:
    catalog = catalog_of(config())
    folder = Folder(catalog)
    (event,) = predictions(0, 1)
    first = contribution(event, True)
    folder.contributions([first])
    folder.contributions([first._replace(sign=-1, labelled=0), contribution(event, False)._replace(labelled=0)])
    (increment,) = folder.counted().increments
    folder.contributions([contribution(event, False)])
    (corrected,) = folder.counted().increments
    assert increment.performance[""] == corrected.performance[""]
    assert increment.labelled == corrected.labelled == 1


def test_the_sample_is_the_same_everywhere_and_about_its_share() -> None:
    ids = [f"id-{i}" for i in range(4_000)]
    chosen = [is_sampled(i, 0.25) for i in ids]
    assert chosen == [is_sampled(i, 0.25) for i in ids]
    assert 0.2 < sum(chosen) / len(ids) < 0.3
    assert all(is_sampled(i, 1.0) for i in ids)


def test_offsets_of_several_panes_make_one_range_a_partition() -> None:
    panes = [Pane(_offsets={SOURCE: (10, 20)}), Pane(_offsets={SOURCE: (5, 12), ("labels.v1", "l", 1): (0, 3)})]
    found = offset_ranges(panes, lambda topic: True)
    assert [(r.topic, r.partition, r.start, r.end) for r in found] == [
        ("labels.v1", 1, 0, 4),
        ("predictions.v1", 0, 5, 21),
    ]


FEATURES: dict[str, dict[str, Any]] = {
    "churn": {"age": {"kind": "numeric"}, "plan": {"kind": "categorical"}},
    # A name that is another kind of feature elsewhere, and one whose reference was built as another kind.
    "fares": {"plan": {"kind": "numeric"}, "km": {"kind": "numeric"}, "age": {"kind": "categorical"}},
    "tier": {"plan": {"kind": "categorical"}, "odd": {"kind": "numeric"}, "late": {"kind": "numeric"}},
    "blind": {"age": {"kind": "numeric"}},
}
TASKS = {"churn": "binary", "fares": "regression", "tier": "multiclass", "blind": "binary"}
SLICES = {"churn": ["plan"], "fares": ["km", "age"]}


def many_models() -> Catalog:
    catalog = Catalog()
    rng = np.random.default_rng(3)
    texts = np.array(["a", "b", "1", "true"], dtype=object)[rng.integers(0, 4, 500)]
    for number, (name, features) in enumerate(FEATURES.items()):
        document = {"name": name, "task": TASKS[name], "positive": True, "features": features}
        document |= {"slices": SLICES.get(name, []), "time": {"pane": f"{1 + number}m"}}
        document |= {"labels": {"share": 0.5 if name == "tier" else 1.0}}
        model = parse_model(document, "test")
        catalog.put_model(name, model.to_json())
        if name == "blind":
            continue
        kinds = {feature: kinds["kind"] for feature, kinds in features.items() if feature != "late"}
        kinds |= {"odd": "categorical"} if name == "tier" else {}
        kinds["@prediction" if name == "tier" else "@score"] = "categorical" if name == "tier" else "numeric"
        columns = {
            feature: texts if kind == "categorical" else rng.lognormal(3, 2, 500).round(1)
            for feature, kind in kinds.items()
        }
        for version in "12":
            profile = build_profile(
                model=name, version=version, columns=columns, kinds=kinds, panes=None, baseline=None, created_ms=T0
            )
            for part, value in profile.to_parts().items():
                catalog.put_reference(f"{name}/{version}/{part}", value)
    return catalog


MANY = many_models()
scalars: st.SearchStrategy[Any] = st.none() | st.booleans() | st.sampled_from(["a", "1", "zzz", 10**400, 1, 2.5])
numbers = st.floats(-10, 1_000) | st.floats(allow_nan=False) | scalars


@st.composite
def any_prediction(draw: st.DrawFn) -> Prediction:
    name = draw(st.sampled_from(sorted(FEATURES)))
    failed = draw(st.integers(0, 9)) == 0
    score = draw(st.none() | st.floats(0, 1) | st.dictionaries(st.sampled_from(["a", "true"]), st.floats(0, 1)))
    routed = draw(st.booleans())
    return Prediction(
        prediction_id=draw(st.text("abc", min_size=1, max_size=3)),
        model=name,
        version=draw(st.sampled_from("1123")),
        origin=draw(st.sampled_from(["live", "live", "shadow"])),
        ts=T0 + draw(st.integers(0, 10)) * PANE // 2,
        features=draw(st.dictionaries(st.sampled_from([*FEATURES[name], "unknown"]), numbers)),
        prediction=None if failed else draw(st.floats(0, 100) if name == "fares" else st.sampled_from(["a", True, 1])),
        error="e" if failed else None,
        score=score,
        rollout_id="r" if routed else None,
        bucket=draw(st.none() | st.integers(0, 9)) if routed else None,
        latency_ms=draw(st.none() | st.floats(0, 9)) if routed else None,
    )


def named(numbers: list[int], sources: list[Source]) -> list[Any]:
    return sorted((sources[at], first, last) for at, first, last in in_threes(numbers))


def by_slot(counted: Counted) -> dict[Any, dict[str, Any]]:
    found = {}
    for increment in counted.increments:
        fields = msgspec.structs.asdict(increment)
        fields["offsets"] = named(increment.offsets, counted.sources)
        slot = tuple(fields.pop(name) for name in ("model", "version", "origin", "source", "pane_start_ms", "pane_ms"))
        found[slot] = fields
    assert len(found) == len(counted.increments)
    return found


@settings(max_examples=150, deadline=None)
@given(st.lists(any_prediction(), min_size=1, max_size=40), st.lists(st.integers(0, 40), max_size=3), st.data())
def test_all_models_in_one_pass_are_the_models_one_at_a_time(
    events: list[Prediction], cuts: list[int], data: st.DataObject
) -> None:
    for row, event in enumerate(events):
        event.prediction_id += str(row)
    together, alone = Folder(MANY), Folder(MANY)
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=len(events), max_size=len(events))))
    for part in np.split(np.arange(len(events)), sorted(min(cut, len(events)) for cut in cuts)):
        if len(part):
            rows = rows_of(MANY, [events[row] for row in part], SOURCE[0], part.tolist(), record_ms=T0)
            together.keep(together.bin_predictions(rows).only(kept[part]))
    for row, event in enumerate(events):
        binned = alone.bin_predictions(rows_of(MANY, [event], SOURCE[0], [row], record_ms=T0))
        if kept[row]:
            alone.keep(binned)
    # By going through all cells, or by counting or sorting the values.
    with mock.patch.object(increments, "_DENSE", data.draw(st.sampled_from([0, 100_000]))):
        counted = together.counted()
    counted_alone = alone.counted()
    marks, marks_alone = (
        {mark.model: named(mark.times, each.sources) for mark in each.marks} for each in (counted, counted_alone)
    )
    assert marks == marks_alone
    found, wanted = by_slot(counted), by_slot(counted_alone)
    for slot in found.keys() | wanted.keys():
        exposures, alone_exposures = found[slot].pop("exposures"), wanted[slot].pop("exposures")
        assert exposures.keys() == alone_exposures.keys()
        assert found[slot] == wanted[slot]
    check_against_a_loop([event for event, keep in zip(events, kept.tolist(), strict=True) if keep], found)


def check_against_a_loop(events: list[Prediction], found: dict[Any, dict[str, Any]]) -> None:
    """Hold what was folded against the plainest count."""
    tally = Tally(MANY)
    tally.add_predictions(Place(T0, 0, row, 0, event) for row, event in enumerate(events))
    wanted = {key: counts for key, counts in tally.panes().items() if counts.any()}
    counted: dict[Any, Any] = {}
    for (name, version, origin, _source, start, pane_ms), fields in found.items():
        for number in ("events", "sampled"):
            counted[name, version, origin, pane_ms, start, number, ""] = np.array([fields[number]])
        profile = MANY.reference(name, version)
        assert fields["fingerprint"] == ("" if profile is None else profile.fingerprint)
        if profile is not None:
            sketch = HistogramSketch.empty(profile.fingerprint)
            sketch.add_pairs(fields["cells"])
            whole = sketch.whole(profile.layout.size)
            for feature, place in profile.layout.places.items():
                counted[name, version, origin, pane_ms, start, "cells", feature] = whole[place]
    counted = {key: counts for key, counts in counted.items() if counts.any()}
    assert counted.keys() == wanted.keys()
    assert all(np.array_equal(counts, wanted[key]) for key, counts in counted.items())


def turned(coded: Coded) -> Coded:
    """The same column with its values the other way round, as a message may have them."""
    return Coded(coded.values[::-1], len(coded.values) - 1 - coded.codes)


TEXTS = st.lists(st.sampled_from([None, "a", "1", "z"])).map(Coded.of)
VALUES: st.SearchStrategy[Any] = st.lists(numbers) | st.lists(st.floats()).map(np.array) | TEXTS | TEXTS.map(turned)


def test_as_many_texts_as_rows_in_another_order_fall_into_their_own_cells() -> None:
    texts = [TextCells(Binning("x", "categorical", categories=("a", "b")), first) for first in (0, 50)]
    watched = [Watched({}, {"x": each}) for each in texts]
    column = Coded(["a", "b"], np.array([1, 0]))
    ((cells, _width),) = column_blocks(CellTable(), {"x": column}, watched, np.array([0, 1]))
    assert cells.tolist() == [texts[0]["b"], texts[1]["a"]]


@given(VALUES, st.data())
def test_columns_fall_into_the_cells_that_each_value_falls_into(values: Any, data: st.DataObject) -> None:
    table = CellTable()
    edges = Binning("x", "numeric", edges=(0.0, 1.0, 2.5, 100.0))
    texts = TextCells(Binning("x", "categorical", categories=("1", "a", "true")), 50)
    watched = [Watched({"x": table.add(edges, 7)}, {}), Watched({}, {"x": texts}), Watched({}, {})]
    watched = watched[: data.draw(st.integers(1, 3))]
    listed = values.tolist() if isinstance(values, Coded) else list(values)
    of = data.draw(st.lists(st.integers(0, len(watched) - 1), min_size=len(listed), max_size=len(listed)))
    blocks = list(column_blocks(table, {"x": values, "y": values}, watched, np.array(of, dtype=np.int64)))
    ((cells, width),) = blocks
    assert width == 1
    for value, at, cell in zip(listed, of, cells.tolist(), strict=True):
        missing = isinstance(value, float) and math.isnan(value) and isinstance(values, np.ndarray)
        wanted = [number_cells(table, [value], np.array([1])).tolist()[0], texts[None if missing else value], NO_CELL]
        assert cell == wanted[at]


def test_what_is_taken_back_before_it_was_counted_is_counted_by_the_references_there_are_then() -> None:
    catalog = Catalog()
    model = config()
    catalog.put_model(model.name, model.to_json())
    folder = Folder(catalog)
    events = rows_of(catalog, predictions(0, 3), SOURCE[0], [0, 1, 2])
    folder.predictions(events)
    for part, value in reference(model).to_parts().items():
        catalog.put_reference(f"churn/1/{part}", value)
    folder.clear()
    folder.predictions(events)
    profile = catalog.reference("churn", "1")
    assert profile is not None
    assert {increment.fingerprint for increment in folder.counted().increments} == {profile.fingerprint}
