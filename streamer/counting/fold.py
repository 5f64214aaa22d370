"""Folding rows into counts by pane, all models at once: predictions and feature logs by cells, labels by outcome."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from monitors.arms import fold_outcomes
from monitors.cells import NO_CELL, UNWATCHED
from monitors.performance import PerformanceSchema
from monitors.profile import ReferenceProfile
from monitors.slices import bounded, group, kept_slices
from streamer.catalog import Catalog, Model
from streamer.counting.columns import PREDICTION, SCORE, Block, Coded, IntArray, distinct, score_column
from streamer.counting.increments import Binned, Routed, Slots, count, marks, rollout_groups
from streamer.counting.lanes import number_cells
from streamer.counting.rows import Rows, Source
from streamer.counting.streams import Stream, Streams
from streamer.events import Increment, ModelMark, Origin
from streamer.join.changes import Contribution

UNVERSIONED = "_"
# Of so many versions' slices, which are kept apart is remembered.
_MAX_KEPT = 10_000


def is_sampled(prediction_id: str, share: float) -> bool:
    """Tell whether a prediction is among the `share` whose labels are joined; the same answer everywhere."""
    if share >= 1.0:
        return True
    digest = blake2b(prediction_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def sampled_rows(rows: Rows) -> NDArray[np.bool_] | None:
    """Return which rows `is_sampled` takes, by their prediction and their model's share; None for all of them."""
    shares = rows.models.shares[rows.model_of]
    if (shares >= 1.0).all():
        return None
    return np.array(
        [is_sampled(*each) for each in zip(rows.prediction_ids, shares.tolist(), strict=True)], dtype=np.bool_
    )


class Counted(NamedTuple):
    """What a flush has counted, and how far event time has come in it.

    Attributes
    ----------
    sources : the partitions that increments and marks name by their index.
    """

    increments: list[Increment]
    marks: list[ModelMark]
    sources: list[Source]


