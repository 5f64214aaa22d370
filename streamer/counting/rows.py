"""What is counted and joined: events of any models as columns, whatever they were read from, with their places."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from streamer.counting.columns import Block, Coded, IntArray, distinct
from streamer.counting.fleet import Fleet
from streamer.counting.lanes import Lanes, keys_of
from streamer.counting.layouts import Layouts, values_of

Source = tuple[str, str, int]


class Located(NamedTuple):
    """Events of one partition that were read one by one, each with its offset and its row in its message."""

    source: Source
    events: list[Any]
    offsets: list[int]
    record_times_ms: list[int]
    rows: list[int]


@dataclass(frozen=True)
class Places:
    """Where in the log rows stand; those of one partition in the log's order.

    Attributes
    ----------
    sources : the partitions; `source` is each row's index among them.
    row : which row of its message each is; None where every message is one event.
    """

    sources: list[Source]
    source: IntArray
    offsets: IntArray
    record_times_ms: IntArray
    row: IntArray | None = None

    def take(self, rows: IntArray) -> Places:
        """Return some of the places, in the order given."""
        row = None if self.row is None else self.row[rows]
        return Places(self.sources, self.source[rows], self.offsets[rows], self.record_times_ms[rows], row)

    def positions(self) -> list[str]:
        """Return each place as text: topic incarnation, partition, offset, row (`join_records.position_of`)."""
        heads = [f"{topic_id[:8]}:{partition}:" for _topic, topic_id, partition in self.sources]
        offsets = self.offsets.tolist()
        if len(heads) == 1 and self.row is None:
            head = heads[0]
            return [f"{head}{offset}:0" for offset in offsets]
        rows = np.zeros(len(offsets), dtype=np.int64) if self.row is None else self.row
        places = zip(self.source.tolist(), offsets, rows.tolist(), strict=True)
        return [f"{heads[source]}{offset}:{row}" for source, offset, row in places]


class Rows(ABC):
    """Events that have passed every check, as columns; each is taken from them once, when asked for.

    The first block of columns every event has; predictions have the second, labels the third.

    Attributes
    ----------
    models : those whose events they may be; `model_of` is each row's index among them.
    """

    models: Fleet
    model_of: IntArray
    places: Places

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows."""

    @abstractmethod
    def take(self, rows: Sequence[int] | IntArray) -> Rows:
        """Return some of the rows, in the order given."""

    @property
    @abstractmethod
    def times_ms(self) -> IntArray:
        """Event times in epoch milliseconds."""

    @property
    @abstractmethod
    def versions(self) -> Coded:
        """The model's versions; "_" where an event names none."""

    @abstractmethod
    def blocks(self, lanes: Lanes, stream: IntArray) -> Iterator[Block]:
        """Give the cell of every watched feature of every row; `stream` is each one's number among the streams."""

    @property
    @abstractmethod
    def slices(self) -> Sequence[list[str]]:
        """The slices of the traffic each row is in, `monitors.slices.slice_keys`; lists may be shared."""

    @property
    @abstractmethod
    def origins(self) -> Coded:
        """live, shadow or backfill; feature logs and labels are live."""

    @property
    @abstractmethod
    def prediction_ids(self) -> Sequence[str]:
        """What predictions and labels are joined by."""

    @property
    @abstractmethod
    def predictions(self) -> Sequence[Any]:
        """What the model said: numbers, texts, booleans, None; of labels in context mode, what it had said."""

    @property
    @abstractmethod
    def scores(self) -> Sequence[Any]:
        """A number, numbers by class, or None; of labels in context mode, the prediction's."""

    @property
    @abstractmethod
    def errors(self) -> Coded:
        """Why there is no prediction; None where there is one."""

    @property
    @abstractmethod
    def rollouts(self) -> Coded:
        """The rollout a prediction was routed by, or None."""

    @property
    @abstractmethod
    def buckets(self) -> Sequence[int | None]:
        """The routing bucket."""

    @property
    @abstractmethod
    def latencies_ms(self) -> Sequence[float | None]:
        """How long each answer took."""

    @property
    @abstractmethod
    def labels(self) -> Sequence[Any]:
        """What turned out to be true."""

    @property
    @abstractmethod
    def revisions(self) -> Sequence[int]:
        """Which correction of a label it is."""

    @property
    @abstractmethod
    def deleted(self) -> Sequence[bool]:
        """Whether a label takes an earlier one back."""

    @property
    @abstractmethod
    def prediction_times_ms(self) -> Sequence[int | None]:
        """Of labels in context mode, the prediction's event times."""

    @property
    @abstractmethod
    def previous(self) -> Sequence[Any]:
        """Of labels in context mode, the label that is corrected, or None."""


