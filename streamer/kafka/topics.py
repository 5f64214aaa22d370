"""The topics driftloop lives on: how each is made, and whether what exists is what is wanted."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType  # type: ignore[attr-defined]

from streamer.kafka import clients as kafka_clients
from streamer.settings import Settings, TopicSettings

RAW_PARTITIONS = 4
DEAD_LETTER_PARTITIONS = 4
# Producers and consumers of these topics set their own limits to the same number of bytes.
MAX_MESSAGE_BYTES = 8_000_000
# A dead letter carries the message that came and headers that say what was wrong with it.
MAX_DEAD_LETTER_BYTES = MAX_MESSAGE_BYTES + 1_000_000

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
_TIMEOUT_S = 30.0


class TopicError(Exception):
    """A topic cannot be used or made; the message names it, what it is, what was wanted, and what to do."""


@dataclass(frozen=True)
class Topic:
    """How one topic is made.

    Attributes
    ----------
    name : the short name, as `Settings.topic` takes it.
    partitions : how many; "internal" is the namespace's `internal_partitions`.
    retention_ms : how long messages are kept; None where the newest of each key is kept instead.
    append_time : whether a message's time is when the broker took it, not what the producer said.
    max_bytes : the largest batch of messages taken, after compression; None for the broker's own limit.
    """

    name: str
    partitions: int | Literal["internal"]
    retention_ms: int | None
    append_time: bool = False
    max_bytes: int | None = None

    @property
    def compacted(self) -> bool:
        """Whether the newest message of each key is kept for good."""
        return self.retention_ms is None


TOPICS: Mapping[str, Topic] = {
    topic.name: topic
    for topic in (
        Topic("predictions", RAW_PARTITIONS, 7 * _DAY_MS, append_time=True, max_bytes=MAX_MESSAGE_BYTES),
        Topic("features", RAW_PARTITIONS, 7 * _DAY_MS, append_time=True, max_bytes=MAX_MESSAGE_BYTES),
        Topic("labels", RAW_PARTITIONS, 7 * _DAY_MS, append_time=True, max_bytes=MAX_MESSAGE_BYTES),
        Topic("models", 1, None),
        Topic("references", 1, None, max_bytes=MAX_MESSAGE_BYTES),
        Topic("partials", "internal", 24 * _HOUR_MS, append_time=True, max_bytes=MAX_MESSAGE_BYTES),
        Topic("state", "internal", None, max_bytes=MAX_MESSAGE_BYTES),
        Topic("commands", "internal", 7 * _DAY_MS, append_time=True),
        Topic("retrain-requests", "internal", 7 * _DAY_MS, max_bytes=MAX_MESSAGE_BYTES),
        Topic("ledger", "internal", 365 * _DAY_MS),
        Topic("deployments", "internal", None),
        Topic("dead-letters", DEAD_LETTER_PARTITIONS, 14 * _DAY_MS, max_bytes=MAX_DEAD_LETTER_BYTES),
    )
}

# Compaction never touches the segment being written: these are read from the start by every worker,
# so they roll small segments and are cleaned early.
_COMPACTION = {
    "segment.bytes": "16777216",
    "segment.ms": "600000",
    "min.cleanable.dirty.ratio": "0.1",
    "delete.retention.ms": str(_DAY_MS),
}
# Only whole segments are let go, and Kafka's own are a week or a gigabyte long: what is kept for a day would lie there
# for eight. With this many to a retention, what lies there is at most so much older.
_SEGMENTS_PER_RETENTION = 4
_LONGEST_SEGMENT_MS = 7 * _DAY_MS


@dataclass(frozen=True)
class TopicReport:
    """What `ensure` found of one topic.

    Attributes
    ----------
    name : the full name, namespace included.
    outcome : "made", "same", or "differs" (usable, but a setting is not what the configuration asks for).
    differences : setting → (what the topic has, what was wanted).
    """

    name: str
    outcome: Literal["made", "same", "differs"]
    differences: Mapping[str, tuple[str, str]]

    @property
    def told(self) -> str:
        """The differences in words."""
        return ", ".join(f"{key} is {has}, wanted {wanted}" for key, (has, wanted) in self.differences.items())


@dataclass(frozen=True)
class _Wanted:
    """One topic as the configuration asks for it."""

    name: str
    partitions: int
    # Whether anything relies on the count: raw topics are read with whatever they have.
    fixed: bool
    replicas: int
    config: Mapping[str, str]


def ensure(settings: Settings, names: Iterable[str] | None = None) -> list[TopicReport]:
    """Make the topics that are missing and compare the others with the configuration; safe to repeat.

    Parameters
    ----------
    settings : the configuration in force.
    names : short names of the topics to look at; all of `TOPICS` by default.

    Returns
    -------
    A report a topic, in the order of `TOPICS`.

    Raises
    ------
    TopicError
        When the configuration asks for what cannot be, when an existing topic has another cleanup policy or,
        unless it is a raw one, partition count, or when Kafka is unreachable or refuses.
    """
    wanted = [_wanted(TOPICS[name], settings) for name in _known(names, settings)]
    admin = _admin(settings)
    existing = _existing(admin, settings)
    missing = [topic for topic in wanted if topic.name not in existing]
    made = _create(admin, missing)
    # Asked for again, since somebody else may have made a missing topic in between.
    partitions = _until_served(admin, settings, missing) if missing else existing
    reports = {name: TopicReport(name, "made", {}) for name in made}
    for report in _reports(admin, [topic for topic in wanted if topic.name not in made], partitions):
        reports[report.name] = report
    return [reports[topic.name] for topic in wanted]


def check(settings: Settings) -> list[TopicReport]:
    """Compare the topics that exist with the configuration, and make none.

    Raises
    ------
    TopicError
        When one is missing, or is what `ensure` could not live with.
    """
    wanted = [_wanted(topic, settings) for topic in TOPICS.values()]
    admin = _admin(settings)
    existing = _existing(admin, settings)
    missing = [topic.name for topic in wanted if topic.name not in existing]
    if missing:
        raise TopicError(f"topics missing, or without a leader: {', '.join(missing)}; run `driftloop topics create`")
    return _reports(admin, wanted, existing)


def topic_ids(settings: Settings, names: Iterable[str]) -> dict[str, str]:
    """Return the id that Kafka gave each topic; a topic deleted and made anew has another.

    Parameters
    ----------
    settings : the configuration in force.
    names : full topic names, namespace included.

    Returns
    -------
    Full name → id, as Kafka writes it (22 characters, URL-safe base64).

    Raises
    ------
    TopicError
        When a topic does not exist or Kafka cannot be reached.
    """
    wanted = list(names)
    if not wanted:
        return {}
    # Kept by name: results do not arrive once the client is gone.
    admin = _admin(settings)
    futures = admin.describe_topics(TopicCollection(wanted), request_timeout=_TIMEOUT_S)
    ids = {}
    for name, future in futures.items():
        try:
            ids[name] = str(future.result().topic_id)
        except KafkaException as error:
            raise TopicError(f"topic {name}: {_reason(error)}; run `driftloop topics create`") from error
    return ids


def _reports(admin: AdminClient, present: list[_Wanted], partitions: Mapping[str, int]) -> list[TopicReport]:
    configs = _configs(admin, [topic.name for topic in present])
    reports = []
    for topic in present:
        differences = _compare(topic, partitions[topic.name], configs[topic.name])
        reports.append(TopicReport(topic.name, "differs" if differences else "same", differences))
    return reports


def _known(names: Iterable[str] | None, settings: Settings) -> list[str]:
    asked = set(TOPICS) if names is None else set(names)
    for name in (*asked, *settings.topics):
        if name not in TOPICS:
            raise TopicError(f"topics.{name}: no such topic; the topics are {', '.join(TOPICS)}")
    return [name for name in TOPICS if name in asked]


def _wanted(topic: Topic, settings: Settings) -> _Wanted:
    override = settings.topics.get(topic.name, TopicSettings())
    default = settings.internal_partitions if topic.partitions == "internal" else topic.partitions
    if override.partitions not in (None, default):
        if topic.partitions == "internal":
            raise TopicError(
                f"topics.{topic.name}.partitions: got {override.partitions}, wanted {default}: internal topics all "
                f"have internal_partitions; remove the key, or set internal_partitions before the first start"
            )
        if topic.compacted:
            raise TopicError(
                f"topics.{topic.name}.partitions: got {override.partitions}, wanted {default}: every worker "
                f"keeps the whole of this topic; remove the key"
            )
    if topic.compacted and override.retention is not None:
        raise TopicError(
            f"topics.{topic.name}.retention: got {override.retention} ms, wanted none: the newest message of each "
            f"key is kept for good; remove the key"
        )
    config = {
        "cleanup.policy": "compact" if topic.compacted else "delete",
        "message.timestamp.type": "LogAppendTime" if topic.append_time else "CreateTime",
    }
    if topic.compacted:
        config |= _COMPACTION
    else:
        retention_ms = int(override.retention or topic.retention_ms or 0)
        config["retention.ms"] = str(retention_ms)
        config["segment.ms"] = str(max(1, min(retention_ms // _SEGMENTS_PER_RETENTION, _LONGEST_SEGMENT_MS)))
    if topic.max_bytes is not None:
        config["max.message.bytes"] = str(topic.max_bytes)
    fixed = topic.partitions == "internal" or topic.compacted
    return _Wanted(settings.topic(topic.name), override.partitions or default, fixed, override.replicas or 1, config)


def _admin(settings: Settings) -> AdminClient:
    return AdminClient({**kafka_clients.admin_config(settings), "log_level": 0})


def _existing(admin: AdminClient, settings: Settings) -> dict[str, int]:
    """Return the partition count of every topic that can be read and written now."""
    try:
        metadata = admin.list_topics(timeout=_TIMEOUT_S)
    except KafkaException as error:
        servers = settings.kafka.bootstrap_servers
        raise TopicError(
            f"kafka at {servers}: {_reason(error)}; start it, or correct kafka.bootstrap.servers"
        ) from error
    return {
        name: len(topic.partitions)
        for name, topic in metadata.topics.items()
        if all(partition.leader >= 0 for partition in topic.partitions.values())
    }


def _create(admin: AdminClient, topics: list[_Wanted]) -> set[str]:
    """Make topics; return the names of those made, without those that somebody else made meanwhile."""
    if not topics:
        return set()
    new = [
        NewTopic(
            topic.name, num_partitions=topic.partitions, replication_factor=topic.replicas, config=dict(topic.config)
        )
        for topic in topics
    ]
    made = set()
    for name, future in admin.create_topics(new, operation_timeout=_TIMEOUT_S).items():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
                continue
            raise TopicError(
                f"topic {name}: could not be made: {_reason(error)}; "
                f"check the brokers, the rights of this client, and replicas"
            ) from error
        made.add(name)
    return made


def _until_served(admin: AdminClient, settings: Settings, topics: list[_Wanted]) -> dict[str, int]:
    """Wait until brokers know new topics, which is a little after the controller has made them."""
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        served = _existing(admin, settings)
        unserved = [topic.name for topic in topics if topic.name not in served]
        if not unserved:
            return served
        if time.monotonic() > deadline:
            raise TopicError(f"topic {unserved[0]}: made, but not served after {_TIMEOUT_S:.0f} s; check the brokers")
        time.sleep(0.05)


def _configs(admin: AdminClient, names: list[str]) -> dict[str, dict[str, str]]:
    if not names:
        return {}
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    configs = {}
    for resource, future in admin.describe_configs(resources, request_timeout=_TIMEOUT_S).items():
        try:
            configs[resource.name] = {name: entry.value for name, entry in future.result().items()}
        except KafkaException as error:
            raise TopicError(f"topic {resource.name}: its settings cannot be read: {_reason(error)}") from error
    return configs


def _compare(topic: _Wanted, partitions: int, config: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return the settings that differ but can be lived with; raise for those that cannot."""
    if topic.fixed and partitions != topic.partitions:
        raise TopicError(
            f"topic {topic.name}: has {partitions} partitions, wanted {topic.partitions}; set the configuration to "
            f"{partitions}, use another namespace, or delete the topic with all it holds and create it again"
        )
    policy = config["cleanup.policy"]
    if policy != topic.config["cleanup.policy"]:
        raise TopicError(
            f"topic {topic.name}: has cleanup.policy {policy}, wanted {topic.config['cleanup.policy']}; "
            f"alter the topic, or use another namespace"
        )
    differences = {name: (config[name], value) for name, value in topic.config.items() if config[name] != value}
    if partitions != topic.partitions:
        differences["partitions"] = (str(partitions), str(topic.partitions))
    return differences


def _reason(error: KafkaException) -> str:
    return str(error.args[0].str())