class Folder:
    """Gathers rows of any models, and says at the end of a flush what they add to which pane.

    Parameters
    ----------
    catalog : of the models and their references; what labels change in a model that is in it no more is let go.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._streams = Streams(catalog.reference, lambda: catalog.references_revision)
        self._kept: dict[tuple[str, str], tuple[Model, ReferenceProfile | None, frozenset[str]]] = {}
        self.clear()

    def clear(self) -> None:
        """Forget what was gathered since the last flush; references are looked at anew."""
        self._streams.next_flush()
        self._binned: dict[str, list[Binned]] = {"predictions": [], "features": [], "labels": []}
        self._seen: list[Binned] = []
        self._contributions: list[Contribution] = []

    def predictions(self, rows: Rows) -> None:
        """Count predictions by version and origin."""
        self.keep(self.bin_predictions(rows))

    def keep(self, binned: Binned) -> None:
        """Count predictions that have been binned."""
        self._binned["predictions"].append(binned)

    def bin_predictions(self, rows: Rows) -> Binned:
        """Find the cells of predictions, and leave it open which of them count: time they move on all of them."""
        binned = self._bin(rows, "predictions")
        binned.blocks.append(self._output(rows, binned))
        binned.sampled = rows.errors.equal(None)
        binned.failed = ~binned.sampled
        if (sampled := sampled_rows(rows)) is not None:
            binned.sampled = binned.sampled & sampled
        if rows.rollouts.values != [None]:
            buckets = np.array([-1 if bucket is None else bucket for bucket in rows.buckets], dtype=np.int64)
            binned.routed = Routed(rows.rollouts, buckets, np.array(rows.latencies_ms, dtype=np.float64))
        self._seen.append(binned)
        return binned

    def features(self, rows: Rows) -> None:
        """Count feature logs by version."""
        binned = self._bin(rows, "features")
        self._seen.append(binned)
        self._binned["features"].append(binned)

    def label_positions(self, rows: Rows) -> None:
        """Remember which offsets hold labels of which event time: a training window is read back by them."""
        stream = self._streams.of_models(rows.models, rows.model_of, UNVERSIONED, "live", "labels")
        self._binned["labels"].append(self._located(rows, stream, []))

    def contributions(self, contributions: Iterable[Contribution]) -> None:
        """Add what labels change in the performance of the predictions they belong to; counts are signed."""
        self._contributions += contributions

    def counted(self) -> Counted:
        """Return what was gathered, and begin anew."""
        slots = Slots(self._streams.heads)
        for pieces in self._binned.values():
            count(slots, pieces)
        self._count_contributions(slots)
        found = marks(self._streams.heads, self._seen, slots.sources)
        sources = list(slots.sources)
        self.clear()
        return Counted(list(slots.made.values()), found, sources)

    def stream(self, number: int) -> Stream:
        """Return what a number in a `Binned` stands for, until the flush is over."""
        return self._streams.known[number]

    def _bin(self, rows: Rows, source: str) -> Binned:
        stream = self._streams.of(rows, source)
        return self._located(rows, stream, list(rows.blocks(self._streams.lanes, stream)))

    def _located(self, rows: Rows, stream: IntArray, blocks: list[Block]) -> Binned:
        nowhere = np.zeros(len(rows), dtype=np.bool_)
        panes = self._panes(stream, rows.times_ms)
        return Binned(stream, panes, rows.times_ms, rows.places, blocks, failed=nowhere, sampled=nowhere)

    def _panes(self, stream: IntArray, times_ms: IntArray) -> IntArray:
        """Return the number of each row's pane, counted from the epoch in its stream's own panes."""
        panes: IntArray = times_ms // self._streams.facts.pane_ms[stream]
        return panes

    def _output(self, rows: Rows, binned: Binned) -> Block:
        """Find the cells of what the models said."""
        facts = self._streams.facts
        classes, ids = facts.multiclass[binned.stream], facts.output[binned.stream]
        if not classes.any() and (ids != UNWATCHED).all():
            return Block(number_cells(self._streams.table, self._scores(rows), ids), 1)
        cells = np.full(len(rows), NO_CELL, dtype=np.int32)
        for name, of in ((PREDICTION, classes), (SCORE, ~classes)):
            if not of.any():
                continue
            values = rows.predictions if name == PREDICTION else self._scores(rows)
            (here,) = np.nonzero(of & (ids != UNWATCHED))
            cells[here] = number_cells(self._streams.table, [values[row] for row in here.tolist()], ids[here])
            (here,) = np.nonzero(of & (ids == UNWATCHED))
            for row, number in zip(here.tolist(), binned.stream[here].tolist(), strict=True):
                texts = self._streams.known[number].watched.texts.get(name)
                if texts is not None:
                    cells[row] = texts[values[row]]
        return Block(cells, 1)

    @staticmethod
    def _scores(rows: Rows) -> Sequence[object]:
        if set(map(type, rows.scores)) <= {float}:
            return rows.scores
        positives = [rows.models.positives[number] for number in rows.model_of.tolist()]
        return score_column(rows.scores, rows.predictions, positives)

    def _count_contributions(self, slots: Slots) -> None:
        """Count what labels change: models of one task fold into one array of vectors."""
        models = {name: self._catalog.model(name) for name in {row.model for row in self._contributions}}
        by_schema: dict[PerformanceSchema, list[Contribution]] = {}
        for row in self._contributions:
            model = models[row.model]
            if model is not None:
                by_schema.setdefault(model.schema, []).append(row)
        numbers: dict[tuple[str, str, str], int] = {}
        for schema, rows in by_schema.items():
            keys = Coded.of([(row.model, row.version, row.origin) for row in rows])
            for key in keys.values:
                name, version, origin = key
                model = cast("Model", models[name])
                numbers[key] = self._streams.number(model, version, cast("Origin", origin), "labels")
            stream = np.array([numbers[key] for key in keys.values], dtype=np.int64)[keys.codes]
            panes = self._panes(stream, np.array([row.event_time_ms for row in rows], dtype=np.int64))
            slot, increments, _streams = slots.groups(stream, panes)
            kept = [self._kept_slices(cast("Model", models[made.model]), made.version) for made in increments]
            _count_labels(schema, rows, slot, increments, kept)

    def _kept_slices(self, model: Model, version: str) -> frozenset[str]:
        """Return the slices of a version that are kept apart."""
        reference = self._catalog.reference(model.name, version)
        held = self._kept.get((model.name, version))
        if held is None or held[0] is not model or held[1] is not reference:
            if len(self._kept) >= _MAX_KEPT:
                self._kept = {}
            kept = kept_slices(model.config.slices, reference, model.config.slice_values)
            held = self._kept[model.name, version] = (model, reference, kept)
        return held[2]


def _count_labels(
    schema: PerformanceSchema,
    rows: list[Contribution],
    slot: IntArray,
    increments: Sequence[Increment],
    kept: Sequence[frozenset[str]],
) -> None:
    """Count labelled predictions of one task: the whole and every slice of each slot, and rollouts by bucket.

    `kept` are the slices that are kept apart, of each slot.
    """
    labelled = np.bincount(slot, weights=[row.labelled for row in rows], minlength=len(increments))
    for increment, change in zip(increments, labelled.astype(np.int64).tolist(), strict=True):
        increment.labelled += change
    labels, predictions = [row.label for row in rows], [row.prediction for row in rows]
    scores = np.array([row.score for row in rows], dtype=np.float64)
    signs = np.array([row.sign for row in rows], dtype=np.int64)
    slices, expanded, keys = group([row.slices for row in rows])
    pairs = distinct(slot[expanded] * len(keys) + slices)
    named = [divmod(pair, len(keys)) for pair in pairs.values.tolist()]
    found = Coded.of([(at, bounded(keys[name], kept[at])) for at, name in named])
    picked = expanded.tolist()
    vectors = schema.fold(
        labels=[labels[row] for row in picked],
        predictions=[predictions[row] for row in picked],
        scores=scores[expanded],
        signs=signs[expanded],
        groups=found.codes[pairs.codes],
        n_groups=len(found.values),
    )
    for (at, key), vector, changed in zip(found.values, vectors, np.any(vectors, axis=1), strict=True):
        if changed:
            increments[at].performance[key] = vector.tobytes()
    rollouts = Coded.of([row.rollout_id for row in rows])
    if rollouts.values != [None]:
        buckets = np.array([row.bucket for row in rows], dtype=np.int64)
        outcomes = schema.outcomes(labels, predictions, scores)
        for chosen, at, rollout in rollout_groups(slot, rollouts, buckets):
            folded = fold_outcomes(buckets[chosen], outcomes[chosen], signs[chosen])
            increments[at].outcomes[rollout] = folded.tobytes()
