"""Events of one model that have passed every check, gathered over a flush, with their places in the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamer.catalog import Model
from streamer.layouts import Layout

IntArray = NDArray[np.int64]
Source = tuple[str, str, int]


class Located(NamedTuple):
    """Events of one partition, each with its offset."""

    source: Source
    events: list[Any]
    offsets: list[int]
    record_times_ms: list[int]


@dataclass(frozen=True)
class Rows:
    """Events of one model from any of a topic's partitions; those of one partition lie in log order.

    Attributes
    ----------
    layout : how the events' features lie; None for labels, which have none.
    sources : the partitions; `source` is each row's index among them.
    """

    model: Model
    layout: Layout | None
    events: list[Any]
    sources: list[Source]
    source: IntArray
    offsets: IntArray
    record_times_ms: IntArray

    @classmethod
    def of(cls, model: Model, layout: Layout | None, pieces: Sequence[Located]) -> Rows:
        """Put what several reads brought one after the other."""
        sources = list(dict.fromkeys(piece.source for piece in pieces))
        lengths = [len(piece.events) for piece in pieces]
        return cls(
            model,
            layout,
            pieces[0].events if len(pieces) == 1 else [event for piece in pieces for event in piece.events],
            sources,
            np.repeat(np.array([sources.index(piece.source) for piece in pieces], dtype=np.int64), lengths),
            np.concatenate([np.array(piece.offsets, dtype=np.int64) for piece in pieces]),
            np.concatenate([np.array(piece.record_times_ms, dtype=np.int64) for piece in pieces]),
        )

    def __len__(self) -> int:
        return len(self.events)

    def take(self, rows: Sequence[int] | IntArray) -> Rows:
        """Return some of the rows, in the order given."""
        chosen = np.asarray(rows, dtype=np.int64)
        return Rows(
            self.model,
            self.layout,
            [self.events[row] for row in chosen.tolist()],
            self.sources,
            self.source[chosen],
            self.offsets[chosen],
            self.record_times_ms[chosen],
        )

    def positions(self) -> list[str]:
        """Return where in the log each event stands: topic incarnation, partition, offset, row."""
        heads = [f"{topic_id[:8]}:{partition}:" for _topic, topic_id, partition in self.sources]
        if len(heads) == 1:
            head = heads[0]
            return [f"{head}{offset}:0" for offset in self.offsets.tolist()]
        return [
            f"{heads[source]}{offset}:0"
            for source, offset in zip(self.source.tolist(), self.offsets.tolist(), strict=True)
        ]
