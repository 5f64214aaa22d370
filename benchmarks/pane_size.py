"""What a pane takes of evaluate's memory, by features, labels and slices: what a whole retention of them comes to."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Annotated

import numpy as np
import typer

from monitors.performance import PerformanceSchema
from monitors.sketch import encode_pairs
from streamer.evaluation.pane_store import Pane, PaneKey, Source, encode_pane, known_once
from streamer.events import Increment

_CELLS = 260
_PANES = 400
_PANE_MS = 300_000
_SCHEMA = PerformanceSchema("binary", "1")


def register(app: typer.Typer) -> None:
    """Add `pane-size` to the command line."""
    app.command("pane-size")(pane_size)


def pane_size(
    features: Annotated[int, typer.Option(help="Features of the panes' model, numbers in 256 cells.", min=1)] = 12,
    labels: Annotated[bool, typer.Option(help="Whether labels were joined.")] = True,
    slices: Annotated[int, typer.Option(help="Slices that are kept apart.", min=0)] = 0,
    partitions: Annotated[int, typer.Option(help="Partitions of each topic.", min=1)] = 4,
    events: Annotated[int, typer.Option(help="Events of a pane.", min=1)] = 300,
) -> None:
    """Measure a pane as evaluate keeps it once it was stored, by what Python was asked for: a worker takes more."""
    topics = ["predictions.v1", *(["labels.v1"] if labels else [])]
    sources = [known_once((topic, topic, number)) for topic in topics for number in range(partitions)]
    rng = np.random.default_rng(0)
    gc.collect()
    tracemalloc.start()
    before, _most = tracemalloc.get_traced_memory()
    held = {}
    for number in range(_PANES):
        counts = rng.multinomial(events, np.full(_CELLS - 4, 1 / (_CELLS - 4)), features)
        increment = _increment(np.pad(counts, ((0, 0), (0, 4))).ravel(), events, number, sources)
        if labels:
            increment.performance = dict.fromkeys(["", *(f"of={each}" for each in range(slices))], _performance())
        pane = Pane()
        pane.add(increment, sources, late=False, schema=_SCHEMA)
        # Stored once, nothing that was put off is left.
        encode_pane(pane)
        held[PaneKey("1", "live", _PANE_MS, increment.pane_start_ms)] = pane
        del increment, counts
    gc.collect()
    kib = (tracemalloc.get_traced_memory()[0] - before) / 1024 / len(held)
    tracemalloc.stop()
    print(f"{kib:.1f} KiB a pane, {kib / features:.2f} a feature of it")


def _increment(counts: np.ndarray, events: int, number: int, sources: list[Source]) -> Increment:
    offsets = [each for at in range(len(sources)) for each in (at, 10**6 * (number + 1), 10**6 * (number + 1) + 300)]
    start_ms, cells = number * _PANE_MS, encode_pairs(counts)
    return Increment(
        "m", 1, "1", "live", "predictions", start_ms, _PANE_MS, "fp", events=events, cells=cells, offsets=offsets
    )


def _performance() -> bytes:
    folded = _SCHEMA.fold(
        labels=["1", "0"],
        predictions=["1", "1"],
        scores=np.array([0.9, 0.2]),
        signs=np.ones(2, dtype=np.int64),
        groups=np.zeros(2, dtype=np.int64),
        n_groups=1,
    )
    return bytes(folded[0].tobytes())
