"""Rows of an Arrow message that have passed every check, as the columns that are counted and joined."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.counting.column_blocks import Values, column_blocks
from streamer.counting.columns import Block, Coded, IntArray, distinct
from streamer.counting.fleet import Fleet
from streamer.counting.lanes import Lanes, keys_of
from streamer.counting.rows import Places, Rows
from streamer.decoding.arrow_batches import Batch, compact


@dataclass(frozen=True)
class ArrowRows(Rows):
    """Rows of one Arrow message.

    Attributes
    ----------
    chosen : which rows of the batch they are; None for all.
    """

    models: Fleet
    model_of: IntArray
    batch: Batch
    places: Places
    chosen: IntArray | None

    @classmethod
    def of(cls, models: Fleet, model_of: IntArray, batch: Batch, place: Places, chosen: IntArray) -> ArrowRows:
        """Return some rows, which rise, of the batch that stands at a place."""
        at = place.take(np.zeros(len(chosen), dtype=np.int64))
        places = Places(at.sources, at.source, at.offsets, at.record_times_ms, chosen)
        return cls(models, model_of, batch, places, None if len(chosen) == len(batch) else chosen)

    def __len__(self) -> int:
        return len(self.model_of)

    def take(self, rows: Sequence[int] | IntArray) -> ArrowRows:
        """Return some of the rows, in the order given."""
        taken = np.asarray(rows, dtype=np.int64)
        chosen = taken if self.chosen is None else self.chosen[taken]
        return ArrowRows(self.models, self.model_of[taken], self.batch, self.places.take(taken), chosen)

    def blocks(self, lanes: Lanes, stream: IntArray) -> Iterator[Block]:
        """Give the cell of every watched feature of every row: numbers as they lie in the message."""
        found = distinct(stream)
        watched = [lanes.watched[number] for number in found.values.tolist()]
        texts = {name for each in watched for name in each.texts}
        names = dict.fromkeys(name for each in watched for name in (*each.numbers, *each.texts) if name[:1] != "@")
        columns = {name: self._feature(name, as_text=name in texts) for name in names}
        yield from column_blocks(lanes.table, columns, watched, found.codes)

    @cached_property
    def slices(self) -> list[list[str]]:
        """The slices of the traffic each row is in."""
        found: list[list[str]] = [[]] * len(self)
        for model in np.unique(self.model_of).tolist():
            names = self.models[model].config.slices
            keys = keys_of(names)
            (rows,) = np.nonzero(self.model_of == model)
            given = rows if self.chosen is None else self.chosen[rows]
            columns = [self._sliced(name, given) for name in names]
            values = zip(*columns, strict=True) if columns else [()] * len(rows)
            for row, value in zip(rows.tolist(), values, strict=True):
                found[row] = keys[value]
        return found

    @cached_property
    def times_ms(self) -> IntArray:
        """Event times in epoch milliseconds."""
        return self._of(self.batch.columns["ts"].whole)

    @cached_property
    def versions(self) -> Coded:
        """The model's versions."""
        return self._coded("version", "_")

    @cached_property
    def origins(self) -> Coded:
        """live, shadow or backfill."""
        return self._coded("origin", "live")

    @cached_property
    def prediction_ids(self) -> list[str]:
        """What predictions and labels are joined by."""
        return self._values("prediction_id")

    @cached_property
    def predictions(self) -> list[Any]:
        """What the model said."""
        return self._values("prediction")

    @cached_property
    def scores(self) -> list[Any]:
        """A number, numbers by class, or None."""
        if not self.batch.scores:
            return self._values("score")
        classes = list(self.batch.scores)
        shares = zip(*(self._listed(column.values) for column in self.batch.scores.values()), strict=True)
        absent = self._of(self.batch.without["score"]).tolist()
        return [
            None if is_absent else {name: value for name, value in zip(classes, row, strict=True) if value is not None}
            for row, is_absent in zip(shares, absent, strict=True)
        ]

    @cached_property
    def errors(self) -> Coded:
        """Why there is no prediction."""
        return self._coded("error", None)

    @cached_property
    def rollouts(self) -> Coded:
        """The rollout a prediction was routed by."""
        return self._coded("rollout_id", None)

    @cached_property
    def buckets(self) -> list[int | None]:
        """The routing bucket."""
        return self._values("bucket")

    @cached_property
    def latencies_ms(self) -> list[float | None]:
        """How long each answer took."""
        return self._values("latency_ms")

    @cached_property
    def labels(self) -> list[Any]:
        """What turned out to be true."""
        return self._values("label")

    @cached_property
    def revisions(self) -> list[int]:
        """Which correction of a label it is."""
        return self._values("revision", 0)

    @cached_property
    def deleted(self) -> list[bool]:
        """Whether a label takes an earlier one back."""
        return self._values("deleted", False)

    @cached_property
    def prediction_times_ms(self) -> list[int | None]:
        """Of labels in context mode, the prediction's event times."""
        return self._values("prediction_ts")

    @cached_property
    def previous(self) -> list[Any]:
        """Of labels in context mode, the label that is corrected."""
        return self._values("previous")

    def _of(self, array: NDArray[Any]) -> NDArray[Any]:
        return array if self.chosen is None else array[self.chosen]

    def _listed(self, values: list[Any]) -> list[Any]:
        return values if self.chosen is None else [values[row] for row in self.chosen.tolist()]

    def _values(self, name: str, absent: Any = None) -> list[Any]:
        column = self.batch.columns.get(name)
        if column is None:
            return [absent] * len(self)
        values = self._listed(column.values)
        return values if absent is None else [absent if value is None else value for value in values]

    def _coded(self, name: str, absent: Any) -> Coded:
        column = self.batch.columns.get(name)
        if column is None:
            return Coded.constant(absent, len(self))
        coded = column.coded
        values = [absent if value is None else value for value in coded.values]
        if self.chosen is None and absent not in coded.values:
            return Coded(values, coded.codes)
        return compact(values, self._of(coded.codes))

    def _feature(self, name: str, *, as_text: bool) -> Values:
        column = self.batch.features.get(name)
        if column is None:
            return Coded.constant(None, len(self))
        if not (as_text or column.is_text):
            return self._of(column.floats)
        coded = column.coded
        return coded if self.chosen is None else compact(coded.values, coded.codes[self.chosen])

    def _sliced(self, name: str, rows: IntArray) -> list[Any]:
        column = self.batch.features.get(name)
        if column is None:
            return [None] * len(rows)
        return [column.values[row] for row in rows.tolist()]
