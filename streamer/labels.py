"""The label join: which signed rows a prediction or a label adds, the same however often it is read."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import msgspec
import redis
from redis.cluster import RedisCluster

from streamer.join_records import (
    MAX_LABELS,
    MAX_PREDICTIONS,
    RedisRecords,
    StoreNotDurable,
    StoreRestarted,
    frame,
    frames,
    header,
)
from streamer.state import Keys

__all__ = [
    "Contribution",
    "JoinResult",
    "JoinStore",
    "LabelEntry",
    "PredictionEntry",
    "Record",
    "StoreNotDurable",
    "StoreRestarted",
    "contributions",
    "position_of",
]


class PredictionEntry(msgspec.Struct, array_like=True):
    """A prediction as the join needs it.

    `position` is its place in the log (`position_of`), `prediction` canonical text, `score` nan where there
    is none, `scores` the multiclass probabilities by canonical class, `slices` "feature=value" texts,
    `bucket` the routing bucket (-1: none), `expires_at_ms` the epoch ms from which no label is waited for.
    """

    model: str
    model_epoch: int
    prediction_id: str
    version: str
    origin: str
    position: str
    event_time_ms: int
    prediction: str
    score: float
    slices: list[str]
    rollout_id: str | None
    bucket: int
    expires_at_ms: int
    scores: dict[str, float] | None = None


class LabelEntry(msgspec.Struct, array_like=True):
    """A label as the join needs it: `label` is canonical text, `ts` the label's own time in epoch ms."""

    model: str
    model_epoch: int
    prediction_id: str
    position: str
    ts: int
    revision: int
    label: str
    deleted: bool
    expires_at_ms: int


class Contribution(NamedTuple):
    """One labelled prediction to add (`sign` +1) to or take (−1) from the counts.

    `labelled` is the change in the number of labelled predictions: ±1 where a prediction gains or loses its
    label, 0 for both rows of a correction. `score` is P(`label`) for multiclass.
    """

    model: str
    model_epoch: int
    version: str
    origin: str
    event_time_ms: int
    prediction: str
    score: float
    slices: list[str]
    rollout_id: str | None
    bucket: int
    label: str
    sign: int
    labelled: int


@dataclass
class JoinResult:
    """What one batch adds.

    `counted` answers each prediction entry given, in order: whether it counts (a repeated one does not).
    `parked` labels wait for their prediction; `duplicates` are repeated predictions and labels that repeat or
    are older than what is known; `dropped` found their record full.
    """

    counted: list[bool] = field(default_factory=list)
    contributions: list[Contribution] = field(default_factory=list)
    parked: int = 0
    duplicates: int = 0
    dropped: int = 0


class StoredPrediction(msgspec.Struct, array_like=True, gc=False):
    """A prediction in a record."""

    position: str
    version: str
    origin: str
    event_time_ms: int
    prediction: str
    score: float | None
    scores: dict[str, float] | None
    slices: list[str]
    rollout_id: str | None
    bucket: int

    def key(self) -> bytes:
        """Return its identity: a record keeps one prediction of each."""
        return f"p{self.version}\0{self.origin}".encode()


class StoredLabel(msgspec.Struct, array_like=True, gc=False):
    """A label in a record."""

    position: str
    revision: int
    ts: int
    label: str
    deleted: bool

    def key(self) -> bytes:
        """Return its place in the log: a record keeps every label it has met."""
        return b"l" + self.position.encode()

    def rank(self) -> tuple[int, int, tuple[str, int, int, int]]:
        """Return what the effective label is largest in."""
        return self.revision, self.ts, position_order(self.position)


Stored = StoredPrediction | StoredLabel


@dataclass(frozen=True)
class Record:
    """All that is known of one prediction_id: its entries in the order the store met them."""

    model: str
    model_epoch: int
    entries: Sequence[Stored]


def position_of(topic_id: str, partition: int, offset: int, row: int = 0) -> str:
    """Return the text of a place in the log, unique over partitions and over topics made anew."""
    return f"{topic_id[:8]}:{partition}:{offset}:{row}"


