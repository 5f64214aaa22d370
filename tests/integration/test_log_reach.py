"""Since when a log is whole: what retention has removed is told, and what was never there is not missed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from streamer.audit import join_rebuild
from streamer.audit.log_reach import whole_since
from streamer.catalog import Catalog
from streamer.kafka.reader import read_ranges
from streamer.settings import Settings
from tests.integration.events import publish
from tests.streamer.logs import catalog_of, config

pytestmark = pytest.mark.integration

NOW_MS = 2**41
APART: dict[str, Any] = {"plan": {"kind": "categorical", "source": "features"}}


def cut(settings: Settings, topic: str, partition: int, offset: int) -> None:
    """Remove what lies before an offset, as retention does."""
    admin = AdminClient({**settings.kafka.properties()})
    for future in admin.delete_records([TopicPartition(topic, partition, offset)]).values():
        future.result()


def write(settings: Settings, topic: str, *partitions: int) -> None:
    producer = Producer({**settings.kafka.properties()})
    for number, partition in enumerate(partitions):
        producer.produce(topic, b"%d" % number, partition=partition)
        producer.flush(10)


def written_ms(settings: Settings, topic: str, partition: int, offset: int) -> int:
    (message,) = read_ranges(settings, topic, {partition: (offset, offset + 1)})
    return message.timestamp()[1]


def test_a_log_that_retention_has_cut_tells_since_when_it_is_whole(settings: Settings) -> None:
    topic = settings.topic("predictions")
    write(settings, topic, 0, 1, 0, 1, 0, 1)

    def since(wanted_ms: int, *ends: int) -> int | None:
        return whole_since(settings, topic, dict(enumerate(ends)), wanted_ms=wanted_ms, now_ms=NOW_MS)

    at_ms = written_ms(settings, topic, 0, 2)
    assert since(0, 3, 3, 0) is None
    cut(settings, topic, 0, 2)
    assert since(0, 3, 3) == at_ms
    assert since(0, 0, 3) is None, "nothing is wanted of what was cut"
    assert since(at_ms + 1, 3, 3) is None, "nothing that old is wanted"
    cut(settings, topic, 1, 3)
    assert since(0, 3, 3) == NOW_MS
    assert since(0, 0, 0, 0) is None, "a partition to which nothing was ever written has lost nothing"
    assert since(0, 0, 0, 3) == NOW_MS, "what was read of it is there no more"


def test_of_a_partition_that_the_topic_no_longer_has_all_is_missing(settings: Settings) -> None:
    def since(ends: Mapping[int, int]) -> int | None:
        return whole_since(settings, settings.topic("labels"), ends, wanted_ms=0, now_ms=NOW_MS)

    write(settings, settings.topic("labels"), 0, 0, 0)
    assert since({0: 3, 99: 3}) == NOW_MS
    assert since({0: 3, 99: 0}) is None


def test_a_store_is_made_anew_from_the_partitions_that_are_left(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = config()
    publish(settings, model, "1")
    ends: dict[str, dict[int, int]] = {"predictions": {0: 1, 99: 7}, "features": {}, "labels": {98: 1}}
    # Kafka forgets what was committed of a partition soon after it is gone.
    monkeypatch.setattr(join_rebuild, "_ends", lambda *_: ends)
    done = join_rebuild.rebuild(settings, now_ms=NOW_MS)
    assert (done.read, done.whole_since_ms) == (0, NOW_MS)


def test_feature_logs_that_no_model_joins_may_be_cut(settings: Settings) -> None:
    topic = settings.topic("features")
    write(settings, topic, 0, 0)
    at_ms = written_ms(settings, topic, 0, 1)
    cut(settings, topic, 0, 1)
    ends = {"predictions": {0: 0}, "features": {0: 2}, "labels": {}}

    def since(catalog: Catalog, kept_from_ms: int = 31 * 86_400_000) -> int | None:
        return join_rebuild._whole_since(settings, catalog, ends, kept_from_ms, NOW_MS)  # type: ignore[arg-type]

    joined = config(features=APART, labels={"horizon": "30s"})
    assert since(catalog_of(config())) is None
    assert since(catalog_of(config(features=APART, slices=[]))) is None, "logged apart, but no slice"
    assert since(catalog_of(config(features=APART, labels={"mode": "context"}))) is None
    assert since(catalog_of(joined)) == at_ms
    assert since(catalog_of(joined), at_ms + 30_000) == at_ms
    assert since(catalog_of(joined), at_ms + 30_001) is None, "what the longest horizon reaches back to is there"
