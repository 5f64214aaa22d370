"""What a stage and the step that runs it say to each other: what was read, where it stands, what is to be published."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import structlog

from streamer import telemetry

log = structlog.get_logger(__name__)


class Partition(NamedTuple):
    """A partition of a topic."""

    topic: str
    number: int


class Record(NamedTuple):
    """A message to publish in a step's transaction."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    partition: int | None = None
    headers: list[tuple[str, bytes]] | None = None


@dataclass
class Batch:
    """The messages of one partition from one read, as columns in offset order, and where the partition then stands.

    `read_up_to_ms` is record time: everything appended before it has been read.
    """

    partition: Partition
    start: int
    end: int
    at_end: bool
    read_up_to_ms: int
    offsets: list[int] = field(default_factory=list)
    record_times_ms: list[int] = field(default_factory=list)
    keys: Sequence[bytes | None] = ()
    values: list[bytes] = field(default_factory=list)


class Standing(NamedTuple):
    """Where a partition stands when it is taken over: its committed offset, None if there is none, and its ends."""

    committed: int | None
    low: int
    high: int | None = None


def resume(partition: Partition, offset: int | None, low: int, high: int | None = None) -> int:
    """Return where to read on; what is not in the log between there and the offset is counted and said.

    A log that begins past the offset has lost a range to retention; one that ends before it has lost its end
    with a broker, and offsets that were read are given again.
    """
    if offset is None:
        log.debug("no_committed_offset", topic=partition.topic, partition=partition.number, start=low)
        return low
    if offset < low:
        log.error("lost_range", topic=partition.topic, partition=partition.number, start=offset, end=low)
        telemetry.LOST_RANGE.labels(partition.topic).inc(low - offset)
        return low
    if high is not None and offset > high:
        log.error("offset_beyond_end", topic=partition.topic, partition=partition.number, start=offset, end=high)
        telemetry.LOST_RANGE.labels(partition.topic).inc(offset - high)
        return high
    return offset


class Stage(Protocol):
    """What a stage does with what it reads; the step does the rest."""

    def restore(self, standing: dict[Partition, Standing]) -> dict[Partition, int]:
        """Take over these partitions (all that are owned); return the offset to go on from, for each."""

    def held_back(self) -> Collection[Partition]:
        """Give those of the partitions taken over that are not to be read for now; their offsets stay."""

    def fold(self, batch: Batch) -> None:
        """Take in a batch; nothing may leave the process."""

    def due(self) -> bool:
        """Tell whether what was folded should be published now."""

    def prepare(self) -> None:
        """Make durable, before the transaction opens, what its results rely on."""

    def results(self, positions: dict[Partition, int]) -> Iterable[Record]:
        """Give what one transaction publishes; `positions` are the offsets it commits."""

    def committed(self) -> None:
        """Be told that the last results and their offsets are committed."""

    def idle(self) -> None:
        """Do what has to be done between reads."""


class StepFailed(Exception):  # noqa: N818 - it names what happened, as KafkaException does
    """Kafka, the store or a contract failed: the process must end and be started again."""
