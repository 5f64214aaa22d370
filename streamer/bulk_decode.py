"""Many raw messages at once: what is sound goes through C alone, and the rest is looked at one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from operator import or_
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamer.catalog import Catalog
from streamer.decode import (
    MAX_EVENT_BYTES,
    Kind,
    UncheckedLabel,
    decode,
    explain_future,
    explain_invalid,
    explain_unknown,
    is_name,
)
from streamer.events import Label, Prediction
from streamer.fleet import Fleet
from streamer.labelling import unusable
from streamer.layouts import MAX_LEARNED, MAX_MODELS, Layout, is_learnable, layout_of

Fault = tuple[str, str]
Decode = Callable[[bytes], Any]
IntArray = NDArray[np.int64]

_NUMBERS = frozenset({float, int, type(None)})


class Decoded(NamedTuple):
    """The sound events of a batch, in its order.

    Attributes
    ----------
    models : all there are; `model_of` is each event's index among them.
    layouts : how the features of each model's events lie; empty for labels.
    rows : which messages they were; None for all of them.
    """

    models: Fleet
    model_of: IntArray
    layouts: Sequence[Layout]
    events: list[Any]
    rows: IntArray | None

    def only(self, kept: Sequence[int]) -> Decoded:
        """Return some of the events."""
        chosen = np.array(kept, dtype=np.int64)
        rows = chosen if self.rows is None else self.rows[chosen]
        return self._replace(model_of=self.model_of[chosen], events=[self.events[at] for at in kept], rows=rows)


class Refused(Exception):  # noqa: N818 - it says what happened to the message
    """A message that is no event, or one that no model can use."""

    def __init__(self, reason: str, field: str) -> None:
        super().__init__(reason)
        self.fault = (reason, field)


def decode_each(decode_one: Decode, values: Iterable[bytes]) -> tuple[list[Any], list[int]]:
    """Decode every message.

    Returns
    -------
    events : None where a message was refused.
    refused : the rows of those.
    """
    events: list[Any] = []
    refused: list[int] = []
    rest = map(decode_one, values)
    while True:
        try:
            # What was decoded before an error stays in the list, and the iterator goes on after it.
            events.extend(rest)
        except (msgspec.DecodeError, ValueError, RecursionError):
            refused.append(len(events))
            events.append(None)
        else:
            return events, refused


class BulkDecoder:
    """Decodes batches of a topic into the layouts of the models there are.

    Notes
    -----
    A message takes the slow way of `streamer.decode` when its model's layout has no place for it. Sound ones
    among them teach the layout the names they bring, so that the next are fast: names that have come twice, since
    every layout is made anew, and of garbage there is no end.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._revision = -1
        self._layouts: dict[str, Layout] = {}
        self._learned: dict[str, dict[str, None]] = {}
        self._came_once: dict[str, set[str]] = {}
        self._taught: set[str] = set()
        self._in_order: tuple[Layout, ...] = ()
        self._fleet = Fleet(())
        self._number_of: dict[type[Any] | str, int] = {}
        self._decoders: dict[Kind, Decode] = {}

    def decode(
        self, kind: Kind, values: Sequence[bytes], record_times_ms: IntArray, max_future_ms: int
    ) -> tuple[Decoded, dict[int, Fault]]:
        """Decode a batch of one topic and check every event.

        Returns
        -------
        decoded : the sound events.
        faults : row → why it is a dead letter and which field is meant, in the order of the batch.
        """
        self._refresh()
        events, doubtful = decode_each(self._decoders[kind], values)
        suspects = set(doubtful)
        if max(map(len, values)) > MAX_EVENT_BYTES:
            suspects.update(row for row, value in enumerate(values) if len(value) > MAX_EVENT_BYTES)
        if _Nobodys in set(map(type, events)):
            suspects.update(row for row, event in enumerate(events) if isinstance(event, _Nobodys))
            doubtful = [*doubtful, *suspects]
            events = [None if isinstance(event, _Nobodys) else event for event in events]
        sound = [event for event in events if event is not None] if doubtful else events
        suspects.update(self._suspects(kind, events, sound))
        faults: dict[int, Fault] = {}
        for row in sorted(suspects):
            events[row] = None
            try:
                events[row] = self._slowly(kind, values[row])
            except Refused as refused:
                faults[row] = refused.fault
        decoded = self._decoded(kind, events)
        faults.update(_unusable(kind, decoded, record_times_ms, max_future_ms))
        self._learn()
        if not faults:
            return decoded, faults
        rows = range(len(decoded.events)) if decoded.rows is None else decoded.rows.tolist()
        return decoded.only([at for at, row in enumerate(rows) if row not in faults]), dict(sorted(faults.items()))

    def _refresh(self) -> None:
        """Make layouts anew for the models that have changed, and the decoders over all of them."""
        if self._revision == self._catalog.revision:
            return
        self._revision = self._catalog.revision
        models = self._catalog.models()
        held, self._layouts = self._layouts, {}
        for model in models:
            layout = held.get(model.name)
            if layout is None or layout.model is not model:
                layout = layout_of(model, self._learned.get(model.name, ()))
            self._layouts[model.name] = layout
        self._index()

    def _index(self) -> None:
        layouts = [layout for layout in self._layouts.values() if layout.decodable][:MAX_MODELS]
        self._in_order = tuple(self._layouts.values())
        self._fleet = Fleet([layout.model for layout in self._in_order])
        self._number_of = {
            key: number
            for number, layout in enumerate(self._in_order)
            for key in (layout.prediction, layout.feature_log, layout.model.name)
        }
        self._decoders = {
            "predictions": _decoder([layout.prediction for layout in layouts]),
            "features": _decoder([layout.feature_log for layout in layouts]),
            "labels": msgspec.json.Decoder(UncheckedLabel).decode,
        }

    def _learn(self) -> None:
        """Give the layouts fields for the names that the last batch brought."""
        for name in self._taught:
            self._layouts[name] = layout_of(self._layouts[name].model, self._learned[name])
        if self._taught:
            self._taught.clear()
            self._index()

    def _suspects(self, kind: Kind, events: Sequence[Any], sound: Sequence[Any]) -> Iterator[int]:
        """Give the rows that the fields' types let pass and the contract may not."""
        odd: set[str | None] = {version for version in {event.version for event in sound} if not _may_be(version)}
        if odd:
            yield from (row for row, event in enumerate(events) if event is not None and event.version in odd)
        if kind == "predictions":
            said: list[Any] = [event.prediction for event in sound]
            if None in said:
                yield from (
                    row
                    for row, event in enumerate(events)
                    if event is not None and event.prediction is None and event.error is None
                )
        elif kind == "labels":
            unknown = {name for name in {event.model for event in sound} if name not in self._layouts}
            yield from (
                row
                for row, event in enumerate(events)
                if event is not None
                and (
                    (event.label is None and not event.deleted)
                    or not -(2**63) <= event.revision < 2**63
                    or event.model in unknown
                )
            )

    def _slowly(self, kind: Kind, value: bytes) -> Any:
        """Decode one message by the contract, and put it into its model's layout."""
        try:
            event = decode(value, kind)
        except (msgspec.DecodeError, ValueError, RecursionError):
            raise Refused(*explain_invalid(value, kind)) from None
        layout = self._layouts.get(event.model)
        if layout is None:
            raise Refused(*explain_unknown(event.model))
        if isinstance(event, Label):
            return event
        self._note(layout, event.features)
        return layout.of_prediction(event) if isinstance(event, Prediction) else layout.of_feature_log(event)

    def _note(self, layout: Layout, features: Iterable[str]) -> None:
        """Remember the names a sound event brings that its model's layout has no field for."""
        name = layout.model.name
        held, once = self._learned.setdefault(name, {}), self._came_once.setdefault(name, set())
        for feature in features:
            if feature in layout.index or len(held) >= MAX_LEARNED or not is_learnable(feature):
                continue
            if feature in once:
                held[feature] = None
                self._taught.add(name)
            elif len(once) >= MAX_LEARNED:
                once.clear()
            once.add(feature)

    def _decoded(self, kind: Kind, events: Sequence[Any]) -> Decoded:
        """Put the events that are left together with their models."""
        rows = [row for row, event in enumerate(events) if event is not None] if None in events else None
        left = list(events) if rows is None else [events[row] for row in rows]
        keys = [event.model for event in left] if kind == "labels" else list(map(type, left))
        model_of = np.fromiter(map(self._number_of.__getitem__, keys), dtype=np.int64, count=len(keys))
        layouts = () if kind == "labels" else self._in_order
        return Decoded(self._fleet, model_of, layouts, left, None if rows is None else np.array(rows, dtype=np.int64))


