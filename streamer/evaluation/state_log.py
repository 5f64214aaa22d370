"""The state topic: what evaluate keeps in it under which key, and reading its partitions back to their ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial

import msgspec
from confluent_kafka import Consumer, KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from streamer.evaluation.pane_store import PaneKey
from streamer.events import Origin
from streamer.kafka.offsets import offsets_of, patiently
from streamer.stage import StepFailed

_TIMEOUT_S = 60.0
_READ = 1_000
POSITION = "position"


@dataclass
class ShardPosition:
    """What one evaluate partition has applied, and how far the raw topics had been read by then.

    `applied` maps an input topic to its next offset; `progress` a raw partition to (topic id, next
    offset, record time read up to). `topic_ids` are those of the input topics: one made anew is another.
    """

    applied: dict[str, int] = field(default_factory=dict)
    progress: dict[tuple[str, int], tuple[str, int, int]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    now_ms: int = 0
    topic_ids: dict[str, str] = field(default_factory=dict)


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


def read_partitions(
    properties: dict[str, str],
    topic: str,
    partitions: Collection[int],
    *,
    alive: Callable[[], None] = lambda: None,
) -> dict[int, dict[str, bytes]]:
    """Return, of each of these partitions of the state topic, the newest value of every key.

    The end is taken as uncommitted and read up to as committed: a commit returns before its markers
    are everywhere, so a committed end may lie before a flush that is already final.

    Parameters
    ----------
    alive : called again and again while it reads and waits, which may take longer than a watchdog does.

    Raises
    ------
    StepFailed
        When nothing comes for a minute and the end is not reached, as while a dead replica's transaction stays open.
    """
    found: dict[int, dict[str, bytes]] = {partition: {} for partition in partitions}
    for partition, key, value in _records(properties, topic, partitions, alive):
        replay(found[partition], key, value)
    return found


def replay(found: dict[str, bytes], key: str, value: bytes | None) -> None:
    """Take a record into what was found of a partition so far: the newest value of a key, none after a tombstone."""
    if value is None:
        found.pop(key, None)
    else:
        found[key] = value


def _records(
    properties: dict[str, str], topic: str, partitions: Collection[int], alive: Callable[[], None]
) -> Iterator[tuple[int, str, bytes | None]]:
    ends = _uncommitted_ends(properties, topic, partitions)
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
        left = {}
        for partition, end in ends.items():
            place = TopicPartition(topic, partition)
            low, _high = patiently(partial(consumer.get_watermark_offsets, place, _TIMEOUT_S), timeout_s=_TIMEOUT_S)
            if low < end:
                left[partition] = low
        consumer.assign([TopicPartition(topic, partition, low) for partition, low in left.items()])
        deadline = time.monotonic() + _TIMEOUT_S
        while left:
            alive()
            for message in consumer.consume(_READ, 0.2):
                partition, error = _number(message.partition()), message.error()
                if error is None:
                    if partition in left and _number(message.offset()) < ends[partition]:
                        # A key of a stranger's may be no text; it is none of ours either way.
                        yield partition, (message.key() or b"").decode(errors="replace"), message.value()
                    reached = _number(message.offset()) + 1
                elif error.code() == KafkaError._PARTITION_EOF:
                    reached = _number(message.offset())
                elif error.retriable():
                    continue
                else:
                    raise StepFailed(f"reading {topic}[{partition}] back: {error.str()}")
                if reached > left.get(partition, reached):
                    left[partition] = reached
                    deadline = time.monotonic() + _TIMEOUT_S
                if reached >= ends[partition]:
                    left.pop(partition, None)
            if time.monotonic() > deadline:
                partition, reached = next(iter(left.items()))
                raise StepFailed(
                    f"reading {topic}[{partition}] back: at offset {reached} of {ends[partition]}, and nothing came "
                    f"for {_TIMEOUT_S:.0f} s"
                )
    finally:
        consumer.close()


def _number(value: int | None) -> int:
    """Return an offset or partition that a consumed message always has."""
    return -1 if value is None else value


def _uncommitted_ends(properties: dict[str, str], topic: str, partitions: Collection[int]) -> dict[int, int]:
    admin = AdminClient({**properties, "log_level": 3})
    places = [TopicPartition(topic, partition) for partition in partitions]
    found = offsets_of(admin, places, OffsetSpec.latest(), timeout_s=_TIMEOUT_S)  # type: ignore[no-untyped-call]
    return {partition: offset for (_topic, partition), offset in found.items()}
