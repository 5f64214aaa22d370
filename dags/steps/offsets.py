"""Reading exact offset ranges of the raw topics back as tables, without joining a group or committing anything."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import msgspec
import polars as pl
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from monitors.performance import canonical
from streamer.decode import decode
from streamer.decoding.singles import singles
from streamer.events import OffsetRange
from streamer.kafka import clients as kafka_clients
from streamer.kafka import topics
from streamer.kafka.offsets import patiently
from streamer.models import ModelConfig
from streamer.settings import Settings

Kind = Literal["predictions", "features", "labels"]
_BATCH = 10_000
_STALLED_S = 60.0
_REQUEST_S = 10.0


class Row(NamedTuple):
    """An event and where it stood: `row` is its row in the message it came in."""

    event: Any
    partition: int
    offset: int
    row: int


class OffsetsError(Exception):
    """A range cannot be read; the message names the topic, what is wrong and what to do."""


@dataclass(frozen=True)
class Read:
    """What came of reading one topic's ranges.

    Attributes
    ----------
    table : a row an event of the model.
    messages : how many messages were read. lost : offsets that retention had deleted before we came.
    invalid : messages, or rows of messages of many, that were no events (they are dead letters).
    """

    table: pl.DataFrame
    messages: int
    lost: int
    invalid: int


def read_events(settings: Settings, config: ModelConfig, ranges: Sequence[OffsetRange], kind: Kind) -> Read:
    """Read a model's events of one raw topic from its offset ranges.

    Raises
    ------
    OffsetsError
        When a topic is not the one the ranges were taken from, or reading stalls.
    KafkaException
        When Kafka is unreachable or refuses.
    """
    topic = settings.topic(kind)
    wanted = merged([entry for entry in ranges if entry.topic == topic])
    tables = [_table(config, kind, [])]
    if not wanted:
        return Read(tables[0], 0, 0, 0)
    _same_incarnation(settings, topic, wanted)
    consumer = Consumer(
        kafka_clients.consumer_config(
            settings,
            group_id="driftloop-retrain",
            extra={"auto.offset.reset": "earliest", "enable.partition.eof": True, "fetch.wait.max.ms": 50},
        )
    )
    messages, invalid = 0, 0
    try:
        present, lost = _still_there(consumer, wanted)
        for batch in _batches(consumer, present):
            rows, strange = _decoded(batch, config, kind)
            tables.append(_table(config, kind, rows))
            messages, invalid = messages + len(batch), invalid + strange
    finally:
        consumer.close()
    return Read(pl.concat(tables), messages, lost, invalid)


def merged(ranges: Sequence[OffsetRange]) -> list[OffsetRange]:
    """Return ranges of one topic with those that touch or overlap made one: no offset is read twice."""
    by_partition: dict[tuple[str, int], list[OffsetRange]] = defaultdict(list)
    for entry in ranges:
        by_partition[entry.topic_id, entry.partition].append(entry)
    joined: list[OffsetRange] = []
    for entries in by_partition.values():
        ordered = sorted(entries, key=lambda entry: entry.start)
        last = ordered[0]
        for entry in ordered[1:]:
            if entry.start <= last.end:
                last = msgspec.structs.replace(last, end=max(last.end, entry.end))
            else:
                joined.append(last)
                last = entry
        joined.append(last)
    return [entry for entry in joined if entry.end > entry.start]


def _same_incarnation(settings: Settings, topic: str, ranges: Sequence[OffsetRange]) -> None:
    present = topics.topic_ids(settings, [topic])[topic]
    for entry in ranges:
        if entry.topic_id != present:
            raise OffsetsError(
                f"topic {topic}: has the id {present}, the request's offsets are of {entry.topic_id}: the topic was "
                f"made anew since; ask for a new request (driftloop request) once it has data"
            )


def _still_there(consumer: Consumer, ranges: Sequence[OffsetRange]) -> tuple[list[OffsetRange], int]:
    """Return what retention has left of the ranges, and how many offsets it has not."""
    present, lost = [], 0
    for entry in ranges:
        place = TopicPartition(entry.topic, entry.partition)
        low, _high = patiently(partial(consumer.get_watermark_offsets, place, _REQUEST_S), timeout_s=_REQUEST_S)
        start = min(max(entry.start, low), entry.end)
        lost += start - entry.start
        if start < entry.end:
            present.append(msgspec.structs.replace(entry, start=start))
    return present, lost


def _batches(consumer: Consumer, ranges: Sequence[OffsetRange]) -> Iterator[list[Message]]:
    """Yield the messages of all ranges; the partitions of a topic are read side by side, each range by range."""
    left = sorted(ranges, key=lambda entry: (entry.partition, entry.start))
    while left:
        now = {entry.partition: entry for entry in reversed(left)}
        left = [entry for entry in left if now[entry.partition] is not entry]
        consumer.assign([TopicPartition(entry.topic, entry.partition, entry.start) for entry in now.values()])
        yield from _until_read(consumer, now)


def _until_read(consumer: Consumer, ranges: dict[int, OffsetRange]) -> Iterator[list[Message]]:
    """Yield the messages of one range a partition; offsets of markers and compacted records are passed over."""
    left = dict(ranges)
    heard = time.monotonic()
    while left:
        batch: list[Message] = []
        for message in consumer.consume(_BATCH, 0.2):
            error, partition, offset = message.error(), message.partition() or 0, message.offset() or 0
            if error is not None:
                _end_or_raise(error, left, partition, offset)
            elif partition in left:
                if offset < left[partition].end:
                    batch.append(message)
                if offset + 1 >= left[partition].end:
                    del left[partition]
        if batch:
            heard = time.monotonic()
            yield batch
        elif time.monotonic() - heard > _STALLED_S:
            raise OffsetsError(f"{_places(left)}: nothing came for {_STALLED_S:.0f} s; is every broker up?")


def _end_or_raise(error: KafkaError, left: dict[int, OffsetRange], partition: int, offset: int) -> None:
    """Take note of a partition's end; the end of the log before the end of a range means that records are gone."""
    if error.code() == KafkaError._PARTITION_EOF:
        if partition in left and offset < left[partition].end:
            raise OffsetsError(
                f"{_places(left)}: partition {partition} ends at {offset}: records were deleted, or a broker lost them"
            )
        left.pop(partition, None)
    elif not error.retriable() and error.code() != KafkaError._TRANSPORT:
        raise KafkaException(error)


