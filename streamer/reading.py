"""One read of Kafka's client sorted by partition, and where each partition's log and its record time then stand."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby, repeat
from operator import is_, itemgetter
from typing import Any, cast, overload

import structlog
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, KafkaError, Message

from streamer.stage import Batch, Partition, StepFailed

log = structlog.get_logger(__name__)

_FETCH_MARGIN_MS = 500


class Reading:
    """How far the partitions of one consumer have been read.

    Attributes
    ----------
    positions : the next offset to read, for each partition that is owned.
    """

    def __init__(self, replica: str, full: int) -> None:
        """Keep what is read by `replica`, at most `full` messages at a time."""
        self.positions: dict[Partition, int] = {}
        self._replica = replica
        self._full = full
        self._at_end: dict[Partition, int] = {}
        self._appended: dict[Partition, int] = {}

    def begin(self, positions: dict[Partition, int]) -> None:
        """Own these partitions, and no others, from these offsets on."""
        self.positions = positions
        self._at_end.clear()
        self._appended.clear()

    def give_up(self) -> None:
        """Own nothing any more."""
        self.positions = {}

    def batches(self, messages: list[Message[bytes, bytes]]) -> Iterable[Batch]:
        """Sort one read by partition, and note who stands at the end of its log.

        A read that brings nothing still brings time: partitions standing at their end are given
        an empty batch, since progress is how time passes downstream.
        """
        # Taken before the read's errors are looked at; a record still on its way is covered by the margin.
        clock_ms = int(time.time() * 1000) - _FETCH_MARGIN_MS
        # A full read may have left records of any partition in the client's queue.
        drained = len(messages) < self._full
        by_partition = _by_partition(self._sound(messages))
        for partition, start in list(self.positions.items()):
            read = by_partition.get(partition, [])
            end = _number(read[-1].offset()) + 1 if read else start
            # The end lies past the last message when the log ends in a transaction's marker.
            at_end = drained and self._at_end.get(partition, -1) >= end
            if read:
                kind, appended = read[-1].timestamp()
                if kind != TIMESTAMP_NOT_AVAILABLE:
                    self._appended[partition] = max(self._appended.get(partition, 0), appended)
            elif not at_end:
                continue
            if at_end:
                end = max(end, self._at_end[partition])
                self._appended[partition] = max(self._appended.get(partition, 0), clock_ms)
            yield Batch(
                partition,
                start,
                end,
                at_end,
                self._appended.get(partition, 0),
                list(map(_offset, read)),
                list(map(_appended_at, map(Message.timestamp, read))),
                _Keys(read),
                _values(read),
            )

    def _sound(self, messages: list[Message[bytes, bytes]]) -> list[Message[bytes, bytes]]:
        """Note the ends of partitions among what was read, and leave the records."""
        errors = list(map(Message.error, messages))
        # By identity: librdkafka's errors cannot be compared with None.
        if all(map(is_, errors, repeat(None))):
            return messages
        sound = [message for message, error in zip(messages, errors, strict=True) if error is None]
        for message, error in zip(messages, errors, strict=True):
            if error is None:
                continue
            partition = Partition(message.topic() or "", _number(message.partition()))
            if error.code() == KafkaError._PARTITION_EOF:
                self._at_end[partition] = _number(message.offset())
            elif error.fatal() or not error.retriable():
                raise StepFailed(f"{self._replica}: reading {partition.topic}[{partition.number}]: {error.str()}")
            else:
                log.warning("read_error", replica=self._replica, topic=partition.topic, reason=error.str())
        return sound


# Every record has an offset.
_offset = cast("Callable[[Message[bytes, bytes]], int]", Message.offset)


_appended_at = itemgetter(1)


class _Keys(Sequence[bytes | None]):
    """The keys of some messages; hardly any is asked for."""

    def __init__(self, messages: list[Message[bytes, bytes]]) -> None:
        self._messages = messages

    def __len__(self) -> int:
        return len(self._messages)

    @overload
    def __getitem__(self, at: int) -> bytes | None: ...
    @overload
    def __getitem__(self, at: slice) -> list[bytes | None]: ...
    def __getitem__(self, at: int | slice) -> bytes | list[bytes | None] | None:
        if isinstance(at, slice):
            return [message.key() for message in self._messages[at]]
        return self._messages[at].key()


def _values(messages: list[Message[bytes, bytes]]) -> list[bytes]:
    """Return what messages hold; one without a value, which deletes, is empty."""
    values = list(map(Message.value, messages))
    return cast("list[bytes]", values) if all(values) else [value or b"" for value in values]


def _by_partition(messages: list[Message[bytes, bytes]]) -> dict[tuple[str | None, int | None], list[Any]]:
    """Sort messages by their partition; they come in runs."""
    found: dict[tuple[str | None, int | None], list[Any]] = defaultdict(list)
    at = 0
    places = zip(map(Message.topic, messages), map(Message.partition, messages), strict=True)
    for place, run in groupby(places):
        end = at + len(list(run))
        found[place] += messages[at:end]
        at = end
    return found


def _number(value: int | None) -> int:
    """Return an offset or partition that a consumed message always has."""
    if value is None:
        raise StepFailed("a consumed message came without its offset or partition")
    return value
