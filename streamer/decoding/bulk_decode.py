"""Many raw messages at once: what is sound goes through C alone, and the rest is looked at one by one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from operator import call, is_
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamer.catalog import Catalog, Model
from streamer.counting.fleet import Fleet
from streamer.counting.labelling import unusable
from streamer.counting.layouts import MAX_LAYOUTS, MAX_LEARNED, Layout, Layouts, is_learnable, layout_of
from streamer.decode import MAX_EVENT_BYTES, Kind, UncheckedLabel, decode, is_name
from streamer.events import Label, Prediction
from streamer.explain import explain_future, explain_invalid, explain_unknown

Fault = tuple[str, str]
Decode = Callable[[bytes], Any]
IntArray = NDArray[np.int64]

_NUMBERS = frozenset({float, int, type(None)})
# What is, as a rule, the name of a message's model; whoever goes by it looks again at what was decoded.
_seems_of = re.compile(rb'"model"\s*:\s*"([^"\\]*)"').search


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
    layouts: Layouts
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


def decode_each(decode_one: Callable[..., Any], *columns: Iterable[Any]) -> tuple[list[Any], list[int]]:
    """Decode every message.

    Parameters
    ----------
    columns : what `decode_one` is given of each.

    Returns
    -------
    events : None where a message was refused.
    refused : the rows of those.
    """
    events: list[Any] = []
    refused: list[int] = []
    rest = map(decode_one, *columns)
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
        # Of each model the layout of its configured features: what one model's events teach, all that share it know.
        self._bases: dict[str, tuple[Model, Layout]] = {}
        self._learned: dict[Layout, dict[str, None]] = {}
        self._came_once: dict[Layout, set[str]] = {}
        self._taught = False
        self._fleet = Fleet(())
        self._number_of: dict[str, int] = {}
        self._layouts = Layouts()
        self._decoders: dict[Kind, _Decoders] = {}

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
        events, doubtful = self._decoders[kind].decode(values)
        suspects = set(doubtful)
        if max(map(len, values)) > MAX_EVENT_BYTES:
            suspects.update(row for row, value in enumerate(values) if len(value) > MAX_EVENT_BYTES)
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
        """Look anew at the models there are, where some have changed."""
        if self._revision == self._catalog.revision:
            return
        self._revision = self._catalog.revision
        models = self._catalog.models()
        held, self._bases = self._bases, {}
        for model in models:
            known = held.get(model.name)
            of_it = known if known is not None and known[0] is model else (model, layout_of(model.config))
            self._bases[model.name] = of_it
        bases = {base for _model, base in self._bases.values()}
        self._learned = {base: self._learned.get(base, {}) for base in bases}
        self._came_once = {base: self._came_once.get(base, set()) for base in bases}
        self._fleet = Fleet(models)
        self._number_of = {model.name: number for number, model in enumerate(models)}
        self._lay_out()

    def _lay_out(self) -> None:
        """Make the layouts of all models, and the decoders over them."""
        of_base = {base: base.with_fields(learned) for base, learned in self._learned.items()}
        self._layouts = Layouts(of_base[base] for _model, base in self._bases.values())
        layouts = dict(zip(self._bases, self._layouts, strict=True))
        self._decoders = {
            "predictions": _Decoders({name: (layout, layout.prediction) for name, layout in layouts.items()}),
            "features": _Decoders({name: (layout, layout.feature_log) for name, layout in layouts.items()}),
            "labels": _Decoders({}, UncheckedLabel),
        }

    def _learn(self) -> None:
        """Give the layouts fields for the names that the last batch brought."""
        if self._taught:
            self._taught = False
            self._lay_out()

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
            yield from (
                row
                for row, event in enumerate(events)
                if event is not None
                and ((event.label is None and not event.deleted) or not -(2**63) <= event.revision < 2**63)
            )
        names = [event.model for event in sound]
        if kind == "predictions":
            self._complete(sound)
        if not self._decoders[kind].are_of(names, sound) or not self._number_of.keys() >= set(names):
            are_of = self._decoders[kind].are_of
            yield from (
                row
                for row, event in enumerate(events)
                if event is not None and not (event.model in self._number_of and are_of([event.model], [event]))
            )

    def _complete(self, predictions: Sequence[Any]) -> None:
        """Give predictions that bring no features the struct of their model's, with nothing in it."""
        if None not in [event.features for event in predictions]:
            return
        for event in predictions:
            if event.features is None and event.model in self._number_of:
                event.features = self._layouts[self._number_of[event.model]].features()

    def _slowly(self, kind: Kind, value: bytes) -> Any:
        """Decode one message by the contract, and put it into its model's layout."""
        try:
            event = decode(value, kind)
        except (msgspec.DecodeError, ValueError, RecursionError):
            raise Refused(*explain_invalid(value, kind)) from None
        number = self._number_of.get(event.model)
        if number is None:
            raise Refused(*explain_unknown(event.model))
        if isinstance(event, Label):
            return event
        layout: Layout = self._layouts[number]
        self._note(event.model, layout, event.features)
        return layout.of_prediction(event) if isinstance(event, Prediction) else layout.of_feature_log(event)

    def _note(self, model: str, layout: Layout, features: Iterable[str]) -> None:
        """Remember the names a sound event brings that its model's layout has no field for."""
        base = self._bases[model][1]
        held, once = self._learned[base], self._came_once[base]
        for feature in features:
            if feature in layout.index or len(held) >= MAX_LEARNED or not is_learnable(feature):
                continue
            if feature in once:
                held[feature] = None
                self._taught = True
            elif len(once) >= MAX_LEARNED:
                once.clear()
            once.add(feature)

    def _decoded(self, kind: Kind, events: Sequence[Any]) -> Decoded:
        """Put the events that are left together with their models."""
        rows = [row for row, event in enumerate(events) if event is not None] if None in events else None
        left = list(events) if rows is None else [events[row] for row in rows]
        numbers = map(self._number_of.__getitem__, [event.model for event in left])
        model_of = np.fromiter(numbers, dtype=np.int64, count=len(left))
        layouts = Layouts() if kind == "labels" else self._layouts
        return Decoded(self._fleet, model_of, layouts, left, None if rows is None else np.array(rows, dtype=np.int64))


