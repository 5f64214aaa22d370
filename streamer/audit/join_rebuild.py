"""A lost label-join store made anew from the log: what it had joined is installed, nothing is counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import msgspec
import redis
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from streamer import redis_clients
from streamer.audit.log_reach import whole_since
from streamer.audit.recount import before_their_model, read_catalog
from streamer.catalog import Catalog, Model
from streamer.counting.labelling import features_entry, label_entry, prediction_entry, unusable
from streamer.counting.rows import Located
from streamer.decode import Kind, decode
from streamer.decoding.singles import singles
from streamer.evaluation.counted import counted_up_to
from streamer.events import SCHEMA_HEADER, SCHEMA_VERSION, Label, encode
from streamer.explain import explain_future
from streamer.join.entries import Entry
from streamer.join.gap import Gap
from streamer.join.labels import JoinStore
from streamer.kafka import clients as kafka_clients
from streamer.kafka.offsets import committed_offsets, patiently
from streamer.kafka.reader import first_offsets, read_to_end
from streamer.kafka.topics import topic_ids
from streamer.settings import Settings
from streamer.state import Keys

KINDS: tuple[Kind, ...] = ("predictions", "features", "labels")
# Kafka keeps a stopped worker's place this long, and some more to notice.
SESSION_S = 10.0
# What came while the store was lost is looked at once it is known what was there before.
_PASSES: tuple[tuple[Kind, bool], ...] = (
    ("predictions", False),
    ("predictions", True),
    ("features", False),
    ("labels", False),
)
_ENTRY_OF = {"predictions": prediction_entry, "features": features_entry, "labels": label_entry}
_ENDS = b"ends"
_BATCH = 2_000
_TIMEOUT_S = 30.0


class RebuildError(Exception):
    """The store cannot be made anew now; the message says why and what to do."""


class Rebuilt(msgspec.Struct, kw_only=True, frozen=True):
    """How many entries were installed, of the events read; those whose time is over were not.

    `whole_since_ms` is the record time from which on all is there again, where the log no longer reaches back over the
    labels' horizon: labels of predictions before it find nothing, and do not count.
    """

    predictions: int
    features: int
    labels: int
    read: int
    whole_since_ms: int | None = None


def rebuild(settings: Settings, *, now_ms: int) -> Rebuilt:
    """Install the label-join records of every event that ingest has committed, without counting any.

    Safe to repeat: an entry that is there already stays as it is. Buckets that have lost what they held begin
    empty, and count as lost until all is installed.

    Parameters
    ----------
    now_ms : what had expired `labels.hold` before then is not installed.

    Raises
    ------
    RebuildError
        While an ingest is running: what it reads meanwhile would be counted without its other half.
    KafkaException, ReadError
        Kafka is unreachable, or a topic is missing.
    StepFailed
        The group's offsets are gone, and evaluate's position, which stands in for them, cannot be read.
    """
    group = f"{settings.namespace or 'driftloop'}-ingest"
    admin = AdminClient({**kafka_clients.admin_config(settings), "log_level": 0})
    _refuse_while_running(admin, group)
    catalog = read_catalog(settings)
    unknown = before_their_model(settings)
    client = redis_clients.connect_store(settings, socket_timeout=30)
    try:
        store = JoinStore(
            client,
            Keys(settings.namespace),
            buckets=settings.labels.join_buckets,
            wait_aof=settings.labels.wait_aof,
            hold_ms=settings.labels.hold,
        )
        ends = _ends(settings, admin, group)
        key = Keys(settings.namespace).rebuild()
        gap, again = _gap(client, key, store, ends["predictions"]), _Again(settings)
        kept_from_ms = now_ms - settings.labels.hold
        whole_since_ms = _whole_since(settings, catalog, ends, kept_from_ms, now_ms)
        installed = dict.fromkeys(KINDS, 0)
        read = 0
        for kind, of_gap in _PASSES:
            if (of_gap and not gap) or kind not in _joined(catalog):
                continue
            topic = settings.topic(kind)
            ids = topic_ids(settings, [topic])
            for located in _batches(settings, catalog, kind, ids[topic], ends[kind], unknown):
                read += 0 if of_gap else len(located.events)
                chosen = []
                for entry, event in _entries(catalog, kind, located):
                    fate = gap.fate(entry, of_gap=of_gap) if entry.expires_at_ms > kept_from_ms else "pass"
                    if fate == "install":
                        chosen.append(entry)
                    elif fate == "append again":
                        again.append(event, located.source[2])
                store.begin()
                store.join(chosen)
                store.barrier()
                installed[kind] += len(chosen)
        again.close()
        store.mark_whole()
        client.delete(key)
    finally:
        client.close()
    return Rebuilt(**installed, read=read, whole_since_ms=whole_since_ms)


def _gap(client: redis.Redis, key: str, store: JoinStore, ends: Mapping[int, int]) -> Gap:
    """Find the predictions that came while the store was lost, and clear it.

    They are kept in Redis until all is done, for a rebuild that has to begin again: by then the store also
    holds what the first has installed, all of which lies below the ends that one has read up to.
    """
    found = store.lost_predictions()
    known: dict[Any, Any] = client.hgetall(key)
    below: dict[str, int] = msgspec.json.decode(known.pop(_ENDS, b"{}"))
    met = {field: set(msgspec.json.decode(raw, type=list[str])) for field, raw in known.items()}
    for field, positions in found.items():
        since = {each for each in positions if int(each.split(":")[2]) >= below.get(each.split(":")[1], 0)}
        if since:
            met[field] = met.get(field, set()) | since
    for field, positions in met.items():
        client.hset(key, field, msgspec.json.encode(sorted(positions)))
    # Last: without it, all there is came while the store was lost.
    client.hset(key, _ENDS, msgspec.json.encode(ends))
    store.clear_lost()
    return Gap(met)


class _Again:
    """Labels appended to their topic once more."""

    def __init__(self, settings: Settings) -> None:
        self._topic = settings.topic("labels")
        self._producer = Producer(kafka_clients.producer_config(settings))

    def append(self, label: Label, partition: int) -> None:
        """Append a label to the partition it came in."""
        headers: list[tuple[str, str | bytes | None]] = [(SCHEMA_HEADER, SCHEMA_VERSION)]
        self._producer.produce(self._topic, encode(label), label.prediction_id, partition, headers=headers)
        self._producer.poll(0)

    def close(self) -> None:
        """Wait until Kafka has them."""
        if self._producer.flush(_TIMEOUT_S):
            raise RebuildError(f"{self._topic}: Kafka did not take labels that are to be joined again; run this again")


def _refuse_while_running(admin: AdminClient, group: str) -> None:
    """Return once nobody is in the group; a worker that was stopped just now is, until its session is over."""
    deadline = time.monotonic() + SESSION_S
    while True:
        found = patiently(
            lambda: admin.describe_consumer_groups([group], request_timeout=_TIMEOUT_S)[group].result(),
            timeout_s=_TIMEOUT_S,
        )
        if not found.members:
            return
        if time.monotonic() > deadline:
            names = ", ".join(sorted(member.group_instance_id or member.client_id for member in found.members))
            raise RebuildError(f"ingest is running ({names}); stop every worker with the role all or ingest first")
        time.sleep(0.5)


def _ends(settings: Settings, admin: AdminClient, group: str) -> dict[Kind, dict[int, int]]:
    """Return, of each kind, partition → the next offset ingest would read; a partition it never read is not there."""
    topics = {settings.topic(kind): kind for kind in KINDS}
    found = committed_offsets(admin, group, timeout_s=_TIMEOUT_S)
    if not any(topic in topics for topic, _partition in found):
        # Kafka has let them expire, or nothing was ever read.
        found = counted_up_to(settings, topic_ids(settings, list(topics)))
    ends: dict[Kind, dict[int, int]] = {kind: {} for kind in KINDS}
    for (topic, partition), offset in found.items():
        if topic in topics:
            ends[topics[topic]][partition] = offset
    return ends


def _joined(catalog: Catalog) -> list[Kind]:
    """Return the kinds that are joined: feature logs where some model's slices come in them."""
    logged = any(model.logged_slices for model in catalog.models())
    return [kind for kind in KINDS if kind != "features" or logged]


