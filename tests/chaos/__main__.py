"""`make chaos`: every run that has to hold, or one of one's own."""

from __future__ import annotations

import json as json_module
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from streamer import topics
from streamer.local.stack import Stack
from streamer.telemetry import configure_logging
from tests.chaos.report import render
from tests.chaos.run import NotSettledError, Options, Outcome, run

_DIRECTORY = Path(".driftloop/chaos")
_CACHE = Path(".driftloop/cache")
_CALM = (Options(workers=1, kills=0, pauses=0, garbage=0), Options(workers=2, kills=0, pauses=0, garbage=0))


def main(
    workers: Annotated[int | None, typer.Option(min=1, help="One run with so many; else one and two, each.")] = None,
    kills: Annotated[int, typer.Option(min=0, help="Workers killed -9 during the replay.")] = 20,
    pauses: Annotated[int, typer.Option(min=0, help="Workers stopped past their session, then resumed.")] = 3,
    garbage: Annotated[int, typer.Option(min=0, help="Malformed messages mixed in.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Draws what happens when.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Play ten months of flights under kill -9 and garbage; exit 1 unless everything was counted exactly once."""
    configure_logging(level="WARNING")
    console = Console(stderr=True)
    counts = (1, 2) if workers is None else (workers,)
    rough = [Options(workers=count, kills=kills, pauses=pauses, garbage=garbage, seed=seed) for count in counts]
    planned = [*(_CALM if workers is None else ()), *rough]
    outcomes: list[Outcome] = []
    with Stack(_DIRECTORY, parts=frozenset({"kafka", "valkey"}), progress=lambda part, what: None) as stack:
        for number, options in enumerate(planned):
            console.print(
                f"[bold]{options.workers} worker(s), {options.kills} kills, {options.garbage:,} malformed[/bold]"
            )
            settings = stack.settings.model_copy(update={"namespace": f"chaos{number}"})
            topics.ensure(settings)
            try:
                outcomes.append(run(settings, options, cache=_CACHE, say=_sayer(console)))
            except NotSettledError as error:
                console.print(str(error), style="red")
                raise typer.Exit(1) from error
    if json:
        typer.echo(
            json_module.dumps([{**msgspec.to_builtins(each), "equal": each.equal} for each in outcomes], indent=2)
        )
    else:
        Console().print(render(outcomes))
    if not all(outcome.equal for outcome in outcomes):
        raise typer.Exit(1)


def _sayer(console: Console) -> Callable[[str], object]:
    began = time.monotonic()
    return lambda line: console.print(f"{time.monotonic() - began:5.0f} s  {line}", markup=False, highlight=False)


if __name__ == "__main__":
    typer.run(main)
