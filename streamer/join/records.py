"""A record of the label join: what is known of one prediction_id, as entries and as bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Literal

import msgspec

# A record keeps at most this many predictions, feature logs and labels, each; what comes after them is dropped
# and counted. Only a storm of copies of one label, or as many corrections, fills it.
MAX_OF_A_KIND = 64
EXPIRY_DIGITS = 13
# Of the digest a record is kept under: among 10¹² ids two meet with a chance of 10⁻¹⁵.
FIELD_BYTES = 16
# The horizon is held to by the minute of record time. Records that expire within one are written by one command.
EXPIRY_GRAIN_MS = 60_000
_EARLIEST_MS = 10 ** (EXPIRY_DIGITS - 1)
_LATEST_MS = 10**EXPIRY_DIGITS - 1
_SIZES = struct.Struct(">IB")
_sizes_of = _SIZES.unpack_from
_PREDICTION, _FEATURES, _LABEL = b"pfl"
_FIRST_KEY = EXPIRY_DIGITS + _SIZES.size


class StoredPrediction(msgspec.Struct, array_like=True, gc=False):
    """A prediction in a record; it came in the minute `came_min` of record time, and waits until `until_min`."""

    position: str
    came_min: int
    until_min: int
    version: str
    origin: str
    event_time_ms: int
    prediction: str
    score: float | None
    scores: dict[str, float] | None
    slices: list[str]
    rollout_id: str | None
    bucket: int


class StoredLabel(msgspec.Struct, array_like=True, gc=False):
    """A label in a record; minutes as a prediction's."""

    position: str
    came_min: int
    until_min: int
    revision: int
    ts: int
    label: str
    deleted: bool


class StoredFeatures(msgspec.Struct, array_like=True, gc=False):
    """A feature log in a record: which slices its predictions are in that do not say so themselves."""

    position: str
    came_min: int
    until_min: int
    ts: int
    slices: list[str]


Stored = StoredPrediction | StoredFeatures | StoredLabel
EntryKind = Literal["prediction", "features", "label"]
# An entry with its key: a record holds one entry of each key.
Keyed = tuple[bytes, Stored]

encode_entry = msgspec.msgpack.Encoder().encode
_decode_prediction = msgspec.msgpack.Decoder(StoredPrediction).decode
_decode_label = msgspec.msgpack.Decoder(StoredLabel).decode
_DECODERS: dict[int, Callable[[bytes], Stored]] = {
    _PREDICTION: _decode_prediction,
    _FEATURES: msgspec.msgpack.Decoder(StoredFeatures).decode,
    _LABEL: _decode_label,
}


def keyed(entry: Stored) -> Keyed:
    """Give an entry its key: a prediction's is its identity, so the first wins; the others' their place in the log."""
    if isinstance(entry, StoredPrediction):
        return prediction_key(entry.version, entry.origin), entry
    key = label_key if isinstance(entry, StoredLabel) else features_key
    return key(entry.position), entry


def prediction_key(version: str, origin: str) -> bytes:
    """Return the key of a prediction's entry."""
    return f"p{version}\0{origin}".encode()


def features_key(position: str) -> bytes:
    """Return the key of a feature log's entry."""
    return b"f" + position.encode()


def label_key(position: str) -> bytes:
    """Return the key of a label's entry."""
    return b"l" + position.encode()


def minutes(record_ms: int, expires_at_ms: int) -> tuple[int, int]:
    """Return the minute of record time an entry came in, and the first in which nothing of its id meets it any more."""
    return record_ms // EXPIRY_GRAIN_MS, -(-expires_at_ms // EXPIRY_GRAIN_MS)


def meet(one: Stored, other: Stored) -> bool:
    """Tell whether the later of two entries came before the earlier's horizon was over, whichever is read first."""
    return one.came_min < other.until_min and other.came_min < one.until_min


def rank(label: StoredLabel) -> tuple[int, int, tuple[str, int, int, int]]:
    """Return what the effective label is largest in: revision, then its time, then its place in the log."""
    return label.revision, label.ts, position_order(label.position)


def features_rank(log: StoredFeatures) -> tuple[int, tuple[str, int, int, int]]:
    """Return what the effective log of a feature is largest in: its time, then its place in the log."""
    return log.ts, position_order(log.position)


def position_of(topic_id: str, partition: int, offset: int, row: int = 0) -> str:
    """Return the text of a place in the log, unique over partitions and over topics made anew."""
    return f"{topic_id[:8]}:{partition}:{offset}:{row}"


def position_order(position: str) -> tuple[str, int, int, int]:
    """Return what places order by: numbers as numbers, so offset 9 comes before 10."""
    topic, partition, offset, row = position.rsplit(":", 3)
    return topic, int(partition), int(offset), int(row)


def pack(expires_at_ms: int, entries: Iterable[Keyed]) -> bytes:
    """Return a record's bytes: when it expires, then a frame an entry."""
    parts = [_expiry(-(-expires_at_ms // EXPIRY_GRAIN_MS))]
    for key, entry in entries:
        body = encode_entry(entry)
        parts += (_SIZES.pack(len(body), len(key)), key, body)
    return b"".join(parts)


def frame_head(expires_at_ms: int, key: bytes, body_size: int) -> bytes:
    """Return what stands before the body in a record of one entry."""
    return _expiry(-(-expires_at_ms // EXPIRY_GRAIN_MS)) + _SIZES.pack(body_size, len(key)) + key


def sole_prediction(record: bytes) -> StoredPrediction | None:
    """Return the prediction of a record that holds it and nothing else, which is what most labels find."""
    body_size, key_size = _sizes_of(record, EXPIRY_DIGITS)
    start = _FIRST_KEY + key_size
    if start + body_size != len(record) or record[_FIRST_KEY] != _PREDICTION:
        return None
    return _decode_prediction(record[start:])


def sole_label(record: bytes) -> StoredLabel:
    """Return the label of a record that holds it and nothing else."""
    _body_size, key_size = _sizes_of(record, EXPIRY_DIGITS)
    return _decode_label(record[_FIRST_KEY + key_size :])


def expires_at_ms(record: bytes) -> int:
    """Return when a record expires."""
    return int(record[:EXPIRY_DIGITS])


def unpack(record: bytes) -> list[Keyed]:
    """Return a record's entries in the order they were appended."""
    entries: list[Keyed] = []
    at, end, head = EXPIRY_DIGITS, len(record), _SIZES.size
    while at < end:
        body_size, key_size = _sizes_of(record, at)
        start = at + head + key_size
        at = start + body_size
        decode = _DECODERS[record[start - key_size]]
        entries.append((record[start - key_size : start], decode(record[start:at])))
    return entries


def grow(entries: list[Keyed], given: Iterable[Keyed]) -> int:
    """Append what is given, as the store's script does: absent keys, up to the limit.

    Returns
    -------
    How many found no room.
    """
    keys = [key for key, _ in entries]
    dropped = 0
    for pair in given:
        key = pair[0]
        if key in keys:
            continue
        if len(keys) >= MAX_OF_A_KIND and sum(held[0] == key[0] for held in keys) >= MAX_OF_A_KIND:
            dropped += 1
            continue
        keys.append(key)
        entries.append(pair)
    return dropped


@lru_cache(maxsize=4096)
def _expiry(grain: int) -> bytes:
    """Return fixed-width digits, which compare as the numbers they are."""
    return b"%d" % min(max(grain * EXPIRY_GRAIN_MS, _EARLIEST_MS), _LATEST_MS)
