"""How far the raw topics have been counted, by what evaluate keeps: ingest's place where its group's own is gone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec
from confluent_kafka import Message

from streamer.evaluation.state_log import POSITION, ShardPosition, decode_position
from streamer.events import UNREADABLE, SourceProgress
from streamer.kafka.reader import offsets_at, read_ranges, read_to_end
from streamer.kafka.topics import topic_ids
from streamer.settings import Settings
from streamer.stage import StepFailed

Source = tuple[str, int]
# Less than a worker's loop may be silent.
_QUIET_S = 30.0


class _Flush(msgspec.Struct):
    """What a flush says of the places it was read from; the rest of it is passed over."""

    ingest: str
    progress: list[SourceProgress]


_FLUSH = msgspec.msgpack.Decoder(_Flush)


def counted_up_to(
    settings: Settings, ids: Mapping[str, str], *, alive: Callable[[], None] = lambda: None
) -> dict[Source, int]:
    """Return, of each raw partition that was ever counted, the offset after the last that was.

    A flush goes to all of evaluate's partitions in the transaction that commits its offsets, so the furthest that
    any of them has heard of is where ingest stood. What evaluate has not applied yet still lies in the partials.

    Parameters
    ----------
    ids : raw topic → its present id. A topic made anew is another, of which nothing has been counted.
    alive : called again and again while it reads.

    Raises
    ------
    KafkaException, ReadError
        A topic cannot be read to its end.
    StepFailed
        A position cannot be read; the message names its partition.
    """
    positions = _positions(settings, alive)
    found: dict[Source, int] = {}
    for position in positions.values():
        _take(found, ids, ((*source, held[0], held[1]) for source, held in position.progress.items()))
    for message in _not_applied(settings, positions):
        alive()
        try:
            flush = _FLUSH.decode(_bytes(message))
        except UNREADABLE:
            # Whether that is a stranger's or another release's, evaluate says.
            continue
        _take(found, ids, ((each.topic, each.partition, each.topic_id, each.end) for each in flush.progress))
    return found


def _take(found: dict[Source, int], ids: Mapping[str, str], heard: Iterable[tuple[str, int, str, int]]) -> None:
    for topic, partition, topic_id, end in heard:
        if ids.get(topic) == topic_id:
            found[topic, partition] = max(end, found.get((topic, partition), 0))


def _positions(settings: Settings, alive: Callable[[], None]) -> dict[int, ShardPosition]:
    """Return the newest position of each of evaluate's partitions that has one."""
    newest: dict[int, bytes] = {}
    for message in read_to_end(settings, settings.topic("state"), timeout_s=_QUIET_S):
        alive()
        if message.key() == POSITION.encode():
            newest[message.partition() or 0] = _bytes(message)
    positions = {}
    for partition, raw in newest.items():
        try:
            positions[partition] = decode_position(raw)
        except UNREADABLE as error:
            raise StepFailed(
                f"state partition {partition}, key {POSITION}: {error}; another release or another program has "
                "written it: run the release that did"
            ) from error
    return positions


def _not_applied(settings: Settings, positions: Mapping[int, ShardPosition]) -> Iterable[Message]:
    """Return the flushes since then of the partition that has least of them: each flush is in every partition."""
    topic = settings.topic("partials")
    topic_id = topic_ids(settings, [topic])[topic]
    ranges = {}
    for partition, end in offsets_at(settings, topic, None).items():
        position = positions.get(partition, ShardPosition())
        start = position.applied.get(topic, 0) if position.topic_ids.get(topic, topic_id) == topic_id else 0
        ranges[partition] = (start, end)
    least = min(ranges, key=lambda partition: ranges[partition][1] - ranges[partition][0])
    return read_ranges(settings, topic, {least: ranges[least]}, timeout_s=_QUIET_S)


def _bytes(message: Message) -> bytes:
    value = message.value()
    return value.encode() if isinstance(value, str) else value or b""
