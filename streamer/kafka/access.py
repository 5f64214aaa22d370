"""Whether Kafka lets a client in and do its work; where it does not, which property or which right is missing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import Any, Literal

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from streamer.kafka import clients as kafka_clients
from streamer.kafka.topics import TOPICS
from streamer.settings import Settings

Role = Literal["all", "ingest", "evaluate"]

_LOOK_S = 1.0
_TIMEOUT_S = 10.0

# What a stage does with which topic: by these names Kafka's own tools know the rights. Ingest reads what
# has been counted where Kafka has let its offsets expire.
_INGEST: Mapping[str, tuple[str, ...]] = {
    "predictions": ("READ",),
    "features": ("READ",),
    "labels": ("READ",),
    "partials": ("READ", "WRITE"),
    "state": ("READ",),
    "dead-letters": ("WRITE",),
}
_EVALUATE: Mapping[str, tuple[str, ...]] = {
    "partials": ("READ",),
    "commands": ("READ",),
    "state": ("READ", "WRITE"),
    "retrain-requests": ("WRITE",),
    "ledger": ("WRITE",),
    "deployments": ("WRITE",),
}
# Every worker keeps the control tables and lets time pass.
_ANY: Mapping[str, tuple[str, ...]] = {"models": ("READ",), "references": ("READ",), "commands": ("WRITE",)}

_REFUSED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "a right on a topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "a right on a consumer group",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "a right on the cluster",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "Write on its transactional id",
}
_KEPT_OUT = {KafkaError._AUTHENTICATION, KafkaError._SSL, KafkaError.SASL_AUTHENTICATION_FAILED}


class Unreachable(Exception):  # noqa: N818 - it says what is the matter
    """Kafka is not there, or does not let this client in; the message says which property or right is missing."""


def require(settings: Settings, *, timeout_s: float) -> None:
    """Return when Kafka answers this client.

    Raises
    ------
    Unreachable
        When it does not within `timeout_s`; at once when it refuses the client's name, password or certificate.
    """
    said: list[KafkaError] = []
    try:
        configuration: dict[str, Any] = {"log_level": 0, "error_cb": said.append}
        admin = AdminClient({**kafka_clients.admin_config(settings), **configuration})
    except KafkaException as error:
        # librdkafka names the property itself.
        raise Unreachable(f"kafka: {error.args[0].str()}; correct that property (DRIFTLOOP_KAFKA)") from error
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            admin.list_topics(timeout=_LOOK_S)
            return
        except KafkaException as error:
            admin.poll(0)
            refused = next((each for each in said if each.code() in _KEPT_OUT), None)
            if refused is not None or time.monotonic() > deadline:
                raise Unreachable(_why(settings, refused or _most_telling(said) or error.args[0])) from error


def require_rights(settings: Settings, role: Role = "all") -> None:
    """Return when Kafka lets a worker of this role do all it does with topics and groups.

    Transactional ids cannot be asked about: a right missing there shows when the stage begins.

    Raises
    ------
    Unreachable
        Naming each right that is missing.
    """
    missing = [
        *_missing_on_topics(settings, worker_rights(role)),
        *_missing_on_groups(settings, worker_groups(settings, role)),
    ]
    if missing:
        user = settings.kafka.properties().get("sasl.username", "ANONYMOUS")
        raise Unreachable(
            f"Kafka at {settings.kafka.bootstrap_servers} does not grant User:{user}: {'; '.join(missing)}; "
            f"add these ACLs (docs/how-to/secure-it.md lists all)"
        )


def worker_rights(role: Role) -> dict[str, set[str]]:
    """Return topic → operations that a worker of this role needs, by the topics' short names."""
    # A worker holds every topic against the configuration before it reads any.
    found = {topic: {"DESCRIBE", "DESCRIBE_CONFIGS"} for topic in TOPICS}
    for stage, rights in (("", _ANY), ("ingest", _INGEST), ("evaluate", _EVALUATE)):
        if role in ("all", stage) or not stage:
            for topic, operations in rights.items():
                found[topic].update(operations)
    return found


