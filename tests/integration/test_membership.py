"""A static member that comes back is given what its topics have now, not what they had when it went."""

from __future__ import annotations

import time

import pytest
from confluent_kafka import Consumer
from confluent_kafka.admin import AdminClient, NewPartitions

from streamer.kafka import clients as kafka_clients
from streamer.kafka.membership import leave_if_outdated
from streamer.settings import Settings
from tests.integration.running import wait_for

pytestmark = pytest.mark.integration


def given(settings: Settings, member: str) -> int:
    """Join the group as a static member, and stay away without leaving it: return how many partitions it was given."""
    own = {"group.instance.id": member, "session.timeout.ms": 30_000, "partition.assignment.strategy": "range"}
    consumer = Consumer(kafka_clients.consumer_config(settings, group_id=group(settings), extra=own))
    consumer.subscribe([settings.topic("predictions")])
    try:
        deadline = time.monotonic() + 30
        while not consumer.assignment() and time.monotonic() < deadline:
            consumer.poll(0.1)
        return len(consumer.assignment())
    finally:
        consumer.close()


def group(settings: Settings) -> str:
    return f"{settings.namespace}-away"


def left(settings: Settings, member: str) -> bool:
    return leave_if_outdated(settings, group=group(settings), member=member, topics=[settings.topic("predictions")])


def test_partitions_that_come_while_a_member_is_away_are_given_to_it_once_it_has_left(settings: Settings) -> None:
    name = settings.topic("predictions")
    assert not left(settings, "0"), "there is no such group yet"
    assert given(settings, "0") == 4
    assert not left(settings, "0"), "nothing has changed"
    admin = AdminClient({**settings.kafka.properties()})
    for future in admin.create_partitions([NewPartitions(name, 6)]).values():
        future.result()
    wait_for(lambda: len(admin.list_topics(timeout=10).topics[name].partitions), lambda number: number == 6, 20)
    assert not left(settings, "1"), "another is no member"
    # Why it is needed: within its session it is given back what it had.
    assert given(settings, "0") == 4
    assert left(settings, "0")
    assert given(settings, "0") == 6