def _unusable(
    kind: Kind, decoded: Decoded, record_times_ms: IntArray, max_future_ms: int
) -> Iterator[tuple[int, Fault]]:
    """Give the rows whose event is well formed and cannot be counted."""
    models, model_of, _layouts, events, rows = decoded
    times = np.array([event.ts for event in events], dtype=np.int64)
    recorded = record_times_ms if rows is None else record_times_ms[rows]
    for at in np.flatnonzero(times > recorded + max_future_ms).tolist():
        fault = explain_future(events[at].ts, int(recorded[at]), max_future_ms)
        if fault is not None:
            yield at if rows is None else int(rows[at]), fault
    if kind == "features":
        return
    # Given last, since it is what is said of an event with both faults.
    in_context = ~models.joins if kind == "labels" else np.zeros(len(models), dtype=np.bool_)
    (strict,) = np.nonzero((models.regressions | in_context)[model_of])
    if not len(strict):
        return
    if not in_context[model_of].any() and not _doubtful(kind, [events[at] for at in strict.tolist()]):
        return
    for at in strict.tolist():
        fault = unusable(models[int(model_of[at])], events[at])
        if fault is not None:
            yield at if rows is None else int(rows[at]), fault


def _doubtful(kind: Kind, events: Sequence[Any]) -> bool:
    """Tell whether some event of models that predict numbers may say none."""
    said = [event.label for event in events] if kind == "labels" else [event.prediction for event in events]
    if not set(map(type, said)) <= _NUMBERS:
        return True
    try:
        return not all(math.isfinite(value) for value in said if value is not None)
    except OverflowError:
        return True


def _may_be(version: str | None) -> bool:
    return version is None or is_name(version)


class _Nobodys(msgspec.Struct, tag_field="model", tag="\0"):
    """No model's: beside it, one model's events must name their model too, which msgspec lets a lone struct's omit."""


def _decoder(types: Sequence[type[Any]]) -> Decode:
    if not types:
        return _refuse
    return msgspec.json.Decoder(reduce(or_, types, _Nobodys)).decode


def _refuse(_: bytes) -> Any:
    raise msgspec.ValidationError("no model is known")
