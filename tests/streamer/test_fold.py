from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors.binning import Binning
from monitors.sketch import HistogramSketch, encode_pairs
from streamer.catalog import Catalog
from streamer.columns import Coded, assign_cells, count_panes
from streamer.events import FeatureLog, Prediction
from streamer.fold import Folder, is_sampled
from streamer.increments import CellCounts, Gathering, Slot
from streamer.models import ModelConfig
from streamer.pane_store import Pane, decode_pane, encode_pane, offset_ranges
from tests.streamer.logs import PANE, T0, catalog_of, config, contribution, predictions, rows_of

SOURCE = ("predictions.v1", "id", 0)


def folded(catalog: Catalog, events: list[Prediction], *, pieces: int = 1) -> dict[Slot, Gathering]:
    slots: dict[Slot, Gathering] = {}
    folder = Folder(lambda slot: slots.setdefault(slot, Gathering()), catalog.reference)
    model = catalog.model("churn")
    assert model is not None
    for piece in np.array_split(np.arange(len(events)), pieces):
        if len(piece):
            folder.predictions(rows_of(model, [events[i] for i in piece], SOURCE[0], piece.tolist()))
    return slots


def pane_of(slots: dict[Slot, Gathering], start_ms: int, late: bool = False) -> Pane:
    pane = Pane()
    for slot, gathering in slots.items():
        if slot.pane_start_ms == start_ms:
            pane.add(gathering.increment(slot), late=late, dtype="<i8")
    return pane


def test_counts_are_those_of_a_loop_over_the_events() -> None:
    catalog = catalog_of(config())
    events = predictions(0, 50) + predictions(1, 30)
    profile = catalog.reference("churn", "1")
    assert profile is not None
    slots = folded(catalog, events)
    assert sorted(slot.pane_start_ms for slot in slots) == [T0, T0 + PANE]
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
    back = decode_pane(dict(enumerate(parts)), "<i8")
    assert encode_pane(back) == parts
    assert back.events == n
    assert back.offsets == {SOURCE: (0, n - 1)}


def test_a_large_pane_is_stored_in_parts_small_enough_for_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.pane_store._PART_BYTES", 200)
    pane = pane_of(folded(catalog_of(config()), predictions(0, 100)), T0)
    parts = encode_pane(pane)
    assert len(parts) > 1
    back = decode_pane(dict(enumerate(parts)), "<i8")
    assert encode_pane(back) == parts


def test_a_version_without_a_reference_is_counted_and_not_binned() -> None:
    slots = folded(catalog_of(config(), "1"), predictions(0, 20, version="7"))
    ((slot, gathering),) = slots.items()
    assert slot.fingerprint == ""
    assert gathering.events == 20
    assert gathering.cells.pairs() == b""


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
    ((_slot, gathering),) = folded(catalog_of(config()), events).items()
    assert (gathering.events, gathering.errors, gathering.sampled) == (10, 3, 7)


def test_feature_logs_fill_the_features_they_are_the_source_of() -> None:
    model: ModelConfig = config(features={"age": {"kind": "numeric", "source": "features"}})
    catalog = catalog_of(model)
    slots: dict[Slot, Gathering] = {}
    folder = Folder(lambda slot: slots.setdefault(slot, Gathering()), catalog.reference)
    known = catalog.model("churn")
    assert known is not None
    logs = [FeatureLog(model="churn", ts=T0, features={"age": 30.0}, version="1") for _ in range(5)]
    folder.features(rows_of(known, logs, "features.v1", range(5)))
    folder.predictions(rows_of(known, predictions(0, 5), SOURCE[0], range(5)))
    profile = catalog.reference("churn", "1")
    assert profile is not None
    filled = {}
    for slot, gathering in slots.items():
        sketch = HistogramSketch.empty(slot.fingerprint)
        sketch.add_pairs(gathering.cells.pairs())
        counts = sketch.whole(profile.layout.size)
        filled[slot.source] = {name for name, place in profile.layout.places.items() if counts[place].sum() == 5}
    assert filled == {"features": {"age"}, "predictions": {"plan", "@score"}}


