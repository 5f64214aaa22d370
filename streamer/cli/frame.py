"""The application: the order of its commands, those other packages bring, and errors as lines and exit codes."""

from __future__ import annotations

import logging
import os
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from streamer.cli import (
    bench,
    deadletters,
    doctor,
    ledger,
    models,
    recount,
    reference,
    replay,
    request,
    status,
    topics,
    watch,
    worker,
)
from streamer.cli.failures import FAILED, explain
from streamer.telemetry import configure_logging

EXTENSIONS = "driftloop.commands"
TRACEBACK = "DRIFTLOOP_TRACEBACK"
# As a reader meets them: see it, run it, tell it about models, look, steer, mend, measure.
ORDER = (
    "demo",
    "dev",
    "worker",
    "topics",
    "models",
    "reference",
    "status",
    "watch",
    "ledger",
    "replay",
    "request",
    "split",
    "rollback",
    "dead-letters",
    "recount",
    "doctor",
    "bench",
)


class Commands(TyperGroup):
    """The top of the command line: loads what extensions bring, and turns every error into a line and a code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands in reading order, extensions among them."""
        known = {*super().list_commands(ctx), *_extensions()}
        return [name for name in ORDER if name in known] + sorted(known - set(ORDER))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command of ours, or one an installed package brings."""
        own = super().get_command(ctx, cmd_name)
        extension = _extensions().get(cmd_name)
        return own if own is not None or extension is None else _load(extension)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; say what went wrong in a line and leave with the code that says what kind it was."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            if os.environ.get(TRACEBACK) or _belongs_to_typer(error):
                raise
            found = explain(error) or (
                f"a fault of driftloop's own: {type(error).__name__}: {error}; {TRACEBACK}=1 shows where",
                FAILED,
            )
            typer.secho(f"driftloop: {found[0]}", err=True, fg="red")
            raise typer.Exit(found[1]) from error


def build() -> typer.Typer:
    """Return the whole command line."""
    app = typer.Typer(
        name="driftloop",
        cls=Commands,
        help="Watch machine-learning models from their own events; retrain, test and promote when something has "
        "really changed.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for module in (
        worker,
        topics,
        models,
        reference,
        status,
        watch,
        ledger,
        replay,
        request,
        deadletters,
        recount,
        doctor,
        bench,
    ):
        module.register(app)
    return app


def _options(
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version and leave.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    # What a command says goes to standard output alone; only what went wrong on the way is worth a log line.
    configure_logging(level="WARNING")
    # kafka-python warns of what it tries again, and of each of its own tasks that took a tenth of a second.
    logging.getLogger("kafka").setLevel(logging.ERROR)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"driftloop {version('driftloop')}")
        raise typer.Exit()


def _extensions() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=EXTENSIONS)}


def _load(extension: EntryPoint) -> Any:
    """Return an extension's command, whether it is a typer application, a ready command or a plain function."""
    try:
        found = extension.load()
    except ModuleNotFoundError as error:
        return _unavailable(extension.name, f"{error.name} is not installed; pip install 'driftloop[{extension.name}]'")
    except Exception as error:
        # Whatever is wrong with another package must not take our own commands with it.
        if os.environ.get(TRACEBACK):
            raise
        return _unavailable(extension.name, f"cannot be loaded: {type(error).__name__}: {error}")
    if isinstance(found, typer.Typer):
        return typer.main.get_command(found)
    if hasattr(found, "get_short_help_str"):
        return found
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command(extension.name)(found)
    return typer.main.get_command(single)


def _unavailable(name: str, reason: str) -> Any:
    """Return a command that says why it cannot run, so that `--help` still lists the others."""
    single = typer.Typer(add_completion=False)

    @single.command(
        name,
        help=f"Not available here: {escape(reason)}",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def explain_absence() -> None:
        typer.secho(f"driftloop: {name}: {reason}", err=True, fg="red")
        raise typer.Exit(FAILED)

    return typer.main.get_command(single)


def _belongs_to_typer(error: Exception) -> bool:
    """Whether an error is the command line's own (usage, exit, abort), which it reports itself."""
    return type(error).__module__.partition(".")[0] in {"typer", "click"}
