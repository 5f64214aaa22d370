"""How the SDK's sending thread talks to Kafka: what it needs of a client, and kafka-python as that client."""

from __future__ import annotations

import logging
import random
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from kafka import KafkaProducer
from kafka.cluster import get_ip_port_afi
from kafka.errors import (
    InvalidRecordError,
    InvalidTimestampError,
    InvalidTopicError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
)
from kafka.future import Future
from kafka.net.compat import KafkaNetClient
from kafka.partitioner import Partitioner

from streamer.client.entry import Headers
from streamer.kafka.clients import kafka_python
from streamer.kafka.partitioning import murmur2

log = logging.getLogger(__name__)

# A linger of 50 ms fills batches from a few thousand events a second on; beyond 64 KB larger ones save nothing.
_DEFAULTS: Mapping[str, Any] = {
    "client_id": "driftloop-sdk",
    "compression_type": "lz4",
    "linger_ms": 50,
    "batch_size": 65_536,
    # How long the sending thread can be held up, by a topic whose partitions are not known yet.
    "max_block_ms": 200,
    "bootstrap_timeout_ms": 2_000,
    # Nothing expires: a message that Kafka did not take for five minutes is as good as it was (24 days is the most
    # the protocol's fields hold). The defaults give it up after two.
    "delivery_timeout_ms": 2**31 - 1,
    # A broker that comes back is found within a second or two; the default waits for up to thirty.
    "reconnect_backoff_max_ms": 1_000,
    # A topic made by accident would have the wrong partitions and retention.
    "allow_auto_create_topics": False,
    "metrics_enabled": False,
}


# What is wrong with the message itself. All else (a client fenced or confused, a right not granted, a topic that is
# not there yet) may be put right while the message waits.
_REFUSALS = (
    InvalidRecordError,
    InvalidTimestampError,
    InvalidTopicError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
)


class NotReadyError(Exception):
    """Kafka cannot take a message now; it may later."""


class Reaped(NamedTuple):
    """What became of messages since the last time, by their numbers.

    `sent` are acknowledged. `refused` ones Kafka will never take, with the reason. `fault` says that the client
    gave up messages that a new client may bring through: it is to be thrown away, and all that was not
    acknowledged sent again in its order.
    """

    sent: list[int]
    refused: list[tuple[int, Exception]]
    fault: Exception | None = None


class Transport(Protocol):
    """A Kafka client as the sending thread uses it; only that thread calls it."""

    def send(self, number: int, topic: str, key: bytes | None, body: bytes, headers: Headers) -> None:
        """Take a message without waiting for its acknowledgement.

        NotReadyError when it should be tried again; any other error says that Kafka will never take it.
        """

    def reap(self) -> Reaped:
        """Return what became of messages since the last time."""

    def close(self) -> None:
        """Stop at once; what is not acknowledged is abandoned."""


class Connection:
    """A client being made in a thread of its own."""

    def __init__(self, connect: Callable[[], Transport]) -> None:
        self.transport: Transport | None = None
        self.error: Exception | None = None
        self.ended = False
        self._connect = connect
        self._wanted = True
        self._lock = threading.Lock()
        threading.Thread(target=self._run, name="driftloop-connect", daemon=True).start()

    def abandon(self) -> None:
        """Close the client, or see that it is closed once it is made."""
        with self._lock:
            self._wanted = False
            if self.transport is not None:
                self.transport.close()

    def _run(self) -> None:
        try:
            transport = self._connect()
        except Exception as error:  # noqa: BLE001 - reported by whoever waits for it, and tried again
            self.error = error
        else:
            with self._lock:
                self.transport = transport
                if not self._wanted:
                    transport.close()
        self.ended = True


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
        _reach(options.get("bootstrap_servers", []), timeout_s=options["bootstrap_timeout_ms"] / 1000)
        made: list[Any] = []

        def client(**settings: Any) -> Any:
            made.append(KafkaNetClient(**settings))
            return made[-1]

        try:
            self._producer = _Producer(**options, kafka_client=client)
        except (KafkaError, OSError, ValueError, RuntimeError) as error:
            # The producer leaves it open.
            for each in made:
                each.close()
            raise NotReadyError(f"{error}{_hint(options)}") from error
        self._awaited: deque[tuple[int, Future]] = deque()

    def send(self, number: int, topic: str, key: bytes | None, body: bytes, headers: Headers) -> None:
        """Hand a message to kafka-python, which batches and retries it."""
        try:
            self._awaited.append((number, self._producer.send(topic, body, key=key, headers=headers)))
        except KafkaError as error:
            if isinstance(error, _REFUSALS):
                raise
            raise NotReadyError(f"{topic}: {error}") from error

    def reap(self) -> Reaped:
        """Look at the oldest messages up to the first that is still on its way."""
        reaped, fault = Reaped([], []), None
        while self._awaited and self._awaited[0][1].is_done:
            number, future = self._awaited.popleft()
            if not future.failed():
                reaped.sent.append(number)
            elif isinstance(future.exception, _REFUSALS):
                reaped.refused.append((number, future.exception))
            else:
                fault = future.exception
        return reaped._replace(fault=fault)

    def close(self) -> None:
        """End kafka-python's thread."""
        self._producer.close(timeout=0)


def _reach(servers: Sequence[str], *, timeout_s: float) -> None:
    """See that some broker can be connected to before kafka-python tries.

    It leaves sockets open, for the garbage collector, every time it tries in vain: a broker that is away for an hour
    would cost a busy process its file descriptors.
    """
    reason: Exception = OSError("no address is given")
    for server in servers:
        try:
            host, port, _ = get_ip_port_afi(server)
            socket.create_connection((host, port), timeout_s).close()
        except (OSError, ValueError) as error:
            reason = error
        else:
            return
    raise NotReadyError(f"no broker answers at {', '.join(servers)}: {reason}") from reason


def _hint(options: Mapping[str, Any]) -> str:
    """Return what kafka-python does not tell of a broker that refuses: it sees no more than a lost connection."""
    if options.get("sasl_mechanism"):
        return ' (so it also looks when "sasl.username", "sasl.password" or the certificate is refused)'
    return " (so it also looks when the certificate is refused)" if options.get("ssl_context") else ""


def kafka_python_options(properties: Mapping[str, object]) -> dict[str, Any]:
    """Return the producer's keyword arguments: the defaults measured here, under what the user set."""
    return {**_DEFAULTS, "partitioner": JavaPartitioner(), **kafka_python(properties, scope="producer")}
