"""The local stack that integration tests share, and a namespace of its own for each test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from streamer.kafka import topics
from streamer.local.stack import Stack
from streamer.settings import Settings


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Kafka and Valkey, for the whole session; `stack.settings` has their addresses."""
    parts = frozenset({"kafka", "valkey"})
    with Stack(tmp_path_factory.mktemp("stack"), parts=parts, settings=Settings()) as running:
        yield running


@pytest.fixture
def settings(stack: Stack) -> Iterator[Settings]:
    """The stack's configuration in a namespace that no other test has, its topics made; both go afterwards."""
    namespace = f"t{uuid.uuid4().hex[:10]}"
    own = stack.settings.model_copy(update={"namespace": namespace, "internal_partitions": 4})
    made = [report.name for report in topics.ensure(own)]
    yield own
    client = AdminClient({**own.kafka.properties()})
    for deleted in client.delete_topics(made).values():
        try:
            deleted.result()
        except KafkaException as error:
            # A test that deletes a topic may fail before it has made it anew: its own failure is the one to be seen.
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise
