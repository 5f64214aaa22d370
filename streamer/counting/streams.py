"""The streams of events that are counted apart, a number each: a model's version, its origin and its source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitors.cells import UNWATCHED, CellTable
from monitors.profile import ReferenceProfile
from streamer.catalog import Model
from streamer.counting.columns import PREDICTION, SCORE, IntArray, TextCells, Watched, distinct
from streamer.counting.fleet import Fleet
from streamer.counting.lanes import Lanes
from streamer.counting.rows import Rows
from streamer.events import Origin

# So many streams, and features of references or models that are no longer, are kept before everything is worked out
# anew: a numeric feature of 256 cells takes some 7 KB.
_MAX_STREAMS = 200_000
_MAX_REPLACED = 10_000
_UNWATCHED = Watched({}, {})
# For so many combinations of version, origin and source the numbers of all models are kept from flush to flush.
_MAX_COMBINATIONS = 100


class Head(NamedTuple):
    """What is asked of a stream in every flush, kept together: with a thousand, each further object is a cache miss.

    Attributes
    ----------
    key : the model, its epoch, version, origin and source.
    fingerprint : of its reference; "" where it has none.
    cells : how many cells it has in all.
    """

    key: tuple[str, int, str, Origin, Any]
    pane_ms: int
    fingerprint: str
    cells: int


@dataclass(frozen=True, eq=False)
class Stream:
    """Events that are counted together, pane by pane.

    Attributes
    ----------
    profile : the reference its features are binned by; None where there is none, or nothing to bin.
    """

    model: Model
    version: str
    origin: Origin
    source: Any
    profile: ReferenceProfile | None
    watched: Watched

    @cached_property
    def pane_ms(self) -> int:
        """The length of its panes."""
        return int(self.model.config.time.pane)

    def head(self) -> Head:
        """Return what its increments begin with."""
        fingerprint, cells = "", 0
        if self.profile is not None:
            fingerprint, cells = self.profile.fingerprint, self.profile.layout.size
        key = self.model.name, self.model.epoch, self.version, self.origin, self.source
        return Head(key, self.pane_ms, fingerprint, cells)


class Facts(NamedTuple):
    """What counting asks of streams, by their numbers.

    Attributes
    ----------
    pane_ms : how long their panes are.
    multiclass : which are of models whose output is a class.
    output : the binning of what the model said, in the table; `monitors.cells.UNWATCHED` where that is no number.
    """

    pane_ms: IntArray
    multiclass: NDArray[np.bool_]
    output: IntArray


class _Numbers(NamedTuple):
    """The number of the stream of each of some models, of one version, origin and source; −1 where none is known."""

    models: Fleet
    numbers: IntArray


class Streams:
    """The streams met so far; what is worked out for one is worked out once.

    Parameters
    ----------
    reference : a model's and a version's reference profile, None where there is none.
    as_of : what is equal for as long as `reference` says the same of all.

    Attributes
    ----------
    known : by number. A model or a reference that changes makes new streams.
    heads : of those, what is asked of them in every flush.
    table : the numeric binnings of all of them.
    lanes : where the fields of their rows are counted.
    """

    def __init__(self, reference: Callable[[str, str], ReferenceProfile | None], as_of: Callable[[], object]) -> None:
        self._reference = reference
        self._ask_as_of = as_of
        self._as_of: object = None
        self._begun = False
        self._forget()

    def _forget(self) -> None:
        self.known: list[Stream] = []
        self.heads: list[Head] = []
        self.table = CellTable()
        self.lanes = Lanes(self.table)
        self._numbers: dict[tuple[str, str, str, str], int] = {}
        self._looked_up: dict[tuple[str, str, str, str], int] = {}
        self._by_fleet: dict[tuple[str, Origin, str], _Numbers] = {}
        self._earlier: dict[tuple[str, Origin, str], _Numbers] = {}
        self._watched: dict[tuple[str, str, str], tuple[Model, ReferenceProfile, Watched]] = {}
        self._replaced = self._in_use = 0
        self._facts: Facts | None = None

    @property
    def facts(self) -> Facts:
        """What is asked of all known streams."""
        if self._facts is None or len(self._facts.pane_ms) < len(self.known):
            classes = [stream.model.config.task == "multiclass" for stream in self.known]
            names = [PREDICTION if multiclass else SCORE for multiclass in classes]
            outputs = [stream.watched.numbers.get(n, UNWATCHED) for stream, n in zip(self.known, names, strict=True)]
            lengths = [stream.pane_ms for stream in self.known]
            self._facts = Facts(np.array(lengths), np.array(classes, dtype=np.bool_), np.array(outputs))
        return self._facts

    def next_flush(self) -> None:
        """Have the next number look at references anew, and forget everything if much of it is of the past.

        Numbers given so far then mean nothing.
        """
        self._begun = False
        # No sooner than as many have been replaced as there are: it costs as much as all that is in use.
        if len(self.known) > _MAX_STREAMS or self._replaced > max(_MAX_REPLACED, self._in_use):
            self._forget()

    def _begin(self) -> None:
        """Forget, before a flush's first number, what was looked up of references where some have changed since."""
        if self._begun:
            return
        self._begun, as_of = True, self._ask_as_of()
        if as_of != self._as_of or len(self._by_fleet) > _MAX_COMBINATIONS:
            self._as_of = as_of
            self._looked_up = {}
            self._earlier, self._by_fleet = self._by_fleet, {}

    def of(self, rows: Rows, source: str) -> IntArray:
        """Return the number of each row's stream."""
        versions, origins = rows.versions, rows.origins
        if len(versions.values) == len(origins.values) == 1:
            return self.of_models(rows.models, rows.model_of, versions.values[0], origins.values[0], source)
        wide, narrow = len(versions.values), len(origins.values)
        found = distinct((rows.model_of * wide + versions.codes) * narrow + origins.codes)
        each = zip(*_unravelled(found.values, wide, narrow), strict=True)
        numbers = [
            self.number(rows.models[model], versions.values[version], origins.values[origin], source)
            for model, version, origin in each
        ]
        return np.array(numbers, dtype=np.int64)[found.codes]

    def of_models(self, models: Fleet, model_of: IntArray, version: str, origin: Origin, source: str) -> IntArray:
        """Return the number of each row's stream, where all rows are of one version and origin."""
        self._begin()
        key = (version, origin, source)
        held = self._by_fleet.get(key)
        # By identity: a model that has changed makes another fleet.
        if held is None or held.models is not models:
            held = self._by_fleet[key] = self._renewed(key, models)
        found = held.numbers[model_of]
        if (found < 0).any():
            for model in distinct(model_of[found < 0]).values.tolist():
                held.numbers[model] = self.number(models[model], version, origin, source)
            found = held.numbers[model_of]
        return found

    def _renewed(self, key: tuple[str, Origin, str], models: Fleet) -> _Numbers:
        """Return the numbers models had before references changed, but for those whose own is another now; −1 then."""
        earlier, (version, _origin, source) = self._earlier.get(key), key
        if earlier is None or earlier.models is not models:
            return _Numbers(models, np.full(len(models), -1, dtype=np.int64))
        if source != "labels":
            (known,) = np.nonzero(earlier.numbers >= 0)
            for model, number in zip(known.tolist(), earlier.numbers[known].tolist(), strict=True):
                if self._reference(models.names[model], version) is not self.known[number].profile:
                    earlier.numbers[model] = -1
        return earlier

    def number(self, model: Model, version: str, origin: Origin, source: str) -> int:
        """Return the number of a stream; within a flush, of one model and reference by a name."""
        self._begin()
        key = (model.name, version, origin, source)
        number = self._looked_up.get(key)
        if number is None or self.known[number].model is not model:
            number = self._looked_up[key] = self._number(key, model, origin)
        return number

    def _number(self, key: tuple[str, str, str, str], model: Model, origin: Origin) -> int:
        name, version, _origin, source = key
        # Labels say nothing of features.
        profile = None if source == "labels" else self._reference(name, version)
        number = self._numbers.get(key)
        if number is not None:
            known = self.known[number]
            if known.model is model and known.profile is profile:
                return number
        watched = _UNWATCHED if profile is None else self._watch(model, version, source, profile)
        self.known.append(Stream(model, version, origin, source, profile, watched))
        self.heads.append(self.known[-1].head())
        self.lanes.add(model.config, watched)
        number = self._numbers[key] = len(self.known) - 1
        return number

    def _watch(self, model: Model, version: str, source: str, profile: ReferenceProfile) -> Watched:
        held = self._watched.get((model.name, version, source))
        if held is not None and held[0] is model and held[1] is profile:
            return held[2]
        names = [name for name, feature in model.config.features.items() if feature.source == source]
        if source == "predictions":
            names.append(PREDICTION if model.config.task == "multiclass" else SCORE)
        numbers: dict[str, int] = {}
        texts: dict[str, TextCells] = {}
        for name in names:
            if name in profile.features:
                binning, first = profile.features[name].binning, profile.layout.places[name].start
                if binning.kind == "numeric":
                    numbers[name] = self.table.add(binning, first)
                else:
                    texts[name] = TextCells(binning, first)
        watched = Watched(numbers, texts)
        replaced = 0 if held is None else len(held[2].numbers) + len(held[2].texts)
        self._replaced += replaced
        self._in_use += len(numbers) + len(texts) - replaced
        self._watched[model.name, version, source] = (model, profile, watched)
        return watched


def _unravelled(keys: IntArray, wide: int, narrow: int) -> tuple[list[int], list[int], list[int]]:
    """Take (first · wide + second) · narrow + third apart."""
    rest, third = np.divmod(keys, narrow)
    first, second = np.divmod(rest, wide)
    return first.tolist(), second.tolist(), third.tolist()
