"""What the entries of a join record change in the counts: signed rows, the same however often an entry is read."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from monitors.slices import slice_feature
from streamer.join.bulk import Owner
from streamer.join.records import (
    Stored,
    StoredFeatures,
    StoredLabel,
    StoredPrediction,
    features_rank,
    rank,
)


class Contribution(NamedTuple):
    """One labelled prediction to add (`sign` +1) to or take (−1) from the counts.

    `labelled` is the change in the number of labelled predictions: ±1 where a prediction gains or loses its
    label, 0 for both rows of a correction. `score` is P(`label`) for multiclass.
    """

    model: str
    model_epoch: int
    version: str
    origin: str
    event_time_ms: int
    prediction: str
    score: float
    slices: list[str]
    rollout_id: str | None
    bucket: int
    label: str
    sign: int
    labelled: int


@dataclass
class JoinResult:
    """What one batch adds.

    `counted` answers each prediction entry given, in order: whether it counts (a repeated one does not).
    `parked` labels wait for their prediction; `duplicates` are repeated predictions and labels that repeat or
    are older than what is known; `dropped` found their record full.
    """

    counted: list[bool] = field(default_factory=list)
    contributions: list[Contribution] = field(default_factory=list)
    parked: int = 0
    duplicates: int = 0
    dropped: int = 0


class Record(msgspec.Struct, gc=False):
    """All that is known of one prediction_id: its entries in the order the store met them."""

    model: str
    model_epoch: int
    entries: Sequence[Stored]


class _Known(NamedTuple):
    """What others than the predictions of an id say of them.

    `label` is the effective one; `logged` has, for each feature, the effective log and the slice it puts them in.
    """

    label: StoredLabel | None = None
    logged: Mapping[str, tuple[StoredFeatures, str]] = {}

    @property
    def truth(self) -> str | None:
        return None if self.label is None or self.label.deleted else self.label.label

    def with_features(self, log: StoredFeatures) -> _Known:
        logged = dict(self.logged)
        for key in log.slices:
            held = logged.get(slice_feature(key))
            if held is None or features_rank(log) > features_rank(held[0]):
                logged[slice_feature(key)] = log, key
        return self._replace(logged=logged)

    def with_entry(self, entry: Stored) -> _Known:
        if isinstance(entry, StoredFeatures):
            return self.with_features(entry)
        if isinstance(entry, StoredLabel) and (self.label is None or rank(entry) > rank(self.label)):
            return self._replace(label=entry)
        return self

    def slices(self, prediction: StoredPrediction) -> list[str]:
        """Return the slices a prediction is in: its own features', and what is logged of those it does not carry."""
        if not self.logged:
            return prediction.slices
        own = set(map(slice_feature, prediction.slices))
        return [*prediction.slices, *(key for name, (_log, key) in sorted(self.logged.items()) if name not in own)]


def contributions(record: Record, new_positions: Collection[str]) -> JoinResult:
    """Return what the entries at `new_positions` contribute: what is known up to each − what was before it.

    A function of the record alone, which only ever grows at its end: an entry read again contributes what it
    contributed the first time, and over all entries the sum is the effective labels of all identities, each in the
    slices that are effective. What came after the horizon of all that was known before knows nothing of it, in
    whatever order both were read.

    Returns
    -------
    The result with `counted` left to the caller, who knows the order of its predictions.
    """
    result = JoinResult()
    contribute(result, record, new_positions)
    return result


def contribute(result: JoinResult, record: Record, new_positions: Collection[str]) -> None:
    """Add to a result what the entries at `new_positions` contribute."""
    if not _all_meet(record.entries):
        _contribute_apart(result, record, new_positions)
        return
    predictions: list[StoredPrediction] = []
    known = _Known()
    for entry in record.entries:
        new = entry.position in new_positions
        if isinstance(entry, StoredPrediction):
            predictions.append(entry)
            if new:
                _change(result.contributions, record, [entry], _Known(), known)
            continue
        before = known
        known = before.with_entry(entry)
        if not new:
            continue
        if isinstance(entry, StoredLabel):
            if before.label is not None and (known is before or _same(before.label, entry)):
                result.duplicates += 1
                continue
            result.parked += not predictions
        _change(result.contributions, record, predictions, before, known)


def _all_meet(entries: Sequence[Stored]) -> bool:
    """Tell whether all of a record's entries came while the earliest of them still waited: all but a few records."""
    latest = max((entry.came_min for entry in entries), default=-1)
    return all(latest < entry.until_min for entry in entries)


def _contribute_apart(result: JoinResult, record: Record, new_positions: Collection[str]) -> None:
    """Do what `contribute` does where some entries came after the horizon of others."""
    for end, entry in enumerate(record.entries, start=1):
        if entry.position not in new_positions:
            continue
        before, after = _known_by_prediction(record.entries[: end - 1]), _known_by_prediction(record.entries[:end])
        rows: list[Contribution] = []
        for position, (prediction, known) in after.items():
            _change(rows, record, [prediction], before.get(position, (prediction, _Known()))[1], known)
        result.contributions += rows
        if isinstance(entry, StoredLabel):
            (together,) = (part for part in _parted(record.entries[:end]) if entry in part)
            alone = not any(isinstance(other, StoredPrediction) for other in together)
            result.parked += alone
            result.duplicates += not rows and not alone


def _known_by_prediction(entries: Sequence[Stored]) -> dict[str, tuple[StoredPrediction, _Known]]:
    """Return position → each prediction, and what those say of it that it is together with, directly or by others."""
    found: dict[str, tuple[StoredPrediction, _Known]] = {}
    for together in _parted(entries):
        known = _Known()
        for entry in together:
            known = known.with_entry(entry)
        found.update((e.position, (e, known)) for e in together if isinstance(e, StoredPrediction))
    return found


def _parted(entries: Sequence[Stored]) -> list[list[Stored]]:
    """Part entries where record time passed the horizon of all that had come before."""
    parts: list[list[Stored]] = []
    until_min = 0
    for entry in sorted(entries, key=lambda entry: entry.came_min):
        if not parts or entry.came_min >= until_min:
            parts.append([])
        parts[-1].append(entry)
        until_min = max(until_min, entry.until_min)
    return parts


def _same(first: StoredLabel, second: StoredLabel) -> bool:
    return first.deleted == second.deleted and (first.deleted or first.label == second.label)


def _change(
    rows: list[Contribution],
    record: Record,
    predictions: Sequence[StoredPrediction],
    before: _Known,
    after: _Known,
) -> None:
    """Append the rows that take the predictions from what was known before to what is after."""
    old, new = before.truth, after.truth
    for prediction in predictions:
        was_in, is_in = before.slices(prediction), after.slices(prediction)
        if old == new and was_in == is_in:
            continue
        if old is not None:
            rows.append(labelled_row(record, prediction, was_in, old, -1, -1 if new is None else 0))
        if new is not None:
            rows.append(labelled_row(record, prediction, is_in, new, 1, 1 if old is None else 0))


def labelled_row(
    record: Record | Owner, prediction: StoredPrediction, slices: list[str], label: str, sign: int, labelled: int
) -> Contribution:
    """Return the row of a prediction with a label, in these slices."""
    score = prediction.score
    if prediction.scores is not None:
        score = prediction.scores.get(label, math.nan)
    return Contribution(
        record.model,
        record.model_epoch,
        prediction.version,
        prediction.origin,
        prediction.event_time_ms,
        prediction.prediction,
        math.nan if score is None else score,
        slices,
        prediction.rollout_id,
        prediction.bucket,
        label,
        sign,
        labelled,
    )
