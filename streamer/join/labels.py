"""The label join: which signed rows a prediction or a label adds, the same however often it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np
import redis

from streamer.join.bulk import MAX_FIELDS, Call, Given, calls, is_blank, taken_apart
from streamer.join.changes import JoinResult, Record, contribute, labelled_row
from streamer.join.entries import Entry, PredictionEntry, record_field, stored_entry
from streamer.join.records import (
    EntryKind,
    Keyed,
    StoredLabel,
    StoredPrediction,
    expires_at_ms,
    grow,
    keyed,
    meet,
    pack,
    sole_label,
    sole_prediction,
    unpack,
)
from streamer.join.script import REBUILD, RedisRecords, StoreEmptied
from streamer.state import Keys

_NO_STARTS = np.zeros(0, dtype=np.uint64)


class _Group(msgspec.Struct, gc=False):
    """The entries of one batch that touch one record."""

    model: str
    model_epoch: int
    expires_at_ms: int
    given: list[Keyed]


class JoinStore:
    """Joins predictions with labels, and with what feature logs say of their slices, over a store of records.

    A batch is: `begin`, `join` once or more, publish what it contributes, `barrier`, commit. When anything
    fails, the process ends and the batch is read again, with the same answers.

    Parameters
    ----------
    client : Redis or Valkey with append-only file and `noeviction`.
    buckets : how many hashes the records are spread over; fixed for a namespace.
    wait_aof : whether `barrier` waits for the disk. Without it a store's crash may lose its last second.
    hold_ms : how long a record is kept beyond its horizon: what is read late is joined as if it had been read in time.
    """

    def __init__(self, client: redis.Redis, keys: Keys, *, buckets: int, wait_aof: bool, hold_ms: int) -> None:
        self._records = RedisRecords(client, keys, wait_aof=wait_aof, hold_ms=hold_ms)
        self._buckets = buckets
        self._whole = False

    def is_whole(self, *, new: bool) -> bool:
        """Tell whether the store holds all it was given; from here on, barriers see to it that it still does.

        Parameters
        ----------
        new : whether nothing has been joined before: then a store without its marks is not lost, and gets them.
        """
        lost = self._records.lost(range(self._buckets))
        if lost and new:
            self._records.mark_whole(lost)
        self._whole = new or not lost
        return self._whole

    def lost_predictions(self) -> dict[bytes, set[str]]:
        """Return the predictions that buckets were given since they lost what they held.

        Returns
        -------
        Field of a record (`record_field`) → positions.
        """
        met: dict[bytes, set[str]] = {}
        for bucket in self._records.lost(range(self._buckets)):
            for key, record in self._records.contents(bucket):
                found = {entry.position for _key, entry in unpack(record) if isinstance(entry, StoredPrediction)}
                if found:
                    met[key] = found
        return met

    def clear_lost(self) -> None:
        """Empty the buckets that have lost something: what came since must not stand before what is put back."""
        for bucket in self._records.lost(range(self._buckets)):
            self._records.clear(bucket)

    def mark_whole(self) -> None:
        """Say that the store holds all it should again."""
        self._records.mark_whole(range(self._buckets))

    def begin(self) -> None:
        """Begin a batch; the run of the store it is for is the one its first join meets."""
        self._records.begin()

    def barrier(self) -> None:
        """Wait until the batch is on disk.

        Raises
        ------
        StoreRestarted
            The store was restarted since the batch's first join: end the process, and read the batch again.
        StoreEmptied
            The store was whole and has been emptied since: as above.
        StoreNotDurable
            The disk did not confirm in time.
        """
        self._records.barrier()
        if self._whole and (lost := self._records.lost(range(self._buckets))):
            raise StoreEmptied(f"join store: {len(lost)} of {self._buckets} buckets have lost their records; {REBUILD}")

    def join(self, entries: Sequence[Entry]) -> JoinResult:
        """Append a batch's entries, given in log order, and return what they contribute.

        Raises
        ------
        StoreRestarted
            The store was restarted since the batch's first join.
        """
        if not entries:
            return JoinResult()
        groups = _grouped(entries)
        result = JoinResult()
        counted = self._join_groups(result, groups)
        result.counted = [entry.position in counted for entry in entries if isinstance(entry, PredictionEntry)]
        result.duplicates += result.counted.count(False)
        return result

    @property
    def buckets(self) -> int:
        """How many hashes the records are spread over."""
        return self._buckets

    def join_many(self, batch: Sequence[Given]) -> Iterator[JoinResult]:
        """Append a batch's entries, each part of one kind, and give what each contributes: `join`, in bulk.

        Most entries are alone with their id in a batch; those that are not go the way of `join`. All is appended
        before the first result is asked for.

        Parameters
        ----------
        batch : entries in log order.
        """
        result = JoinResult()
        groups, kept = _shared(batch)
        counted = self._join_groups(result, groups) if groups else set()
        parts = [
            given.calls if rows is None else self._calls_of(given, rows)
            for given, rows in zip(batch, kept, strict=True)
        ]
        return _results(result, counted, groups, batch, self._before(parts))

    def _calls_of(self, given: Given, rows: list[int]) -> list[Call]:
        entries = given.entries()
        made = calls([entries[row][0] for row in rows], [entries[row][1] for row in rows], self._buckets)
        return [call._replace(rows=[rows[row] for row in call.rows]) for call in made]

    def _join_groups(self, result: JoinResult, groups: Mapping[bytes, _Group]) -> set[str]:
        """Join entries that are grouped by record; return the positions of the predictions that count."""
        fields = list(groups)
        (held,) = self._before([calls(fields, [_packed(group) for group in groups.values()], self._buckets)])
        counted: set[str] = set()
        for row, group in enumerate(groups.values()):
            _add(result, counted, group, held.get(row))
        return counted

    def _before(self, parts: Sequence[list[Call]]) -> list[dict[int, bytes]]:
        """Append, in as few calls as can be; return for each part the records that were there, by row."""
        by_bucket: dict[int, list[list[tuple[int, Call]]]] = {}
        for part, made in enumerate(parts):
            for call in made:
                bundles = by_bucket.setdefault(call.bucket, [[]])
                if sum(len(other.rows) for _, other in bundles[-1]) + len(call.rows) > MAX_FIELDS:
                    bundles.append([])
                bundles[-1].append((part, call))
        bundled = [(bucket, bundle) for bucket, bundles in by_bucket.items() for bundle in bundles if bundle]
        sent = [(bucket, b"".join([call.blob for _, call in bundle])) for bucket, bundle in bundled]
        held: list[dict[int, bytes]] = [{} for _ in parts]
        for (_bucket, bundle), answer in zip(
            bundled, self._records.append(sent, whole=self._whole) if sent else (), strict=True
        ):
            if is_blank(answer):
                continue
            found = iter(taken_apart(answer))
            for part, call in bundle:
                held[part].update((row, record) for row, record in zip(call.rows, found, strict=False) if record)
        return held


def _results(
    shared: JoinResult,
    counted: set[str],
    groups: Mapping[bytes, _Group],
    batch: Sequence[Given],
    held: Sequence[dict[int, bytes]],
) -> Iterator[JoinResult]:
    """Give each part's result; what entries that share a record contribute is in the first."""
    result = shared
    for given, records in zip(batch, held, strict=True):
        _add_many(result, counted, groups, given, records)
        result.duplicates += result.counted.count(False)
        yield result
        result = JoinResult()


