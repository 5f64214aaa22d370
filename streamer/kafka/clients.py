"""Kafka's own property names, and what each Kafka client calls them, TLS and SASL included."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from streamer.settings import Settings

Scope = Literal["any", "producer", "consumer"]


class KafkaPropertyError(ValueError):
    """A Kafka property cannot be used; the message names it, what came, and what is allowed."""


class _Option(NamedTuple):
    """A property: whom it concerns, its type, and its name in each client ("" leaves it out there).

    A property is left out of a client without a counterpart only where it tunes and nothing more.
    """

    scope: Scope
    read: Callable[[str, object], object]
    kafka_python: str = ""
    faust: str = ""


def _text(_: str, value: object) -> str:
    return str(value)


def _upper(_: str, value: object) -> str:
    return str(value).upper()


def _whole(name: str, value: object) -> int:
    try:
        return int(str(value))
    except ValueError as error:
        raise KafkaPropertyError(f"kafka.{name}: got {value!r}, wanted a whole number") from error


def _flag(name: str, value: object) -> bool:
    text = str(value).lower()
    if text not in {"true", "false"}:
        raise KafkaPropertyError(f"kafka.{name}: got {value!r}, wanted true or false")
    return text == "true"


def _acks(name: str, value: object) -> object:
    return "all" if str(value) in {"all", "-1"} else _whole(name, value)


def _codec(_: str, value: object) -> object:
    return None if str(value) == "none" else str(value)


_OPTIONS: dict[str, _Option] = {
    "bootstrap.servers": _Option("any", _text, "bootstrap_servers"),
    "client.id": _Option("any", _text, "client_id", "broker_client_id"),
    "security.protocol": _Option("any", _upper, "security_protocol"),
    "sasl.mechanism": _Option("any", _upper, "sasl_mechanism"),
    "sasl.mechanisms": _Option("any", _upper, "sasl_mechanism"),
    "sasl.username": _Option("any", _text, "sasl_plain_username"),
    "sasl.password": _Option("any", _text, "sasl_plain_password"),
    "sasl.kerberos.service.name": _Option("any", _text, "sasl_kerberos_service_name"),
    "metadata.max.age.ms": _Option("any", _whole, "metadata_max_age_ms"),
    "topic.metadata.refresh.interval.ms": _Option("any", _whole, "metadata_max_age_ms"),
    "connections.max.idle.ms": _Option("any", _whole, "connections_max_idle_ms"),
    "retry.backoff.ms": _Option("any", _whole, "retry_backoff_ms"),
    "reconnect.backoff.ms": _Option("any", _whole, "reconnect_backoff_ms"),
    "reconnect.backoff.max.ms": _Option("any", _whole, "reconnect_backoff_max_ms"),
    "socket.send.buffer.bytes": _Option("any", _whole, "send_buffer_bytes"),
    "socket.receive.buffer.bytes": _Option("any", _whole, "receive_buffer_bytes"),
    "socket.keepalive.enable": _Option("any", _flag),
    "socket.timeout.ms": _Option("any", _whole),
    "broker.address.family": _Option("any", _text),
    "statistics.interval.ms": _Option("any", _whole),
    "debug": _Option("any", _text),
    "client.dns.lookup": _Option("any", _text, "client_dns_lookup"),
    "message.max.bytes": _Option("any", _whole, "max_request_size", "producer_max_request_size"),
    "request.timeout.ms": _Option("producer", _whole, "request_timeout_ms"),
    "delivery.timeout.ms": _Option("producer", _whole, "delivery_timeout_ms"),
    "message.timeout.ms": _Option("producer", _whole, "delivery_timeout_ms"),
    "acks": _Option("producer", _acks, "acks"),
    "enable.idempotence": _Option("producer", _flag, "enable_idempotence"),
    "linger.ms": _Option("producer", _whole, "linger_ms"),
    "batch.size": _Option("producer", _whole, "batch_size"),
    "compression.type": _Option("producer", _codec, "compression_type"),
    "retries": _Option("producer", _whole, "retries"),
    "max.in.flight.requests.per.connection": _Option("producer", _whole, "max_in_flight_requests_per_connection"),
    "queue.buffering.max.messages": _Option("producer", _whole),
    "queue.buffering.max.kbytes": _Option("producer", _whole),
    "fetch.min.bytes": _Option("consumer", _whole, "fetch_min_bytes"),
    "fetch.max.bytes": _Option("consumer", _whole, "fetch_max_bytes"),
    "fetch.wait.max.ms": _Option("consumer", _whole, "fetch_max_wait_ms"),
    "max.partition.fetch.bytes": _Option("consumer", _whole, "max_partition_fetch_bytes", "consumer_max_fetch_size"),
    "session.timeout.ms": _Option("consumer", _whole, "session_timeout_ms"),
    "heartbeat.interval.ms": _Option("consumer", _whole, "heartbeat_interval_ms"),
    "max.poll.interval.ms": _Option("consumer", _whole, "max_poll_interval_ms"),
    "queued.min.messages": _Option("consumer", _whole),
    "queued.max.messages.kbytes": _Option("consumer", _whole),
}

# Files and switches of TLS: librdkafka reads them itself, the Python clients take one context made of them.
_TLS = (
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.cipher.suites",
    "ssl.endpoint.identification.algorithm",
    "enable.ssl.certificate.verification",
)

_JAVA_ONLY = {
    "ssl.truststore.location": "ssl.ca.location (a PEM file)",
    "ssl.truststore.password": "ssl.ca.location (a PEM file needs no password)",
    "ssl.keystore.location": "ssl.certificate.location and ssl.key.location (PEM files)",
    "ssl.keystore.password": "ssl.key.password",
    "sasl.jaas.config": "sasl.username and sasl.password",
    "max.request.size": "message.max.bytes",
    "buffer.memory": "queue.buffering.max.kbytes",
}


def _refuse_java_names(properties: Mapping[str, object]) -> None:
    for name in properties:
        if name in _JAVA_ONLY:
            raise KafkaPropertyError(f"kafka.{name}: only Kafka's Java clients know it; give {_JAVA_ONLY[name]}")


def _unknown(name: str, client: str) -> KafkaPropertyError:
    return KafkaPropertyError(f"kafka.{name}: {client} has no such property; remove it or check its spelling")


def ssl_context(properties: Mapping[str, object]) -> ssl.SSLContext | None:
    """Return the TLS context the properties describe, None without TLS.

    Raises
    ------
    KafkaPropertyError
        When a named file cannot be used.
    """
    protocol = str(properties.get("security.protocol", "PLAINTEXT")).upper()
    if protocol not in {"SSL", "SASL_SSL"}:
        return None
    authority = properties.get("ssl.ca.location")
    try:
        context = ssl.create_default_context(cafile=None if authority is None else str(authority))
        certificate = properties.get("ssl.certificate.location")
        if certificate is not None:
            key = properties.get("ssl.key.location")
            password = properties.get("ssl.key.password")
            context.load_cert_chain(
                str(certificate),
                None if key is None else str(key),
                None if password is None else str(password),
            )
        if "ssl.cipher.suites" in properties:
            context.set_ciphers(str(properties["ssl.cipher.suites"]))
    except (OSError, ssl.SSLError) as error:
        named = {name: properties[name] for name in _TLS if name in properties and "password" not in name}
        raise KafkaPropertyError(f"kafka: the TLS files {named} cannot be used: {error}") from error
    if str(properties.get("ssl.endpoint.identification.algorithm", "https")).lower() in {"none", ""}:
        context.check_hostname = False
    verify = "enable.ssl.certificate.verification"
    if verify in properties and not _flag(verify, properties[verify]):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def kafka_python(properties: Mapping[str, object], *, scope: Scope = "any") -> dict[str, Any]:
    """Return kafka-python's keyword arguments for a producer or a consumer.

    Parameters
    ----------
    properties : by Kafka's dotted names, e.g. {"bootstrap.servers": "broker:9092"}.
    scope : "producer" or "consumer" adds the properties of that kind; those of the other are left out.

    Raises
    ------
    KafkaPropertyError
        For a name the client does not know, or a value of the wrong kind.
    """
    options: dict[str, Any] = {}
    for name, (option, value) in _known(properties, "kafka-python").items():
        if option.kafka_python and option.scope in {"any", scope}:
            options[option.kafka_python] = option.read(name, value)
    context = ssl_context(properties)
    if context is not None:
        options["ssl_context"] = context
    if scope != "producer":
        options.pop("max_request_size", None)
    if "bootstrap_servers" in options:
        options["bootstrap_servers"] = _servers(options["bootstrap_servers"])
    return options


def faust(properties: Mapping[str, object]) -> dict[str, Any]:
    """Return `faust.App`'s keyword arguments: the broker's addresses and its credentials.

    Raises
    ------
    KafkaPropertyError
        For a name it does not know, or a SASL mechanism other than PLAIN and SCRAM.
    """
    settings: dict[str, Any] = {}
    for name, (option, value) in _known(properties, "Faust").items():
        if option.faust:
            settings[option.faust] = option.read(name, value)
    servers = _servers(str(properties.get("bootstrap.servers", "127.0.0.1:9092")))
    settings["broker"] = ";".join(f"kafka://{server}" for server in servers)
    credentials = _faust_credentials(properties)
    if credentials is not None:
        settings["broker_credentials"] = credentials
    return settings


def _faust_credentials(properties: Mapping[str, object]) -> object | None:
    protocol = str(properties.get("security.protocol", "PLAINTEXT")).upper()
    if protocol == "PLAINTEXT":
        return None
    # Only workers have Faust; the SDK imports this module without it.
    from faust.auth import SASLCredentials, SSLCredentials

    context = ssl_context(properties)
    if protocol == "SSL":
        credentials: object = SSLCredentials(context)
        return credentials
    mechanism = str(properties.get("sasl.mechanism", properties.get("sasl.mechanisms", "PLAIN"))).upper()
    if mechanism not in {"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"}:
        raise KafkaPropertyError(
            f"kafka.sasl.mechanism: got {mechanism!r}, wanted PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512 for the worker"
        )
    credentials = SASLCredentials(
        username=str(properties.get("sasl.username", "")),
        password=str(properties.get("sasl.password", "")),
        ssl_context=context,
        mechanism=mechanism,
    )
    return credentials


def _servers(addresses: str) -> list[str]:
    return [server.strip() for server in addresses.split(",") if server.strip()]


def _known(properties: Mapping[str, object], client: str) -> dict[str, tuple[_Option, object]]:
    """Look up every property but TLS's; an unknown name is an error."""
    _refuse_java_names(properties)
    found = {}
    for name, value in properties.items():
        if name in _TLS:
            continue
        option = _OPTIONS.get(name)
        if option is None:
            raise _unknown(name, client)
        found[name] = (option, value)
    return found


