"""The label join: which signed rows a prediction or a label adds, the same however often it is read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

import msgspec
import redis
from redis.cluster import RedisCluster

from streamer.join_bulk import Given, by_bucket
from streamer.join_records import (
    FIELD_BYTES,
    Keyed,
    Stored,
    StoredLabel,
    StoredPrediction,
    grow,
    keyed,
    pack,
    position_of,
    rank,
    sole_prediction,
    unpack,
)
from streamer.join_script import RedisRecords, StoreNotDurable, StoreRestarted
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
    "stored_entry",
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


class Record(msgspec.Struct, gc=False):
    """All that is known of one prediction_id: its entries in the order the store met them."""

    model: str
    model_epoch: int
    entries: Sequence[Stored]


def contributions(record: Record, new_positions: Collection[str]) -> JoinResult:
    """Return what the entries at `new_positions` contribute: effective up to each − effective before it.

    A function of the record alone, which only ever grows at its end: an entry read again contributes what it
    contributed the first time, and over all entries the sum is the effective labels of all identities.

    Returns
    -------
    The result with `counted` left to the caller, who knows the order of its predictions.
    """
    result = JoinResult()
    _contribute(result, record, new_positions)
    return result


def _contribute(result: JoinResult, record: Record, new_positions: Collection[str]) -> None:
    predictions: list[StoredPrediction] = []
    effective: StoredLabel | None = None
    for entry in record.entries:
        new = entry.position in new_positions
        if isinstance(entry, StoredPrediction):
            predictions.append(entry)
            if new:
                _change(result.contributions, record, [entry], None, effective)
            continue
        before = effective
        if before is None or rank(entry) > rank(before):
            effective = entry
        if not new:
            continue
        if before is not None and (effective is before or _same(before, entry)):
            result.duplicates += 1
        elif not predictions:
            result.parked += 1
        else:
            _change(result.contributions, record, predictions, before, effective)


def _same(first: StoredLabel, second: StoredLabel) -> bool:
    return first.deleted == second.deleted and (first.deleted or first.label == second.label)


def _change(
    rows: list[Contribution],
    record: Record,
    predictions: Sequence[StoredPrediction],
    before: StoredLabel | None,
    after: StoredLabel | None,
) -> None:
    """Append the rows that take the predictions from one effective label to another."""
    old = None if before is None or before.deleted else before.label
    new = None if after is None or after.deleted else after.label
    for prediction in predictions:
        if old is not None:
            rows.append(_row(record, prediction, old, -1, -1 if new is None else 0))
        if new is not None:
            rows.append(_row(record, prediction, new, 1, 1 if old is None else 0))


def _row(record: Record | Given, prediction: StoredPrediction, label: str, sign: int, labelled: int) -> Contribution:
    score = prediction.score
    if prediction.scores is not None:
        score = prediction.scores.get(label, math.nan)
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


def stored_entry(entry: PredictionEntry | LabelEntry) -> Stored:
    """Return what a record holds of an entry."""
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


class _Group(msgspec.Struct, gc=False):
    """The entries of one batch that touch one record."""

    model: str
    model_epoch: int
    expires_at_ms: int
    given: list[Keyed]


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
        """Begin a batch; the run of the store it is for is the one its first join meets."""
        self._records.begin()

    def barrier(self) -> None:
        """Wait until the batch is on disk.

        Raises
        ------
        StoreRestarted
            The store was restarted since the batch's first join: end the process, and read the batch again.
        StoreNotDurable
            The disk did not confirm in time.
        """
        self._records.barrier()

    def join(self, entries: Sequence[PredictionEntry | LabelEntry]) -> JoinResult:
        """Append a batch's entries, given in log order, and return what they contribute.

        Raises
        ------
        StoreRestarted
            The store was restarted since the batch's first join.
        """
        if not entries:
            return JoinResult()
        groups = _grouped(entries)
        buckets: dict[int, dict[bytes, bytes]] = {}
        for digest, group in groups.items():
            bucket = int.from_bytes(digest[:4], "big") % self._buckets
            buckets.setdefault(bucket, {})[digest] = _packed(group)
        before = self._records.append(buckets)
        result = JoinResult()
        counted: set[str] = set()
        for digest, group in groups.items():
            _add(result, counted, group, before[digest])
        result.counted = [entry.position in counted for entry in entries if isinstance(entry, PredictionEntry)]
        result.duplicates += result.counted.count(False)
        return result

    def join_many(self, batch: Sequence[Given]) -> JoinResult:
        """Append the entries of a batch, predictions or labels, and return what they contribute: `join`, in bulk.

        Most entries are alone with their id in a batch; those that are not go the way of `join`.
        """
        fields = [digest for given in batch for digest in given.fields()]
        records = [record for given in batch for record in given.records()]
        groups = {} if len(set(fields)) == len(fields) else _shared(batch, fields)
        if groups:
            packed = {digest: _packed(group) for digest, group in groups.items()}
            records = [packed.get(digest, record) for digest, record in zip(fields, records, strict=True)]
        before = self._records.append(by_bucket(fields, records, self._buckets)) if fields else {}
        result = JoinResult()
        counted: set[str] = set()
        for digest, group in groups.items():
            _add(result, counted, group, before[digest])
        start = 0
        for given in batch:
            end = start + len(given.ids)
            _add_many(result, counted, groups, given, fields[start:end], before)
            start = end
        result.duplicates += result.counted.count(False)
        return result


def _shared(batch: Sequence[Given], fields: Sequence[bytes]) -> dict[bytes, _Group]:
    """Group the entries whose record others of the batch touch too."""
    several = {digest for digest, times in Counter(fields).items() if times > 1}
    groups: dict[bytes, _Group] = {}
    places = ((given, row) for given in batch for row in range(len(given.ids)))
    for digest, (given, row) in zip(fields, places, strict=True):
        if digest in several:
            group = groups.setdefault(digest, _Group(given.model, given.model_epoch, 0, []))
            group.given.append(given.keyed(row))
            group.expires_at_ms = max(group.expires_at_ms, int(given.expires_at_ms[row]))
    return groups


def _add_many(
    result: JoinResult,
    counted: set[str],
    groups: Collection[bytes],
    given: Given,
    fields: Sequence[bytes],
    before: Mapping[bytes, bytes | None],
) -> None:
    """Add what the entries of one model contribute; those in groups have been added already."""
    held = list(map(before.__getitem__, fields))
    predictions = given.of_predictions
    if not groups and held.count(None) == len(held):
        if predictions:
            result.counted += [True] * len(held)
        else:
            result.parked += len(held)
        return
    for row, (digest, record) in enumerate(zip(fields, held, strict=True)):
        entry = given.stored[row]
        if digest not in groups:
            prediction = None if predictions or record is None else sole_prediction(record)
            if prediction is not None and isinstance(entry, StoredLabel):
                # Nothing but the prediction was known: its first label is the effective one.
                if not entry.deleted:
                    result.contributions.append(_row(given, prediction, entry.label, 1, 1))
                continue
            _add(result, counted, _Group(given.model, given.model_epoch, 0, [given.keyed(row)]), record)
        if predictions:
            result.counted.append(entry.position in counted)


def _packed(group: _Group) -> bytes:
    given = group.given
    if len(given) > 1:
        given = []
        grow(given, group.given)
    return pack(group.expires_at_ms, given)


def _grouped(entries: Sequence[PredictionEntry | LabelEntry]) -> dict[bytes, _Group]:
    groups: dict[bytes, _Group] = {}
    for entry in entries:
        name = f"{entry.model}\0{entry.model_epoch}\0{entry.prediction_id}"
        digest = blake2b(name.encode(), digest_size=FIELD_BYTES).digest()
        pair = keyed(stored_entry(entry))
        group = groups.get(digest)
        if group is None:
            groups[digest] = _Group(entry.model, entry.model_epoch, entry.expires_at_ms, [pair])
        else:
            group.given.append(pair)
            group.expires_at_ms = max(group.expires_at_ms, entry.expires_at_ms)
    return groups


def _add(result: JoinResult, counted: set[str], group: _Group, before: bytes | None) -> None:
    """Work out what a batch's entries contribute to one record, from the record before them."""
    if before is None and len(group.given) == 1:
        entry = group.given[0][1]
        if isinstance(entry, StoredPrediction):
            counted.add(entry.position)
        else:
            result.parked += 1
        return
    record = [] if before is None else unpack(before)
    result.dropped += grow(record, group.given)
    positions = {entry.position for _, entry in group.given}
    entries = [entry for _, entry in record]
    for entry in entries:
        if isinstance(entry, StoredPrediction) and entry.position in positions:
            counted.add(entry.position)
    _contribute(result, Record(group.model, group.model_epoch, entries), positions)
