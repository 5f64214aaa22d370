"""`make chaos`: every run that has to hold, or one of them."""

from __future__ import annotations

import json as json_module
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from streamer.kafka import topics
from streamer.local.stack import Stack
from streamer.settings import Settings
from streamer.telemetry import configure_logging
from tests.chaos.progress import NotSettledError
from tests.chaos.report import render
from tests.chaos.schedule import OF_CLOCKS, STORM, STORM_WITHOUT_STORE, Fault
from tests.chaos.server_clocks import can_be_wrong, to_be_set
from tests.chaos.storm import SPLIT, WHOLE, Options, Outcome, run

_DIRECTORY = Path(".driftloop/chaos")
SEEDS = (1, 2, 3, 4, 5)
# Of the table, wherever it is printed.
_WIDTH = 120
# Their clocks are five minutes fast, and as much slow.
_CLOCKS_S = {0: 300, 1: -300}


def main(
    seed: Annotated[
        int | None, typer.Option(help="One storm alone, the one this draws; else five and the outage.")
    ] = None,
    outage: Annotated[bool, typer.Option("--outage", help="The broker's outage alone.")] = False,
    away_s: Annotated[float, typer.Option(min=1, help="How long the broker stays away in it.")] = 300.0,
    json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Play streams with a known answer through faults of everything; exit 1 unless all was counted and decided once."""
    configure_logging(level="CRITICAL")
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    console = Console(stderr=True)
    away = outage_of(away_s)
    if outage:
        plans = [[away]]
    elif seed is not None:
        plans = [[storm_of(seed)]]
    else:
        # The outage is mostly waiting: it is done beside the storms, on servers of its own.
        plans = [[storm_of(each) for each in SEEDS], [away]]
    lying = can_be_wrong()
    if not lying:
        console.print("no C compiler, or no Linux: the clocks of broker and Valkey stay right")
    try:
        with _lying(lying), ThreadPoolExecutor(len(plans)) as pool:
            found = list(pool.map(lambda plan: _runs(plan, _sayer(console)), plans))
    except NotSettledError as error:
        console.print(str(error), style="red")
        raise typer.Exit(1) from error
    outcomes = [outcome for each in found for outcome in each]
    if json:
        shown = [{**msgspec.to_builtins(each), "equal": each.equal} for each in outcomes]
        typer.echo(json_module.dumps(shown, indent=2))
    else:
        Console(width=_WIDTH).print(render(outcomes))
    if not all(outcome.equal for outcome in outcomes):
        raise typer.Exit(1)


def storm_of(seed: int) -> Options:
    """Return the storm of a seed: odd ones strike ingest and evaluate apart, even ones workers with wrong clocks."""
    if seed % 2:
        return Options(name=f"seed {seed}", seed=seed, roles=SPLIT, faults=_possible(STORM))
    faults = _possible(STORM_WITHOUT_STORE)
    return Options(name=f"seed {seed}", seed=seed, roles=WHOLE, faults=faults, clocks_s=_CLOCKS_S)


def _possible(faults: Mapping[Fault, int]) -> dict[Fault, int]:
    return {fault: times for fault, times in faults.items() if fault not in OF_CLOCKS or can_be_wrong()}


@contextmanager
def _lying(lying: bool) -> Iterator[None]:
    with TemporaryDirectory() as directory, to_be_set(Path(directory)) if lying else nullcontext():
        yield


def outage_of(away_s: float) -> Options:
    """Return the run in which the broker stays away for long."""
    faults = {"broker away": 1}
    return Options(name="outage", roles=WHOLE, faults=faults, garbage=500, seconds=away_s + 20.0, rate=4, away_s=away_s)


def _runs(plan: list[Options], say: Callable[[str, str], object]) -> list[Outcome]:
    """Do some runs after each other, each on a broker and a Valkey of its own, whose clocks are right at first.

    On the same broker its clock would be set back, and a transaction that a killed worker leaves open is ended by that
    clock: it would hold its partitions for as long.
    """
    outcomes = []
    directory = _DIRECTORY / plan[0].name.replace(" ", "-")
    for options in plan:
        # Of the run before, or one that was cut off.
        rmtree(directory / "clocks", ignore_errors=True)
        with Stack(directory, parts=frozenset({"kafka", "valkey"})) as stack:
            settings = settings_of(stack, options.name.replace(" ", "-"))
            topics.ensure(settings)
            outcomes.append(run(stack, settings, options, lambda line, name=options.name: say(name, line)))
    return outcomes


def settings_of(stack: Stack, namespace: str) -> Settings:
    """Return the settings of a run: a namespace and a join store of its own, and commits that come often."""
    found = stack.settings
    worker = found.worker.model_copy(update={"commit_ms": 1_000, "tick_ms": 1_000})
    redis = found.redis.model_copy(update={"join_url": found.redis.url.removesuffix("0") + "1"})
    own = {"namespace": namespace, "internal_partitions": 4, "worker": worker, "redis": redis}
    return found.model_copy(update=own)


def _sayer(console: Console) -> Callable[[str, str], object]:
    began = time.monotonic()
    return lambda name, line: console.print(
        f"{time.monotonic() - began:5.0f} s  {name}: {line}", markup=False, highlight=False
    )


if __name__ == "__main__":
    typer.run(main)
