"""The truth, counted again from the log by other and simpler means, and held against what the workers have."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from confluent_kafka import Message

from streamer.audit.comparable import Spans, same_length
from streamer.audit.tally import Place, Tally
from streamer.catalog import Catalog, Model
from streamer.decode import Event, Kind, decode
from streamer.decoding.singles import Single, singles
from streamer.evaluation.evaluate_state import CountKey, Ends, PaneCounts, read_committed
from streamer.events import FeatureLog, Label
from streamer.kafka.partitioning import partition_of
from streamer.kafka.reader import newest_by_key, read_to_end
from streamer.settings import Settings

KINDS: tuple[Kind, ...] = ("predictions", "features", "labels")
MAX_SHOWN = 100
# Sums of floats depend on their order: this share of a vector's largest entry is no difference.
TOLERANCE = 1e-9


@dataclass
class Recount:
    """What the log says.

    Attributes
    ----------
    panes : counts by key.
    floors : model → the event time in ms below which workers may have forgotten panes.
    events, labels : how many were counted; `refused` how many could not be.
    whole : whether the raw topics still hold their first messages; if not, workers rightly have more.
    """

    panes: PaneCounts = field(default_factory=dict)
    floors: dict[str, int] = field(default_factory=dict)
    events: int = 0
    labels: int = 0
    refused: int = 0
    whole: bool = True

    def is_kept(self, key: CountKey) -> bool:
        """Tell whether workers must still have what began then."""
        return key.pane_start_ms >= self.floors.get(key.model, 0)


class Difference(msgspec.Struct, kw_only=True, frozen=True):
    """A count that is not what it should be; `wanted` is the log's, `got` the worker's, both as far as they differ.

    `pane_ms` is how long the pane is; where panes of a former `time.pane` are compared, the span (see `Spans`).
    """

    model: str
    version: str
    origin: str
    pane_ms: int
    pane_start_ms: int
    kind: str
    name: str
    wanted: list[float]
    got: list[float]


class Report(msgspec.Struct, kw_only=True, frozen=True):
    """The outcome of `run`.

    Attributes
    ----------
    compared : counts, of which `spanned` are of spans that hold panes of a former `time.pane`, too.
    left_out : counts of panes in such spans that begin before what workers keep.
    differences : the first hundred of `n_differences`.
    """

    equal: bool
    compared: int
    spanned: int
    left_out: int
    events: int
    labels: int
    refused: int
    log_is_whole: bool
    n_differences: int
    differences: list[Difference]


def run(settings: Settings) -> Report:
    """Recount the log up to where the workers' committed counts reach, and compare; workers may be running.

    Raises
    ------
    ReadError, StepFailed
        A topic is missing or cannot be read to its end.
    """
    catalog = read_catalog(settings)
    committed = read_committed(settings, catalog)
    return report(recount(settings, catalog, committed.ends), committed.panes)


def report(counted: Recount, worker: PaneCounts) -> Report:
    """Return the outcome of holding a worker's counts against the log's."""
    keys = counted.panes.keys() | worker.keys()
    spans = Spans(keys)
    differences = compare(counted, worker, spans)
    compared = {key for key in keys if counted.is_kept(spans.key(key))}
    return Report(
        equal=not differences,
        compared=len({spans.key(key) for key in compared}),
        spanned=len({spans.key(key) for key in compared if key in spans}),
        left_out=sum(counted.is_kept(key) for key in keys - compared),
        events=counted.events,
        labels=counted.labels,
        refused=counted.refused,
        log_is_whole=counted.whole,
        n_differences=len(differences),
        differences=differences[:MAX_SHOWN],
    )


def read_catalog(settings: Settings) -> Catalog:
    """Return the models and references as they stand in their topics now."""
    catalog = Catalog()
    for name, value in newest_by_key(settings, settings.topic("models")).items():
        catalog.put_model(name, value)
    for key, value in newest_by_key(settings, settings.topic("references")).items():
        catalog.put_reference(key, value)
    return catalog


def recount(settings: Settings, catalog: Catalog, ends: Mapping[int, Ends] | None = None) -> Recount:
    """Count every event of the raw topics in memory, some kilobyte an event.

    Parameters
    ----------
    catalog : the models and references to count by. Events that a worker read before their reference
        was published are binned here, not there.
    ends : for each of evaluate's partitions, (topic, partition) → the next offset; None for all there is.

    Notes
    -----
    Events of a model that was not configured when they were read are known by their dead letters and left out.
    """
    counted = Recount()
    unknown = before_their_model(settings)
    read: dict[Kind, list[Place]] = {kind: [] for kind in KINDS}
    for kind in KINDS:
        topic = settings.topic(kind)
        first: dict[int, int] = {}
        for message in read_to_end(settings, topic):
            partition, offset = _numbers(message)
            first.setdefault(partition, offset)
            for single in singles(_bytes(message.value()), kind):
                place = _accept(settings, catalog, kind, message, single)
                if place is None or (topic, partition, offset, single.row) in unknown:
                    counted.refused += 1
                elif _is_within(settings, ends, topic, place):
                    read[kind].append(place)
        counted.whole &= not any(first.values())
        read[kind].sort(key=lambda place: place[:4])
    tally = Tally(catalog)
    tally.add_predictions(read["predictions"])
    tally.add_features(read["features"])
    tally.add_labels(read["labels"])
    counted.panes, counted.events, counted.labels = tally.panes(), tally.events, tally.labels
    for model in catalog.models():
        counted.floors[model.name] = tally.newest[model.name] - int(model.config.time.retention)
    return counted


def _is_within(settings: Settings, ends: Mapping[int, Ends] | None, topic: str, place: Place) -> bool:
    if ends is None:
        return True
    reached = ends.get(partition_of(place.event.model, settings.internal_partitions), {})
    return place.offset < reached.get((topic, place.partition), 0)


def before_their_model(settings: Settings) -> set[tuple[str, int, int, int]]:
    """Return (topic, partition, offset, row) of events that came before their model was configured: never counted."""
    found = set()
    for message in read_to_end(settings, settings.topic("dead-letters")):
        headers: dict[str, Any] = dict(message.headers() or [])
        if headers.get("field") == b"model":
            topic, partition, offset = (headers[f"source-{name}"] for name in ("topic", "partition", "offset"))
            found.add((topic.decode(), int(partition), int(offset), int(headers.get("row") or 0)))
    return found


def _numbers(message: Message) -> tuple[int, int]:
    partition, offset = message.partition(), message.offset()
    if partition is None or offset is None:
        raise ValueError(f"{message.topic()}: got a message without a place, wanted a partition and an offset")
    return partition, offset


def _bytes(value: str | bytes | None) -> bytes:
    return value.encode() if isinstance(value, str) else value or b""


def _accept(settings: Settings, catalog: Catalog, kind: Kind, message: Message, single: Single) -> Place | None:
    """Return an event that counts; None for what belongs among the dead letters."""
    record_ms = message.timestamp()[1]
    try:
        event = decode(single.value, kind)
    except (msgspec.DecodeError, ValueError):
        return None
    model = catalog.model(event.model)
    if model is None or not _is_usable(model, event):
        return None
    said_ms = event.prediction_ts if isinstance(event, Label) else None
    if max(event.ts, said_ms or 0) > record_ms + settings.worker.max_future_ms:
        return None
    return Place(record_ms, *_numbers(message), single.row, event)


def _is_usable(model: Model, event: Event) -> bool:
    """Tell whether performance can be counted from it: numbers for regression, everything needed in context mode."""
    if isinstance(event, FeatureLog):
        return True
    in_context = isinstance(event, Label) and model.config.labels.mode == "context"
    folded: list[Any] = [event.label if isinstance(event, Label) else event.prediction]
    if isinstance(event, Label) and in_context:
        if event.version is None or event.prediction is None or event.prediction_ts is None:
            return False
        folded += [event.prediction, event.previous]
    return model.config.task != "regression" or all(value is None or _is_number(value) for value in folded)


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool | str) and abs(value) <= sys.float_info.max


def compare(counted: Recount, worker: PaneCounts, spans: Spans | None = None) -> list[Difference]:
    """Return where a worker's counts are not the log's; what one side does not have is zero.

    The log is counted in panes of the model's present width; workers keep those of a former one as they were. Where
    both are, what all of a span's hold together is compared. Panes and spans that begin below their model's floor
    are passed over: workers forget them.
    """
    if spans is None:
        spans = Spans(counted.panes.keys() | worker.keys())
    truth, counts = spans.add_up(counted.panes), spans.add_up(worker)
    differences = []
    for key in sorted(truth.keys() | counts.keys()):
        if not counted.is_kept(key):
            continue
        wanted, got = same_length(truth.get(key), counts.get(key))
        slack = TOLERANCE * max(1.0, float(np.abs(wanted).max())) if wanted.dtype.kind == "f" else 0
        if (np.abs(wanted - got) > slack).any():
            differences.append(
                Difference(**key._asdict(), wanted=wanted.astype(float).tolist(), got=got.astype(float).tolist())
            )
    return differences
