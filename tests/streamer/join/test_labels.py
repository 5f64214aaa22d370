"""The label join: what each entry contributes, and that crashes and repeats never change the sum."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from random import Random
from typing import cast

import msgspec
import numpy as np
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from streamer.counting.columns import Coded
from streamer.join.bulk import Entries, Given, Owner, Owners
from streamer.join.changes import Contribution, JoinResult, Record, contributions
from streamer.join.entries import FeaturesEntry, LabelEntry, PredictionEntry, record_field, stored_entry
from streamer.join.labels import JoinStore
from streamer.join.records import (
    MAX_OF_A_KIND,
    EntryKind,
    Stored,
    StoredFeatures,
    StoredLabel,
    StoredPrediction,
    encode_entry,
    keyed,
    pack,
    position_order,
    unpack,
)
from streamer.join.script import StoreEmptied, StoreRestarted
from streamer.state import Keys
from tests.streamer.join.join_world import T0, Entry, World, features, label, prediction, store
from tests.streamer.stores import MemoryServer


def rows(found: Sequence[Contribution]) -> list[tuple[str, str, int, int]]:
    return [(row.version, row.label, row.sign, row.labelled) for row in found]


def test_a_label_contributes_to_the_prediction_it_finds() -> None:
    joined = store().join([prediction(0), label(0, "0")])
    assert joined.counted == [True]
    (row,) = joined.contributions
    assert row == Contribution("m", 1, "v1", "live", T0, "1", 0.25, ["a=1"], None, 7, "0", 1, 1)


def test_a_label_before_its_prediction_waits_and_the_prediction_contributes() -> None:
    joining = store()
    early = joining.join([label(0)])
    assert (early.contributions, early.parked) == ([], 1)
    assert rows(joining.join([prediction(0)]).contributions) == [("v1", "1", 1, 1)]


def test_one_label_joins_every_identity_of_its_prediction() -> None:
    joining = store()
    joining.join([prediction(0), prediction(1, version="v2"), prediction(2, origin="shadow")])
    found = joining.join([label(0)]).contributions
    assert [(row.version, row.origin) for row in found] == [("v1", "live"), ("v2", "live"), ("v1", "shadow")]


def test_the_first_prediction_of_an_identity_wins_and_a_copy_counts_nothing() -> None:
    joining = store()
    joined = joining.join([prediction(0, said="1"), prediction(1, said="0"), prediction(2, version="v2")])
    assert (joined.counted, joined.duplicates) == ([True, False, True], 1)
    assert joining.join([prediction(3)]).counted == [False]
    assert [row.prediction for row in joining.join([label(0)]).contributions] == ["1", "1"]


def test_a_prediction_read_again_from_its_own_place_counts_as_it_did() -> None:
    joining = store()
    for _ in range(3):
        assert joining.join([prediction(0)]).counted == [True]


@pytest.mark.parametrize(("predicted", "labelled"), [(0, 11), (3, 14), (11, 0), (30, 0)])
@pytest.mark.parametrize("label_first", [False, True])
def test_a_label_after_the_horizon_waits_whichever_is_read_first(
    predicted: int, labelled: int, label_first: bool
) -> None:
    entries: list[Entry] = [prediction(0, minute=predicted), label(0, minute=labelled)]
    joining = store()
    found = [joining.join([entry]) for entry in (entries[::-1] if label_first else entries)]
    assert [each.contributions for each in found] == [[], []]
    assert sum(each.parked for each in found) == 1
    assert found[label_first].counted == [True]
    assert store().join(entries).contributions == []


@pytest.mark.parametrize(("predicted", "labelled"), [(0, 10), (10, 0), (3, 12)])
@pytest.mark.parametrize("label_first", [False, True])
def test_a_label_within_the_horizon_counts_whichever_is_read_first(
    predicted: int, labelled: int, label_first: bool
) -> None:
    entries: list[Entry] = [prediction(0, minute=predicted), label(0, minute=labelled)]
    joining = store()
    first, second = (joining.join([entry]).contributions for entry in (entries[::-1] if label_first else entries))
    assert (first, rows(second)) == ([], [("v1", "1", 1, 1)])


def test_what_comes_between_two_that_are_too_far_apart_brings_them_together() -> None:
    joining = store()
    assert joining.join([prediction(0), label(0, "1", minute=12)]).parked == 1
    between = joining.join([label(1, "0", revision=-1, minute=8)])
    assert rows(between.contributions) == [("v1", "1", 1, 1)]
    assert (between.parked, between.duplicates) == (0, 0)
    assert joining.join([label(1, "0", revision=-1, minute=8)]).contributions == between.contributions


def test_a_repeated_label_contributes_nothing() -> None:
    joining = store()
    joining.join([prediction(0), label(0)])
    again = joining.join([label(1), label(2, partition=3)])
    assert (again.contributions, again.duplicates) == ([], 2)


def test_a_correction_takes_the_old_label_back_and_adds_the_new() -> None:
    joining = store()
    joining.join([prediction(0), label(0, "1")])
    corrected = joining.join([label(1, "0", revision=1)])
    assert rows(corrected.contributions) == [("v1", "1", -1, 0), ("v1", "0", 1, 0)]


def test_an_older_label_that_comes_late_changes_nothing() -> None:
    joining = store()
    joining.join([prediction(0), label(0, "1", revision=2)])
    late = joining.join([label(1, "0", revision=1, ts=9)])
    assert (late.contributions, late.duplicates) == ([], 1)


def test_a_deletion_takes_the_label_back_and_a_later_label_brings_one_again() -> None:
    joining = store()
    joining.join([prediction(0), label(0, "1")])
    assert rows(joining.join([label(1, deleted=True, ts=1)]).contributions) == [("v1", "1", -1, -1)]
    assert rows(joining.join([label(2, "0", ts=2)]).contributions) == [("v1", "0", 1, 1)]


def test_a_deletion_that_comes_before_its_label_holds() -> None:
    joining = store()
    joining.join([prediction(0), label(5, deleted=True, revision=1)])
    assert joining.join([label(6, "1")]).contributions == []


def test_an_entry_read_again_contributes_what_it_contributed_before() -> None:
    joining = store()
    joining.join([prediction(0)])
    first = joining.join([label(0, "1"), label(1, "0", ts=1)])
    joining.join([label(2, "1", ts=2)])
    again = joining.join([label(0, "1"), label(1, "0", ts=1)])
    assert again.contributions == first.contributions


def test_at_equal_revision_and_time_the_later_place_in_the_log_wins_by_number() -> None:
    joined = store().join([prediction(0), label(9, "1"), label(10, "0")])
    assert rows(joined.contributions)[-1] == ("v1", "0", 1, 0)
    assert (
        position_order("t:0:9:0") < position_order("t:0:10:0") < position_order("t:2:0:0") < position_order("t:10:0:0")
    )


def test_a_multiclass_row_has_the_score_of_its_true_label() -> None:
    joining = store()
    joining.join([prediction(0, said="b", scores={"a": 0.2, "b": 0.8})])
    corrected = [row.score for row in joining.join([label(0, "a"), label(1, "b", ts=1)]).contributions]
    assert corrected == [0.2, 0.2, 0.8]
    (unknown,) = store().join([prediction(0, scores={"a": 1.0}), label(0, "z")]).contributions
    assert math.isnan(unknown.score)


def test_models_epochs_and_ids_are_kept_apart() -> None:
    joining = store()
    other = label(0)
    other.model_epoch = 2
    joined = joining.join([prediction(0), other, label(1, id_="q")])
    assert (joined.contributions, joined.parked) == ([], 2)


def sliced(found: Sequence[Contribution]) -> list[tuple[list[str], int, int]]:
    return [(row.slices, row.sign, row.labelled) for row in found]


def test_a_label_counts_in_the_slices_that_were_logged_before_it() -> None:
    for early in ([prediction(0), features(0, ["b=1"])], [features(0, ["b=1"]), prediction(0)]):
        joining = store()
        told = joining.join(early)
        assert (told.contributions, told.parked, told.duplicates) == ([], 0, 0)
        assert sliced(joining.join([label(0)]).contributions) == [(["a=1", "b=1"], 1, 1)]


def test_a_feature_log_that_comes_after_the_label_moves_what_was_counted_to_its_slice() -> None:
    joining = store()
    joining.join([prediction(0), label(0)])
    moved = joining.join([features(0, ["b=1"])])
    assert sliced(moved.contributions) == [(["a=1"], -1, 0), (["a=1", "b=1"], 1, 0)]
    assert joining.join([features(0, ["b=1"])]).contributions == moved.contributions


def test_a_feature_log_that_waited_with_its_label_slices_the_prediction_when_it_comes() -> None:
    joining = store()
    assert joining.join([label(0), features(0, ["b=1"])]).parked == 1
    assert sliced(joining.join([prediction(0)]).contributions) == [(["a=1", "b=1"], 1, 1)]


def test_what_a_prediction_says_itself_is_its_slice_whatever_is_logged() -> None:
    joining = store()
    joining.join([prediction(0), label(0)])
    assert joining.join([features(0, ["a=2"])]).contributions == []


def test_a_repeated_feature_log_changes_nothing_and_the_newest_one_wins_feature_by_feature() -> None:
    joining = store()
    joining.join([prediction(0), label(0), features(0, ["b=1", "c=1"], ts=5)])
    assert joining.join([features(1, ["b=1"], ts=5, partition=3)]).contributions == []
    assert joining.join([features(2, ["b=9"], ts=4)]).contributions == []
    newer = joining.join([features(3, ["b=2"], ts=6)])
    assert sliced(newer.contributions) == [(["a=1", "b=1", "c=1"], -1, 0), (["a=1", "b=2", "c=1"], 1, 0)]


def test_a_feature_log_slices_every_identity_of_its_prediction_and_no_deleted_label() -> None:
    joining = store()
    joining.join([prediction(0), prediction(1, version="v2"), label(0), features(0, ["b=1"])])
    gone = joining.join([label(1, deleted=True, revision=1)])
    assert sliced(gone.contributions) == [(["a=1", "b=1"], -1, -1), (["b=1"], -1, -1)]
    assert joining.join([features(1, ["b=2"], ts=1)]).contributions == []


def test_a_full_record_drops_labels_and_says_so_but_still_takes_its_prediction() -> None:
    joining = store()
    storm = [label(offset, "1") for offset in range(MAX_OF_A_KIND)]
    joining.join(storm)
    more = joining.join([label(1_000, "0", revision=1), label(1_001, "0", revision=2)])
    assert (more.dropped, more.contributions) == (2, [])
    joined = joining.join([prediction(0)])
    assert (joined.counted, rows(joined.contributions)) == ([True], [("v1", "1", 1, 1)])
    assert joining.join([*storm, label(1_000, "0", revision=1)]).dropped == 1


def test_a_batch_without_entries_asks_nothing_of_the_store() -> None:
    assert JoinStore(cast("redis.Redis", None), Keys("t"), buckets=1, wait_aof=True, hold_ms=0).join([]).counted == []


def test_a_store_that_restarted_inside_the_batch_is_noticed() -> None:
    server = MemoryServer()
    joining = store(server)
    joining.begin()
    joining.join([prediction(0)])
    server.crash(Random(0))
    with pytest.raises(StoreRestarted, match="read the batch again"):
        joining.barrier()
    with pytest.raises(StoreRestarted):
        joining.join([label(0)])
    joining.begin()
    assert joining.join([prediction(0), label(0)]).counted == [True]
    joining.barrier()


def test_a_new_store_is_whole_and_one_that_was_emptied_is_not_until_it_is_made_anew() -> None:
    server = MemoryServer()
    assert not store(server).is_whole(new=False)
    assert store(server).is_whole(new=True)
    server.crash_keeping(0.0)
    assert store(server).is_whole(new=False)
    server.flush()
    again = store(server)
    assert not again.is_whole(new=False)
    again.clear_lost()
    again.mark_whole()
    assert store(server).is_whole(new=False)


def test_a_store_that_was_emptied_inside_the_batch_is_noticed() -> None:
    server = MemoryServer()
    joining = store(server)
    assert joining.is_whole(new=True)
    joining.begin()
    joining.join([prediction(0)])
    joining.barrier()
    server.flush()
    joining.begin()
    with pytest.raises(StoreEmptied, match=r"2 of 2 buckets .* --rebuild-join"):
        joining.barrier()


def test_what_a_lost_store_was_given_since_is_known_and_cleared() -> None:
    server = MemoryServer()
    joining = store(server)
    joining.begin()
    joining.join([prediction(0), prediction(1, id_="p1"), label(5, id_="p2")])
    found = {record_field(entry): {entry.position} for entry in (prediction(0), prediction(1, id_="p1"))}
    assert joining.lost_predictions() == found
    joining.clear_lost()
    assert joining.lost_predictions() == {}


def test_a_script_that_was_flushed_is_loaded_again() -> None:
    server = MemoryServer()
    joining = store(server)
    joining.begin()
    joining.join([prediction(0)])
    server.scripts.clear()
    assert rows(joining.join([label(0)]).contributions) == [("v1", "1", 1, 1)]
    joining.barrier()


MINUTES = {"came_min": st.sampled_from([0, 5, 12, 24]), "until_min": st.just(0)}


def waiting(entry: Stored) -> Stored:
    """Return the entry with its horizon: ten minutes."""
    return msgspec.structs.replace(entry, until_min=entry.came_min + 10)


entries = st.lists(
    st.one_of(
        st.builds(
            StoredLabel,
            position=st.integers(0, 30).map(lambda offset: f"labels:0:{offset}:0"),
            **MINUTES,
            revision=st.integers(0, 2),
            ts=st.integers(0, 2),
            label=st.sampled_from(["0", "1"]),
            deleted=st.booleans(),
        ),
        st.builds(
            StoredPrediction,
            position=st.integers(0, 30).map(lambda offset: f"predictions:0:{offset}:0"),
            **MINUTES,
            version=st.sampled_from(["v1", "v2"]),
            origin=st.sampled_from(["live", "shadow"]),
            event_time_ms=st.just(T0),
            prediction=st.text(max_size=3),
            score=st.none() | st.floats(0, 1),
            scores=st.none(),
            slices=st.lists(st.sampled_from(["a=0", "é=\n"]), max_size=2),
            rollout_id=st.none(),
            bucket=st.integers(-1, 999),
        ),
        st.builds(
            StoredFeatures,
            position=st.integers(0, 30).map(lambda offset: f"features:0:{offset}:0"),
            **MINUTES,
            ts=st.integers(0, 2),
            slices=st.lists(st.sampled_from(["a=1", "a=2", "b=1"]), max_size=2),
        ),
    ).map(waiting),
    max_size=12,
    unique_by=(lambda entry: keyed(entry)[0], lambda entry: entry.position),
)


@given(entries)
def test_a_record_survives_its_bytes(found: list[Stored]) -> None:
    assert [entry for _, entry in unpack(pack(T0, map(keyed, found)))] == found


@given(entries, st.data())
def test_contributions_telescope_however_the_entries_are_split_into_batches(
    found: list[Stored], data: st.DataObject
) -> None:
    whole = contributions(Record("m", 1, found), {entry.position for entry in found})
    pieces: list[Contribution] = []
    start = 0
    while start < len(found):
        end = data.draw(st.integers(start + 1, len(found)))
        seen = data.draw(st.integers(end, len(found)))
        positions = {entry.position for entry in found[start:end]}
        pieces += contributions(Record("m", 1, found[:seen]), positions).contributions
        start = end
    assert total(pieces) == total(whole.contributions)
    assert all(count in (0, 1) for count in total(pieces).values())


def total(found: Sequence[Contribution]) -> Counter[tuple[str, ...]]:
    counts: Counter[tuple[str, ...]] = Counter()
    for row in found:
        counts[row.version, row.origin, row.prediction, row.label, *row.slices] += row.sign
    return Counter({key: count for key, count in counts.items() if count})


@pytest.mark.parametrize("seed", range(20))
def test_sums_are_the_offline_join_through_crashes_of_workers_and_store(seed: int) -> None:
    for round_ in range(100):
        world = World(Random(seed * 100 + round_))
        world.publish(world.random.randrange(1, 50))
        world.run()
        truth = world.truth()
        assert +world.sums == truth, f"schedule {seed * 100 + round_}"
        assert -world.sums == Counter(), f"schedule {seed * 100 + round_}"
        assert world.labelled == truth.total()
        assert set(world.counted.values()) <= {1}
        assert set(world.counted) == set(world.said)


KINDS: dict[EntryKind, type[Entry]] = {
    "prediction": PredictionEntry,
    "features": FeaturesEntry,
    "label": LabelEntry,
}


def given_of(batch: Sequence[Entry]) -> list[Given]:
    """Put entries as ingest gives them in bulk: predictions, then feature logs, then labels."""
    found = []
    for name, kind in KINDS.items():
        chosen = [entry for entry in batch if isinstance(entry, kind)]
        if chosen:
            pairs = [keyed(stored_entry(entry)) for entry in chosen]
            keys, owners = Coded.of([key for key, _ in pairs]), Coded.of([Owner(e.model, 1) for e in chosen])
            entries = Entries(
                name,
                [entry.prediction_id for entry in chosen],
                [encode_entry(entry) for _, entry in pairs],
                keys.values,
                keys.codes,
                np.array([entry.expires_at_ms for entry in chosen]),
            )
            found.append(Given.of(Owners(owners.values), owners.codes, entries, buckets=2))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_joining_many_is_joining_each_however_the_log_is_cut(seed: int) -> None:
    for round_ in range(30):
        random = Random(seed * 100 + round_)
        world = World(random)
        world.publish(random.randrange(1, 60))
        one, many = MemoryServer(), MemoryServer()
        log = [entry for part in world.log for entry in part]
        for _ in range(4):
            # Read again in part, as after a crash.
            start = random.randrange(len(log))
            for at in range(start, len(log), size := random.randrange(1, 30)):
                for given_ in given_of(log[at : at + size]):
                    chosen = [e for e in log[at : at + size] if isinstance(e, KINDS[given_.kind])]
                    joining = store(many)
                    alone = store(one).join(chosen)
                    cut = random.randrange(len(chosen))
                    parts = [part for part in (chosen[:cut], chosen[cut:]) if part]
                    batch = [one_ for part in parts for one_ in given_of(part)]
                    together = summed(joining.join_many(batch))
                    assert together.counted == alone.counted
                    assert sorted(map(repr, together.contributions)) == sorted(map(repr, alone.contributions))
                    assert (together.parked, together.duplicates) == (alone.parked, alone.duplicates)
        assert many.hashes == one.hashes


def summed(parts: Iterable[JoinResult]) -> JoinResult:
    whole = JoinResult()
    for part in parts:
        whole.counted += part.counted
        whole.contributions += part.contributions
        whole.parked += part.parked
        whole.duplicates += part.duplicates
    return whole


def test_joining_nothing_is_nothing() -> None:
    assert list(store().join_many([])) == []
