"""Partitions are where Kafka's own Java clients would put the same key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner.default import murmur2 as reference_murmur2

from streamer.kafka.partitioning import murmur2, partition_of


@given(st.binary(max_size=200))
def test_hash_equals_kafka_pythons_for_any_bytes(data: bytes) -> None:
    assert murmur2(data) == reference_murmur2(data) & 0xFFFFFFFF


@pytest.mark.parametrize(
    ("key", "signed"),
    [(b"21", -973932308), (b"foobar", -790332482), (b"a-little-bit-long-string", -985981536), (b"abc", 479470107)],
)
def test_hash_equals_the_values_in_kafkas_own_tests(key: bytes, signed: int) -> None:
    assert murmur2(key) == signed & 0xFFFFFFFF


@given(st.text(max_size=100), st.integers(1, 512))
def test_a_model_has_one_partition_of_those_there_are(model: str, partitions: int) -> None:
    partition = partition_of(model, partitions)
    assert 0 <= partition < partitions
    assert partition == (reference_murmur2(model.encode()) & 0x7FFFFFFF) % partitions


def test_models_spread_over_the_partitions() -> None:
    assert {partition_of(f"model-{number}", 16) for number in range(500)} == set(range(16))


def test_no_partitions_is_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match="got 0, wanted at least 1"):
        partition_of("model", 0)
