"""The label join: what each entry contributes, and that crashes and repeats never change the sum."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import cast

import numpy as np
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from streamer.join_bulk import Given
from streamer.join_records import (
    MAX_LABELS,
    Stored,
    StoredLabel,
    StoredPrediction,
    keyed,
    pack,
    position_order,
    unpack,
)
from streamer.labels import (
    Contribution,
    JoinResult,
    JoinStore,
    LabelEntry,
    PredictionEntry,
    Record,
    StoreRestarted,
    contributions,
    position_of,
    stored_entry,
)
from streamer.state import Keys
from tests.streamer.stores import MemoryClient, MemoryServer

T0 = 1_700_000_000_000
Entry = PredictionEntry | LabelEntry


def prediction(
    offset: int,
    *,
    id_: str = "p",
    version: str = "v1",
    origin: str = "live",
    said: str = "1",
    partition: int = 0,
    scores: dict[str, float] | None = None,
) -> PredictionEntry:
    return PredictionEntry(
        model="m",
        model_epoch=1,
        prediction_id=id_,
        version=version,
        origin=origin,
        position=position_of("predictions", partition, offset),
        event_time_ms=T0 + int(id_[1:] or 0),
        prediction=said,
        score=math.nan if scores else 0.25,
        slices=["a=1"],
        rollout_id=None,
        bucket=7,
        expires_at_ms=T0,
        scores=scores,
    )


def label(
    offset: int,
    truth: str = "1",
    *,
    id_: str = "p",
    revision: int = 0,
    ts: int = 0,
    deleted: bool = False,
    partition: int = 0,
) -> LabelEntry:
    return LabelEntry(
        model="m",
        model_epoch=1,
        prediction_id=id_,
        position=position_of("labels-topic", partition, offset),
        ts=ts,
        revision=revision,
        label=truth,
        deleted=deleted,
        expires_at_ms=T0,
    )


def store(server: MemoryServer | None = None, *, buckets: int = 2) -> JoinStore:
    client = cast("redis.Redis", MemoryClient(server or MemoryServer()))
    return JoinStore(client, Keys("t"), buckets=buckets, wait_aof=True)


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


def test_a_full_record_drops_labels_and_says_so_but_still_takes_its_prediction() -> None:
    joining = store()
    storm = [label(offset, "1") for offset in range(MAX_LABELS)]
    joining.join(storm)
    more = joining.join([label(1_000, "0", revision=1), label(1_001, "0", revision=2)])
    assert (more.dropped, more.contributions) == (2, [])
    joined = joining.join([prediction(0)])
    assert (joined.counted, rows(joined.contributions)) == ([True], [("v1", "1", 1, 1)])
    assert joining.join([*storm, label(1_000, "0", revision=1)]).dropped == 1


def test_a_batch_without_entries_asks_nothing_of_the_store() -> None:
    assert JoinStore(cast("redis.Redis", None), Keys("t"), buckets=1, wait_aof=True).join([]).counted == []


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


def test_a_script_that_was_flushed_is_loaded_again() -> None:
    server = MemoryServer()
    joining = store(server)
    joining.begin()
    joining.join([prediction(0)])
    server.scripts.clear()
    assert rows(joining.join([label(0)]).contributions) == [("v1", "1", 1, 1)]
    joining.barrier()


entries = st.lists(
    st.one_of(
        st.builds(
            StoredLabel,
            position=st.integers(0, 30).map(lambda offset: f"labels:0:{offset}:0"),
            revision=st.integers(0, 2),
            ts=st.integers(0, 2),
            label=st.sampled_from(["0", "1"]),
            deleted=st.booleans(),
        ),
        st.builds(
            StoredPrediction,
            position=st.integers(0, 30).map(lambda offset: f"predictions:0:{offset}:0"),
            version=st.sampled_from(["v1", "v2"]),
            origin=st.sampled_from(["live", "shadow"]),
            event_time_ms=st.just(T0),
            prediction=st.text(max_size=3),
            score=st.none() | st.floats(0, 1),
            scores=st.none(),
            slices=st.lists(st.text(max_size=3), max_size=2),
            rollout_id=st.none(),
            bucket=st.integers(-1, 999),
        ),
    ),
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


def total(found: Sequence[Contribution]) -> Counter[tuple[str, str, str, str]]:
    counts: Counter[tuple[str, str, str, str]] = Counter()
    for row in found:
        counts[row.version, row.origin, row.prediction, row.label] += row.sign
    return Counter({key: count for key, count in counts.items() if count})


# An id, version and origin, what the prediction said, and the label.
Counted = tuple[str, str, str, str, str]


@dataclass
class World:
    """Workers over a log and a store, where anything may crash at any time; commits are Kafka's and atomic."""

    random: Random
    server: MemoryServer = field(default_factory=MemoryServer)
    log: list[list[Entry]] = field(default_factory=lambda: [[] for _ in range(4)])
    committed: list[int] = field(default_factory=lambda: [0] * 4)
    said: dict[tuple[str, str, str], tuple[int, str]] = field(default_factory=dict)
    sums: Counter[Counted] = field(default_factory=Counter)
    labelled: int = 0
    counted: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def publish(self, n_messages: int) -> None:
        """Write predictions of a few ids with their copies, and labels early, late, doubled, corrected, misplaced."""
        for _ in range(n_messages):
            id_ = f"p{self.random.randrange(4)}"
            part = self.random.randrange(2)
            if self.random.random() < 0.4:
                self.publish_prediction(
                    (id_, self.random.choice(["v1", "v2"]), self.random.choice(["live", "shadow"])), part
                )
            else:
                truth, deleted = self.random.choice("01"), self.random.random() < 0.2
                revision, ts = self.random.randrange(3), self.random.randrange(3)
                log = self.log[2 + part]
                log.append(label(len(log), truth, id_=id_, revision=revision, ts=ts, deleted=deleted, partition=part))

    def publish_prediction(self, identity: tuple[str, str, str], part: int) -> None:
        """A copy elsewhere says the same; one in the same partition may say something else, and does not count."""
        id_, version, origin = identity
        home, said = self.said.setdefault(identity, (part, self.random.choice("01")))
        repeated = any((e.prediction_id, e.version, e.origin) == identity for e in self.predictions(home))
        if part == home and repeated and self.random.random() < 0.5:
            said = "another"
        log = self.log[part]
        log.append(prediction(len(log), id_=id_, version=version, origin=origin, said=said, partition=part))

    def predictions(self, part: int) -> list[PredictionEntry]:
        return [entry for entry in self.log[part] if isinstance(entry, PredictionEntry)]

    def labels(self, id_: str) -> list[LabelEntry]:
        return [e for part in self.log[2:] for e in part if isinstance(e, LabelEntry) and e.prediction_id == id_]

    def run(self) -> None:
        """Let two workers read to the end, each its own half, dying and losing the store on the way."""
        workers = [Worker(self, [0, 3]), Worker(self, [1, 2])]
        steps = 0
        while any(end < len(log) for end, log in zip(self.committed, self.log, strict=True)):
            steps += 1
            calm = steps > 400
            if not calm and self.random.random() < 0.08:
                self.server.crash(self.random)
            if not calm and self.random.random() < 0.05:
                # A rebalance: both lose what they had not committed.
                mixed = self.random.sample(range(4), 4)
                workers = [Worker(self, mixed[:2]), Worker(self, mixed[2:])]
            self.random.choice(workers).step()

    def truth(self) -> Counter[Counted]:
        """Say from the whole log what the sums must be: the offline join."""
        sums: Counter[Counted] = Counter()
        for (id_, version, origin), (_home, said) in self.said.items():
            known = self.labels(id_)
            effective = max(known, key=lambda e: (e.revision, e.ts, position_order(e.position)), default=None)
            if effective is not None and not effective.deleted:
                sums[id_, version, origin, said, effective.label] += 1
        return sums


