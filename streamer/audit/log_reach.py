"""Since when a topic holds all that was appended to it: what retention has removed is no longer there to be read."""

from __future__ import annotations

from collections.abc import Mapping

from streamer.kafka.reader import offsets_at, read_ranges
from streamer.settings import Settings


def whole_since(settings: Settings, topic: str, ends: Mapping[int, int], *, wanted_ms: int, now_ms: int) -> int | None:
    """Return the record time from which on nothing is missing, None where that is so from `wanted_ms` on.

    Parameters
    ----------
    topic : the full name, namespace included.
    ends : partition → how far it is to be read; 0 where nothing is wanted of it.

    Raises
    ------
    KafkaException, ReadError
        Kafka is unreachable, or the topic is missing.
    """
    first, wanted = offsets_at(settings, topic, 0), offsets_at(settings, topic, wanted_ms)
    ends = {partition: end for partition, end in ends.items() if end > 0}
    # Offset 0 is the first there ever was. Of a partition that is empty by now, all is gone.
    young = {partition: first[partition] for partition in ends if first[partition] == wanted[partition] > 0}
    since = [now_ms for partition in ends if first[partition] < 0]
    for message in read_ranges(settings, topic, {partition: (at, at + 1) for partition, at in young.items()}):
        since.append(message.timestamp()[1])
    return max(since, default=None)
