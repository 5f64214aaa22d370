"""One set of Kafka property names configures every client; a name a client does not know is an error."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient
from faust.auth import SASLCredentials, SSLCredentials
from kafka import KafkaConsumer, KafkaProducer

from streamer.kafka import clients as kafka_clients
from streamer.kafka.clients import KafkaPropertyError
from streamer.settings import KafkaSettings, Settings

SECURE = {
    "bootstrap.servers": "a:1, b:2",
    "security.protocol": "sasl_ssl",
    "sasl.mechanism": "scram-sha-512",
    "sasl.username": "me",
    "sasl.password": "hush",
}
EVERY = dict.fromkeys(kafka_clients._OPTIONS, "1") | {
    "bootstrap.servers": "a:1",
    "security.protocol": "PLAINTEXT",
    "acks": "all",
    "compression.type": "lz4",
    "enable.idempotence": "true",
    "socket.keepalive.enable": "true",
    "broker.address.family": "v4",
    "client.dns.lookup": "use_all_dns_ips",
    "sasl.mechanism": "PLAIN",
    "sasl.mechanisms": "PLAIN",
    "debug": "",
    "message.max.bytes": "2000",
}


def test_kafka_python_knows_every_name_it_is_given() -> None:
    assert kafka_clients.kafka_python(EVERY, scope="producer").keys() <= KafkaProducer.DEFAULT_CONFIG.keys()
    assert kafka_clients.kafka_python(EVERY, scope="consumer").keys() <= KafkaConsumer.DEFAULT_CONFIG.keys()


def test_faust_knows_every_name_it_is_given() -> None:
    from faust.types.settings import Settings as FaustSettings

    given = kafka_clients.faust({name: value for name, value in EVERY.items() if not name.startswith("sasl")})
    assert given["broker"] == "kafka://a:1"
    assert given.keys() <= FaustSettings.SETTINGS.keys()


def test_properties_of_the_other_kind_of_client_are_left_out() -> None:
    properties = {"bootstrap.servers": "a:1", "linger.ms": "5", "fetch.min.bytes": "9"}
    assert kafka_clients.kafka_python(properties, scope="producer") == {"bootstrap_servers": ["a:1"], "linger_ms": 5}
    consumer = {"bootstrap_servers": ["a:1"], "fetch_min_bytes": 9}
    assert kafka_clients.kafka_python(properties, scope="consumer") == consumer
    assert kafka_clients.librdkafka(properties) == {"bootstrap.servers": "a:1"}
    assert kafka_clients.librdkafka(properties, scope="producer") == {"bootstrap.servers": "a:1", "linger.ms": "5"}


def test_tls_and_sasl_reach_every_client() -> None:
    options = kafka_clients.kafka_python(SECURE)
    assert options["security_protocol"] == "SASL_SSL"
    assert options["sasl_mechanism"] == "SCRAM-SHA-512"
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("me", "hush")
    assert options["ssl_context"].verify_mode == ssl.CERT_REQUIRED
    assert options["ssl_context"].check_hostname
    faust = kafka_clients.faust(SECURE)
    credentials = faust["broker_credentials"]
    assert faust["broker"] == "kafka://a:1;kafka://b:2"
    assert isinstance(credentials, SASLCredentials)
    assert (credentials.username, credentials.password, credentials.mechanism.value) == ("me", "hush", "SCRAM-SHA-512")
    assert credentials.protocol.value == "SASL_SSL"
    assert isinstance(kafka_clients.faust({**SECURE, "security.protocol": "SSL"})["broker_credentials"], SSLCredentials)
    assert "broker_credentials" not in kafka_clients.faust({"bootstrap.servers": "a:1"})


def test_certificates_are_files_by_librdkafkas_names(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-days", "2", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject], check=True, capture_output=True
    )
    files = {
        "security.protocol": "SSL",
        "ssl.ca.location": str(certificate),
        "ssl.certificate.location": str(certificate),
        "ssl.key.location": str(key),
        "ssl.endpoint.identification.algorithm": "none",
    }
    context = kafka_clients.ssl_context(files)
    assert context is not None
    assert not context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.cert_store_stats()["x509_ca"] == 1
    unverified = kafka_clients.ssl_context({**files, "enable.ssl.certificate.verification": "false"})
    assert unverified is not None
    assert unverified.verify_mode == ssl.CERT_NONE
    assert kafka_clients.ssl_context({**files, "security.protocol": "PLAINTEXT"}) is None


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({"linger.msec": "5"}, r"kafka\.linger\.msec: kafka-python has no such property"),
        ({"linger.ms": "soon"}, r"kafka\.linger\.ms: got 'soon', wanted a whole number"),
        ({"enable.idempotence": "yes"}, r"kafka\.enable\.idempotence: got 'yes', wanted true or false"),
        ({"ssl.truststore.location": "x"}, r"only Kafka's Java clients know it; give ssl\.ca\.location"),
        ({"max.request.size": "5"}, r"give message\.max\.bytes"),
        ({"security.protocol": "SSL", "ssl.ca.location": "/nowhere.pem"}, "the TLS files .*nowhere.* cannot be used"),
    ],
)
def test_what_cannot_be_used_is_named(properties: dict[str, str], message: str) -> None:
    with pytest.raises(KafkaPropertyError, match=message):
        kafka_clients.kafka_python(properties, scope="producer")


def test_a_secret_is_not_repeated_when_the_files_cannot_be_used() -> None:
    files = {"security.protocol": "SSL", "ssl.ca.location": "/nowhere.pem", "ssl.key.password": "hush"}
    with pytest.raises(KafkaPropertyError) as refused:
        kafka_clients.ssl_context(files)
    assert "hush" not in str(refused.value)


def test_faust_takes_no_other_mechanism() -> None:
    with pytest.raises(KafkaPropertyError, match=r"kafka\.sasl\.mechanism: got 'GSSAPI'"):
        kafka_clients.faust({**SECURE, "sasl.mechanism": "GSSAPI"})


def test_librdkafka_takes_what_is_built_for_it() -> None:
    settings = Settings(kafka=KafkaSettings(**{"bootstrap.servers": "127.0.0.1:1", "linger.ms": "7", "log_level": "0"}))
    producing = kafka_clients.producer_config(settings, {"transactional.id": "t"})
    assert (producing["enable.idempotence"], producing["linger.ms"], producing["partitioner"]) == (
        True,
        "7",
        "murmur2_random",
    )
    reading = kafka_clients.consumer_config(settings, group_id="g", extra={"auto.offset.reset": "earliest"})
    assert "linger.ms" not in reading
    assert (reading["isolation.level"], reading["enable.auto.commit"]) == ("read_committed", False)
    Producer(producing)
    Consumer(reading).close()
    AdminClient(kafka_clients.admin_config(settings))
