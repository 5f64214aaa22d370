"""`topics.ensure` against a real broker: what it makes, and what it refuses to live with."""

from __future__ import annotations

import time

import pytest
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from streamer.kafka.topics import TOPICS, TopicError, check, ensure, topic_ids
from streamer.settings import Settings, TopicSettings

pytestmark = pytest.mark.integration


def admin(settings: Settings) -> AdminClient:
    return AdminClient({**settings.kafka.properties()})


def fresh(settings: Settings, **changes: object) -> Settings:
    return settings.model_copy(update={"namespace": settings.namespace + "x", **changes})


def make(settings: Settings, name: str, partitions: int, config: dict[str, str]) -> None:
    new = NewTopic(settings.topic(name), num_partitions=partitions, replication_factor=1, config=config)
    client = admin(settings)
    for future in client.create_topics([new]).values():
        future.result()
    while settings.topic(name) not in client.list_topics(timeout=10).topics:
        time.sleep(0.05)


def test_making_topics_again_changes_nothing(settings: Settings) -> None:
    reports = ensure(settings)
    assert [report.name for report in reports] == [settings.topic(name) for name in TOPICS]
    assert {report.outcome for report in reports} == {"same"}


def test_topics_have_the_partitions_and_settings_of_the_table(settings: Settings) -> None:
    client = admin(settings)
    metadata = client.list_topics(timeout=10).topics
    assert len(metadata[settings.topic("predictions")].partitions) == 4
    assert len(metadata[settings.topic("state")].partitions) == settings.internal_partitions
    assert len(metadata[settings.topic("models")].partitions) == 1
    resource = ConfigResource(ResourceType.TOPIC, settings.topic("predictions"))
    config = next(iter(client.describe_configs([resource]).values())).result()
    assert config["message.timestamp.type"].value == "LogAppendTime"
    assert config["retention.ms"].value == str(7 * 86_400_000)


def test_what_is_past_its_retention_does_not_lie_in_one_segment_with_what_is_not(settings: Settings) -> None:
    resource = ConfigResource(ResourceType.TOPIC, settings.topic("partials"))
    # Kept: a client that is let go of answers nothing more.
    client = admin(settings)
    config = next(iter(client.describe_configs([resource]).values())).result()
    assert int(config["segment.ms"].value) * 4 == int(config["retention.ms"].value) == 86_400_000


def test_only_the_missing_topics_are_made(settings: Settings) -> None:
    other = fresh(settings)
    ensure(other, ["models", "labels"])
    outcomes = {report.name: report.outcome for report in ensure(other, ["models", "predictions"])}
    assert outcomes == {other.topic("models"): "same", other.topic("predictions"): "made"}


def test_another_partition_count_of_an_internal_topic_is_an_error_that_says_what_to_do(settings: Settings) -> None:
    other = settings.model_copy(update={"internal_partitions": 7})
    for look in (ensure, check):
        with pytest.raises(TopicError, match=r"partials\.v1: has 4 partitions, wanted 7; set the configuration to 4"):
            look(other)


def test_a_raw_topic_is_used_with_the_partitions_it_has_and_the_difference_told(settings: Settings) -> None:
    other = settings.model_copy(update={"topics": {"predictions": TopicSettings(partitions=7)}})
    for look in (ensure, check):
        differing = [report for report in look(other) if report.outcome == "differs"]
        assert [report.told for report in differing] == ["partitions is 4, wanted 7"]


def test_checking_makes_nothing(settings: Settings) -> None:
    other = fresh(settings)
    with pytest.raises(TopicError, match=r"topics missing.*predictions\.v1.*dead-letters\.v1; run `driftloop topics"):
        check(other)
    assert other.topic("models") not in admin(other).list_topics(timeout=10).topics


def test_another_cleanup_policy_is_an_error(settings: Settings) -> None:
    other = fresh(settings)
    make(other, "models", 1, {"cleanup.policy": "delete"})
    with pytest.raises(TopicError, match=r"models\.v1: has cleanup\.policy delete, wanted compact"):
        ensure(other)


def test_another_retention_is_reported_and_lived_with(settings: Settings) -> None:
    other = fresh(settings)
    config = {
        "message.timestamp.type": "LogAppendTime",
        "retention.ms": "1000",
        "segment.ms": str(7 * 86_400_000 // 4),
        "max.message.bytes": "8000000",
    }
    make(other, "labels", 4, config)
    (report,) = ensure(other, ["labels"])
    assert report.outcome == "differs"
    assert report.differences == {"retention.ms": ("1000", str(7 * 86_400_000))}


def test_a_topic_made_anew_has_another_id(settings: Settings) -> None:
    other = fresh(settings)
    name = other.topic("labels")
    ensure(other, ["labels"])
    before = topic_ids(other, [name])
    assert topic_ids(other, [name]) == before
    client = admin(other)
    for future in client.delete_topics([name], operation_timeout=10).values():
        future.result()
    ensure(other, ["labels"])
    assert topic_ids(other, [name])[name] != before[name]


def test_the_id_of_a_missing_topic_is_an_error_that_names_it(settings: Settings) -> None:
    with pytest.raises(TopicError, match="no-such"):
        topic_ids(settings, ["no-such"])
