"""Reading a topic to its end: committed messages only, markers and aborts at the end do not hold it up."""

from __future__ import annotations

import pytest
from confluent_kafka import Producer

from streamer.kafka.reader import ReadError, newest_by_key, newest_records, read_ranges, read_to_end
from streamer.settings import Settings

pytestmark = pytest.mark.integration


def values(settings: Settings, *partitions: int) -> list[bytes | str | None]:
    found = read_to_end(settings, settings.topic("ledger"), partitions or None, timeout_s=5)
    return sorted(message.value() or b"" for message in found)


def test_a_range_is_read_from_its_first_offset_to_the_one_before_its_end(settings: Settings) -> None:
    topic = settings.topic("ledger")
    producer = Producer({**settings.kafka.properties()})
    for number in range(40):
        producer.produce(topic, b"%d" % number, partition=number % 2)
    assert producer.flush(10) == 0
    found = read_ranges(settings, topic, {0: (3, 5), 1: (19, 20), 2: (0, 0), 3: (7, 7)}, timeout_s=5)
    assert sorted((message.partition(), message.offset()) for message in found) == [(0, 3), (0, 4), (1, 19)]


def test_an_empty_topic_is_read_at_once(settings: Settings) -> None:
    assert values(settings) == []


def test_what_is_committed_is_read_and_what_was_aborted_is_not(settings: Settings) -> None:
    topic = settings.topic("ledger")
    producer = Producer({**settings.kafka.properties(), "transactional.id": f"{settings.namespace}-reader"})
    producer.init_transactions(30)
    for number, end in enumerate(
        [producer.commit_transaction, producer.abort_transaction, producer.commit_transaction]
    ):
        producer.begin_transaction()
        for partition in range(2):
            producer.produce(topic, f"{number}", partition=partition)
        end(30)
    assert values(settings) == [b"0", b"0", b"2", b"2"]
    assert values(settings, 1) == [b"0", b"2"]
    producer.begin_transaction()
    producer.produce(topic, "open", partition=0)
    producer.flush(10)
    with pytest.raises(ReadError, match=r"nothing came for 5 s, partitions \[0\] are not at"):
        values(settings)
    assert values(settings, 1) == [b"0", b"2"]
    producer.abort_transaction(30)
    assert values(settings) == [b"0", b"0", b"2", b"2"]


def test_the_newest_of_each_key_is_kept_and_deleted_keys_are_gone(settings: Settings) -> None:
    producer = Producer(settings.kafka.properties())
    for key, value in (("a", "1"), ("b", "1"), ("a", "2"), ("b", None)):
        producer.produce(settings.topic("models"), value, key)
    producer.flush(10)
    assert newest_by_key(settings, settings.topic("models")) == {"a": b"2"}
    newest = newest_records(settings, settings.topic("models"))
    assert newest.values == {"a": b"2", "b": None}
    assert sum(last + 1 for last in newest.last.values()) == 4


def test_a_topic_that_is_not_there_is_an_error_that_says_what_to_do(settings: Settings) -> None:
    with pytest.raises(ReadError, match=r"topic nowhere: does not exist; run `driftloop topics create`"):
        list(read_to_end(settings, "nowhere"))
    with pytest.raises(ReadError, match="has 4 partitions, wanted number 9; check internal_partitions"):
        values(settings, 9)
