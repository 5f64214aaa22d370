"""Lines in the log about dead letters: one by one they would drown it."""

from __future__ import annotations

import time
from collections import Counter

import structlog

from streamer.explain import known_field

log = structlog.get_logger(__name__)

_TELL_EVERY_S = 10.0
_MAX_REASON = 300


class Notices:
    """Tells the log of dead letters: the first at once, those that follow together, every ten seconds at most."""

    def __init__(self) -> None:
        self._told_s = -_TELL_EVERY_S
        self._fields: Counter[str] = Counter()
        self._first = ""

    def add(self, topic: str, partition: int, offset: int, reason: str, field: str) -> None:
        """Take note of one."""
        if not self._fields:
            self._first = f"{topic}[{partition}] offset {offset}: {reason[:_MAX_REASON]}"
        self._fields[known_field(field) or "(message)"] += 1

    def tell(self) -> None:
        """Tell of those that have come since, if it is time."""
        if not self._fields or time.monotonic() < self._told_s + _TELL_EVERY_S:
            return
        log.warning("dead_letters", count=self._fields.total(), fields=dict(self._fields), first=self._first)
        self._told_s = time.monotonic()
        self._fields.clear()
