"""librdkafka in the place of kafka-python, for replays and batch jobs of many thousand events a second."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from streamer.kafka_clients import librdkafka
from streamer.transport import Headers, NotReadyError, Reaped

log = logging.getLogger(__name__)


class LibrdkafkaTransport:
    """confluent-kafka's idempotent producer (see `streamer.transport.Transport`).

    Parameters
    ----------
    properties : by Kafka's dotted names.

    Raises
    ------
    NotReadyError
        When librdkafka refuses a property; it names it.
    """

    def __init__(self, properties: Mapping[str, object]) -> None:
        self._sent = self._failed = 0
        self._fault: Exception | None = None
        configuration = {
            "client.id": "driftloop-sdk",
            "compression.type": "lz4",
            "linger.ms": 50,
            "batch.size": 1_000_000,
            "queue.buffering.max.messages": 1_000_000,
            "partitioner": "murmur2_random",
            "enable.idempotence": True,
            "allow.auto.create.topics": False,
            **librdkafka(properties, scope="producer"),
        }
        try:
            # Its own lines go where the caller's logs go, not to the terminal.
            self._producer = Producer(configuration, logger=log)
        except KafkaException as error:
            raise NotReadyError(error.args[0].str()) from error

    def send(self, topic: str, key: bytes | None, body: bytes, headers: Headers) -> None:
        """Hand a message to librdkafka, which batches and retries it."""
        try:
            self._producer.produce(topic, body, key=key, headers=headers, on_delivery=self._delivered)
        except BufferError as error:
            raise NotReadyError(f"{topic}: {error}") from error

    def reap(self) -> Reaped:
        """Let librdkafka report, and count what it said."""
        self._producer.poll(0)
        reaped = Reaped(self._sent, self._failed, self._fault)
        self._sent = self._failed = 0
        self._fault = None
        return reaped

    def close(self) -> None:
        """Throw away what is not acknowledged."""
        self._producer.purge()
        self._producer.flush(0)

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        if error is None:
            self._sent += 1
        else:
            self._failed += 1
            self._fault = KafkaException(error)
