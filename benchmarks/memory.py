"""What a model's feature takes of a worker's memory: an hour of panes of a minute, most of whose cells are filled."""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated

import typer

from benchmarks import measuring, traffic
from benchmarks.figures import Curve, Figure, figure
from streamer.settings import Settings
from streamer.view import LiveView

PANES = 60
_AT_ONCE = 5
_PANE_MS = 60_000
_MIB = 2**20
_COMMAND = "make bench ARGS='--only memory'"


def register(app: typer.Typer) -> None:
    """Add `memory` to the command line."""
    app.command("memory")(memory)


def memory(
    models: Annotated[int, typer.Option(help="How many models.", min=1)] = 10,
    features: Annotated[int, typer.Option(help="Features of each.", min=3)] = 100,
    rows: Annotated[int, typer.Option(help="Events of each model and pane.", min=1)] = 200,
) -> None:
    """Measure a worker's resident memory before and after an hour of panes."""
    for each in _measure(models, features, rows):
        print(f"{each.name}: {each.value:,.1f} {each.unit} {each.note}")


def figures(*, quick: bool) -> tuple[list[Figure], list[Curve]]:
    """Measure ten models of a hundred features, five where `quick`."""
    return _measure(5 if quick else 10, 100, 200), []


def _measure(models: int, features: int, rows: int) -> list[Figure]:
    # On a pane's start: an hour is 60 panes, not parts of 61.
    start_ms = (int(time.time() * 1000) // _PANE_MS - PANES) * _PANE_MS
    time_of = {"pane": "1m", "retention": "2h"}
    with measuring.running() as stack:
        settings = stack.settings
        workers = measuring.workers(stack)
        measuring.until_at_rest(workers)
        empty = measuring.rss_bytes(workers)
        configs = [traffic.model(index, labels="join", features=features, time=time_of) for index in range(models)]
        measuring.publish_models(settings, configs, start_ms)
        measuring.until_at_rest(workers)
        known = measuring.rss_bytes(workers)
        view = measuring.live_view(settings)
        first = 0
        # A few panes at a time, as an hour would bring them: not what a backlog of an hour would keep on its way.
        for pane in range(0, PANES, _AT_ONCE):
            done = (pane + _AT_ONCE) * models * rows
            _fill(settings, models, _AT_ONCE * rows, features, start_ms + pane * _PANE_MS, pane)
            measuring.until(partial(_shows, view, done), f"pane {pane}: not all is in the live view")
            first = first or measuring.rss_bytes(workers)
        measuring.until_committed(settings)
        measuring.until_at_rest(workers)
        full = measuring.rss_bytes(workers)
    each = (full - empty) / (models * features) / 1024
    by_panes = (full - first) / (models * features) / 1024
    note = (
        f"{models} models × {features} features × {PANES} panes of {rows} events; RSS {empty / _MIB:,.0f} MiB empty, "
        f"{known / _MIB:,.0f} with references, {full / _MIB:,.0f} full; {by_panes:.1f} KiB from pane {_AT_ONCE} on"
    )
    return [
        figure(
            "memory a model-feature, an hour of one-minute panes",
            each,
            "KiB",
            at_most=64.0,
            command=_COMMAND,
            note=note,
        ),
        figure("RSS of a worker with nothing to do", empty / _MIB, "MiB", command=_COMMAND),
        figure(
            f"RSS with {models * features:,} model-features and {PANES} panes", full / _MIB, "MiB", command=_COMMAND
        ),
    ]


def _fill(settings: Settings, models: int, rows: int, features: int, start_ms: int, seed: int) -> None:
    """Write the events of a few panes."""
    backlog = measuring.Backlog(settings, "predictions")
    backlog.write(
        traffic.predictions(
            models * rows, models, start_ms=start_ms, features=features, span_ms=_AT_ONCE * _PANE_MS, seed=seed
        )
    )
    backlog.release()


def _shows(view: LiveView, events: int) -> bool:
    return measuring.counted(view) == events
