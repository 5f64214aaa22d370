"""librdkafka in the place of kafka-python, for replays and batch jobs of many thousand events a second."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from streamer.client.entry import Headers
from streamer.client.transport import NotReadyError, Reaped
from streamer.kafka.clients import librdkafka

log = logging.getLogger(__name__)

_LOG_EVERY_S = 10.0
# As for `streamer.client.transport`: what is wrong with the message itself.
_REFUSALS = frozenset(
    {
        KafkaError.INVALID_MSG,
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_TIMESTAMP,
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.POLICY_VIOLATION,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.TOPIC_EXCEPTION,
    }
)


class LibrdkafkaTransport:
    """confluent-kafka's idempotent producer (see `streamer.client.transport.Transport`).

    Parameters
    ----------
    properties : by Kafka's dotted names.

    Raises
    ------
    NotReadyError
        When librdkafka refuses a property; it names it.
    """

    def __init__(self, properties: Mapping[str, object]) -> None:
        self._reaped = Reaped([], [])
        self._fault: Exception | None = None
        self._erred_at = float("-inf")
        configuration = {
            "client.id": "driftloop-sdk",
            "compression.type": "lz4",
            "linger.ms": 50,
            "batch.size": 1_000_000,
            "queue.buffering.max.messages": 1_000_000,
            "partitioner": "murmur2_random",
            "enable.idempotence": True,
            "allow.auto.create.topics": False,
            # Nothing expires; the default gives a message up after five minutes.
            "message.timeout.ms": 0,
            "reconnect.backoff.max.ms": 1_000,
            # It has several lines a second to say while a broker is away; `error_cb` says the same.
            "log_level": 2,
            "error_cb": self._erred,
            **librdkafka(properties, scope="producer"),
        }
        try:
            # Its own lines go where the caller's logs go, not to the terminal.
            self._producer = Producer(configuration, logger=log)
        except KafkaException as error:
            raise NotReadyError(error.args[0].str()) from error

    def send(self, number: int, topic: str, key: bytes | None, body: bytes, headers: Headers) -> None:
        """Hand a message to librdkafka, which batches and retries it."""
        try:
            self._producer.produce(
                topic,
                body,
                key=key,
                headers=headers,  # type: ignore[arg-type]  # a list of pairs of text and bytes is one of theirs
                on_delivery=partial(self._delivered, number),
            )
        except BufferError as error:
            raise NotReadyError(f"{topic}: {error}") from error
        except KafkaException as error:
            if error.args[0].code() in _REFUSALS:
                raise
            self._fault = error
            raise NotReadyError(f"{topic}: {error.args[0].str()}") from error

    def reap(self) -> Reaped:
        """Let librdkafka report, and return what it said."""
        self._producer.poll(0)
        reaped, self._reaped = self._reaped._replace(fault=self._fault), Reaped([], [])
        return reaped

    def close(self) -> None:
        """Throw away what is not acknowledged."""
        self._producer.purge()
        self._producer.flush(0)

    def _erred(self, error: KafkaError) -> None:
        """Log what ails the connection, at most once in ten seconds."""
        now = time.monotonic()
        if now - self._erred_at > _LOG_EVERY_S:
            self._erred_at = now
            log.warning("driftloop: Kafka: %s", error.str())

    def _delivered(self, number: int, error: KafkaError | None, _: Message) -> None:
        if error is None:
            self._reaped.sent.append(number)
        elif error.code() in _REFUSALS:
            self._reaped.refused.append((number, KafkaException(error)))
        else:
            self._fault = KafkaException(error)
