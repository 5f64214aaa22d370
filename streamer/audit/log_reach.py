"""Since when a topic holds all that was appended to it: what retention has removed is no longer there to be read."""

from __future__ import annotations

from collections.abc import Mapping

from streamer.kafka.reader import first_offsets, offsets_at, read_ranges
from streamer.settings import Settings


def whole_since(settings: Settings, topic: str, ends: Mapping[int, int], *, wanted_ms: int, now_ms: int) -> int | None:
    """Return the record time from which on nothing is missing, None where that is so from `wanted_ms` on.

    Parameters
    ----------
    topic : the full name, namespace included.
    ends : partition → how far it is to be read; 0 where nothing is wanted of it. Of a partition that the topic no
        longer has, all is missing.

    Raises
    ------
    KafkaException, ReadError
        Kafka is unreachable, or the topic is missing.
    """
    low, newest = first_offsets(settings, topic), offsets_at(settings, topic, None)
    oldest, wanted = offsets_at(settings, topic, 0), offsets_at(settings, topic, wanted_ms)
    read = {partition: end for partition, end in ends.items() if end > 0}
    # A log that ends before what was read of it has lost its end with a broker, and nobody knows how much more.
    since = [now_ms for partition, end in read.items() if newest.get(partition, 0) < end]
    # Offset 0 is the first there ever was: a partition that begins there has lost nothing to retention.
    cut = [partition for partition in read if low.get(partition, 0) > 0]
    since += [now_ms for partition in cut if oldest.get(partition, -1) < 0]
    left = {partition: at for partition, at in oldest.items() if partition in cut and at >= 0}
    young = {partition: at for partition, at in left.items() if at == wanted.get(partition)}
    for message in read_ranges(settings, topic, {partition: (at, at + 1) for partition, at in young.items()}):
        since.append(message.timestamp()[1])
    return max(since, default=None)
