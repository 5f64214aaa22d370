"""A flush as messages: one for each evaluate partition, in several where it would be too large for a topic."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import lru_cache

import msgspec

from streamer.counting.fold import Counted
from streamer.events import Increment, ModelMark, Partial
from streamer.kafka.partitioning import partition_of

# Worked out in Python, and asked for all models of every flush.
_partition_of = lru_cache(maxsize=100_000)(partition_of)
_PACK = msgspec.msgpack.Encoder()
# Well below what a producer sends and a topic takes.
MAX_PARTIAL_BYTES = 4_000_000


def messages(
    whole: Partial, counted: Counted, tallies: Mapping[str, dict[str, int]], partitions: int
) -> Iterator[tuple[int, bytes]]:
    """Give each evaluate partition, and its messages: one at least, since progress is how time passes there.

    Parameters
    ----------
    whole : what all of them are told: whose flush it is, how far it was read, and the partitions it names.
    tallies : of each model, what was counted of it besides.
    partitions : how many evaluate partitions there are.
    """
    increments_of: dict[int, list[Increment]] = defaultdict(list)
    for increment in counted.increments:
        increments_of[_partition_of(increment.model, partitions)].append(increment)
    marks_of: dict[int, list[ModelMark]] = defaultdict(list)
    for mark in counted.marks:
        marks_of[_partition_of(mark.model, partitions)].append(mark)
    for partition in range(partitions):
        partial = msgspec.structs.replace(
            whole,
            increments=increments_of[partition],
            marks=marks_of[partition],
            tallies={m: t for m, t in tallies.items() if _partition_of(m, partitions) == partition},
        )
        for value in _cut(partial):
            yield partition, value


def _cut(partial: Partial) -> Iterator[bytes]:
    """Encode a flush; one that is too large for a message goes in several, and only the last lets time pass.

    Counts add up, so it does not matter how they are cut; progress, marks and tallies are said once.
    """
    value = _PACK.encode(partial)
    if len(value) <= MAX_PARTIAL_BYTES:
        yield value
        return
    first, rest = _halves(partial.increments)
    if not first:
        yield value
        return
    part = Partial(ingest=partial.ingest, progress=[], partition_counts={}, increments=first, sources=partial.sources)
    yield from _cut(part)
    yield from _cut(msgspec.structs.replace(partial, increments=rest))


def _halves(increments: list[Increment]) -> tuple[list[Increment], list[Increment]]:
    """Cut increments into two that add up to them, a lone one by its slices; nothing first where that cannot be."""
    half = len(increments) // 2
    if half:
        return increments[:half], increments[half:]
    slices = [(key, vector) for each in increments for key, vector in each.performance.items()]
    half = len(slices) // 2
    if not half:
        return [], increments
    (whole,) = increments
    first = Increment(
        model=whole.model,
        model_epoch=whole.model_epoch,
        version=whole.version,
        origin=whole.origin,
        source=whole.source,
        pane_start_ms=whole.pane_start_ms,
        pane_ms=whole.pane_ms,
        fingerprint=whole.fingerprint,
        performance=dict(slices[:half]),
    )
    return [first], [msgspec.structs.replace(whole, performance=dict(slices[half:]))]