@lru_cache(maxsize=4096)
def position_order(position: str) -> tuple[str, int, int, int]:
    """Return what places order by: numbers as numbers, so offset 9 comes before 10."""
    topic, partition, offset, row = position.rsplit(":", 3)
    return topic, int(partition), int(offset), int(row)


def contributions(record: Record, new_positions: Collection[str]) -> JoinResult:
    """Return what the entries at `new_positions` contribute: effective up to each − effective before it.

    A function of the record alone, which only ever grows at its end: an entry read again contributes what it
    contributed the first time, and over all entries the sum is the effective labels of all identities.

    Returns
    -------
    The result with `counted` left to the caller, who knows the order of its predictions.
    """
    result = JoinResult()
    predictions: list[StoredPrediction] = []
    effective: StoredLabel | None = None
    for entry in record.entries:
        new = entry.position in new_positions
        if isinstance(entry, StoredPrediction):
            predictions.append(entry)
            if new:
                result.contributions += _change(record, [entry], None, effective)
            continue
        before = effective
        if before is None or entry.rank() > before.rank():
            effective = entry
        if not new:
            continue
        if before is not None and (effective is before or _same(before, entry)):
            result.duplicates += 1
        elif not predictions:
            result.parked += 1
        else:
            result.contributions += _change(record, predictions, before, effective)
    return result


def _same(first: StoredLabel, second: StoredLabel) -> bool:
    return first.deleted == second.deleted and (first.deleted or first.label == second.label)


def _change(
    record: Record, predictions: Iterable[StoredPrediction], before: StoredLabel | None, after: StoredLabel | None
) -> Iterator[Contribution]:
    old = None if before is None or before.deleted else before.label
    new = None if after is None or after.deleted else after.label
    for prediction in predictions:
        if old is not None:
            yield _row(record, prediction, old, -1, -1 if new is None else 0)
        if new is not None:
            yield _row(record, prediction, new, 1, 1 if old is None else 0)


def _row(record: Record, prediction: StoredPrediction, label: str, sign: int, labelled: int) -> Contribution:
    score = prediction.score
    if prediction.scores is not None:
        score = prediction.scores.get(label, 0.0)
    return Contribution(
        record.model,
        record.model_epoch,
        prediction.version,
        prediction.origin,
        prediction.event_time_ms,
        prediction.prediction,
        math.nan if score is None else score,
        prediction.slices,
        prediction.rollout_id,
        prediction.bucket,
        label,
        sign,
        labelled,
    )


_encode = msgspec.msgpack.Encoder().encode
_decode_prediction = msgspec.msgpack.Decoder(StoredPrediction).decode
_decode_label = msgspec.msgpack.Decoder(StoredLabel).decode


def _decode(record: bytes) -> list[Stored]:
    return [_decode_prediction(body) if key[0] == ord("p") else _decode_label(body) for key, body in frames(record)]


def _stored(entry: PredictionEntry | LabelEntry) -> Stored:
    if isinstance(entry, LabelEntry):
        return StoredLabel(entry.position, entry.revision, entry.ts, entry.label, entry.deleted)
    return StoredPrediction(
        entry.position,
        entry.version,
        entry.origin,
        entry.event_time_ms,
        entry.prediction,
        None if math.isnan(entry.score) else entry.score,
        entry.scores,
        entry.slices,
        entry.rollout_id,
        entry.bucket,
    )


def _grow(entries: list[Stored], given: Iterable[Stored]) -> int:
    """Append as the store's script does (absent keys, up to the limits); return how many found no room."""
    present = {entry.key() for entry in entries}
    labels = sum(isinstance(entry, StoredLabel) for entry in entries)
    predictions = len(entries) - labels
    dropped = 0
    for entry in given:
        key = entry.key()
        if key in present:
            continue
        if isinstance(entry, StoredLabel):
            room, labels = labels < MAX_LABELS, labels + 1
        else:
            room, predictions = predictions < MAX_PREDICTIONS, predictions + 1
        if room:
            present.add(key)
            entries.append(entry)
        else:
            dropped += 1
    return dropped


