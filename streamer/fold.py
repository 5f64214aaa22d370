"""Folding decoded events into counts by pane: predictions and feature logs into cells, labels into performance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitors.canary import fold_exposures, fold_outcomes
from monitors.slices import group
from streamer.catalog import Model
from streamer.columns import PREDICTION, SCORE, count_features, feature_column, score_column
from streamer.events import FeatureLog, Origin, Prediction
from streamer.increments import Gathering, Slot
from streamer.labels import Contribution

IntArray = NDArray[np.int64]
Source = tuple[str, str, int]
UNVERSIONED = "_"


def is_sampled(prediction_id: str, share: float) -> bool:
    """Tell whether a prediction is among the `share` whose labels are joined; the same answer everywhere."""
    if share >= 1.0:
        return True
    digest = blake2b(prediction_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


class Located(NamedTuple):
    """Events of one partition that have passed every check, each with its offset."""

    source: Source
    events: list[Any]
    offsets: list[int]
    record_times_ms: list[int]


class Panes(NamedTuple):
    """The panes a group of rows falls into: their starts, and each row's index among them."""

    starts: IntArray
    of_row: IntArray

    @classmethod
    def of(cls, times_ms: IntArray, pane_ms: int) -> Panes:
        """Find the panes of these event times."""
        starts, index = np.unique(times_ms - times_ms % pane_ms, return_inverse=True)
        return cls(starts, index.astype(np.int64))


@dataclass(frozen=True)
class Folder:
    """Folds groups of events into the gatherings that `gather` hands out."""

    gather: Callable[[Slot], Gathering]
    reference: Callable[[str, str], Any]

    def predictions(self, model: Model, located: Located, rows: Sequence[int]) -> None:
        """Count the predictions at `rows`, all of this model, by version and origin."""
        for (version, origin), chosen in _by(located.events, rows, _version_and_origin).items():
            events: list[Prediction] = [located.events[row] for row in chosen]
            columns: dict[str, Sequence[Any]] = {
                name: feature_column(events, name)
                for name, feature in model.config.features.items()
                if feature.source == "predictions"
            }
            if model.config.task == "multiclass":
                columns[PREDICTION] = [event.prediction for event in events]
            else:
                columns[SCORE] = score_column(events, model.schema.positive)
            panes, gathered = self._count(model, version, origin, "predictions", located, chosen, events, columns)
            failed = np.array([event.error is not None for event in events])
            share = model.config.labels.share
            sampled = np.array([event.error is None and is_sampled(event.prediction_id, share) for event in events])
            for pane, gathering in enumerate(gathered):
                here = panes.of_row == pane
                gathering.errors += int(failed[here].sum())
                gathering.sampled += int(sampled[here].sum())
            self._exposures(events, failed, panes, gathered)

    def features(self, model: Model, located: Located, rows: Sequence[int]) -> None:
        """Count the feature logs at `rows`, all of this model, by version."""
        for version, chosen in _by(located.events, rows, lambda event: event.version).items():
            events: list[FeatureLog] = [located.events[row] for row in chosen]
            columns = {
                name: feature_column(events, name)
                for name, feature in model.config.features.items()
                if feature.source == "features"
            }
            self._count(model, version, "live", "features", located, chosen, events, columns)

    def label_positions(self, model: Model, located: Located, rows: Sequence[int]) -> None:
        """Remember which offsets hold labels of which event time: a training window is read back by them."""
        self._count(model, UNVERSIONED, "live", "labels", located, rows, [located.events[row] for row in rows], {})

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

    def _exposures(
        self, events: list[Prediction], failed: NDArray[np.bool_], panes: Panes, gathered: list[Gathering]
    ) -> None:
        routed = [at for at, event in enumerate(events) if event.rollout_id is not None and event.bucket is not None]
        for (rollout_id, pane), chosen in _by_index(routed, lambda at: (events[at].rollout_id, int(panes.of_row[at]))):
            buckets = np.array([events[at].bucket for at in chosen], dtype=np.int64)
            latencies = np.array([events[at].latency_ms for at in chosen], dtype=np.float64)
            gathered[pane].add_rows("exposures", rollout_id, fold_exposures(buckets, failed[chosen], latencies))

    def _count(
        self,
        model: Model,
        version: str,
        origin: Origin,
        source: str,
        located: Located,
        chosen: Sequence[int],
        events: Sequence[Any],
        columns: Mapping[str, Sequence[Any]],
    ) -> tuple[Panes, list[Gathering]]:
        """Count a group's columns by pane, with its events and where in the log they stand."""
        profile = self.reference(model.name, version)
        panes = Panes.of(np.array([event.ts for event in events], dtype=np.int64), model.config.time.pane)
        fingerprint = "" if profile is None else profile.fingerprint
        gathered = [self._slot(model, version, origin, source, int(start), fingerprint) for start in panes.starts]
        counts = {} if profile is None else count_features(profile, columns, panes.of_row, len(gathered))
        offsets = np.array([located.offsets[row] for row in chosen], dtype=np.int64)
        for pane, gathering in enumerate(gathered):
            here = panes.of_row == pane
            gathering.events += int(here.sum())
            gathering.add_offsets(located.source, int(offsets[here].min()), int(offsets[here].max()))
            for name, by_pane in counts.items():
                gathering.add_cells(name, by_pane[pane])
        return panes, gathered

    def _slot(
        self, model: Model, version: str, origin: Origin, source: str, start_ms: int, fingerprint: str
    ) -> Gathering:
        pane_ms = int(model.config.time.pane)
        return self.gather(Slot(model.name, model.epoch, version, origin, source, start_ms, pane_ms, fingerprint))


def _version_and_origin(row: Any) -> tuple[str, Origin]:
    return row.version, row.origin


def _by(events: Sequence[Any], rows: Iterable[int], key: Callable[[Any], Any]) -> dict[Any, list[int]]:
    grouped: dict[Any, list[int]] = defaultdict(list)
    for row in rows:
        grouped[key(events[row])].append(row)
    return grouped


def _grouped(items: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    grouped: dict[Any, list[Any]] = defaultdict(list)
    for item in items:
        grouped[key(item)].append(item)
    return grouped


def _by_index(positions: Iterable[int], key: Callable[[int], Any]) -> Iterable[tuple[Any, list[int]]]:
    return _grouped(positions, key).items()
