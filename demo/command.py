"""`driftloop demo`: the command line's door to the story."""

from __future__ import annotations

import contextlib
import json as json_module
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from demo.report import Summary, render
from demo.screen import Screen
from demo.story import OtherStoryError, Story
from streamer.cli.surroundings import commands_here
from streamer.local.stack import Stack

# Where there is no terminal to measure: wide enough for the tables at the end.
_PLAIN_WIDTH = 120


def command(
    keep: Annotated[
        bool,
        typer.Option(
            help="Go on with the story an earlier run left, if there is one, and leave the stack up at the end."
        ),
    ] = False,
    sabotage: Annotated[bool, typer.Option(help="Damage the challenger's answers: the canary must roll back.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    directory: Annotated[Path, typer.Option(help="Where state and logs go.")] = Path(".driftloop"),
    deadline_s: Annotated[float, typer.Option(help="Give up after this many seconds.")] = 900.0,
) -> None:
    """Play a year of flights through the whole loop: drift, request, retraining, canary, promotion."""
    console = _console(stderr=json)
    with _ending_on_sigterm(), Screen(console) as screen:
        try:
            story = Story(screen, directory, keep=keep, sabotage=sabotage, deadline_s=deadline_s)
        except OtherStoryError as error:
            raise typer.BadParameter(str(error), param_hint="--sabotage") from error
        try:
            with story.stack, _naming_what_ended(story.stack, screen):
                summary = story.run()
                _show(summary, console, json=json)
                if keep:
                    _stay(screen, console, directory, story)
        except KeyboardInterrupt:
            screen.say("stopped; driftloop demo --keep goes on from here")
            raise
        except Exception:
            screen.say(f"broken off; logs are under {directory / 'logs'}; driftloop demo --keep goes on from here")
            raise
    if not summary.closed:
        raise typer.Exit(1)


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr)
    measured = console.is_terminal or os.environ.get("COLUMNS")
    return console if measured else Console(stderr=stderr, width=_PLAIN_WIDTH)


def _show(summary: Summary, console: Console, *, json: bool) -> None:
    if json:
        typer.echo(json_module.dumps(msgspec.to_builtins(summary), indent=2))
    else:
        console.print(render(summary), crop=False)


def _stay(screen: Screen, console: Console, directory: Path, story: Story) -> None:
    """Wait for Ctrl-C, or SIGTERM."""
    screen.rest()
    first = commands_here(
        directory,
        {
            "driftloop watch": "what the worker sees",
            f"driftloop ledger {story.model}": "how its request got where it is",
        },
    )
    console.print(
        f"\nThe stack stays up; Ctrl-C ends it. In another terminal, here:\n{first}\n"
        f"Logs are under {directory / 'logs'}.",
        soft_wrap=True,
    )
    with contextlib.suppress(KeyboardInterrupt):
        story.stack.wait(threading.Event(), lambda line: screen.say(f"{line}; Ctrl-C, then --keep starts it again"))


@contextlib.contextmanager
def _naming_what_ended(stack: Stack, screen: Screen) -> Iterator[None]:
    """Name the server that went away before the error that comes of it is told as one of an address."""
    try:
        yield
    except Exception:
        for line in stack.ended():
            screen.say(line, style="red")
        raise


@contextlib.contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does: stop in good order."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
