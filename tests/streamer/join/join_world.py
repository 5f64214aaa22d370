"""Workers over a log and a join store, where anything may crash at any time, and the offline join they must equal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import cast

import redis

from streamer.join.changes import Contribution
from streamer.join.entries import Entry, FeaturesEntry, LabelEntry, PredictionEntry
from streamer.join.labels import JoinStore
from streamer.join.records import position_of, position_order
from streamer.join.script import StoreEmptied, StoreRestarted
from streamer.state import Keys
from tests.streamer.stores import MemoryClient, MemoryServer

T0 = 1_700_000_000_000
MINUTE_MS = 60_000
HORIZON_MS = 10 * MINUTE_MS
# Of the log's partitions, the first hold predictions, the next labels and the others feature logs.
LABELS_FROM, FEATURES_FROM, PARTITIONS = 2, 4, 6


def prediction(
    offset: int,
    *,
    id_: str = "p",
    version: str = "v1",
    origin: str = "live",
    said: str = "1",
    partition: int = 0,
    scores: dict[str, float] | None = None,
    minute: int = 0,
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
        slices=own_slices(version),
        rollout_id=None,
        bucket=7,
        **came(minute),
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
    minute: int = 0,
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
        **came(minute),
    )


def came(minute: int) -> dict[str, int]:
    """Return when an entry came, in minutes of the log since it began, and until when it waits."""
    record_ms = T0 + minute * MINUTE_MS
    return {"record_ms": record_ms, "expires_at_ms": record_ms + HORIZON_MS}


def own_slices(version: str) -> list[str]:
    """Return the slices that predictions of a version say they are in."""
    return [] if version == "v2" else ["a=1"]


def features(
    offset: int, slices: Sequence[str], *, id_: str = "p", ts: int = 0, partition: int = 0, minute: int = 0
) -> FeaturesEntry:
    return FeaturesEntry(
        model="m",
        model_epoch=1,
        prediction_id=id_,
        position=position_of("features-topic", partition, offset),
        ts=ts,
        slices=list(slices),
        **came(minute),
    )


def store(server: MemoryServer | None = None, *, buckets: int = 2) -> JoinStore:
    client = cast("redis.Redis", MemoryClient(server or MemoryServer()))
    return JoinStore(client, Keys("t"), buckets=buckets, wait_aof=True, hold_ms=0)


# An id, version and origin, what the prediction said, the label, and its slices.
Counted = tuple[str, str, str, str, str, tuple[str, ...]]


@dataclass
class World:
    """Workers over a log and a store, where anything may crash at any time; commits are Kafka's and atomic."""

    random: Random
    server: MemoryServer = field(default_factory=MemoryServer)
    log: list[list[Entry]] = field(default_factory=lambda: [[] for _ in range(PARTITIONS)])
    committed: list[int] = field(default_factory=lambda: [0] * PARTITIONS)
    said: dict[tuple[str, str, str], tuple[int, str]] = field(default_factory=dict)
    first: dict[tuple[str, str, str], PredictionEntry] = field(default_factory=dict)
    sums: Counter[Counted] = field(default_factory=Counter)
    labelled: int = 0
    begun: bool = False
    minute: int = 0
    counted: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def publish(self, n_messages: int) -> None:
        """Write predictions of a few ids with their copies; labels and logs early, late, doubled, misplaced."""
        for _ in range(n_messages):
            self.minute += self.random.choice([0, 0, 0, 0, 1, 4, 12])
            id_ = f"p{self.random.randrange(4)}"
            part = self.random.randrange(2)
            chance = self.random.random()
            if chance < 0.2:
                chosen = [key for key in ("a=2", "b=1", "b=2", "c=1") if self.random.random() < 0.5]
                self.log_features(id_, part, chosen, self.random.randrange(3))
            elif chance < 0.5:
                self.publish_prediction(
                    (id_, self.random.choice(["v1", "v2"]), self.random.choice(["live", "shadow"])), part
                )
            else:
                truth, deleted = self.random.choice("01"), self.random.random() < 0.2
                revision, ts = self.random.randrange(3), self.random.randrange(3)
                log = self.log[2 + part]
                log.append(self.label(part, id_, truth, revision=revision, ts=ts, deleted=deleted))

    def label(self, part: int, id_: str, truth: str, *, revision: int, ts: int, deleted: bool) -> LabelEntry:
        """Return a label that comes now."""
        offset = len(self.log[LABELS_FROM + part])
        said = {"revision": revision, "ts": ts, "deleted": deleted, "partition": part, "minute": self.minute}
        return label(offset, truth, id_=id_, **said)

    def log_features(self, id_: str, part: int, slices: Sequence[str], ts: int) -> None:
        """Write a feature log; of two slices of one feature it says the last."""
        said = {key[0]: key for key in slices}
        log = self.log[FEATURES_FROM + part]
        log.append(features(len(log), list(said.values()), id_=id_, ts=ts, partition=part, minute=self.minute))

    def publish_prediction(self, identity: tuple[str, str, str], part: int) -> None:
        self.say(identity, part, self.random.choice("01"), otherwise=self.random.random() < 0.5)

    def say(self, identity: tuple[str, str, str], part: int, said: str, *, otherwise: bool) -> None:
        """A copy elsewhere says the same, at the same time; one in its partition may say anything: neither counts."""
        id_, version, origin = identity
        home, said = self.said.setdefault(identity, (part, said))
        if identity in self.first and self.first[identity].record_ms != came(self.minute)["record_ms"]:
            part = home
        repeated = any((e.prediction_id, e.version, e.origin) == identity for e in self.predictions(home))
        if part == home and repeated and otherwise:
            said = "another"
        log = self.log[part]
        told = {"said": said, "partition": part, "minute": self.minute}
        log.append(prediction(len(log), id_=id_, version=version, origin=origin, **told))
        self.first.setdefault(identity, cast("PredictionEntry", log[-1]))

    def predictions(self, part: int) -> list[PredictionEntry]:
        return [entry for entry in self.log[part] if isinstance(entry, PredictionEntry)]

    def known(self, id_: str) -> list[list[Entry]]:
        """Part what is known of an id, first predictions alone, where the log passed the horizon of all before."""
        entries: list[Entry] = [entry for key, entry in self.first.items() if key[0] == id_]
        entries += [entry for part in self.log[LABELS_FROM:] for entry in part if entry.prediction_id == id_]
        parts: list[list[Entry]] = []
        until_ms = 0
        for entry in sorted(entries, key=lambda entry: entry.record_ms):
            if entry.record_ms >= until_ms:
                parts.append([])
            parts[-1].append(entry)
            until_ms = -(-entry.expires_at_ms // MINUTE_MS) * MINUTE_MS
        return parts

    def run(self) -> None:
        """Let two workers read to the end, each its own half, dying and losing the store on the way."""
        workers = [Worker(self, [0, 3, 4]), Worker(self, [1, 2, 5])]
        steps = 0
        while any(end < len(log) for end, log in zip(self.committed, self.log, strict=True)):
            steps += 1
            calm = steps > 400
            if not calm and self.random.random() < 0.08:
                self.server.crash(self.random)
            if not calm and self.random.random() < 0.05:
                # A rebalance: both lose what they had not committed.
                mixed = self.random.sample(range(PARTITIONS), PARTITIONS)
                workers = [Worker(self, mixed[:3]), Worker(self, mixed[3:])]
            self.random.choice(workers).step()

    def truth(self) -> Counter[Counted]:
        """Say from the whole log what the sums must be: the offline join."""
        sums: Counter[Counted] = Counter()
        for id_ in {id_ for id_, _version, _origin in self.said}:
            for together in self.known(id_):
                labels = [entry for entry in together if isinstance(entry, LabelEntry)]
                effective = max(labels, key=lambda e: (e.revision, e.ts, position_order(e.position)), default=None)
                if effective is None or effective.deleted:
                    continue
                logs = [entry for entry in together if isinstance(entry, FeaturesEntry)]
                for entry in together:
                    if isinstance(entry, PredictionEntry):
                        said = self.said[id_, entry.version, entry.origin][1]
                        sliced = sliced_by(logs, entry.version)
                        sums[id_, entry.version, entry.origin, said, effective.label, sliced] += 1
        return sums


def sliced_by(logs: Sequence[FeaturesEntry], version: str) -> tuple[str, ...]:
    """Return the slices of a version's prediction: its own, else what was logged last of a feature."""
    said: dict[str, tuple[tuple[int, object], str]] = {}
    for entry in logs:
        for key in entry.slices:
            rank = entry.ts, position_order(entry.position)
            said[key[0]] = max(said.get(key[0], (rank, key)), (rank, key))
    own = own_slices(version)
    carried = {key[0] for key in own}
    return (*own, *sorted(key for name, (_rank, key) in said.items() if name not in carried))


@dataclass
class Worker:
    """Reads its partitions in batches; a batch is joined in pieces, made durable, committed, or lost on the way."""

    world: World
    partitions: list[int]
    joining: JoinStore | None = None
    at: dict[int, int] = field(default_factory=dict)
    held_back: bool = False
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
        except (StoreRestarted, StoreEmptied):
            self.joining = None

    def restart(self) -> None:
        self.joining = store(self.world.server)
        # Labels and feature logs wait while the store lacks what was joined before.
        self.held_back = not self.joining.is_whole(new=not self.world.begun)
        self.begin()

    def begin(self) -> None:
        assert self.joining is not None
        self.joining.begin()
        self.at = {part: self.world.committed[part] for part in self.partitions}
        self.pending, self.rows = [], []

    def read(self) -> None:
        part = self.world.random.choice(self.partitions)
        self.read_from(part, self.world.random.randrange(1, 8))

    def read_from(self, part: int, count: int) -> None:
        assert self.joining is not None
        if self.held_back and part >= LABELS_FROM:
            return
        start, end = self.at[part], self.at[part] + count
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
            self.world.sums[id_, row.version, row.origin, row.prediction, row.label, tuple(row.slices)] += row.sign
            self.world.labelled += row.labelled
        for entry, counted in self.pending:
            if isinstance(entry, PredictionEntry) and counted:
                self.world.counted[entry.prediction_id, entry.version, entry.origin] += 1
        for part, end in self.at.items():
            self.world.committed[part] = end
        self.world.begun = True
        self.begin()
