"""The state topic: what evaluate keeps in it under which key, and reading a partition of it back to its end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
from confluent_kafka import Consumer, IsolationLevel, KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec

from streamer.events import Origin
from streamer.pane_store import PaneKey
from streamer.transaction import StepFailed

_TIMEOUT_S = 60.0
POSITION = "position"


@dataclass
class ShardPosition:
    """What one evaluate partition has applied, and how far the raw topics had been read by then.

    `applied` maps an input topic to its next offset; `progress` a raw partition to (topic id, next
    offset, record time read up to).
    """

    applied: dict[str, int] = field(default_factory=dict)
    progress: dict[tuple[str, int], tuple[str, int, int]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    now_ms: int = 0


_ENCODE = msgspec.msgpack.Encoder()
_DECODE = msgspec.msgpack.Decoder(ShardPosition)


def encode_position(position: ShardPosition) -> bytes:
    """Return the stored form of a partition's position."""
    return _ENCODE.encode(position)


def decode_position(raw: bytes) -> ShardPosition:
    """Read a stored position back."""
    return _DECODE.decode(raw)


def model_key(model: str) -> str:
    """Return the key of a model's record."""
    return f"model|{model}"


def pane_key(model: str, epoch: int, key: PaneKey, part: int) -> str:
    """Return the key of one part of a pane."""
    return f"pane|{model}|{epoch}|{key.version}|{key.origin}|{key.pane_ms}|{key.start_ms}|{part}"


def parse_pane_key(key: str) -> tuple[str, int, PaneKey, int]:
    """Return (model, epoch, pane key, part) of a stored pane."""
    _kind, model, epoch, version, origin, pane_ms, start_ms, part = key.split("|")
    known: Origin = msgspec.convert(origin, Origin)
    return model, int(epoch), PaneKey(version, known, int(pane_ms), int(start_ms)), int(part)


def read_partition(properties: dict[str, str], topic: str, partition: int) -> dict[str, bytes]:
    """Return the newest value of every key of one partition of the state topic.

    The end is taken as uncommitted and read up to as committed: a commit returns before its markers
    are everywhere, so a committed end may lie before a flush that is already final.

    Raises
    ------
    StepFailed
        When the end is not reached in a minute, as while a dead replica's transaction stays open.
    """
    latest: dict[str, bytes] = {}
    for key, value in _records(properties, topic, partition):
        if value is None:
            latest.pop(key, None)
        else:
            latest[key] = value
    return latest


def _records(properties: dict[str, str], topic: str, partition: int) -> Iterator[tuple[str, bytes | None]]:
    place = TopicPartition(topic, partition)
    end = _uncommitted_end(properties, place)
    consumer = Consumer(
        {
            **properties,
            "group.id": "driftloop-restore",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 50,
        }
    )
    try:
        low, _high = consumer.get_watermark_offsets(place, timeout=_TIMEOUT_S, cached=False)
        consumer.assign([TopicPartition(topic, partition, low)])
        deadline = time.monotonic() + _TIMEOUT_S
        reached = low
        while reached < end:
            for message in consumer.consume(1_000, 0.2):
                error = message.error()
                if error is None:
                    # A key of a stranger's may be no text; it is none of ours either way.
                    yield (message.key() or b"").decode(errors="replace"), message.value()
                    reached = max(reached, (message.offset() or 0) + 1)
                elif error.code() == KafkaError._PARTITION_EOF:
                    reached = max(reached, message.offset() or 0)
                elif not error.retriable():
                    raise StepFailed(f"reading {topic}[{partition}] back: {error.str()}")
            if time.monotonic() > deadline:
                raise StepFailed(
                    f"reading {topic}[{partition}] back: at offset {reached} of {end} after {_TIMEOUT_S} s"
                )
    finally:
        consumer.close()


def _uncommitted_end(properties: dict[str, str], place: TopicPartition) -> int:
    admin = AdminClient({**properties, "log_level": 3})
    found = admin.list_offsets(
        {place: OffsetSpec.latest()},  # type: ignore[no-untyped-call]
        isolation_level=IsolationLevel.READ_UNCOMMITTED,
        request_timeout=_TIMEOUT_S,
    )
    return int(next(iter(found.values())).result().offset)
