"""What a flush has gathered so far: counts by model, version, origin and pane, ready to be sent as increments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitors.canary import merge_rows
from monitors.sketch import encode_pairs
from streamer.events import Increment, Origin, PaneOffsets


class Slot(NamedTuple):
    """What an increment adds to: one pane of one version, as one source sees it."""

    model: str
    model_epoch: int
    version: str
    origin: Origin
    source: Any
    pane_start_ms: int
    pane_ms: int
    fingerprint: str


@dataclass
class CellCounts:
    """Counts over the cells of one reference: a whole vector, and loose (cells, counts) until they are asked for."""

    whole: NDArray[np.int64] | None = None
    loose: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=list)

    def add(self, counts: NDArray[np.int64]) -> None:
        """Add a vector over all cells; it is kept, and must not change afterwards."""
        self.whole = counts if self.whole is None else self.whole + counts

    def add_loose(self, cells: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """Add counts of a few cells, in any order; both are kept."""
        self.loose.append((cells, counts))

    def merge(self, other: CellCounts) -> None:
        """Add other counts over the same cells."""
        if other.whole is not None:
            self.add(other.whole)
        self.loose += other.loose

    def pairs(self) -> bytes:
        """Return the wire form, `monitors.sketch.encode_pairs`."""
        if not self.loose:
            return b"" if self.whole is None else encode_pairs(self.whole)
        cells = np.concatenate([cells for cells, _counts in self.loose])
        size = max(int(cells.max(initial=-1)) + 1, 0 if self.whole is None else len(self.whole))
        total = np.zeros(size, dtype=np.int64)
        if self.whole is not None:
            total[: len(self.whole)] += self.whole
        np.add.at(total, cells, np.concatenate([counts for _cells, counts in self.loose]))
        return encode_pairs(total)


@dataclass
class Gathering:
    """The counts of one slot since the last flush."""

    events: int = 0
    sampled: int = 0
    errors: int = 0
    labelled: int = 0
    cells: CellCounts = field(default_factory=CellCounts)
    performance: dict[str, NDArray[Any]] = field(default_factory=dict)
    exposures: dict[str, NDArray[Any]] = field(default_factory=dict)
    outcomes: dict[str, NDArray[Any]] = field(default_factory=dict)
    offsets: dict[tuple[str, str, int], tuple[int, int]] = field(default_factory=dict)

    def add_performance(self, slice_key: str, vector: NDArray[Any]) -> None:
        """Add a slice's performance vector."""
        held = self.performance.get(slice_key)
        self.performance[slice_key] = vector if held is None else held + vector

    def add_rows(self, kind: str, rollout_id: str, rows: NDArray[Any]) -> None:
        """Add a rollout's bucket rows; `kind` is exposures or outcomes."""
        held: dict[str, NDArray[Any]] = getattr(self, kind)
        held[rollout_id] = merge_rows(held[rollout_id], rows) if rollout_id in held else rows

    def add_offsets(self, source: tuple[str, str, int], first: int, last: int) -> None:
        """Widen the range of offsets that one source partition put into this slot."""
        low, high = self.offsets.get(source, (first, last))
        self.offsets[source] = (min(low, first), max(high, last))

    def merge(self, other: Gathering) -> None:
        """Add what was gathered of the same slot elsewhere."""
        self.events += other.events
        self.sampled += other.sampled
        self.errors += other.errors
        self.labelled += other.labelled
        self.cells.merge(other.cells)
        for slice_key, vector in other.performance.items():
            self.add_performance(slice_key, vector)
        for rollout_id, rows in other.exposures.items():
            self.add_rows("exposures", rollout_id, rows)
        for rollout_id, rows in other.outcomes.items():
            self.add_rows("outcomes", rollout_id, rows)
        for source, (first, last) in other.offsets.items():
            self.add_offsets(source, first, last)

    def increment(self, slot: Slot) -> Increment:
        """Return the wire form."""
        return Increment(
            **slot._asdict(),
            events=self.events,
            sampled=self.sampled,
            errors=self.errors,
            labelled=self.labelled,
            cells=self.cells.pairs(),
            performance={key: vector.tobytes() for key, vector in self.performance.items()},
            exposures={rollout: rows.tobytes() for rollout, rows in self.exposures.items()},
            outcomes={rollout: rows.tobytes() for rollout, rows in self.outcomes.items()},
            offsets=[PaneOffsets(*source, first, last) for source, (first, last) in self.offsets.items()],
        )
