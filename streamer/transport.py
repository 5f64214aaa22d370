"""How the SDK's sending thread talks to Kafka: what it needs of a client, and kafka-python as that client."""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError
from kafka.future import Future
from kafka.partitioner import Partitioner

from streamer.kafka_clients import kafka_python
from streamer.partitioning import murmur2

Headers = list[tuple[str, str | bytes | None]]

log = logging.getLogger(__name__)

# A linger of 50 ms fills batches from a few thousand events a second on; beyond 64 KB larger ones save nothing.
_DEFAULTS: Mapping[str, Any] = {
    "client_id": "driftloop-sdk",
    "compression_type": "lz4",
    "linger_ms": 50,
    "batch_size": 65_536,
    # These two bound how long the sending thread can be held up, and with it `close`.
    "max_block_ms": 2_000,
    "bootstrap_timeout_ms": 2_000,
    # A topic made by accident would have the wrong partitions and retention.
    "allow_auto_create_topics": False,
    "metrics_enabled": False,
}


class NotReadyError(Exception):
    """Kafka cannot take a message now; it may later."""


class Reaped(NamedTuple):
    """How many messages were acknowledged and given up since the last time, and why the last of these was."""

    sent: int
    failed: int
    fault: Exception | None


class Transport(Protocol):
    """A Kafka client as the sending thread uses it; only that thread calls it."""

    def send(self, topic: str, key: bytes | None, body: bytes, headers: Headers) -> None:
        """Take a message without waiting for its acknowledgement; NotReadyError when it should be tried again."""

    def reap(self) -> Reaped:
        """Count what became of messages since the last time."""

    def close(self) -> None:
        """Stop at once; what is not acknowledged is abandoned."""


class JavaPartitioner(Partitioner):  # type: ignore[misc]
    """Puts a key where Kafka's Java clients put it, with less work than kafka-python's own."""

    def partition(
        self, topic: str, key: object, serialized_key: bytes | None, value: object, sent: object, cluster: Any
    ) -> int:
        """Return the partition of a key; without a key, any."""
        count = len(cluster.partitions_for_topic(topic))
        if serialized_key is None:
            return random.randrange(count)
        return (murmur2(serialized_key) & 0x7FFFFFFF) % count


class _Producer(KafkaProducer):  # type: ignore[misc]
    """A producer whose `close` always ends its thread: the original stops at a flush that times out."""

    def flush(self, timeout: float | None = None) -> None:
        try:
            super().flush(timeout)
        except KafkaTimeoutError as error:
            log.debug("driftloop: %s", error)


class KafkaPythonTransport:
    """kafka-python's idempotent producer.

    Parameters
    ----------
    options : its keyword arguments, as `kafka_python_options` makes them.

    Raises
    ------
    NotReadyError
        When no broker answers in time.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        try:
            self._producer = _Producer(**options)
        except (KafkaError, OSError, ValueError, RuntimeError) as error:
            raise NotReadyError(str(error)) from error
        self._awaited: deque[Future] = deque()

    def send(self, topic: str, key: bytes | None, body: bytes, headers: Headers) -> None:
        """Hand a message to kafka-python, which batches and retries it."""
        try:
            self._awaited.append(self._producer.send(topic, body, key=key, headers=headers))
        except KafkaTimeoutError as error:
            raise NotReadyError(f"{topic}: {error}") from error

    def reap(self) -> Reaped:
        """Count the oldest messages up to the first that is still on its way."""
        sent = failed = 0
        fault = None
        while self._awaited and self._awaited[0].is_done:
            future = self._awaited.popleft()
            if future.failed():
                failed, fault = failed + 1, future.exception
            else:
                sent += 1
        return Reaped(sent, failed, fault)

    def close(self) -> None:
        """End kafka-python's thread."""
        self._producer.close(timeout=0)


def kafka_python_options(properties: Mapping[str, object]) -> dict[str, Any]:
    """Return the producer's keyword arguments: the defaults measured here, under what the user set."""
    return {**_DEFAULTS, "partitioner": JavaPartitioner(), **kafka_python(properties, scope="producer")}