def _whole_since(
    settings: Settings, catalog: Catalog, ends: Mapping[Kind, Mapping[int, int]], kept_from_ms: int, now_ms: int
) -> int | None:
    """Return the time from which on the log has all that some model still joins; None where it has all of it."""
    horizons = [int(model.config.labels.horizon) for model in catalog.models() if model.config.labels.mode == "join"]
    wanted_ms = kept_from_ms - max(horizons, default=0)
    found = [
        whole_since(settings, settings.topic(kind), ends[kind], wanted_ms=wanted_ms, now_ms=now_ms)
        for kind in _joined(catalog)
    ]
    return max((since_ms for since_ms in found if since_ms is not None), default=None)


def _batches(
    settings: Settings,
    catalog: Catalog,
    kind: Kind,
    topic_id: str,
    ends: Mapping[int, int],
    unknown: Collection[tuple[str, int, int, int]],
) -> Iterator[Located]:
    """Yield what ingest has accepted, some thousands of events of one partition at a time, in log order."""
    topic = settings.topic(kind)
    gathered: dict[int, tuple[list[Any], list[int], list[int], list[int]]] = {}
    # A partition that its topic no longer has: `_whole_since` counts it as lost.
    there = sorted(ends.keys() & first_offsets(settings, topic).keys())
    for message in read_to_end(settings, topic, there) if there else ():
        partition, offset = message.partition(), message.offset()
        if partition is None or offset is None or offset >= ends[partition]:
            continue
        value, record_ms = message.value(), message.timestamp()[1]
        for row, raw in singles(value.encode() if isinstance(value, str) else value or b"", kind):
            event = _accepted(settings, catalog, kind, raw, record_ms)
            if event is None or (topic, partition, offset, row) in unknown:
                continue
            events, offsets, times_ms, rows = gathered.setdefault(partition, ([], [], [], []))
            events.append(event)
            offsets.append(offset)
            times_ms.append(record_ms)
            rows.append(row)
            if len(events) >= _BATCH:
                yield Located((topic, topic_id, partition), *gathered.pop(partition))
    for partition, columns in gathered.items():
        yield Located((topic, topic_id, partition), *columns)


def _accepted(settings: Settings, catalog: Catalog, kind: Kind, raw: bytes, record_ms: int) -> Any:
    """Return an event, None where ingest made it a dead letter."""
    try:
        event: Any = decode(raw, kind)
    except (msgspec.DecodeError, ValueError):
        return None
    model = catalog.model(event.model)
    if model is None or unusable(model, event) is not None:
        return None
    late = explain_future(event, record_ms, settings.worker.max_future_ms)
    return event if late is None else None


def _entries(catalog: Catalog, kind: Kind, located: Located) -> Iterator[tuple[Entry, Any]]:
    entry_of: Callable[[Model, Located, int], Entry | None] = _ENTRY_OF[kind]
    for row, event in enumerate(located.events):
        model = catalog.model(event.model)
        if model is None or model.config.labels.mode != "join":
            continue
        entry = entry_of(model, located, row)
        if entry is not None:
            yield entry, event
