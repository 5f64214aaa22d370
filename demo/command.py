"""`driftloop demo`: the command line's door to the story."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from demo.flights import at
from demo.report import render
from demo.screen import Screen
from demo.story import Story


def command(
    keep: Annotated[bool, typer.Option(help="Leave the stack running at the end, to look around; Ctrl-C ends it.")] = (
        False
    ),
    sabotage: Annotated[bool, typer.Option(help="Damage the challenger's answers: the canary must roll back.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    directory: Annotated[Path, typer.Option(help="Where state and logs go.")] = Path(".driftloop"),
    deadline_s: Annotated[float, typer.Option(help="Give up after this many seconds.")] = 900.0,
) -> None:
    """Play a year of flights through the whole loop: drift, request, retraining, canary, promotion."""
    console = Console(stderr=json)
    with Screen(console) as screen:
        story = Story(screen, directory, sabotage=sabotage, end_ms=at(12, 1), deadline_s=deadline_s)
        with story.stack:
            summary = story.run()
            if keep and not json:
                console.print(render(summary))
                console.print("The stack stays up: driftloop watch, driftloop status. Ctrl-C ends it.")
                story.wait_for_interrupt()
    if json:
        typer.echo(json_module.dumps(msgspec.to_builtins(summary), indent=2))
    elif not keep:
        console.print(render(summary))
    if not summary.closed:
        raise typer.Exit(1)
