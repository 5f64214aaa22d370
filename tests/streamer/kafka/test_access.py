"""Which rights a worker needs follows from the stages it runs; what Kafka refused is found under what it became."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError, KafkaException

from streamer.kafka import access as kafka_access
from streamer.kafka.access import Unreachable
from streamer.settings import KafkaSettings, Settings, WorkerSettings
from streamer.stage import StepFailed


def test_a_stage_alone_needs_no_rights_of_the_other() -> None:
    ingest, evaluate = kafka_access.worker_rights("ingest"), kafka_access.worker_rights("evaluate")
    looks = {"DESCRIBE", "DESCRIBE_CONFIGS"}
    assert ingest["partials"] == {"READ", "WRITE", *looks}
    assert ingest["state"] == {"READ", *looks}
    assert evaluate["partials"] == {"READ", *looks}
    assert evaluate["predictions"] == looks
    assert kafka_access.worker_rights("all")["partials"] == {"READ", "WRITE", *looks}


def test_groups_bear_the_namespace_and_the_replica() -> None:
    settings = Settings(namespace="acme", worker=WorkerSettings(replica="2"))
    assert kafka_access.worker_groups(settings, "ingest") == ["acme-ingest", "acme-control-2"]


def test_a_refused_right_is_found_under_the_error_it_became() -> None:
    refused = KafkaException(KafkaError(KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED))
    failed = StepFailed("driftloop-ingest-0: no")
    failed.__cause__ = refused
    assert "lacks Write on its transactional id" in (kafka_access.refusal(failed) or "")
    assert kafka_access.refusal(KafkaException(KafkaError(KafkaError._TRANSPORT))) is None
    assert kafka_access.refusal(None) is None


def test_a_property_that_librdkafka_refuses_is_named() -> None:
    settings = Settings(kafka=KafkaSettings(**{"security.protocol": "SSL", "ssl.ca.location": "/nowhere.pem"}))
    with pytest.raises(Unreachable, match=r"ssl\.ca\.location"):
        kafka_access.require(settings, timeout_s=0.1)
