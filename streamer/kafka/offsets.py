"""Where partitions begin and end, and where a group stands, asked again while a broker has just come back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from confluent_kafka import ConsumerGroupTopicPartitions, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

T = TypeVar("T")

# A topic just made, one whose leader has just moved, or a broker that has just come back: asked again, all is well.
_PASSING = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    # The same of a group's coordinator, and a transaction that is about to move the group's offsets.
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.UNSTABLE_OFFSET_COMMIT,
}
_PAUSE_S = 0.1


def patiently(ask: Callable[[], T], *, timeout_s: float) -> T:
    """Ask a broker, and again for `timeout_s` while it answers that it does not lead yet.

    Raises
    ------
    KafkaException
        Any other answer, or that one for too long.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return ask()
        except KafkaException as error:
            if error.args[0].code() not in _PASSING or time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_S)


def committed_offsets(
    admin: AdminClient, group: str, *, timeout_s: float, stable: bool = True
) -> dict[tuple[str, int], int]:
    """Return a group's committed offsets by topic and number; a partition it never read is not there.

    Parameters
    ----------
    stable : wait for transactions that could still move them, as one that a kill has left open.
    """
    asked = [ConsumerGroupTopicPartitions(group)]

    def ask() -> dict[tuple[str, int], int]:
        found = admin.list_consumer_group_offsets(asked, require_stable=stable, request_timeout=timeout_s)
        places: list[TopicPartition] = found[group].result().topic_partitions or []
        for place in places:
            if place.error is not None:
                raise KafkaException(place.error)
        return {(place.topic, place.partition): place.offset for place in places if place.offset >= 0}

    return patiently(ask, timeout_s=timeout_s)


def offsets_of(
    admin: AdminClient,
    places: Iterable[TopicPartition],
    which: OffsetSpec,
    *,
    timeout_s: float,
    isolation: IsolationLevel = IsolationLevel.READ_UNCOMMITTED,
) -> dict[tuple[str, int], int]:
    """Return an offset of each partition by topic and number; an end is that of what is not committed yet, too."""
    asked = dict.fromkeys(places, which)
    if not asked:
        return {}

    def ask() -> dict[tuple[str, int], int]:
        found = admin.list_offsets(asked, isolation_level=isolation, request_timeout=timeout_s)
        return {(place.topic, place.partition): int(future.result().offset) for place, future in found.items()}

    return patiently(ask, timeout_s=timeout_s)