@dataclass
class _Group:
    """The entries of one batch that touch one record."""

    model: str
    model_epoch: int
    expires_at_ms: int
    given: list[Stored]


class JoinStore:
    """Joins predictions with labels over a store of records.

    A batch is: `begin`, `join` once or more, publish what it contributes, `barrier`, commit. When anything
    fails, the process ends and the batch is read again, with the same answers.

    Parameters
    ----------
    client : Redis or Valkey with append-only file and `noeviction`; a cluster's client does too.
    buckets : how many hashes the records are spread over; fixed for a namespace.
    wait_aof : whether `barrier` waits for the disk. Without it a store's crash may lose its last second.
    """

    def __init__(self, client: redis.Redis | RedisCluster, keys: Keys, *, buckets: int, wait_aof: bool) -> None:
        self._records = RedisRecords(client, keys, wait_aof=wait_aof)
        self._buckets = buckets

    def begin(self) -> None:
        """Begin a batch: remember which run of the store it is for."""
        self._records.begin()

    def barrier(self) -> None:
        """Wait until the batch is on disk.

        Raises
        ------
        StoreRestarted
            The store was restarted since `begin`: end the process, and read the batch again.
        StoreNotDurable
            The disk did not confirm in time.
        """
        self._records.barrier()

    def join(self, entries: Sequence[PredictionEntry | LabelEntry]) -> JoinResult:
        """Append a batch's entries, given in log order, and return what they contribute.

        Raises
        ------
        StoreRestarted
            The store was restarted since `begin`.
        """
        groups = self._grouped(entries)
        buckets: dict[int, dict[bytes, bytes]] = {}
        for digest, group in groups.items():
            kept: list[Stored] = []
            _grow(kept, group.given)
            payload = b"".join([header(group.expires_at_ms), *(frame(entry.key(), _encode(entry)) for entry in kept)])
            buckets.setdefault(int.from_bytes(digest[:4]) % self._buckets, {})[digest] = payload
        before = self._records.append(buckets)
        result = JoinResult()
        counted: set[str] = set()
        for digest, group in groups.items():
            _add(result, counted, group, before[digest])
        result.counted = [entry.position in counted for entry in entries if isinstance(entry, PredictionEntry)]
        result.duplicates += result.counted.count(False)
        return result

    @staticmethod
    def _grouped(entries: Sequence[PredictionEntry | LabelEntry]) -> dict[bytes, _Group]:
        groups: dict[bytes, _Group] = {}
        for entry in entries:
            # 128 bits of digest, shorter than most ids: two ids in 10¹² meeting is a 10⁻¹⁵ event.
            name = f"{entry.model}\0{entry.model_epoch}\0{entry.prediction_id}"
            digest = blake2b(name.encode(), digest_size=16).digest()
            group = groups.get(digest)
            if group is None:
                groups[digest] = _Group(entry.model, entry.model_epoch, entry.expires_at_ms, [_stored(entry)])
            else:
                group.given.append(_stored(entry))
                group.expires_at_ms = max(group.expires_at_ms, entry.expires_at_ms)
        return groups


def _add(result: JoinResult, counted: set[str], group: _Group, before: bytes | None) -> None:
    first = group.given[0]
    if before is None and len(group.given) == 1:
        if isinstance(first, StoredPrediction):
            counted.add(first.position)
        else:
            result.parked += 1
        return
    entries = [] if before is None else _decode(before)
    result.dropped += _grow(entries, group.given)
    given = {entry.position for entry in group.given}
    counted.update(e.position for e in entries if isinstance(e, StoredPrediction) and e.position in given)
    part = contributions(Record(group.model, group.model_epoch, entries), given)
    result.contributions += part.contributions
    result.parked += part.parked
    result.duplicates += part.duplicates
