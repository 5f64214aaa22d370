"""What a model's feature takes of a worker's memory: panes of a minute, most of whose cells are filled."""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated

import psutil
import typer

from benchmarks import measuring, traffic
from benchmarks.figures import Curve, Figure, figure
from streamer.settings import Settings
from streamer.view import LiveView

PANES = 60
# A few panes at a time, as an hour would bring them: not what a backlog of an hour would keep on its way.
_TURNS = 12
_PANE_MS = 60_000
_MIB = 2**20
# A worker gives back what it has freed every ten seconds.
_GIVEN_BACK_S = 12.0
_COMMAND = "make bench ARGS='--only memory'"


def register(app: typer.Typer) -> None:
    """Add `memory` to the command line."""
    app.command("memory")(memory)


def memory(
    models: Annotated[int, typer.Option(help="How many models.", min=2)] = 40,
    features: Annotated[int, typer.Option(help="Features of each.", min=3)] = 100,
    rows: Annotated[int, typer.Option(help="Events of each model and pane.", min=1)] = 50,
    panes: Annotated[
        int, typer.Option(help="Panes of each model, of a minute; rounded down to twelves.", min=_TURNS)
    ] = PANES,
) -> None:
    """Measure a worker's resident memory: at rest, after events of one model, after panes of all."""
    for each in _measure(models, features, rows, panes - panes % _TURNS):
        print(f"{each.name}: {each.value:,.1f} {each.unit} {each.note}")


def figures(*, quick: bool) -> tuple[list[Figure], list[Curve]]:
    """Measure forty models of a hundred features, ten where `quick`."""
    return _measure(10 if quick else 40, 100, 50, PANES), []


def _measure(models: int, features: int, rows: int, panes: int) -> list[Figure]:
    # On a pane's start: an hour is 60 panes, not parts of 61.
    start_ms = (int(time.time() * 1000) // _PANE_MS - panes) * _PANE_MS
    time_of = {"pane": "1m", "retention": f"{panes + 60}m"}
    at_once = panes // _TURNS
    with measuring.running() as stack:
        settings = stack.settings
        workers = measuring.workers(stack)
        empty = _at_rest(workers)
        configs = [traffic.model(index, labels="join", features=features, time=time_of) for index in range(models)]
        view = measuring.live_view(settings)
        # What events take on their way through, however many models they are of, is taken by those of one model.
        measuring.publish_models(settings, configs[:1], start_ms)
        sent = 2 * at_once * rows * models
        for turn in range(2):
            _fill(settings, 1, sent // 2, features, start_ms, at_once, seed=panes + turn)
        measuring.until(partial(_shows, view, sent), "not all of the first model is in the live view")
        first = _at_rest(workers)
        measuring.publish_models(settings, configs[1:], start_ms)
        known = _at_rest(workers)
        for pane in range(0, panes, at_once):
            sent += at_once * models * rows
            _fill(settings, models, at_once * models * rows, features, start_ms + pane * _PANE_MS, at_once, seed=pane)
            measuring.until(partial(_shows, view, sent), f"pane {pane}: not all is in the live view")
        measuring.until_committed(settings)
        full = _at_rest(workers)
    references = (known - first) / ((models - 1) * features) / 1024
    # The first model has `at_once` of its panes already.
    each = references + (full - known) / ((models - at_once / panes) * features) / 1024
    note = (
        f"{models} models × {features} features × {panes} panes of {rows} events; RSS {first / _MIB:,.0f} MiB after "
        f"{2 * at_once * rows * models:,} events of one model, {full / _MIB:,.0f} with all: the difference by the "
        f"features that came and their panes; of it references {references:.1f} KiB"
    )
    return [
        figure(
            "memory a model-feature, an hour of one-minute panes"
            if panes == PANES
            else f"memory a model-feature, {panes} panes",
            each,
            "KiB",
            at_most=64.0 if panes == PANES else None,
            command=_COMMAND,
            note=note,
        ),
        figure("RSS of a worker with nothing to do", empty / _MIB, "MiB", command=_COMMAND),
        figure("RSS of a worker after events of one model", first / _MIB, "MiB", command=_COMMAND),
        figure(
            f"RSS with {models * features:,} model-features and {panes} panes", full / _MIB, "MiB", command=_COMMAND
        ),
    ]


def _at_rest(workers: list[psutil.Process]) -> int:
    """Return the resident memory of workers that have done all there was to do and given back what it took."""
    measuring.until_at_rest(workers)
    time.sleep(_GIVEN_BACK_S)
    return measuring.rss_bytes(workers)


def _fill(settings: Settings, models: int, events: int, features: int, start_ms: int, panes: int, *, seed: int) -> None:
    """Write the events of a few panes."""
    backlog = measuring.Backlog(settings, "predictions")
    span_ms = panes * _PANE_MS
    backlog.write(traffic.predictions(events, models, start_ms=start_ms, features=features, span_ms=span_ms, seed=seed))
    backlog.release()


def _shows(view: LiveView, events: int) -> bool:
    return measuring.counted(view) == events
