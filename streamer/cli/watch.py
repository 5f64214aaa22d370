"""`driftloop watch`: the live view on one screen, refreshed each second until Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated

import redis.exceptions
import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from streamer.cli.failures import CommandError, explain
from streamer.cli.present import Json, clock, console, now_ms, write_json_line
from streamer.cli.screens import model_screen, models_table, workers_table
from streamer.cli.status import Version, known_model
from streamer.cli.surroundings import live_view, settings
from streamer.view import LiveView

_FIXED_LINES = 30
_LEAST_FEATURES = 5


def register(app: typer.Typer) -> None:
    """Add `watch` to the command line."""
    app.command("watch")(watch)


def watch(
    model: Annotated[str | None, typer.Argument(help="One model; the only one, or the list, by default.")] = None,
    version: Version = None,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two refreshes.")] = 1.0,
    times: Annotated[int, typer.Option(min=0, help="Stop after so many refreshes; 0 goes on until Ctrl-C.")] = 0,
    as_json: Json = False,
) -> None:
    """Follow a model on one screen: drift with its course, accuracy, request, canary, timeline."""
    screen = console()
    with live_view(settings()) as view:
        view.models()  # unreachable at the start is an error; later it is shown and waited for
        if as_json:
            for _ in _beats(interval, times):
                write_json_line(_documents(view, model, version))
        elif not screen.is_terminal:
            for _ in _beats(interval, times):
                screen.print(_screen(view, model, version, screen))
        else:
            with Live(_screen(view, model, version, screen), console=screen, screen=True, auto_refresh=False) as live:
                for _ in _beats(interval, times):
                    live.update(_screen(view, model, version, screen), refresh=True)


def _beats(interval: float, times: int) -> Iterator[int]:
    """Count refreshes, one an interval, until there were enough or the user has had enough."""
    done = 0
    try:
        while True:
            yield done
            done += 1
            if done == times:
                return
            time.sleep(interval)
    except KeyboardInterrupt:
        return


def _screen(view: LiveView, model: str | None, version: str | None, screen: Console) -> RenderableType:
    now = now_ms()
    foot = Text(f"{clock(now)} UTC   Ctrl-C leaves; everything goes on without this screen", style="dim")
    try:
        return Group(_body(view, model, version, screen, now), "", foot)
    except (redis.exceptions.RedisError, CommandError) as error:
        said = explain(error)
        return Group(Text(said[0] if said else str(error), style="yellow"), "", foot)


def _body(view: LiveView, model: str | None, version: str | None, screen: Console, now: int) -> RenderableType:
    workers = view.workers()
    models = view.models()
    chosen = model or (models[0].model if len(models) == 1 else None)
    if chosen is None:
        return Group(models_table(models), "", workers_table(workers, now))
    # Lines that are always there take some thirty; features and timeline share the rest.
    room = max(screen.height - _FIXED_LINES, 0)
    found = known_model(view, chosen, version, timeline=max(3, room // 3))
    short = screen.is_terminal and screen.height < _FIXED_LINES + _LEAST_FEATURES
    least = 3 if short else _LEAST_FEATURES
    most = max(least, room - room // 3) if screen.is_terminal else None
    return model_screen(found, workers, now, screen.width, most, short=short)


def _documents(view: LiveView, model: str | None, version: str | None) -> object:
    if model is None:
        return {"at_ms": now_ms(), "models": view.models(), "workers": view.workers()}
    return {"at_ms": now_ms(), "model": known_model(view, model, version), "workers": view.workers()}
