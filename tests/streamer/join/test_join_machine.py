"""The label join under any schedule hypothesis can think of, a store that is emptied and made anew among them."""

from __future__ import annotations

from random import Random

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from streamer.join.gap import Gap
from streamer.join.script import StoreEmptied, StoreRestarted
from tests.streamer.join.join_world import (
    LABELS_FROM,
    PARTITIONS,
    FeaturesEntry,
    LabelEntry,
    PredictionEntry,
    Worker,
    World,
    came,
    store,
)

IDS = st.sampled_from(["p0", "p1", "p2"])
PARTS = st.sampled_from([0, 1])
WORKERS = st.sampled_from([0, 1])
# Of each of a worker's partitions.
COUNTS = st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))


class Join(RuleBasedStateMachine):
    """Two workers over six partitions. What a rule cannot do now (nothing to read, a worker that is down) it leaves.

    While the store is lost, a prediction that is sent again counts again, and one more identity of a known id stays
    without its label: so there is none. And the store is emptied while one worker alone has anything under way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.world = World(Random(0))
        self.workers = [Worker(self.world, [0, 3, 4]), Worker(self.world, [1, 2, 5])]
        self.lost = False

    @rule(
        id_=IDS,
        version=st.sampled_from(["v1", "v2"]),
        origin=st.sampled_from(["live", "shadow"]),
        part=PARTS,
        said=st.sampled_from("01"),
        otherwise=st.booleans(),
    )
    def predict(self, id_: str, version: str, origin: str, part: int, said: str, otherwise: bool) -> None:
        identity = (id_, version, origin)
        if self.lost and any(id_ == known for known, _version, _origin in self.world.said):
            return
        self.world.say(identity, part, said, otherwise=otherwise)

    @rule(
        id_=IDS,
        part=PARTS,
        truth=st.sampled_from("01"),
        revision=st.integers(0, 3),
        ts=st.integers(0, 2),
        deleted=st.booleans(),
    )
    def label(self, id_: str, part: int, truth: str, revision: int, ts: int, deleted: bool) -> None:
        log = self.world.log[LABELS_FROM + part]
        log.append(self.world.label(part, id_, truth, revision=revision, ts=ts, deleted=deleted))

    @rule(
        id_=IDS,
        part=PARTS,
        slices=st.lists(st.sampled_from(["a=2", "b=1", "b=2", "c=1"]), min_size=1, max_size=3),
        ts=st.integers(0, 2),
    )
    def log_features(self, id_: str, part: int, slices: list[str], ts: int) -> None:
        self.world.log_features(id_, part, slices, ts)

    @rule(which=WORKERS, counts=COUNTS, commit=st.booleans())
    def work(self, which: int, counts: tuple[int, ...], commit: bool) -> None:
        worker = self.workers[which]
        for part, count in zip(list(worker.partitions), counts, strict=True):
            self._do(worker, lambda part=part, count=count: worker.read_from(part, count))
        if commit:
            self._do(worker, worker.commit)

    @precondition(lambda self: not self.lost)
    @rule(minutes=st.sampled_from([1, 4, 12]))
    def pass_time(self, minutes: int) -> None:
        self.world.minute += minutes

    @rule(which=WORKERS)
    def die(self, which: int) -> None:
        self.workers[which].joining = None

    @rule(mixed=st.permutations(range(PARTITIONS)))
    def rebalance(self, mixed: list[int]) -> None:
        self.workers = [Worker(self.world, mixed[:3]), Worker(self.world, mixed[3:])]

    @rule(kept=st.integers(0, 100))
    def crash(self, kept: int) -> None:
        self.world.server.crash_keeping(kept / 100)

    @precondition(lambda self: self.world.begun and not self.lost)
    @rule(which=WORKERS, counts=COUNTS)
    def empty(self, which: int, counts: tuple[int, ...]) -> None:
        self.finish()
        self.work(which, counts, commit=False)
        self.world.server.flush()
        self.lost = True

    @precondition(lambda self: self.lost)
    @rule()
    def rebuild(self) -> None:
        for worker in self.workers:
            worker.joining = None
        joining = store(self.world.server)
        gap = Gap(joining.lost_predictions())
        joining.clear_lost()
        committed = [log[:end] for log, end in zip(self.world.log, self.world.committed, strict=True)]
        others = [(part, False) for part in (4, 5, 2, 3)]
        for part, of_gap in ((0, False), (1, False), (0, True), (1, True), *others):
            for entry in committed[part]:
                fate = gap.fate(entry, of_gap=of_gap)
                if fate == "append again":
                    log = self.world.log[part]
                    place = {"position": f"labels-t:{part - LABELS_FROM}:{len(log)}:0", **came(self.world.minute)}
                    log.append(msgspec.structs.replace(entry, **place))
                elif fate == "install":
                    joining.begin()
                    joining.join([entry])
                    joining.barrier()
        joining.mark_whole()
        self.lost = False

    def teardown(self) -> None:
        if self.lost:
            self.rebuild()
        self.finish()
        truth = self.world.truth()
        assert +self.world.sums == truth
        assert not -self.world.sums
        assert self.world.labelled == truth.total()
        assert dict(self.world.counted) == dict.fromkeys(self.world.said, 1)

    def finish(self) -> None:
        """Have everything that was sent read and committed."""
        while any(end < len(log) for end, log in zip(self.world.committed, self.world.log, strict=True)):
            for worker in self.workers:
                for part in worker.partitions:
                    self._do(worker, lambda worker=worker, part=part: worker.read_from(part, 100))
                self._do(worker, worker.commit)

    @staticmethod
    def _do(worker: Worker, act: object) -> None:
        try:
            if worker.joining is None:
                worker.restart()
            act()  # type: ignore[operator]
        except (StoreRestarted, StoreEmptied):
            worker.joining = None


TestJoin = Join.TestCase
TestJoin.settings = settings(max_examples=400, stateful_step_count=40, deadline=None)


def test_a_worker_that_has_not_noticed_the_loss_leaves_nothing_for_those_who_have() -> None:
    join = Join()
    join.label(id_="p0", part=0, truth="0", revision=0, ts=0, deleted=False)
    join.empty(which=0, counts=(0, 0, 0))
    join.label(id_="p0", part=0, truth="0", revision=0, ts=0, deleted=False)
    # The first of the two comes upon the loss; the second reads on in the store it began with.
    join.work(which=0, counts=(0, 0, 0), commit=True)
    join.work(which=1, counts=(0, 1, 0), commit=False)
    join.predict(id_="p0", version="v1", origin="live", part=0, said="0", otherwise=False)
    join.work(which=0, counts=(0, 0, 0), commit=False)
    join.work(which=0, counts=(1, 0, 0), commit=True)
    join.teardown()


def test_a_feature_log_of_a_labelled_prediction_waits_until_the_lost_store_is_made_anew() -> None:
    join = Join()
    join.predict(id_="p0", version="v1", origin="live", part=0, said="0", otherwise=False)
    join.label(id_="p0", part=0, truth="0", revision=0, ts=0, deleted=False)
    join.empty(which=1, counts=(0, 0, 0))
    join.log_features(id_="p0", part=0, slices=["b=1"], ts=0)
    join.work(which=0, counts=(0, 0, 1), commit=True)
    # The first comes upon the loss.
    join.work(which=0, counts=(0, 0, 1), commit=True)
    join.teardown()


def test_the_world_holds_every_kind_of_entries() -> None:
    world = World(Random(1))
    world.publish(50)
    assert {type(entry) for part in world.log for entry in part} == {PredictionEntry, FeaturesEntry, LabelEntry}