@dataclass(frozen=True)
class EventRows(Rows):
    """Events that were read from JSON, one a message.

    Attributes
    ----------
    layouts : how the features of each model's events lie; empty for labels, which have none.
    """

    models: Fleet
    model_of: IntArray
    layouts: Layouts
    events: list[Any]
    places: Places

    def __len__(self) -> int:
        return len(self.places.offsets)

    def take(self, rows: Sequence[int] | IntArray) -> EventRows:
        """Return some of the rows, in the order given."""
        chosen = np.asarray(rows, dtype=np.int64)
        events = [self.events[row] for row in chosen.tolist()]
        return EventRows(self.models, self.model_of[chosen], self.layouts, events, self.places.take(chosen))

    @cached_property
    def _values(self) -> list[tuple[Any, ...]]:
        return list(map(values_of, [event.features for event in self.events]))

    def blocks(self, lanes: Lanes, stream: IntArray) -> Iterator[Block]:
        """Give the cell of every watched feature of every row."""
        return lanes.blocks(self._values, stream)

    @cached_property
    def slices(self) -> Sequence[list[str]]:
        """The slices of the traffic each row is in."""
        values, found = self._values, distinct(self.layouts.slicing_of[self.model_of])
        slicings = map(self.layouts.slicings.__getitem__, found.values.tolist())
        each = [(keys_of(names), places) for names, places in slicings]
        if len(each) != 1:
            of_row = map(each.__getitem__, found.codes.tolist())
            return [
                keys[tuple([value[place] for place in places])]
                for (keys, places), value in zip(of_row, values, strict=True)
            ]
        ((keys, places),) = each
        if len(places) == 1:
            (place,) = places
            return [keys[value[place],] for value in values]
        return [keys[tuple([value[place] for place in places])] for value in values]

    @cached_property
    def times_ms(self) -> IntArray:
        """Event times in epoch milliseconds."""
        return np.array([event.ts for event in self.events], dtype=np.int64)

    @cached_property
    def versions(self) -> Coded:
        """The model's versions."""
        return Coded.of([event.version or "_" for event in self.events])

    @cached_property
    def origins(self) -> Coded:
        """live, shadow or backfill."""
        if hasattr(self.events[0], "origin"):
            return Coded.of([event.origin for event in self.events])
        return Coded.constant("live", len(self.events))

    @cached_property
    def prediction_ids(self) -> list[str]:
        """What predictions and labels are joined by."""
        return [event.prediction_id for event in self.events]

    @cached_property
    def predictions(self) -> list[Any]:
        """What the model said."""
        return [event.prediction for event in self.events]

    @cached_property
    def scores(self) -> list[Any]:
        """A number, numbers by class, or None."""
        return [event.score for event in self.events]

    @cached_property
    def errors(self) -> Coded:
        """Why there is no prediction."""
        return Coded.of([event.error for event in self.events])

    @cached_property
    def rollouts(self) -> Coded:
        """The rollout a prediction was routed by."""
        return Coded.of([event.rollout_id for event in self.events])

    @cached_property
    def buckets(self) -> list[int | None]:
        """The routing bucket."""
        return [event.bucket for event in self.events]

    @cached_property
    def latencies_ms(self) -> list[float | None]:
        """How long each answer took."""
        return [event.latency_ms for event in self.events]

    @cached_property
    def labels(self) -> list[Any]:
        """What turned out to be true."""
        return [event.label for event in self.events]

    @cached_property
    def revisions(self) -> list[int]:
        """Which correction of a label it is."""
        return [event.revision for event in self.events]

    @cached_property
    def deleted(self) -> list[bool]:
        """Whether a label takes an earlier one back."""
        return [event.deleted for event in self.events]

    @cached_property
    def prediction_times_ms(self) -> list[int | None]:
        """Of labels in context mode, the prediction's event times."""
        return [event.prediction_ts for event in self.events]

    @cached_property
    def previous(self) -> list[Any]:
        """Of labels in context mode, the label that is corrected."""
        return [event.previous for event in self.events]