def librdkafka(properties: Mapping[str, object], *, scope: Scope = "any") -> dict[str, Any]:
    """Return confluent-kafka's configuration: the same names, without those of the other kind of client.

    A name driftloop has no table row for is handed on: librdkafka itself refuses what it does not know.
    """
    _refuse_java_names(properties)
    return {
        name: value
        for name, value in properties.items()
        if (option := _OPTIONS.get(name)) is None or option.scope in {"any", scope}
    }


def producer_config(settings: Settings, extra: Mapping[str, object] | None = None) -> dict[str, Any]:
    """Return the configuration of an idempotent confluent_kafka Producer that partitions as Java's does."""
    return {
        "linger.ms": 5,
        "compression.type": "lz4",
        "partitioner": "murmur2_random",
        **librdkafka(settings.kafka.properties(), scope="producer"),
        "enable.idempotence": True,
        **(extra or {}),
    }


def consumer_config(settings: Settings, *, group_id: str, extra: Mapping[str, object] | None = None) -> dict[str, Any]:
    """Return the configuration of a confluent_kafka Consumer that reads committed records and commits nothing."""
    return {
        "auto.offset.reset": "error",
        **librdkafka(settings.kafka.properties(), scope="consumer"),
        "group.id": group_id,
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
        **(extra or {}),
    }


def admin_config(settings: Settings) -> dict[str, Any]:
    """Return the configuration of a confluent_kafka AdminClient."""
    return librdkafka(settings.kafka.properties())