def test_a_correction_takes_back_what_the_first_label_gave() -> None:
    catalog = catalog_of(config())
    known = catalog.model("churn")
    assert known is not None
    slots: dict[Slot, Gathering] = {}
    folder = Folder(lambda slot: slots.setdefault(slot, Gathering()), catalog.reference)
    (event,) = predictions(0, 1)
    first = contribution(event, True)
    folder.contributions(known, [first])
    folder.contributions(known, [first._replace(sign=-1, labelled=0), contribution(event, False)._replace(labelled=0)])
    ((_slot, gathering),) = slots.items()
    alone: dict[Slot, Gathering] = {}
    Folder(lambda slot: alone.setdefault(slot, Gathering()), catalog.reference).contributions(
        known, [contribution(event, False)]
    )
    ((_slot, corrected),) = alone.items()
    assert np.array_equal(gathering.performance[""], corrected.performance[""])
    assert gathering.labelled == corrected.labelled == 1


def test_the_sample_is_the_same_everywhere_and_about_its_share() -> None:
    ids = [f"id-{i}" for i in range(4_000)]
    chosen = [is_sampled(i, 0.25) for i in ids]
    assert chosen == [is_sampled(i, 0.25) for i in ids]
    assert 0.2 < sum(chosen) / len(ids) < 0.3
    assert all(is_sampled(i, 1.0) for i in ids)


def test_offsets_of_several_panes_make_one_range_a_partition() -> None:
    panes = [Pane(offsets={SOURCE: (10, 20)}), Pane(offsets={SOURCE: (5, 12), ("labels.v1", "l", 1): (0, 3)})]
    found = offset_ranges(panes, lambda topic: True)
    assert [(r.topic, r.partition, r.start, r.end) for r in found] == [
        ("labels.v1", 1, 0, 4),
        ("predictions.v1", 0, 5, 21),
    ]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=60))
def test_counting_panes_in_one_pass_is_counting_each(pairs: list[tuple[int, int]]) -> None:
    cells = np.array([cell for cell, _pane in pairs], dtype=np.int32)
    panes = np.array([pane for _cell, pane in pairs], dtype=np.int64)
    counted = count_panes(cells, panes, 3, 5)
    for pane in range(3):
        assert counted[pane].tolist() == np.bincount(cells[panes == pane], minlength=5).tolist()


def test_a_number_for_a_category_is_its_canonical_text() -> None:
    binning = Binning(feature="x", kind="categorical", categories=("1", "true"))
    assert assign_cells(binning, [1.0, True, None, "z"]).tolist() == [0, 1, binning.missing, binning.unseen]


numeric = Binning(feature="x", kind="numeric", edges=(0.0, 1.0, 5.0))
categorical = Binning(feature="x", kind="categorical", categories=("1", "a", "true"))


@given(st.lists(st.none() | st.floats(allow_nan=False)), st.sampled_from([numeric, categorical]))
def test_an_array_of_numbers_counts_as_its_numbers_do(values: list[float | None], binning: Binning) -> None:
    array = np.array(values, dtype=np.float64)
    assert assign_cells(binning, array).tolist() == assign_cells(binning, values).tolist()


@given(st.lists(st.sampled_from([None, "a", "1", "z"])), st.sampled_from([numeric, categorical]))
def test_texts_by_their_codes_count_as_the_texts_do(values: list[str | None], binning: Binning) -> None:
    assert assign_cells(binning, Coded.of(values)).tolist() == assign_cells(binning, values).tolist()


whole_vectors = st.lists(st.integers(0, 5), min_size=6, max_size=6)
loose_counts = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), max_size=5)


@given(st.lists(st.one_of(whole_vectors, loose_counts), max_size=5), st.integers(0, 5))
def test_counts_add_up_whether_they_come_whole_or_loose(contributions: list[list[Any]], cut: int) -> None:
    wanted = np.zeros(6, dtype=np.int64)
    parts = [CellCounts(), CellCounts()]
    for number, contribution_ in enumerate(contributions):
        part = parts[number >= cut]
        if contribution_ and isinstance(contribution_[0], int):
            wanted += contribution_
            part.add(np.array(contribution_, dtype=np.int64))
        else:
            pairs = np.array(contribution_, dtype=np.int64).reshape(-1, 2)
            np.add.at(wanted, pairs[:, 0], pairs[:, 1])
            part.add_loose(pairs[:, 0], pairs[:, 1])
    parts[0].merge(parts[1])
    assert parts[0].pairs() == encode_pairs(wanted)
