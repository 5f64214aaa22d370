"""Folding decoded events into counts by pane: predictions and feature logs into cells, labels into performance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitors.canary import fold_exposures, fold_outcomes
from monitors.slices import group
from streamer.catalog import Model
from streamer.columns import PREDICTION, SCORE, Values, count_features, score_column
from streamer.events import Origin
from streamer.increments import Gathering, Slot
from streamer.labels import Contribution
from streamer.rows import Places, Rows

IntArray = NDArray[np.int64]
UNVERSIONED = "_"
# Panes of one read lie close together; farther apart, they are looked up by sorting.
_CLOSE = 100_000


def is_sampled(prediction_id: str, share: float) -> bool:
    """Tell whether a prediction is among the `share` whose labels are joined; the same answer everywhere."""
    if share >= 1.0:
        return True
    digest = blake2b(prediction_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


class Panes(NamedTuple):
    """The panes a group of rows falls into: their starts, and each row's index among them."""

    starts: IntArray
    of_row: IntArray

    @classmethod
    def of(cls, times_ms: IntArray, pane_ms: int) -> Panes:
        """Find the panes of these event times."""
        numbers = times_ms // pane_ms
        first = int(numbers.min())
        numbers -= first
        span = int(numbers.max()) + 1
        if span > _CLOSE:
            present, index = np.unique(numbers, return_inverse=True)
            return cls((present + first) * pane_ms, index.astype(np.int64))
        (present,) = np.nonzero(np.bincount(numbers))
        index = np.zeros(span, dtype=np.int64)
        index[present] = np.arange(len(present))
        return cls((present + first) * pane_ms, index[numbers])


@dataclass(frozen=True)
class Folder:
    """Folds groups of events into the gatherings that `gather` hands out."""

    gather: Callable[[Slot], Gathering]
    reference: Callable[[str, str], Any]

    def predictions(self, rows: Rows) -> None:
        """Count predictions by version and origin."""
        for version, origin, alike in _streams(rows):
            self._predictions(version, origin, alike)

    def _predictions(self, version: str, origin: Origin, rows: Rows) -> None:
        model = rows.model
        columns = self._columns(rows, "predictions")
        if model.config.task == "multiclass":
            columns[PREDICTION] = rows.predictions
        else:
            columns[SCORE] = score_column(rows.scores, rows.predictions, model.schema.positive)
        panes, gathered = self._count(version, origin, "predictions", rows, columns)
        sampled = rows.errors.equal(None)
        failed = ~sampled
        share = model.config.labels.share
        if share < 1.0:
            sampled &= np.array([is_sampled(id_, share) for id_ in rows.prediction_ids])
        n_failed = np.bincount(panes.of_row[failed], minlength=len(gathered)).tolist()
        n_sampled = np.bincount(panes.of_row[sampled], minlength=len(gathered)).tolist()
        for pane, gathering in enumerate(gathered):
            gathering.errors += n_failed[pane]
            gathering.sampled += n_sampled[pane]
        self._exposures(rows, failed, panes, gathered)

    def features(self, rows: Rows) -> None:
        """Count feature logs by version."""
        for version, origin, alike in _streams(rows):
            self._count(version, origin, "features", alike, self._columns(alike, "features"))

    def label_positions(self, rows: Rows) -> None:
        """Remember which offsets hold labels of which event time: a training window is read back by them."""
        self._count(UNVERSIONED, "live", "labels", rows, {})

    def contributions(self, model: Model, contributions: Iterable[Contribution]) -> None:
        """Add what labels change in the performance of the predictions they belong to; counts are signed."""
        for (version, origin), rows in _grouped(contributions, _version_and_origin).items():
            panes = Panes.of(np.array([row.event_time_ms for row in rows], dtype=np.int64), model.config.time.pane)
            gathered = [self._slot(model, version, origin, "labels", int(start), "") for start in panes.starts]
            for row, pane in zip(rows, panes.of_row, strict=True):
                gathered[pane].labelled += row.labelled
            self._performance(model, rows, panes, gathered)
            self._outcomes(model, rows, panes, gathered)

    def _performance(self, model: Model, rows: list[Contribution], panes: Panes, gathered: list[Gathering]) -> None:
        slices, expanded, keys = group([row.slices for row in rows])
        picked = [rows[row] for row in expanded]
        vectors = model.schema.fold(
            labels=[row.label for row in picked],
            predictions=[row.prediction for row in picked],
            scores=np.array([row.score for row in picked], dtype=np.float64),
            signs=np.array([row.sign for row in picked], dtype=np.int64),
            groups=panes.of_row[expanded] * len(keys) + slices,
            n_groups=len(gathered) * len(keys),
        )
        for position, vector in enumerate(vectors):
            if vector.any():
                pane, key = divmod(position, len(keys))
                gathered[pane].add_performance(keys[key], vector)

    def _outcomes(self, model: Model, rows: list[Contribution], panes: Panes, gathered: list[Gathering]) -> None:
        routed = [position for position, row in enumerate(rows) if row.rollout_id is not None and row.bucket >= 0]
        for (rollout_id, pane), chosen in _by_index(routed, lambda at: (rows[at].rollout_id, int(panes.of_row[at]))):
            picked = [rows[at] for at in chosen]
            outcomes = model.schema.outcomes(
                [row.label for row in picked],
                [row.prediction for row in picked],
                np.array([row.score for row in picked], dtype=np.float64),
            )
            buckets = np.array([row.bucket for row in picked], dtype=np.int64)
            signs = np.array([row.sign for row in picked], dtype=np.int64)
            gathered[pane].add_rows("outcomes", rollout_id, fold_outcomes(buckets, outcomes, signs))

    def _exposures(self, rows: Rows, failed: NDArray[np.bool_], panes: Panes, gathered: list[Gathering]) -> None:
        rollouts = rows.rollouts
        if rollouts.values == [None]:
            return
        given, latencies_ms = rows.buckets, rows.latencies_ms
        routed = [at for at in np.flatnonzero(~rollouts.equal(None)).tolist() if given[at] is not None]
        for (rollout, pane), chosen in _by_index(routed, lambda at: (rollouts.codes[at], int(panes.of_row[at]))):
            buckets = np.array([given[at] for at in chosen], dtype=np.int64)
            latencies = np.array([latencies_ms[at] for at in chosen], dtype=np.float64)
            folded = fold_exposures(buckets, failed[chosen], latencies)
            gathered[pane].add_rows("exposures", rollouts.values[rollout], folded)

    @staticmethod
    def _columns(rows: Rows, source: str) -> dict[str, Values]:
        """Return the features that are watched in this source, as columns."""
        features = rows.model.config.features.items()
        return {**rows.features([name for name, feature in features if feature.source == source])}

    def _count(
        self, version: str, origin: Origin, source: str, rows: Rows, columns: Mapping[str, Values]
    ) -> tuple[Panes, list[Gathering]]:
        """Count columns by pane, with their events and where in the log they stand."""
        model = rows.model
        profile = self.reference(model.name, version)
        panes = Panes.of(rows.times_ms, int(model.config.time.pane))
        fingerprint = "" if profile is None else profile.fingerprint
        gathered = [self._slot(model, version, origin, source, int(start), fingerprint) for start in panes.starts]
        counts = None if profile is None else count_features(profile, columns, panes.of_row, len(gathered))
        events = np.bincount(panes.of_row, minlength=len(gathered)).tolist()
        for pane, gathering in enumerate(gathered):
            gathering.events += events[pane]
            if counts is not None:
                gathering.cells.add(counts[pane])
        for index, place in enumerate(rows.places.sources):
            for pane, (first, last) in _ranges(rows.places, index, panes).items():
                gathered[pane].add_offsets(place, first, last)
        return panes, gathered

    def _slot(
        self, model: Model, version: str, origin: Origin, source: str, start_ms: int, fingerprint: str
    ) -> Gathering:
        pane_ms = int(model.config.time.pane)
        return self.gather(Slot(model.name, model.epoch, version, origin, source, start_ms, pane_ms, fingerprint))


