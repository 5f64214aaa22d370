"""What a serving system imports: choose a version, log predictions, features and labels, and never wait for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from streamer.client.arguments import identifier, name
from streamer.client.batch_encoding import BatchEncoding, BatchFormat
from streamer.client.batches import LabelColumns, PredictionColumns
from streamer.client.client_settings import (
    DEFAULT_QUEUE_SIZE,
    DEFAULT_REDIS,
    DEFAULT_SERVERS,
    DEFAULT_SPOOL_BYTES,
    TransportName,
    client_settings,
)
from streamer.client.event_logger import EventLogger
from streamer.client.outbox import CloseReport, Outbox, Stats
from streamer.client.spool import Spool
from streamer.client.transport import KafkaPythonTransport, Transport, kafka_python_options
from streamer.events import Label, Prediction
from streamer.routing import Choice, SplitReader

__all__ = [
    "Choice",
    "Client",
    "CloseReport",
    "Label",
    "LabelColumns",
    "Prediction",
    "PredictionColumns",
    "Stats",
    "TransportName",
]

# Room for a few of the frames that events are written in.
_LEAST_SPOOL_BYTES = 10_000_000


class Client(EventLogger):
    """Logs what a model sees, says and was right about; says which version serves whom.

    Nothing here waits for Kafka or raises because of it: events go to a bounded queue and a thread sends
    them. While Kafka is away they wait, in memory, then in the spool where there is one; what does not fit
    is dropped and counted. Only a wrong argument raises, naming itself.

    Parameters
    ----------
    bootstrap_servers : Kafka's addresses, "host:port,host:port".
    redis_url : where the split is read from; None for a client that never calls `choose`.
    namespace : driftloop's, "" by default.
    kafka : Kafka's client properties by their dotted names, e.g. {"security.protocol": "SASL_SSL"}.
    redis : redis-py's username, password, ssl_ca_certs, ssl_certfile and ssl_keyfile, where the address has none.
    queue_size : how many events may be in memory, waiting or on their way, before more are dropped.
    on_drop : called in the background with the number of events newly dropped.
    transport : "kafka-python", or "librdkafka" where confluent-kafka is installed, which a replay or a
        batch job of many thousand events a second wants.
    spool : a file on a local disk, this process's own, for events that Kafka does not take. It outlives a
        crash of the process: the next client with this path sends what is in it.
    spool_bytes : how large that file may become.
    batch_format : what columns go as: "arrow", many events a message, which needs pyarrow; "json", one event a
        message; None for Arrow where pyarrow is installed and there are enough rows.

    Raises
    ------
    ValueError
        When an argument cannot be; the message names it, without Redis' address, which may hold a password.
    streamer.kafka.clients.KafkaPropertyError
        When a Kafka property is not known or not valid.
    streamer.client.spool.SpoolError
        When the spool cannot be opened, or another process uses it.

    Notes
    -----
    Safe to share between threads. It may be made before a fork: a child starts with an empty queue
    and its own connections, and the parent's events stay the parent's. The spool stays the parent's too:
    a client with a spool is made after the fork, each with a path of its own.

    Every event is sent once at least, and twice where an acknowledgement was lost with a crash or with a
    client that had to be replaced; driftloop recognises the copy by its prediction_id. Events of one key
    reach Kafka in the order they were logged in, as long as the process lives.

    Examples
    --------
    >>> with Client.from_environment() as client:
    ...     choice = client.choose("flight_delay", "N14228")
    ...     prediction_id = client.log_prediction(
    ...         model="flight_delay", features={"distance": 1400}, prediction=True, choice=choice
    ...     )
    ...     client.log_label(prediction_id, model="flight_delay", label=False)
    """

    def __init__(
        self,
        bootstrap_servers: str = DEFAULT_SERVERS,
        *,
        redis_url: str | None = DEFAULT_REDIS,
        namespace: str = "",
        kafka: Mapping[str, object] | None = None,
        redis: Mapping[str, object] | None = None,
        queue_size: int = DEFAULT_QUEUE_SIZE,
        on_drop: Callable[[int], None] | None = None,
        transport: TransportName = "kafka-python",
        spool: str | os.PathLike[str] | None = None,
        spool_bytes: int = DEFAULT_SPOOL_BYTES,
        batch_format: BatchFormat | None = None,
    ) -> None:
        if queue_size < 1:
            raise ValueError(f"queue_size: got {queue_size}, wanted at least 1")
        if spool_bytes < _LEAST_SPOOL_BYTES:
            raise ValueError(f"spool_bytes: got {spool_bytes}, wanted at least {_LEAST_SPOOL_BYTES}")
        batches = BatchEncoding(batch_format, queue_size)
        # Before the outbox, which holds the spool: a wrong address must not keep that locked.
        self._splits = SplitReader(redis_url, namespace, options=redis) if redis_url is not None else None
        properties = {"bootstrap.servers": bootstrap_servers, **(kafka or {})}
        outbox = Outbox(
            _connector(properties, transport),
            size=queue_size,
            on_drop=on_drop,
            open_spool=None if spool is None else partial(Spool, Path(spool), max_bytes=spool_bytes),
        )
        super().__init__(outbox, batches, namespace)

    @classmethod
    def from_environment(
        cls,
        *,
        queue_size: int | None = None,
        on_drop: Callable[[int], None] | None = None,
        transport: TransportName | None = None,
        spool: str | os.PathLike[str] | None = None,
        spool_bytes: int | None = None,
        batch_format: BatchFormat | None = None,
    ) -> Self:
        """Make a client from what the service itself is configured by.

        The file that DRIFTLOOP_CONFIG names, else config/driftloop.toml where there is one (`namespace`,
        `[kafka]`, `[redis]` and `[sdk]` of it), then DRIFTLOOP_NAMESPACE, DRIFTLOOP_KAFKA, DRIFTLOOP_REDIS and
        DRIFTLOOP_SDK (each a table as JSON), then DRIFTLOOP_REDIS__URL, __USERNAME, __PASSWORD, __SSL_CA_CERTS,
        __SSL_CERTFILE and __SSL_KEYFILE, and DRIFTLOOP_SDK__QUEUE_SIZE, __TRANSPORT, __SPOOL and __SPOOL_BYTES.
        An argument wins over all of them.

        Raises
        ------
        ValueError
            When one of them cannot be read; the message names it.
        """
        found = client_settings(
            {"queue_size": queue_size, "transport": transport, "spool": spool, "spool_bytes": spool_bytes}
        )
        return cls(
            found.servers,
            redis_url=found.redis_url,
            namespace=found.namespace,
            kafka=found.kafka,
            redis=found.redis,
            queue_size=found.queue_size,
            on_drop=on_drop,
            transport=found.transport,
            spool=found.spool,
            spool_bytes=found.spool_bytes,
            batch_format=batch_format,
        )

    def choose(self, model: str, entity_id: object) -> Choice:
        """Return which version of a model serves an entity.

        The answer comes from memory, except the first about a model, which reads Redis with a time-out
        of half a second a step. With Redis away the last split known stays in force; for a model nobody has
        deployed the version is "_".

        Parameters
        ----------
        model : the model's name.
        entity_id : who or what is served; the same entity stays on the same version during a rollout.
        """
        if self._splits is None:
            raise ValueError("redis_url: got None; give the client a redis_url to choose versions")
        return self._splits.choose(name(model, "model"), identifier(entity_id, "entity_id"))

    def stats(self) -> Stats:
        """Return how many events wait, are on their way, and became what."""
        return self._outbox.stats()

    def flush(self, timeout_s: float = 10.0) -> int:
        """Wait until Kafka has every event, or for `timeout_s`; return how many it does not have yet."""
        return self._outbox.flush(timeout_s)

    def close(self, timeout_s: float = 10.0) -> CloseReport:
        """Send what is queued within `timeout_s`, stop, and report what was not sent; safe to repeat."""
        report = self._outbox.close(timeout_s)
        if self._splits is not None:
            self._splits.close()
        return report

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _connector(properties: Mapping[str, object], transport: TransportName) -> Callable[[], Transport]:
    """Check the properties now, connect later."""
    if transport == "kafka-python":
        options = kafka_python_options(properties)
        return lambda: KafkaPythonTransport(options)
    if transport != "librdkafka":
        raise ValueError(f"transport: got {transport!r}, wanted kafka-python or librdkafka")
    try:
        from streamer.client.fast_transport import LibrdkafkaTransport
    except ImportError as error:
        raise ValueError("transport: librdkafka needs confluent-kafka; pip install 'driftloop[worker]'") from error
    return lambda: LibrdkafkaTransport(properties)
