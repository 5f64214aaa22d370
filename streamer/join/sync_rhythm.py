"""When a store that syncs its disk once a second will do so next, so that a flush need not wait for it."""

from __future__ import annotations

_PERIOD_S = 1.0
# A wait this short is no wait for a sync that comes by itself: the store syncs at every write, or has nothing to.
_AT_ONCE_S = 0.02
_MARGIN_S = 0.05


class SyncRhythm:
    """Learns from each flush how long its joins took and how long the store's disk was then waited for.

    A store with `appendfsync everysec` makes durable once a second what it was given. A flush that begins half a
    second after that waits the other half with all it read; one that begins just before has read all of it.
    """

    def __init__(self) -> None:
        self._synced_s: float | None = None
        self._ahead_s = 0.0

    def note(self, began_s: float, joined_s: float, durable_s: float) -> None:
        """Be told of a flush: when it began, when its joins were sent, and when they were durable."""
        self._synced_s = durable_s if durable_s - joined_s > _AT_ONCE_S else None
        self._ahead_s = joined_s - began_s + _MARGIN_S

    def is_time(self, now_s: float) -> bool:
        """Tell whether a flush begun now would be joined just before the store's next sync, or need not care."""
        return self._synced_s is None or now_s >= self._synced_s + _PERIOD_S - self._ahead_s
