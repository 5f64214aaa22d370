"""Reading a topic from its first message to the end it has now, without joining a group or committing anything."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from streamer.kafka import clients as kafka_clients
from streamer.kafka.offsets import offsets_of, patiently
from streamer.settings import Settings

_BATCH = 1_000
_REQUEST_S = 10.0


class ReadError(Exception):
    """A topic could not be read to its end; the message names it and what to do."""


def read_to_end(
    settings: Settings,
    topic: str,
    partitions: Iterable[int] | None = None,
    *,
    newest: int | None = None,
    timeout_s: float = 60.0,
) -> Iterator[Message]:
    """Yield the committed messages of a topic, from the first it still has to the end it has now.

    Messages of one partition come in order; partitions come mixed.

    Parameters
    ----------
    topic : the full name, namespace included.
    partitions : all of them by default.
    newest : only the last so many offsets of each partition, transactions' markers among them; all by default.
    timeout_s : how long to go on when nothing comes, as while a dead writer's transaction stays open.

    Raises
    ------
    KafkaException
        When Kafka is unreachable or refuses.
    ReadError
        When the topic does not exist, or nothing came for so long before its end.
    """
    ends = _uncommitted_ends(settings, _places(settings, topic, partitions))
    ranges = {number: (0 if newest is None else max(0, end - newest), end) for number, end in ends.items()}
    yield from read_ranges(settings, topic, ranges, timeout_s=timeout_s)


def read_ranges(
    settings: Settings, topic: str, ranges: Mapping[int, tuple[int, int]], *, timeout_s: float = 60.0
) -> Iterator[Message]:
    """Yield the committed messages between two offsets of some partitions, as `read_to_end` does.

    Parameters
    ----------
    ranges : partition → the first offset, and the one after the last, which is not beyond the partition's end.
    """
    consumer = Consumer(
        kafka_clients.consumer_config(
            settings,
            group_id="driftloop-reader",
            extra={
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 50,
                # Of each partition; by default eight times as much is read ahead of whoever uses it.
                "queued.max.messages.kbytes": 8_192,
                "log_level": 0,
            },
        )
    )
    try:
        left: dict[int, int] = {}
        places = []
        for number, (start, end) in sorted(ranges.items()):
            if start >= end:
                continue
            place = TopicPartition(topic, number)
            low, _high = patiently(partial(consumer.get_watermark_offsets, place, _REQUEST_S), timeout_s=_REQUEST_S)
            place.offset = max(low, start)
            if place.offset < end:
                left[number] = end
                places.append(place)
        if left:
            consumer.assign(places)
            yield from _messages(consumer, topic, left, timeout_s)
    finally:
        consumer.close()


class Newest(NamedTuple):
    """What a compacted topic says.

    Attributes
    ----------
    values : key → its newest value, None where that deletes it; of one partition, the newest records last.
    last : partition → the offset of its last record; partitions without a record are not there.
    """

    values: dict[str, bytes | None]
    last: dict[int, int]


def newest_records(settings: Settings, topic: str, partitions: Iterable[int] | None = None) -> Newest:
    """Return the newest value of every key of a compacted topic, and how far that was read."""
    found = Newest({}, {})
    for message in read_to_end(settings, topic, partitions):
        partition, offset, key, value = message.partition(), message.offset(), message.key(), message.value()
        if partition is not None and offset is not None:
            found.last[partition] = offset
        if key is None:
            continue
        name = key.decode(errors="replace") if isinstance(key, bytes) else key
        found.values.pop(name, None)
        found.values[name] = value.encode() if isinstance(value, str) else value
    return found


def newest_by_key(settings: Settings, topic: str, partitions: Iterable[int] | None = None) -> dict[str, bytes]:
    """Return the newest value of every key of a compacted topic; a deleted key is not there."""
    values = newest_records(settings, topic, partitions).values
    return {key: value for key, value in values.items() if value is not None}


def first_offsets(settings: Settings, topic: str) -> dict[int, int]:
    """Return the first offset that each partition still has; of one that retention has emptied, its end."""
    return _offsets(settings, _places(settings, topic, None), OffsetSpec.earliest())  # type: ignore[no-untyped-call]


def offsets_at(settings: Settings, topic: str, at_ms: int | None) -> dict[int, int]:
    """Return each partition's first offset appended at that time or later, −1 where there is none; None: its end."""
    which = OffsetSpec.latest() if at_ms is None else OffsetSpec.for_timestamp(at_ms)  # type: ignore[no-untyped-call]
    return _offsets(settings, _places(settings, topic, None), which)


def _messages(consumer: Consumer, topic: str, left: dict[int, int], timeout_s: float) -> Iterator[Message]:
    """Yield what comes until every partition in `left` has been read past the end it is mapped to."""
    came = time.monotonic()
    while left:
        batch = consumer.consume(_BATCH, 0.2)
        for message in batch:
            partition, offset, error = message.partition() or 0, message.offset() or 0, message.error()
            if error is None:
                end = left.get(partition, 0)
                if offset + 1 >= end > 0:
                    del left[partition]
                    consumer.pause([TopicPartition(topic, partition)])
                if offset < end:
                    yield message
            elif error.code() == KafkaError._PARTITION_EOF:
                # It may come early, and the end may hold transaction markers, which are never yielded.
                if offset >= left.get(partition, offset + 1):
                    del left[partition]
            elif not error.retriable() and error.code() != KafkaError._TRANSPORT:
                raise KafkaException(error)
        if batch:
            # Taken after the messages were used, which may take longer than reading them.
            came = time.monotonic()
        elif left and time.monotonic() > came + timeout_s:
            raise ReadError(
                f"topic {topic}: nothing came for {timeout_s:.0f} s, partitions {sorted(left)} are not at their end; "
                f"a writer's transaction may still be open: try again in half a minute"
            )


def _places(settings: Settings, topic: str, partitions: Iterable[int] | None) -> list[TopicPartition]:
    admin = AdminClient({**kafka_clients.admin_config(settings), "log_level": 0})
    found = admin.list_topics(topic, timeout=_REQUEST_S).topics[topic]
    if found.error is not None and found.error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
        raise KafkaException(KafkaError(found.error.code(), f"{topic}: {found.error.str()}"))
    if found.error is not None or not found.partitions:
        raise ReadError(f"topic {topic}: does not exist; run `driftloop topics create`")
    wanted = set(found.partitions) if partitions is None else set(partitions)
    strange = wanted - set(found.partitions)
    if strange:
        raise ReadError(
            f"topic {topic}: has {len(found.partitions)} partitions, wanted number {max(strange)}; "
            f"check internal_partitions, or run `driftloop topics check`"
        )
    return [TopicPartition(topic, partition) for partition in sorted(wanted)]


def _uncommitted_ends(settings: Settings, places: list[TopicPartition]) -> dict[int, int]:
    # A commit returns before its markers are everywhere: a committed end may lie before what is already final.
    return _offsets(settings, places, OffsetSpec.latest())  # type: ignore[no-untyped-call]


def _offsets(settings: Settings, places: list[TopicPartition], which: OffsetSpec) -> dict[int, int]:
    admin = AdminClient({**kafka_clients.admin_config(settings), "log_level": 0})
    found = offsets_of(admin, places, which, timeout_s=_REQUEST_S)
    return {partition: offset for (_topic, partition), offset in found.items()}
