"""Which partition a key belongs to, by the hash that Kafka's Java clients use (librdkafka's default is another)."""

from __future__ import annotations

_SEED = 0x9747B28C
_MULTIPLIER = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """Hash bytes as Kafka's Java clients do.

    Parameters
    ----------
    data : the key as it goes over the wire.

    Returns
    -------
    An unsigned 32-bit hash, 0 ≤ hash < 2³².

    Notes
    -----
    MurmurHash2 with the seed 0x9747b28c, little-endian words, as in
    `org.apache.kafka.common.utils.Utils.murmur2`.
    """
    length = len(data)
    hashed = _SEED ^ length
    whole = length - length % 4
    for start in range(0, whole, 4):
        word = int.from_bytes(data[start : start + 4], "little") * _MULTIPLIER & _MASK
        word ^= word >> 24
        hashed = (hashed * _MULTIPLIER & _MASK) ^ (word * _MULTIPLIER & _MASK)
    if whole < length:
        hashed = (hashed ^ int.from_bytes(data[whole:], "little")) * _MULTIPLIER & _MASK
    hashed = (hashed ^ hashed >> 13) * _MULTIPLIER & _MASK
    return hashed ^ hashed >> 15


def partition_of(model: str, partitions: int) -> int:
    """Return the partition that holds a model in every internal topic.

    Parameters
    ----------
    model : the model's name.
    partitions : how many partitions the internal topics have, ≥ 1.

    Returns
    -------
    0 ≤ partition < partitions: where Kafka's Java default partitioner would put the key.

    Raises
    ------
    ValueError
        When there is no partition to choose from.
    """
    if partitions < 1:
        raise ValueError(f"partitions: got {partitions}, wanted at least 1")
    return (murmur2(model.encode()) & 0x7FFFFFFF) % partitions