def _shared(batch: Sequence[Given]) -> tuple[dict[bytes, _Group], list[list[int] | None]]:
    """Group the entries whose record others of the batch touch too.

    Returns
    -------
    groups : field → its entries.
    alone : for each part the rows in no group; None for all of them.
    """
    groups: dict[bytes, _Group] = {}
    alone: list[list[int] | None] = [None] * len(batch)
    starts, times = np.unique(np.concatenate([given.starts for given in batch] or [_NO_STARTS]), return_counts=True)
    several = starts[times > 1]
    if not len(several):
        return groups, alone
    for part, given in enumerate(batch):
        shared = np.isin(given.starts, several)
        if not shared.any():
            continue
        entries = given.entries()
        for row in np.flatnonzero(shared).tolist():
            digest, record = entries[row]
            group = groups.setdefault(digest, _Group(*given.owner(row), 0, []))
            group.given += unpack(record)
            group.expires_at_ms = max(group.expires_at_ms, expires_at_ms(record))
        alone[part] = np.flatnonzero(~shared).tolist()
    return groups, alone


def _add_many(
    result: JoinResult,
    counted: set[str],
    groups: Mapping[bytes, _Group],
    given: Given,
    held: Mapping[int, bytes],
) -> None:
    """Add what the entries of one part contribute; those in groups have been added already."""
    kind = given.kind
    if not groups and not held:
        _add_alone(result, kind, len(given))
        return
    for row, (digest, record) in enumerate(given.entries()):
        before = held.get(row)
        if digest in groups:
            before = None
        elif before is None:
            _add_alone(result, kind, 1)
            continue
        elif kind != "prediction" and (prediction := sole_prediction(before)) is not None:
            # Nothing but the prediction was known: its first label is the effective one, and it is in its own slices.
            if kind == "label":
                label = sole_label(record)
                if not meet(prediction, label):
                    result.parked += 1
                elif not label.deleted:
                    owner = given.owner(row)
                    result.contributions.append(labelled_row(owner, prediction, prediction.slices, label.label, 1, 1))
            continue
        entry = unpack(record)
        if before is not None:
            _add(result, counted, _Group(*given.owner(row), 0, entry), before)
        if kind == "prediction":
            result.counted.append(entry[0][1].position in counted)


def _add_alone(result: JoinResult, kind: EntryKind, count: int) -> None:
    """Add what entries contribute of whose ids nothing else is known."""
    if kind == "prediction":
        result.counted += [True] * count
    elif kind == "label":
        result.parked += count


def _packed(group: _Group) -> bytes:
    given = group.given
    if len(given) > 1:
        given = []
        grow(given, group.given)
    return pack(group.expires_at_ms, given)


def _grouped(entries: Sequence[Entry]) -> dict[bytes, _Group]:
    groups: dict[bytes, _Group] = {}
    for entry in entries:
        digest = record_field(entry)
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
            result.parked += isinstance(entry, StoredLabel)
        return
    record = [] if before is None else unpack(before)
    result.dropped += grow(record, group.given)
    positions = {entry.position for _, entry in group.given}
    entries = [entry for _, entry in record]
    for entry in entries:
        if isinstance(entry, StoredPrediction) and entry.position in positions:
            counted.add(entry.position)
    contribute(result, Record(group.model, group.model_epoch, entries), positions)
