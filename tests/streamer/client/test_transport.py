"""Both transports speak the SDK's few words; what the broker does with them is tested in integration."""

from __future__ import annotations

import gc
import os

import pytest

from streamer.client.fast_transport import LibrdkafkaTransport
from streamer.client.transport import JavaPartitioner, KafkaPythonTransport, NotReadyError, Reaped, kafka_python_options
from streamer.kafka.clients import KafkaPropertyError
from streamer.kafka.partitioning import murmur2


class Cluster:
    def partitions_for_topic(self, _: str) -> set[int]:
        return {0, 1, 2, 3}


def test_a_key_goes_where_kafkas_own_partitioner_puts_it() -> None:
    from kafka.partitioner import DefaultPartitioner

    class Topics(Cluster):
        def topics(self) -> set[str]:
            return {"t"}

        def available_partitions_for_topic(self, topic: str) -> set[int]:
            return self.partitions_for_topic(topic)

    for key in (b"", b"a", b"ab", b"abc", b"abcd", "Zoë".encode(), b"018bcfe5-6800-7000-8000-000000000001"):
        chosen = JavaPartitioner().partition("t", key, key, None, None, Topics())
        assert chosen == DefaultPartitioner().partition("t", key, key, None, None, Topics())
        assert chosen == (murmur2(key) & 0x7FFFFFFF) % 4


def test_without_a_key_every_partition_gets_its_share() -> None:
    chosen = {JavaPartitioner().partition("t", None, None, None, None, Cluster()) for _ in range(200)}
    assert chosen == {0, 1, 2, 3}


def test_what_the_user_sets_wins_over_the_defaults() -> None:
    options = kafka_python_options({"bootstrap.servers": "a:1", "linger.ms": 5, "compression.type": "none"})
    assert (options["linger_ms"], options["compression_type"], options["bootstrap_servers"]) == (5, None, ["a:1"])
    assert options["allow_auto_create_topics"] is False
    assert "enable_idempotence" not in options  # on by default; asking for it would make acks=1 an error
    with pytest.raises(KafkaPropertyError, match=r"kafka\.linger: kafka-python has no such property"):
        kafka_python_options({"linger": 5})


def _open_files() -> int:
    return len(os.listdir("/dev/fd"))


def test_a_broker_that_is_away_is_not_ready_and_costs_no_files() -> None:
    options = {**kafka_python_options({"bootstrap.servers": "127.0.0.1:1"}), "bootstrap_timeout_ms": 200}
    gc.disable()
    try:
        before = _open_files()
        for _ in range(3):
            with pytest.raises(NotReadyError, match=r"no broker answers at 127\.0\.0\.1:1: .*refused"):
                KafkaPythonTransport(options)
        assert _open_files() == before
    finally:
        gc.enable()


def test_librdkafka_names_a_property_it_does_not_know() -> None:
    with pytest.raises(NotReadyError, match=r'No such configuration property: "linger\.msec"'):
        LibrdkafkaTransport({"bootstrap.servers": "127.0.0.1:1", "linger.msec": 5})


def test_librdkafka_says_when_its_queue_is_full_and_ends_at_once() -> None:
    transport = LibrdkafkaTransport(
        {"bootstrap.servers": "127.0.0.1:1", "queue.buffering.max.messages": 1, "log_level": 0}
    )
    transport.send(0, "t", b"k", b"v", [])
    assert transport.reap() == Reaped([], [], None)
    with pytest.raises(NotReadyError, match="t: Local: Queue full"):
        transport.send(1, "t", b"k", b"v", [])
    transport.close()
    assert transport.reap().fault is not None
