"""Many entries of the label join at once: their fields and records as bytes, without an object a step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.join_records import (
    FIELD_BYTES,
    Keyed,
    Stored,
    StoredPrediction,
    encode_entry,
    frame_head,
    keyed,
)

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Given:
    """Predictions, or labels, of one model: what the join keeps of each, in log order a partition.

    `key` is the key of all of them, where they have the same.
    """

    model: str
    model_epoch: int
    ids: Sequence[str]
    stored: Sequence[Stored]
    expires_at_ms: IntArray
    key: bytes | None = None

    @property
    def of_predictions(self) -> bool:
        """Whether these are predictions."""
        return isinstance(self.stored[0], StoredPrediction)

    def fields(self) -> list[bytes]:
        """Return the field each entry's record is kept under."""
        start = blake2b(f"{self.model}\0{self.model_epoch}\0".encode(), digest_size=FIELD_BYTES)
        return list(_digests(start.copy, self.ids))

    def records(self) -> list[bytes]:
        """Return the record each entry makes where it is the first of its field."""
        bodies = list(map(encode_entry, self.stored))
        sizes = map(len, bodies)
        first, last = int(self.expires_at_ms.min()), int(self.expires_at_ms.max())
        if self.key is not None and frame_head(first, self.key, 0) == frame_head(last, self.key, 0):
            # All that stands before the bodies is one text but for their sizes.
            return list(map(add, map(_Heads(first, self.key).__getitem__, sizes), bodies))
        keys = [keyed(entry)[0] for entry in self.stored]
        return list(map(add, map(frame_head, self.expires_at_ms.tolist(), keys, sizes), bodies))

    def keyed(self, row: int) -> Keyed:
        """Return one entry with its key."""
        return keyed(self.stored[row])


class _Heads(dict[int, bytes]):
    """What stands before a body, by its size."""

    def __init__(self, expires_at_ms: int, key: bytes) -> None:
        super().__init__()
        self._of = (expires_at_ms, key)

    def __missing__(self, size: int) -> bytes:
        made = self[size] = frame_head(*self._of, size)
        return made


def _digests(copy: Any, ids: Iterable[str]) -> Iterable[bytes]:
    for id_ in ids:
        digest = copy()
        digest.update(id_.encode())
        yield digest.digest()


def by_bucket(fields: Sequence[bytes], records: Sequence[bytes], buckets: int) -> dict[int, dict[bytes, bytes]]:
    """Spread records over the buckets their fields belong to."""
    starts = np.frombuffer(b"".join(fields), dtype=">u4")[:: FIELD_BYTES // 4]
    bucket_of = (starts % buckets).astype(np.int64)
    order = np.argsort(bucket_of, kind="stable")
    ends = np.cumsum(np.bincount(bucket_of, minlength=buckets)).tolist()
    spread: dict[int, dict[bytes, bytes]] = {}
    rows = order.tolist()
    start = 0
    for bucket, end in enumerate(ends):
        if end > start:
            chosen = rows[start:end]
            spread[bucket] = {fields[row]: records[row] for row in chosen}
        start = end
    return spread
