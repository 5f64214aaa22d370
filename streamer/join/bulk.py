"""Many entries of the label join at once: their fields and records as bytes, without an object a step."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from operator import add
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamer.join.records import EXPIRY_GRAIN_MS, FIELD_BYTES, EntryKind, frame_head

IntArray = NDArray[np.int64]
# Fields one script call may touch: Lua passes at most some 8,000 values to one command.
MAX_FIELDS = 2_000


class Call(NamedTuple):
    """What one script call sends: the records at `rows`, which belong to one bucket, as one argument."""

    bucket: int
    rows: list[int]
    blob: bytes


class Entries(NamedTuple):
    """Entries of the join, of one kind, column by column.

    Attributes
    ----------
    bodies : each entry as `join_records.encode_entry` writes it.
    keys : what records hold entries under; `key_of` is each row's index among them.
    """

    kind: EntryKind
    ids: Sequence[str]
    bodies: Sequence[bytes]
    keys: Sequence[bytes]
    key_of: IntArray
    expires_at_ms: IntArray


class Owner(NamedTuple):
    """The model whose entries they are; its epoch is part of a record's name."""

    model: str
    model_epoch: int


class Owners:
    """Models whose entries are joined, by number; what their records' names begin with is worked out once."""

    def __init__(self, owners: Iterable[Owner]) -> None:
        self._owners = list(owners)

    def __getitem__(self, number: int) -> Owner:
        return self._owners[number]

    @cached_property
    def begun(self) -> list[Callable[[], Any]]:
        """Of each model, what gives a digest that has taken it in, for an id to follow."""
        heads = (f"{owner.model}\0{owner.model_epoch}\0" for owner in self._owners)
        return [blake2b(head.encode(), digest_size=FIELD_BYTES).copy for head in heads]


@dataclass(frozen=True)
class Given:
    """Entries of one kind, of any models: what the join keeps of each, in log order a partition, as bytes alone.

    Attributes
    ----------
    owners : the models; `owner_of` is each row's index among them.
    calls : what is sent; it holds every field and record.
    starts : (rows,) the first half of each entry's field, in the order of the rows.
    """

    owners: Owners
    owner_of: IntArray
    kind: EntryKind
    calls: list[Call]
    starts: NDArray[np.uint64]

    @classmethod
    def of(
        cls,
        owners: Owners,
        owner_of: IntArray,
        entries: Entries,
        *,
        buckets: int,
    ) -> Given:
        """Work out the fields and the records of some entries."""
        fields = list(_digests(map(owners.begun.__getitem__, owner_of.tolist()), entries.ids))
        starts = np.frombuffer(b"".join(fields), dtype=np.uint64)[::2].copy()
        return cls(owners, owner_of, entries.kind, calls(fields, _records(entries), buckets), starts)

    def owner(self, row: int) -> Owner:
        """Return whose entry a row is."""
        return self.owners[int(self.owner_of[row])]

    def __len__(self) -> int:
        return len(self.starts)

    def entries(self) -> list[tuple[bytes, bytes]]:
        """Return each entry's field and record, in the order of the rows: for the few cases that need them."""
        found: list[tuple[bytes, bytes]] = [(b"", b"")] * len(self)
        for call in self.calls:
            at = 0
            for row in call.rows:
                body = at + FIELD_BYTES + _SIZE.size
                field = call.blob[at : at + FIELD_BYTES]
                (size,) = _SIZE.unpack_from(call.blob, at + FIELD_BYTES)
                at = body + size
                found[row] = (field, call.blob[body:at])
        return found


def _records(entries: Entries) -> list[bytes]:
    """Return the record of each entry: when it expires, the sizes of what follows, its key and its body."""
    grains = -(-entries.expires_at_ms // EXPIRY_GRAIN_MS)
    sizes = map(len, entries.bodies)
    if len(entries.keys) == 1 and (grains == grains[0]).all():
        # All that stands before the bodies is one text but for their sizes.
        heads = _Heads(int(entries.expires_at_ms[0]), entries.keys[0])
        return list(map(add, map(heads.__getitem__, sizes), entries.bodies))
    keys = [entries.keys[code] for code in entries.key_of.tolist()]
    return list(map(add, map(frame_head, entries.expires_at_ms.tolist(), keys, sizes), entries.bodies))


class _Heads(dict[int, bytes]):
    """What stands before a body, by its size."""

    def __init__(self, expires_at_ms: int, key: bytes) -> None:
        super().__init__()
        self._of = (expires_at_ms, key)

    def __missing__(self, size: int) -> bytes:
        made = self[size] = frame_head(*self._of, size)
        return made


def _digests(copies: Iterable[Any], ids: Iterable[str]) -> Iterable[bytes]:
    for copy, id_ in zip(copies, ids, strict=True):
        digest = copy()
        digest.update(id_.encode())
        yield digest.digest()


def calls(fields: Sequence[bytes], records: Sequence[bytes], buckets: int) -> list[Call]:
    """Spread records over the calls to the buckets their fields belong to."""
    if not fields:
        return []
    starts = np.frombuffer(b"".join(fields), dtype=">u4")[:: FIELD_BYTES // 4]
    bucket_of = (starts % buckets).astype(np.int64)
    rows = np.argsort(bucket_of, kind="stable").tolist()
    ends = np.cumsum(np.bincount(bucket_of, minlength=buckets)).tolist()
    # In the order of the calls, each record after its field and its size.
    sizes = map(SIZES.__getitem__, map(len, records))
    framed = list(map(add, map(add, fields, sizes), records))
    found: list[Call] = []
    start = 0
    for bucket, end in enumerate(ends):
        for first in range(start, end, MAX_FIELDS):
            chosen = rows[first : min(first + MAX_FIELDS, end)]
            found.append(Call(bucket, chosen, b"".join([framed[row] for row in chosen])))
        start = end
    return found


def taken_apart(answer: bytes) -> list[bytes | None]:
    """Return the records that one call found, in the order of its rows; None for one that was not there."""
    records: list[bytes | None] = []
    at, end = 0, len(answer)
    while at < end:
        (size,) = _SIZE.unpack_from(answer, at)
        at += 4 + size
        records.append(answer[at - size : at] if size else None)
    return records


def is_blank(answer: bytes) -> bool:
    """Tell whether a call found none of its records."""
    return answer.count(0) == len(answer)


class _Sizes(dict[int, bytes]):
    """Sizes as they stand before a record."""

    def __missing__(self, size: int) -> bytes:
        packed = _SIZE.pack(size)
        if size < _KEPT_SIZES:
            self[size] = packed
        return packed


_SIZE = struct.Struct(">I")
_KEPT_SIZES = 1_000
SIZES = _Sizes()
