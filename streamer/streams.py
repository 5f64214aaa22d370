"""The streams of events that are counted apart, a number each: a model's version, its origin and its source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from monitors.cells import CellTable
from monitors.profile import ReferenceProfile
from streamer.catalog import Model
from streamer.columns import PREDICTION, SCORE, IntArray, TextCells, Watched, distinct
from streamer.events import Origin
from streamer.rows import Rows

# What is kept of streams and references that are no longer, before everything is worked out anew.
_MAX_STREAMS = 200_000
_MAX_REPLACED = 10_000
_UNWATCHED = Watched({}, {}, {})


@dataclass(frozen=True)
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

    @property
    def pane_ms(self) -> int:
        """The length of its panes."""
        return int(self.model.config.time.pane)

    @property
    def cells(self) -> int:
        """How many cells it has in all."""
        return 0 if self.profile is None else self.profile.layout.size


class Streams:
    """The streams met so far; what is worked out for one is worked out once.

    Attributes
    ----------
    known : by number. A model or a reference that changes makes new streams.
    table : the numeric binnings of all of them.
    """

    def __init__(self, reference: Callable[[str, str], ReferenceProfile | None]) -> None:
        self._reference = reference
        self._forget()

    def _forget(self) -> None:
        self.known: list[Stream] = []
        self.table = CellTable()
        self._numbers: dict[tuple[str, str, str, str], int] = {}
        self._watched: dict[tuple[str, str, str], tuple[Model, ReferenceProfile, Watched]] = {}
        self._replaced = 0

    def trim(self) -> None:
        """Forget everything if much of it is of the past; numbers given so far then mean nothing."""
        if len(self.known) > _MAX_STREAMS or self._replaced > _MAX_REPLACED:
            self._forget()

    def of(self, rows: Rows, source: str) -> IntArray:
        """Return the number of each row's stream."""
        versions, origins = rows.versions, rows.origins
        wide, narrow = len(versions.values), len(origins.values)
        found = distinct((rows.model_of * wide + versions.codes) * narrow + origins.codes)
        numbers = []
        for key in found.values.tolist():
            rest, origin = divmod(key, narrow)
            model, version = divmod(rest, wide)
            numbers.append(self.number(rows.models[model], versions.values[version], origins.values[origin], source))
        return np.array(numbers, dtype=np.int64)[found.codes]

    def number(self, model: Model, version: str, origin: Origin, source: str) -> int:
        """Return the number of a stream."""
        # Labels say nothing of features.
        profile = None if source == "labels" else self._reference(model.name, version)
        key = (model.name, version, origin, source)
        number = self._numbers.get(key)
        if number is not None:
            known = self.known[number]
            if known.model is model and known.profile is profile:
                return number
            self._replaced += 1
        watched = _UNWATCHED if profile is None else self._watch(model, version, source, profile)
        self.known.append(Stream(model, version, origin, source, profile, watched))
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
        watched = Watched(numbers, texts, {})
        self._watched[model.name, version, source] = (model, profile, watched)
        return watched
