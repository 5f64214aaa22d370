"""What a serving system imports: choose a version, log predictions, features and labels, and never wait for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uuid_utils

from streamer.client.arguments import checked_features, checked_label, checked_prediction, encoded, identifier, name
from streamer.client.batch_encoding import BatchEncoding, BatchFormat
from streamer.client.batches import LabelColumns, PredictionColumns, now_ms
from streamer.client.client_settings import (
    DEFAULT_QUEUE_SIZE,
    DEFAULT_REDIS,
    DEFAULT_SERVERS,
    DEFAULT_SPOOL_BYTES,
    TransportName,
    client_settings,
)
from streamer.client.entry import BATCH_HEADERS, EVENT_HEADERS, Entry
from streamer.client.outbox import CloseReport, Outbox, Stats
from streamer.client.spool import Spool
from streamer.client.transport import KafkaPythonTransport, Transport, kafka_python_options
from streamer.events import FeatureLog, Label, Origin, Prediction
from streamer.routing import UNKNOWN_VERSION, Choice, SplitReader

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


class Client:
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
        self._batches = BatchEncoding(batch_format, queue_size)
        # Before the outbox, which holds the spool: a wrong address must not keep that locked.
        self._splits = SplitReader(redis_url, namespace, options=redis) if redis_url is not None else None
        properties = {"bootstrap.servers": bootstrap_servers, **(kafka or {})}
        self._outbox = Outbox(
            _connector(properties, transport),
            size=queue_size,
            on_drop=on_drop,
            open_spool=None if spool is None else partial(Spool, Path(spool), max_bytes=spool_bytes),
        )
        prefix = f"{namespace}." if namespace else ""
        self._predictions, self._features, self._labels = (
            f"{prefix}{topic}.v1" for topic in ("predictions", "features", "labels")
        )

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

    def log_prediction(
        self,
        *,
        model: str,
        features: Mapping[str, Any],
        prediction: Any,
        score: Any = None,
        version: str | None = None,
        entity_id: object = None,
        prediction_id: object = None,
        ts_ms: int | None = None,
        latency_ms: float | None = None,
        error: str | None = None,
        origin: Origin = "live",
        choice: Choice | None = None,
    ) -> str:
        """Log one answer of a model; return its id, by which its label finds it.

        Parameters
        ----------
        model : the model's name.
        features : feature → number, text, boolean or None; numpy scalars are taken, NaN becomes null.
        prediction : what the model said; None with an `error`.
        score : P(positive), the regression's value, or {class: probability}.
        version : which version said it; comes from `choice` where one is given, else "_".
        entity_id : who or what it was about.
        prediction_id : a UUIDv7 where not given.
        ts_ms : event time, epoch milliseconds UTC; now where not given.
        latency_ms : how long the model took.
        error : why there is no prediction.
        origin : live, shadow or backfill; only live ones are looked at.
        choice : what `choose` said, so that a rollout counts it.

        Raises
        ------
        TypeError, ValueError
            When an argument is wrong; the message names it.
        """
        event = checked_prediction(
            Prediction(
                prediction_id=str(uuid_utils.uuid7()) if prediction_id is None else str(prediction_id),
                model=model,
                ts=now_ms() if ts_ms is None else ts_ms,
                version=_version(version, choice),
                features=features,  # type: ignore[arg-type]  # a mapping becomes a dict when it is checked
                prediction=prediction,
                score=score,
                entity_id=entity_id,  # type: ignore[arg-type]
                origin=origin,
                rollout_id=None if choice is None else choice.rollout_id,
                bucket=None if choice is None else choice.bucket,
                latency_ms=latency_ms,
                error=error,
            )
        )
        self._outbox.put((Entry(self._predictions, event.prediction_id.encode(), encoded(event), EVENT_HEADERS),))
        return event.prediction_id

    def log_features(
        self,
        *,
        model: str,
        features: Mapping[str, Any],
        entity_id: object = None,
        prediction_id: object = None,
        version: str | None = None,
        ts_ms: int | None = None,
        choice: Choice | None = None,
    ) -> None:
        """Log features apart from a prediction, as a feature job computes them; arguments as for `log_prediction`.

        Give the `version` that is to be watched by them, or what `choose` says serves the entity as `choice`: without
        either they are counted and held against nothing. With a `prediction_id` they say which slices that prediction
        is in, by the features that have `source = "features"`.
        """
        event = checked_features(
            FeatureLog(
                model=model,
                ts=now_ms() if ts_ms is None else ts_ms,
                features=features,  # type: ignore[arg-type]
                version=_version(version, choice),
                prediction_id=None if prediction_id is None else str(prediction_id),
                entity_id=entity_id,  # type: ignore[arg-type]
            )
        )
        key = event.entity_id or event.prediction_id
        self._outbox.put((Entry(self._features, None if key is None else key.encode(), encoded(event), EVENT_HEADERS),))

    def log_label(
        self,
        prediction_id: object,
        *,
        model: str,
        label: Any = None,
        ts_ms: int | None = None,
        value: float | None = None,
        revision: int = 0,
        deleted: bool = False,
        version: str | None = None,
        prediction: Any = None,
        score: Any = None,
        prediction_ts_ms: int | None = None,
        previous: Any = None,
    ) -> None:
        """Log what turned out to be true of a prediction, before or after the prediction itself arrives.

        Parameters
        ----------
        prediction_id : which prediction.
        model : the model's name.
        label : the truth, in the terms of the prediction.
        ts_ms : when it became known, epoch milliseconds UTC; now where not given.
        value : what it was worth; kept in the log, and not read by driftloop yet.
        revision : a larger one corrects a smaller one.
        deleted : takes the label back.
        version, prediction, score, prediction_ts_ms, previous : the prediction's own, for models whose
            labels are counted without a join; `previous` is the label that this one corrects.

        Raises
        ------
        TypeError, ValueError
            When an argument is wrong; the message names it.
        """
        event = checked_label(
            Label(
                prediction_id=prediction_id,  # type: ignore[arg-type]
                model=model,
                ts=now_ms() if ts_ms is None else ts_ms,
                label=label,
                value=value,
                revision=revision,
                deleted=deleted,
                version=version,
                prediction=prediction,
                score=score,
                prediction_ts=prediction_ts_ms,
                previous=previous,
            )
        )
        self._outbox.put((Entry(self._labels, event.prediction_id.encode(), encoded(event), EVENT_HEADERS),))

    def log_predictions(self, predictions: Iterable[Prediction] | PredictionColumns) -> list[str]:
        """Log many predictions, as events or as columns; return their ids, in order.

        Raises
        ------
        TypeError, ValueError
            When a row is wrong: nothing is logged, and the message names the row and the field.
        """
        if isinstance(predictions, PredictionColumns):
            encoded_columns = self._batches.predictions(predictions)
            if encoded_columns is not None:
                ids, pieces = encoded_columns
                self._outbox.put(_batch_entries(self._predictions, pieces))
                return ids
            events = predictions.events()
        else:
            events = [checked_prediction(event, f"row {row}: ") for row, event in enumerate(predictions)]
        self._outbox.put(_entries(self._predictions, events))
        return [event.prediction_id for event in events]

    def log_labels(self, labels: Iterable[Label] | LabelColumns) -> None:
        """Log many labels, as events or as columns; errors as for `log_predictions`."""
        if isinstance(labels, LabelColumns):
            pieces = self._batches.labels(labels)
            if pieces is not None:
                self._outbox.put(_batch_entries(self._labels, pieces))
                return
            events = labels.events()
        else:
            events = [checked_label(event, f"row {row}: ") for row, event in enumerate(labels)]
        self._outbox.put(_entries(self._labels, events))

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


def _entries(topic: str, events: Sequence[Prediction | Label]) -> list[Entry]:
    return [
        Entry(topic, event.prediction_id.encode(), encoded(event, f"row {row}: "), EVENT_HEADERS)
        for row, event in enumerate(events)
    ]


def _batch_entries(topic: str, pieces: Iterable[tuple[bytes, int]]) -> list[Entry]:
    return [Entry(topic, None, body, BATCH_HEADERS, events) for body, events in pieces]


def _version(version: str | None, choice: Choice | None) -> str:
    if choice is None:
        return UNKNOWN_VERSION if version is None else version
    if version is not None and version != choice.version:
        raise ValueError(f"version: got {version!r}, but choice says {choice.version!r}; give one of them")
    return choice.version
