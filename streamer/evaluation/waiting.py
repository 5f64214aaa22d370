"""Which models have panes that the passing of record time may complete: a flush looks at these and at no others."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Waiting:
    """Models by the record time at which something of theirs may complete."""

    _due: list[tuple[int, str]] = field(default_factory=list)
    _at: dict[str, int] = field(default_factory=dict)
    _awake: dict[str, None] = field(default_factory=dict)

    def wake(self, names: Iterable[str]) -> None:
        """Have the next flush look at these models, whatever they wait for."""
        self._awake.update(dict.fromkeys(names))

    def until(self, name: str, at_ms: int | None, read_up_to_ms: int) -> None:
        """Have a model looked at once some partition has been read to `at_ms`: each time, until all have.

        Parameters
        ----------
        at_ms : None where the model waits for nothing.
        read_up_to_ms : how far some partition has been read already.
        """
        if at_ms is None:
            self._at.pop(name, None)
        elif at_ms <= read_up_to_ms:
            self._awake[name] = None
        elif self._at.get(name) != at_ms:
            self._at[name] = at_ms
            heapq.heappush(self._due, (at_ms, name))

    def ready(self, read_up_to_ms: int) -> list[str]:
        """Return, once, the models to look at when some partition has been read up to there."""
        while self._due and self._due[0][0] <= read_up_to_ms:
            at_ms, name = heapq.heappop(self._due)
            if self._at.get(name) == at_ms:
                del self._at[name]
                self._awake[name] = None
        found = list(self._awake)
        self._awake.clear()
        return found
