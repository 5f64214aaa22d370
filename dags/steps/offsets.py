"""Reading exact offset ranges of the raw topics back as tables, without joining a group or committing anything."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import polars as pl
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from monitors.performance import canonical
from streamer import kafka_clients, topics
from streamer.decode import decode
from streamer.events import Label, OffsetRange
from streamer.models import ModelConfig
from streamer.settings import Settings

Kind = Literal["predictions", "features", "labels"]
_BATCH = 10_000
_STALLED_S = 60.0
_REQUEST_S = 10.0


class OffsetsError(Exception):
    """A range cannot be read; the message names the topic, what is wrong and what to do."""


@dataclass(frozen=True)
class Read:
    """What came of reading one topic's ranges.

    Attributes
    ----------
    table : a row an event of the model.
    messages : how many messages were read. lost : offsets that retention had deleted before we came.
    invalid : messages that were no events (they are dead letters).
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
    tables, counts = [_table(config, kind, [])], {"messages": 0, "invalid": 0}
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
    lost = 0
    try:
        for part in wanted:
            low, _ = consumer.get_watermark_offsets(TopicPartition(topic, part.partition), timeout=_REQUEST_S)
            lost += max(0, min(low, part.end) - part.start)
            for messages in _batches(consumer, part, max(low, part.start)):
                rows: list[tuple[Any, int, int]] = []
                for message in messages:
                    try:
                        event = decode(message.value() or b"", kind)
                    except (msgspec.DecodeError, ValueError):
                        counts["invalid"] += 1
                        continue
                    if event.model == config.name:
                        rows.append((event, message.partition() or 0, message.offset() or 0))
                counts["messages"] += len(messages)
                tables.append(_table(config, kind, rows))
    finally:
        consumer.close()
    return Read(pl.concat(tables), counts["messages"], lost, counts["invalid"])


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


def _batches(consumer: Consumer, part: OffsetRange, start: int) -> Iterator[list[Message]]:
    """Yield the messages of one range; offsets of transaction markers and compacted records are passed over."""
    if start >= part.end:
        return
    place = TopicPartition(part.topic, part.partition, start)
    consumer.assign([place])
    heard = time.monotonic()
    position = start
    while position < part.end:
        batch: list[Message] = []
        for message in consumer.consume(_BATCH, 0.5):
            error = message.error()
            if error is None:
                position = (message.offset() or 0) + 1
                if position <= part.end:
                    batch.append(message)
            elif error.code() == KafkaError._PARTITION_EOF:
                position = max(position, message.offset() or 0)
                # The end of the partition before the end of the range: the log was cut, nothing more can come.
                if position < part.end:
                    yield batch
                    raise OffsetsError(
                        f"topic {part.topic}[{part.partition}]: ends at {position}, the request's range at {part.end}; "
                        f"records have been deleted or the broker lost them"
                    )
            elif not error.retriable() and error.code() != KafkaError._TRANSPORT:
                raise KafkaException(error)
        if batch:
            heard = time.monotonic()
            yield batch
        elif time.monotonic() - heard > _STALLED_S:
            raise OffsetsError(
                f"topic {part.topic}[{part.partition}]: nothing came for {_STALLED_S:.0f} s at offset {position}"
            )


def _table(config: ModelConfig, kind: Kind, rows: list[tuple[Any, int, int]]) -> pl.DataFrame:
    """Return decoded events with their partitions and offsets as columns; `@` keeps ours apart from features."""
    if kind == "labels":
        return _labels(config, rows)
    source = kind
    columns: dict[str, pl.Series] = {
        name: _values(name, feature.kind, [event.features.get(name) for event, _, _ in rows])
        for name, feature in config.features.items()
        if feature.source == source
    }
    plain = {
        "@id": pl.Series([event.prediction_id for event, _, _ in rows], dtype=pl.String),
        "@ts": pl.Series([event.ts for event, _, _ in rows], dtype=pl.Int64),
        "@entity": pl.Series([event.entity_id for event, _, _ in rows], dtype=pl.String),
        "@partition": pl.Series([partition for _, partition, _ in rows], dtype=pl.Int32),
        "@offset": pl.Series([offset for _, _, offset in rows], dtype=pl.Int64),
    }
    if kind == "predictions":
        plain["@origin"] = pl.Series([event.origin for event, _, _ in rows], dtype=pl.String)
    return pl.DataFrame({**plain, **columns})


def _labels(config: ModelConfig, rows: list[tuple[Label, int, int]]) -> pl.DataFrame:
    labels = [event.label for event, _, _ in rows]
    label = (
        pl.Series([_number(value) for value in labels], dtype=pl.Float64)
        if config.task == "regression"
        else pl.Series([None if value is None else canonical(value) for value in labels], dtype=pl.String)
    )
    return pl.DataFrame(
        {
            "@id": pl.Series([event.prediction_id for event, _, _ in rows], dtype=pl.String),
            "@label_ts": pl.Series([event.ts for event, _, _ in rows], dtype=pl.Int64),
            "@revision": pl.Series([event.revision for event, _, _ in rows], dtype=pl.Int64),
            "@deleted": pl.Series([event.deleted for event, _, _ in rows], dtype=pl.Boolean),
            "@partition": pl.Series([partition for _, partition, _ in rows], dtype=pl.Int32),
            "@offset": pl.Series([offset for _, _, offset in rows], dtype=pl.Int64),
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