def worker_groups(settings: Settings, role: Role) -> list[str]:
    """Return the consumer groups of a worker of this role: a stage's is shared, the control tables' its own."""
    prefix = settings.namespace or "driftloop"
    stages = ["ingest", "evaluate"] if role == "all" else [role]
    return [f"{prefix}-{stage}" for stage in stages] + [f"{prefix}-control-{settings.worker.replica}"]


def refusal(error: BaseException | None) -> str | None:
    """Return what Kafka refused, found among an error and its causes; None where it refused nothing."""
    while error is not None:
        reason = error.args[0] if isinstance(error, KafkaException) and error.args else None
        if isinstance(reason, KafkaError) and reason.code() in _REFUSED:
            return f"{reason.str()}; this client's user lacks {_REFUSED[reason.code()]} (docs/how-to/secure-it.md)"
        error = error.__cause__
    return None


def hidden_topics(settings: Settings, names: Iterable[str]) -> list[str]:
    """Return, of these short names, the topics that this client is not even told about."""
    full = {settings.topic(name): name for name in names}
    if not full:
        return []
    admin = AdminClient({**kafka_clients.admin_config(settings), "log_level": 0})
    found = admin.describe_topics(TopicCollection(list(full)), request_timeout=_TIMEOUT_S)
    return [full[name] for name, future in found.items() if _code(future) == KafkaError.TOPIC_AUTHORIZATION_FAILED]


def _code(future: Future[object]) -> int | None:
    error = future.exception()
    return error.args[0].code() if isinstance(error, KafkaException) else None


def _why(settings: Settings, reason: KafkaError) -> str:
    where, text = f"Kafka at {settings.kafka.bootstrap_servers}", reason.str().partition(" (after ")[0]
    properties = settings.kafka.properties()
    if reason.code() in {KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED}:
        return f'{where} refused User:{properties.get("sasl.username", "")}: {text}; check "sasl.username", ' + (
            '"sasl.password" and "sasl.mechanism" in kafka (DRIFTLOOP_KAFKA)'
        )
    # A broker's own refusal of our certificate comes as the end of the connection.
    if reason.code() == KafkaError._SSL or "SSL routines" in text:
        return f'{where} and this client do not trust each other: {text}; check kafka\'s "ssl.ca.location", ' + (
            '"ssl.certificate.location" and "ssl.key.location"'
        )
    return (
        f'{where} does not answer ({text}); start it, or set kafka."bootstrap.servers" in the configuration or '
        f'DRIFTLOOP_KAFKA; a broker that wants TLS needs "security.protocol" too'
    )


def _most_telling(said: Iterable[KafkaError]) -> KafkaError | None:
    return next((each for each in said if each.code() != KafkaError._ALL_BROKERS_DOWN), None)


def _missing_on_topics(settings: Settings, rights: Mapping[str, set[str]]) -> list[str]:
    admin = AdminClient({**kafka_clients.admin_config(settings), "log_level": 0})
    names = {settings.topic(short): operations for short, operations in rights.items()}
    found = admin.describe_topics(
        TopicCollection(list(names)), include_authorized_operations=True, request_timeout=_TIMEOUT_S
    )
    missing = []
    for name, operations in names.items():
        granted: set[str] = set()
        try:
            granted = {operation.name for operation in found[name].result().authorized_operations or ()}
        except KafkaException as error:
            if error.args[0].code() not in _REFUSED:
                # A topic that is not there is told of by whoever looks for topics.
                continue
        lacking = operations - granted
        if lacking:
            told = (each.title().replace("_", "") for each in sorted(lacking))
            missing.append(f"{', '.join(told)} on topic {name}")
    return missing


def _missing_on_groups(settings: Settings, groups: list[str]) -> list[str]:
    admin = AdminClient({**kafka_clients.admin_config(settings), "log_level": 0})
    found = admin.describe_consumer_groups(groups, include_authorized_operations=True, request_timeout=_TIMEOUT_S)
    missing = []
    for group in groups:
        granted: set[str] = set()
        try:
            granted = {operation.name for operation in found[group].result().authorized_operations or ()}
        except KafkaException as error:
            if error.args[0].code() not in _REFUSED:
                # A group that does not exist yet: some brokers say so, and let it be made.
                continue
        if "READ" not in granted:
            missing.append(f"Read on group {group}")
    return missing
