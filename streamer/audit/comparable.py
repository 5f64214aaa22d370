"""Counts made comparable: panes of different widths added up over common spans of time, vectors of one length."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.evaluation.evaluate_state import CountKey, PaneCounts


class Spans:
    """The spans in which a model has panes of several widths, as after a change of its `time.pane`.

    Panes begin at multiples of their width, so those of any width fill spans as long as the least common multiple
    of all. Which of its panes a count is in depends on when it was counted, and is not in the log; their sum is.

    Parameters
    ----------
    keys : what is to be compared, of both sides.
    """

    def __init__(self, keys: Iterable[CountKey]) -> None:
        panes = {(key.model, key.pane_ms, key.pane_start_ms) for key in keys}
        widths: dict[str, set[int]] = defaultdict(set)
        for model, pane_ms, _start_ms in panes:
            widths[model].add(pane_ms)
        self._length_ms = {model: math.lcm(*found) for model, found in widths.items() if len(found) > 1}
        held: dict[tuple[str, int], set[int]] = defaultdict(set)
        for model, pane_ms, start_ms in panes:
            if model in self._length_ms:
                held[model, self._start_ms(model, start_ms)].add(pane_ms)
        self._mixed = {span for span, found in held.items() if len(found) > 1}

    def __contains__(self, key: CountKey) -> bool:
        """Tell whether a count's pane is in such a span."""
        return key.model in self._length_ms and (key.model, self._start_ms(key.model, key.pane_start_ms)) in self._mixed

    def key(self, key: CountKey) -> CountKey:
        """Return what a count is compared as: its span's, or itself where all panes of its span are equally wide."""
        if key not in self:
            return key
        length_ms, start_ms = self._length_ms[key.model], self._start_ms(key.model, key.pane_start_ms)
        return key._replace(pane_ms=length_ms, pane_start_ms=start_ms)

    def add_up(self, counts: PaneCounts) -> PaneCounts:
        """Return counts by what they are compared as."""
        found: PaneCounts = {}
        for key, array in counts.items():
            span = self.key(key)
            if span in found:
                first, second = same_length(found[span], array)
                found[span] = first + second
            else:
                found[span] = array
        return found

    def _start_ms(self, model: str, at_ms: int) -> int:
        return at_ms // self._length_ms[model] * self._length_ms[model]


def same_length(first: NDArray[Any] | None, second: NDArray[Any] | None) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return both, the shorter one followed by zeros; one that is not there is all zeros."""
    given = [array for array in (first, second) if array is not None]
    size = max(len(array) for array in given)
    padded = []
    for array in (first, second):
        whole = np.zeros(size, dtype=given[0].dtype if array is None else array.dtype)
        whole[: 0 if array is None else len(array)] = 0 if array is None else array
        padded.append(whole)
    return padded[0], padded[1]