def _unusable(
    kind: Kind, decoded: Decoded, record_times_ms: IntArray, max_future_ms: int
) -> Iterator[tuple[int, Fault]]:
    """Give the rows whose event is well formed and cannot be counted."""
    models, model_of, _layouts, events, rows = decoded
    times = np.array([event.ts for event in events], dtype=np.int64)
    if kind == "labels":
        times = np.maximum(times, np.array([event.prediction_ts or 0 for event in events], dtype=np.int64))
    recorded = record_times_ms if rows is None else record_times_ms[rows]
    for at in np.flatnonzero(times > recorded + max_future_ms).tolist():
        fault = explain_future(events[at], int(recorded[at]), max_future_ms)
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


class _Decoders:
    """Decodes the messages of a topic, the features of each into the struct of its model.

    Parameters
    ----------
    of_models : model → its layout, and what its messages are read into.
    of_all : what all messages are read into instead, where it is the same whatever their model.
    """

    def __init__(self, of_models: Mapping[str, tuple[Layout, Any]], of_all: type[Any] | None = None) -> None:
        self._features_of = {name: layout.features for name, (layout, _read_into) in of_models.items()}
        kinds = dict.fromkeys(read_into for layout, read_into in of_models.values() if layout.decodable)
        if of_all is not None:
            kinds[of_all] = None
        decoders = {read_into: msgspec.json.Decoder(read_into).decode for read_into in [*kinds][:MAX_LAYOUTS]}
        # What of a message cannot be told from its bytes is told from what was decoded.
        self._any: Decode = next(iter(decoders.values()), _refuse)
        self._is_one = len({read_into for _layout, read_into in of_models.values()} | kinds.keys()) <= 1
        self._decode_of = {
            name.encode(): decoders[read_into]
            for name, (_layout, read_into) in of_models.items()
            if read_into in decoders
        }

    def decode(self, values: Sequence[bytes]) -> tuple[list[Any], list[int]]:
        """Decode every message, as `decode_each` does."""
        if self._is_one:
            return decode_each(self._any, values)
        named = [found[1] if found else b"" for found in map(_seems_of, values)]
        return decode_each(call, map(self._decode_of.get, named, repeat(self._any)), values)

    def are_of(self, models: Iterable[str], events: Iterable[Any]) -> bool:
        """Tell whether the features of each event were read into its model's struct."""
        structs = map(self._features_of.get, models)
        return self._is_one or all(map(is_, structs, [type(event.features) for event in events]))


def _refuse(_: bytes) -> Any:
    raise msgspec.ValidationError("no model is known")
