"""What is counted and joined: events of one model as columns, whatever they were read from, with their places."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamer.catalog import Model
from streamer.columns import Coded, Values
from streamer.layouts import Layout

IntArray = NDArray[np.int64]
Source = tuple[str, str, int]


class Located(NamedTuple):
    """Events of one partition, one a message, each with its offset."""

    source: Source
    events: list[Any]
    offsets: list[int]
    record_times_ms: list[int]


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

    @classmethod
    def of(cls, pieces: Sequence[Located]) -> Places:
        """Return the places of events that several reads brought, one read after the other."""
        sources = list(dict.fromkeys(piece.source for piece in pieces))
        lengths = [len(piece.events) for piece in pieces]
        return cls(
            sources,
            np.repeat(np.array([sources.index(piece.source) for piece in pieces], dtype=np.int64), lengths),
            np.concatenate([np.array(piece.offsets, dtype=np.int64) for piece in pieces]),
            np.concatenate([np.array(piece.record_times_ms, dtype=np.int64) for piece in pieces]),
        )

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
    """Events of one model that have passed every check, as columns; each is taken from them once, when asked for.

    The first block of columns every event has; predictions have the second, labels the third.
    """

    model: Model
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
    def features(self, wanted: Iterable[str]) -> Mapping[str, Values]:
        """Return some features of every event, a missing value where one is absent."""

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
    layout : how the events' features lie; None for labels, which have none.
    """

    model: Model
    layout: Layout | None
    events: list[Any]
    places: Places

    @classmethod
    def of(cls, model: Model, layout: Layout | None, pieces: Sequence[Located]) -> EventRows:
        """Put what several reads brought one after the other."""
        events = pieces[0].events if len(pieces) == 1 else [event for piece in pieces for event in piece.events]
        return cls(model, layout, events, Places.of(pieces))

    def __len__(self) -> int:
        return len(self.places.offsets)

    def take(self, rows: Sequence[int] | IntArray) -> EventRows:
        """Return some of the rows, in the order given."""
        chosen = np.asarray(rows, dtype=np.int64)
        events = [self.events[row] for row in chosen.tolist()]
        return EventRows(self.model, self.layout, events, self.places.take(chosen))

    @cached_property
    def times_ms(self) -> IntArray:
        """Event times in epoch milliseconds."""
        return np.array([event.ts for event in self.events], dtype=np.int64)

    @cached_property
    def versions(self) -> Coded:
        """The model's versions."""
        return Coded.of([event.version or "_" for event in self.events])

    def features(self, wanted: Iterable[str]) -> Mapping[str, Values]:
        """Return some features of every event, None where one is absent."""
        return {} if self.layout is None else self.layout.columns(self.events, wanted)

    @cached_property
    def origins(self) -> Coded:
        """live, shadow or backfill."""
        if self.layout is not None and isinstance(next(iter(self.events), None), self.layout.prediction):
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
