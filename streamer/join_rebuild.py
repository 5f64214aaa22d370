"""A lost label-join store made anew from the log: predictions and labels are installed, nothing is counted."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgspec
import redis
from confluent_kafka import ConsumerGroupTopicPartitions, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from streamer import kafka_clients
from streamer.catalog import Catalog
from streamer.decode import Kind, decode, explain_future
from streamer.labelling import label_entry, prediction_entry, unusable
from streamer.labels import JoinStore, LabelEntry, PredictionEntry
from streamer.recount import before_their_model, read_catalog
from streamer.rows import Located
from streamer.settings import Settings
from streamer.state import Keys
from streamer.topic_reader import read_to_end
from streamer.topics import topic_ids

KINDS: tuple[Kind, ...] = ("predictions", "labels")
# Kafka keeps a stopped worker's place this long, and some more to notice.
SESSION_S = 10.0
_BATCH = 2_000
_TIMEOUT_S = 30.0


class RebuildError(Exception):
    """The store cannot be made anew now; the message says why and what to do."""


class Rebuilt(msgspec.Struct, kw_only=True, frozen=True):
    """How many predictions and labels were installed, of the events read; those whose horizon is over were not."""

    predictions: int
    labels: int
    read: int


def rebuild(settings: Settings, *, now_ms: int) -> Rebuilt:
    """Install the label-join records of every event that ingest has committed, without counting any.

    Safe to repeat: an entry that is there already stays as it is.

    Parameters
    ----------
    now_ms : what has expired by then is not installed.

    Raises
    ------
    RebuildError
        While an ingest is running: what it reads meanwhile would be counted without its other half.
    KafkaException, ReadError
        Kafka is unreachable, or a topic is missing.
    """
    group = f"{settings.namespace or 'driftloop'}-ingest"
    admin = AdminClient({**kafka_clients.admin_config(settings), "log_level": 0})
    _refuse_while_running(admin, group)
    catalog = read_catalog(settings)
    unknown = before_their_model(settings)
    client = redis.Redis.from_url(settings.redis.join_url or settings.redis.url, socket_timeout=30)
    try:
        store = JoinStore(
            client, Keys(settings.namespace), buckets=settings.labels.join_buckets, wait_aof=settings.labels.wait_aof
        )
        installed = dict.fromkeys(KINDS, 0)
        read = 0
        for kind in KINDS:
            topic = settings.topic(kind)
            ids = topic_ids(settings, [topic])
            ends = _committed(admin, group, topic)
            for located in _batches(settings, catalog, kind, ids[topic], ends, unknown):
                read += len(located.events)
                entries = [entry for entry in _entries(catalog, located) if entry.expires_at_ms > now_ms]
                store.begin()
                store.join(entries)
                store.barrier()
                installed[kind] += len(entries)
    finally:
        client.close()
    return Rebuilt(predictions=installed["predictions"], labels=installed["labels"], read=read)


def _refuse_while_running(admin: AdminClient, group: str) -> None:
    """Return once nobody is in the group; a worker that was stopped just now is, until its session is over."""
    deadline = time.monotonic() + SESSION_S
    while True:
        found = admin.describe_consumer_groups([group], request_timeout=_TIMEOUT_S)[group].result()
        if not found.members:
            return
        if time.monotonic() > deadline:
            names = ", ".join(sorted(member.group_instance_id or member.client_id for member in found.members))
            raise RebuildError(f"ingest is running ({names}); stop every worker with the role all or ingest first")
        time.sleep(0.5)


def _committed(admin: AdminClient, group: str, topic: str) -> dict[int, int]:
    """Return partition → the next offset ingest would read; a partition it never read is not there."""
    asked = [ConsumerGroupTopicPartitions(group)]
    found = admin.list_consumer_group_offsets(asked, request_timeout=_TIMEOUT_S)[group].result()
    places: list[TopicPartition] = found.topic_partitions or []
    return {place.partition: place.offset for place in places if place.topic == topic and place.offset >= 0}


def _batches(
    settings: Settings,
    catalog: Catalog,
    kind: Kind,
    topic_id: str,
    ends: Mapping[int, int],
    unknown: Collection[tuple[str, int, int]],
) -> Iterator[Located]:
    """Yield what ingest has accepted, some thousands of events of one partition at a time, in log order."""
    topic = settings.topic(kind)
    gathered: dict[int, Located] = {}
    for message in read_to_end(settings, topic, sorted(ends)) if ends else ():
        partition, offset = message.partition(), message.offset()
        if partition is None or offset is None or offset >= ends[partition] or (topic, partition, offset) in unknown:
            continue
        event = _accepted(settings, catalog, kind, message)
        if event is None:
            continue
        located = gathered.setdefault(partition, Located((topic, topic_id, partition), [], [], []))
        located.events.append(event)
        located.offsets.append(offset)
        located.record_times_ms.append(message.timestamp()[1])
        if len(located.events) >= _BATCH:
            yield gathered.pop(partition)
    yield from gathered.values()


def _accepted(settings: Settings, catalog: Catalog, kind: Kind, message: Message) -> Any:
    """Return the event of a message, None where ingest made it a dead letter."""
    value = message.value()
    raw = value.encode() if isinstance(value, str) else value or b""
    try:
        event: Any = decode(raw, kind)
    except (msgspec.DecodeError, ValueError):
        return None
    model = catalog.model(event.model)
    if model is None or unusable(model, event) is not None:
        return None
    late = explain_future(event.ts, message.timestamp()[1], settings.worker.max_future_ms)
    return event if late is None else None


def _entries(catalog: Catalog, located: Located) -> Iterator[PredictionEntry | LabelEntry]:
    labels = located.source[0].endswith("labels.v1")
    for row, event in enumerate(located.events):
        model = catalog.model(event.model)
        if model is None or model.config.labels.mode != "join":
            continue
        entry = label_entry(model, located, row) if labels else prediction_entry(model, located, row)
        if entry is not None:
            yield entry
