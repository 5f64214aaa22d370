"""The table of topics, and what of it a configuration may change; no broker needed."""

from __future__ import annotations

import socket

import pytest

from streamer.kafka.topics import TOPICS, TopicError, ensure
from streamer.settings import KafkaSettings, Settings, TopicSettings


def settings(**topics: TopicSettings) -> Settings:
    return Settings(topics={name.replace("_", "-"): value for name, value in topics.items()})


def test_internal_topics_share_one_partition_count() -> None:
    internal = {name for name, topic in TOPICS.items() if topic.partitions == "internal"}
    assert internal >= {"partials", "commands", "state", "ledger", "deployments"}


def test_topics_whose_record_time_counts_use_the_brokers() -> None:
    appended = {name for name, topic in TOPICS.items() if topic.append_time}
    assert appended == {"predictions", "features", "labels", "partials", "commands"}


def test_tables_are_compacted_and_nothing_else_is() -> None:
    compacted = {name for name, topic in TOPICS.items() if topic.compacted}
    assert compacted == {"models", "references", "state", "deployments"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"predictoins": TopicSettings(partitions=2)}, "topics.predictoins: no such topic"),
        ({"state": TopicSettings(partitions=3)}, "internal topics all have internal_partitions"),
        ({"models": TopicSettings(partitions=3)}, "every worker keeps the whole of this topic"),
        ({"references": TopicSettings(retention=5)}, "topics.references.retention: got 5 ms, wanted none"),
    ],
)
def test_what_a_topic_cannot_be_is_refused_before_kafka_is_asked(wrong: dict[str, TopicSettings], message: str) -> None:
    with pytest.raises(TopicError, match=message):
        ensure(settings(**wrong))


def test_an_unreachable_kafka_is_an_error_that_names_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.kafka.topics._TIMEOUT_S", 0.5)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    properties = {"bootstrap.servers": address, "log_level": "0"}
    with pytest.raises(TopicError, match=f"kafka at {address}: .*correct kafka.bootstrap.servers"):
        ensure(Settings(kafka=KafkaSettings.model_validate(properties)))
