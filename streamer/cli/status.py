"""`driftloop status`: where every model stands, or everything about one."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Group

from streamer.cli.failures import CommandError
from streamer.cli.present import Json, console, now_ms, write_json
from streamer.cli.screens import model_screen, models_table, workers_table
from streamer.cli.surroundings import live_view, settings
from streamer.documents import ModelView
from streamer.view import LiveView

Version = Annotated[str | None, typer.Option("--version", help="Whose statistics; the champion's by default.")]


def register(app: typer.Typer) -> None:
    """Add `status` to the command line."""
    app.command("status")(status)


def status(
    model: Annotated[str | None, typer.Argument(help="One model; all of them by default.")] = None,
    version: Version = None,
    as_json: Json = False,
) -> None:
    """Show where every model stands, or everything about one: drift, accuracy, request, canary, workers."""
    with live_view(settings()) as view:
        workers = view.workers()
        if model is None:
            models = view.models()
            if as_json:
                write_json({"models": models, "workers": workers})
                return
            console().print(Group(models_table(models), "", workers_table(workers, now_ms())))
            return
        found = known_model(view, model, version)
    if as_json:
        write_json({"model": found, "workers": workers})
        return
    screen = console()
    screen.print(model_screen(found, workers, now_ms(), screen.width))


def known_model(view: LiveView, model: str, version: str | None = None, timeline: int = 10) -> ModelView:
    """Return a model's documents; an unknown one is an error that names those there are."""
    found = view.model(model, version=version, timeline=timeline)
    if found is not None:
        return found
    known = ", ".join(each.model for each in view.models())
    raise CommandError(
        f"{model}: no events of it have been counted yet{f' (of {known} there have)' if known else ''}; "
        "driftloop models list shows which models are known, driftloop doctor whether a worker reads their events"
    )
