"""What a peer counts and how it tells of it: no import here that its own environment would not have."""

from __future__ import annotations

import time
from bisect import bisect_right
from pathlib import Path
from typing import Any

import msgspec


class Feature(msgspec.Struct, frozen=True):
    """A feature's cells, as `monitors.binning` lays them out: inner ones, then missing, below, above, unseen.

    Attributes
    ----------
    at : where they begin in a histogram of all features.
    """

    name: str
    at: int
    edges: list[float] = []
    categories: list[str] = []


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer is told: where it reads, what it counts, and where it writes how far it is."""

    broker: str
    topic: str
    partitions: int
    pane_ms: int
    features: list[Feature]
    cells: int
    progress: str
    data: str
    form: str = ""


class Step(msgspec.Struct, frozen=True):
    """How many events a peer had counted once it had taken so much CPU time, all its threads together."""

    events: int
    cpu_s: float


class Counter:
    """Finds the cells of an event, one a feature, in plain Python: a single row is no work for numpy."""

    def __init__(self, plan: Plan) -> None:
        self._pane_ms = plan.pane_ms
        self._numbers = [(f.name, f.edges, len(f.edges) - 1, f.at) for f in plan.features if f.edges]
        self._texts = [
            (f.name, {text: f.at + cell for cell, text in enumerate(f.categories)}, f.at + len(f.categories))
            for f in plan.features
            if not f.edges
        ]

    def pane(self, event: dict[str, Any]) -> int:
        """Return the start of the event's pane."""
        ts: int = event["ts"]
        return ts - ts % self._pane_ms

    def cells(self, event: dict[str, Any]) -> list[int]:
        """Return the cell of each feature, as places in a histogram of all of them."""
        values = event["features"]
        found = []
        for name, edges, inner, at in self._numbers:
            value = values.get(name)
            if value is None:
                found.append(at + inner)
            elif value < edges[0]:
                found.append(at + inner + 1)
            elif value > edges[-1]:
                found.append(at + inner + 2)
            else:
                found.append(at + min(bisect_right(edges, value) - 1, inner - 1))
        for name, places, missing in self._texts:
            value = values.get(name)
            found.append(missing if value is None else places.get(value, missing + 3))
        return found


class Progress:
    """Writes a line every few thousand events: what the events between two lines took, nothing else is in it."""

    def __init__(self, path: str, *, every: int = 2_000) -> None:
        self._path = Path(path)
        self._every = every
        self._next = every
        self._events = 0

    def add(self, events: int = 1) -> None:
        """Note that so many more events are counted."""
        self._events += events
        if self._events >= self._next:
            self._next = self._events + self._every
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode(Step(self._events, time.process_time())) + b"\n")


def read_plan(path: str) -> Plan:
    """Return the plan in a file."""
    return msgspec.json.decode(Path(path).read_bytes(), type=Plan)
