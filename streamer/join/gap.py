"""What was counted while the join store was lost, and what has to become of it when the store is made anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from streamer.join.entries import Entry, FeaturesEntry, LabelEntry, record_field

Fate = Literal["install", "pass", "append again"]


class Gap:
    """The predictions that came while the store was lost: they have not met the labels that had come before them.

    Were such a label installed beside its prediction, it would stand for good as counted. So it is appended to
    its topic once more and joined when it is read; a copy too many does no harm. Of an id that had been
    predicted before as well (by another version, or as a shadow), what came in the gap is passed over: it
    stays without its label.

    Parameters
    ----------
    met : field of a record → positions of such predictions, as `JoinStore.lost_predictions` has them.
    """

    def __init__(self, met: Mapping[bytes, set[str]]) -> None:
        self._met = met
        self._before: set[bytes] = set()

    def __bool__(self) -> bool:
        return bool(self._met)

    def fate(self, entry: Entry, *, of_gap: bool) -> Fate:
        """Say what to do with an entry: give all predictions, then all again with `of_gap`, then all the others."""
        field = record_field(entry)
        met = self._met.get(field)
        if met is None:
            return "pass" if of_gap else "install"
        if isinstance(entry, FeaturesEntry):
            # They waited as labels do: what there is was joined before the loss.
            return "install"
        if isinstance(entry, LabelEntry):
            return "install" if field in self._before else "append again"
        in_gap = entry.position in met
        if not in_gap:
            self._before.add(field)
        return "install" if in_gap == of_gap and not (in_gap and field in self._before) else "pass"
