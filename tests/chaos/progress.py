"""How far the workers have come with what was sent, and waiting for them."""

from __future__ import annotations

import time
from functools import partial

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

from streamer.audit import recount
from streamer.evaluation.shard import restore_shard
from streamer.evaluation.state_log import read_partitions
from streamer.kafka.clients import admin_config, consumer_config, librdkafka
from streamer.kafka.offsets import committed_offsets, patiently
from streamer.settings import Settings

_LOOK_S = 0.5
_TIMEOUT_S = 30.0


class NotSettledError(Exception):
    """The workers have stopped counting before the end; the message says how much is left."""


def settle(settings: Settings, patience_s: float) -> None:
    """Wait until what evaluate has committed reaches the end of every raw topic, in every partition of the models."""
    ends = _raw_ends(settings)
    properties = librdkafka(settings.kafka.properties(), scope="consumer")
    left, progressed = sum(ends.values()) * settings.internal_partitions, time.monotonic()
    while left:
        time.sleep(1.0)
        behind = 0
        stored = read_partitions(properties, settings.topic("state"), range(settings.internal_partitions))
        for partition, values in stored.items():
            shard = restore_shard(partition, values)
            reached = {place: end for place, (_id, end, _read) in shard.position.progress.items()}
            behind += sum(max(end - reached.get(place, 0), 0) for place, end in ends.items())
        if behind < left:
            left, progressed = behind, time.monotonic()
        if time.monotonic() > progressed + patience_s:
            raise NotSettledError(f"{left:,} messages not counted, and none more in {patience_s:.0f} s")


def await_ingested(settings: Settings, patience_s: float) -> None:
    """Wait until ingest has committed all that has been sent by now."""
    ends = _raw_ends(settings)
    admin = AdminClient({**admin_config(settings), "log_level": 0})
    deadline = time.monotonic() + patience_s
    while True:
        reached = committed_offsets(admin, f"{settings.namespace}-ingest", timeout_s=_TIMEOUT_S)
        left = sum(max(end - reached.get(place, 0), 0) for place, end in ends.items())
        if not left:
            return
        if time.monotonic() > deadline:
            raise NotSettledError(f"{left:,} messages not taken in by ingest within {patience_s:.0f} s")
        time.sleep(_LOOK_S)


def _raw_ends(settings: Settings) -> dict[tuple[str, int], int]:
    consumer = Consumer(consumer_config(settings, group_id="chaos"))
    try:
        ends = {}
        for kind in recount.KINDS:
            topic = settings.topic(kind)
            for partition in consumer.list_topics(topic, timeout=10).topics[topic].partitions:
                ask = partial(consumer.get_watermark_offsets, TopicPartition(topic, partition), timeout=10)
                _low, ends[topic, partition] = patiently(ask, timeout_s=30)
        return ends
    finally:
        consumer.close()