def _streams(rows: Rows) -> Iterable[tuple[str, Origin, Rows]]:
    """Give the rows of each version and origin."""
    versions, origins = rows.versions, rows.origins
    if len(versions.values) == len(origins.values) == 1:
        yield versions.values[0], origins.values[0], rows
        return
    keys = versions.codes * len(origins.values) + origins.codes
    for key in dict.fromkeys(keys.tolist()):
        version, origin = divmod(key, len(origins.values))
        yield versions.values[version], origins.values[origin], rows.take(np.flatnonzero(keys == key))


def _ranges(places: Places, source: int, panes: Panes) -> dict[int, tuple[int, int]]:
    """Return the first and last offset of one partition in each pane it has rows in."""
    here = slice(None) if len(places.sources) == 1 else places.source == source
    of_row, offsets = panes.of_row[here], places.offsets[here]
    # Offsets rise, and of several values for one place the last one stays.
    first = np.full(len(panes.starts), -1, dtype=np.int64)
    last = first.copy()
    last[of_row] = offsets
    first[of_row[::-1]] = offsets[::-1]
    return {pane: (int(first[pane]), int(last[pane])) for pane in np.flatnonzero(last >= 0).tolist()}


def _version_and_origin(row: Any) -> tuple[str, Origin]:
    return row.version, row.origin


def _grouped(items: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    grouped: dict[Any, list[Any]] = defaultdict(list)
    for item in items:
        grouped[key(item)].append(item)
    return grouped


def _by_index(positions: Iterable[int], key: Callable[[int], Any]) -> Iterable[tuple[Any, list[int]]]:
    return _grouped(positions, key).items()