@dataclass
class Worker:
    """Reads its partitions in batches; a batch is joined in pieces, made durable, committed, or lost on the way."""

    world: World
    partitions: list[int]
    joining: JoinStore | None = None
    at: dict[int, int] = field(default_factory=dict)
    pending: list[tuple[Entry, bool]] = field(default_factory=list)
    rows: list[Contribution] = field(default_factory=list)

    def step(self) -> None:
        """Join a few entries, or commit, or die."""
        chance = self.world.random.random()
        try:
            if self.joining is None or chance < 0.1:
                self.restart()
            elif chance < 0.65:
                self.read()
            else:
                self.commit()
        except StoreRestarted:
            self.joining = None

    def restart(self) -> None:
        self.joining = store(self.world.server)
        self.begin()

    def begin(self) -> None:
        assert self.joining is not None
        self.joining.begin()
        self.at = {part: self.world.committed[part] for part in self.partitions}
        self.pending, self.rows = [], []

    def read(self) -> None:
        assert self.joining is not None
        part = self.world.random.choice(self.partitions)
        start, end = self.at[part], self.at[part] + self.world.random.randrange(1, 8)
        batch = self.world.log[part][start:end]
        joined = self.joining.join(batch)
        self.at[part] = start + len(batch)
        counted = iter(joined.counted)
        self.pending += [(e, next(counted) if isinstance(e, PredictionEntry) else False) for e in batch]
        self.rows += joined.contributions

    def commit(self) -> None:
        assert self.joining is not None
        self.joining.barrier()
        for row in self.rows:
            # A contribution does not carry its id; each has its own event time instead.
            id_ = f"p{row.event_time_ms - T0}"
            self.world.sums[id_, row.version, row.origin, row.prediction, row.label] += row.sign
            self.world.labelled += row.labelled
        for entry, counted in self.pending:
            if isinstance(entry, PredictionEntry) and counted:
                self.world.counted[entry.prediction_id, entry.version, entry.origin] += 1
        for part, end in self.at.items():
            self.world.committed[part] = end
        self.begin()


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


def given_of(batch: Sequence[Entry]) -> list[Given]:
    """Put entries as ingest gives them in bulk: predictions, then labels."""
    found = []
    for kind in (PredictionEntry, LabelEntry):
        chosen = [entry for entry in batch if isinstance(entry, kind)]
        if chosen:
            expires = np.array([entry.expires_at_ms for entry in chosen])
            ids = [entry.prediction_id for entry in chosen]
            found.append(Given.of("m", 1, ids, [stored_entry(entry) for entry in chosen], expires, buckets=2))
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
                    chosen = [e for e in log[at : at + size] if isinstance(e, PredictionEntry) == given_.of_predictions]
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