def _places(ranges: dict[int, OffsetRange]) -> str:
    return ", ".join(f"{entry.topic}[{entry.partition}] {entry.start}–{entry.end}" for entry in ranges.values())


def _decoded(batch: Sequence[Message], config: ModelConfig, kind: Kind) -> tuple[list[Row], int]:
    """Return the model's events with where they stood, and how many were none."""
    rows: list[Row] = []
    invalid = 0
    for message in batch:
        value = message.value()
        for row, raw in singles(value if isinstance(value, bytes) else b"", kind):
            try:
                event = decode(raw, kind)
            except (msgspec.DecodeError, ValueError):
                invalid += 1
                continue
            if event.model == config.name:
                rows.append(Row(event, message.partition() or 0, message.offset() or 0, row))
    return rows, invalid


def _table(config: ModelConfig, kind: Kind, rows: list[Row]) -> pl.DataFrame:
    """Return decoded events with their places in the log as columns; `@` keeps ours apart from features."""
    if kind == "labels":
        return _labels(config, rows)
    source = kind
    columns: dict[str, pl.Series] = {
        name: _values(name, feature.kind, [event.features.get(name) for event, *_ in rows])
        for name, feature in config.features.items()
        if feature.source == source
    }
    plain = {
        "@id": pl.Series([event.prediction_id for event, *_ in rows], dtype=pl.String),
        "@ts": pl.Series([event.ts for event, *_ in rows], dtype=pl.Int64),
        "@entity": pl.Series([event.entity_id for event, *_ in rows], dtype=pl.String),
        "@partition": pl.Series([row.partition for row in rows], dtype=pl.Int32),
        "@offset": pl.Series([row.offset for row in rows], dtype=pl.Int64),
        "@row": pl.Series([row.row for row in rows], dtype=pl.Int32),
    }
    if kind == "predictions":
        plain["@origin"] = pl.Series([event.origin for event, *_ in rows], dtype=pl.String)
    return pl.DataFrame({**plain, **columns})


def _labels(config: ModelConfig, rows: list[Row]) -> pl.DataFrame:
    labels = [event.label for event, *_ in rows]
    label = (
        pl.Series([_number(value) for value in labels], dtype=pl.Float64)
        if config.task == "regression"
        else pl.Series([None if value is None else canonical(value) for value in labels], dtype=pl.String)
    )
    return pl.DataFrame(
        {
            "@id": pl.Series([event.prediction_id for event, *_ in rows], dtype=pl.String),
            "@label_ts": pl.Series([event.ts for event, *_ in rows], dtype=pl.Int64),
            "@revision": pl.Series([event.revision for event, *_ in rows], dtype=pl.Int64),
            "@deleted": pl.Series([event.deleted for event, *_ in rows], dtype=pl.Boolean),
            "@partition": pl.Series([row.partition for row in rows], dtype=pl.Int32),
            "@offset": pl.Series([row.offset for row in rows], dtype=pl.Int64),
            "@row": pl.Series([row.row for row in rows], dtype=pl.Int32),
            "@label": label,
        }
    )


def _values(name: str, kind: str, values: list[object]) -> pl.Series:
    if kind == "numeric":
        return pl.Series(name, [_number(value) for value in values], dtype=pl.Float64)
    texts = [value if value is None or type(value) is str else canonical(value) for value in values]
    return pl.Series(name, texts, dtype=pl.String)


def _number(value: object) -> float | None:
    """Return a number; None for what is none, as the monitor counts it apart from numbers."""
    return float(value) if isinstance(value, int | float) else None
