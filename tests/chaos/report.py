"""What the runs found, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tests.chaos.run import Outcome


def render(outcomes: Sequence[Outcome]) -> RenderableType:
    """Return a row a run, and below it what is amiss."""
    table = Table(title="Counted once, whatever happened", title_justify="left", header_style="bold")
    for column in ("", *(f"{outcome.workers} worker{'s' * (outcome.workers > 1)}" for outcome in outcomes)):
        table.add_column(column, justify="right" if column else "left")
    for name, *cells in _rows(outcomes):
        table.add_row(name, *cells)
    faults = [fault for outcome in outcomes for fault in outcome.amiss]
    return Group(table, *(Text(fault, style="red") for fault in faults))


def _rows(outcomes: Sequence[Outcome]) -> Iterator[list[str]]:
    yield ["flights", *(f"{outcome.flights:,}" for outcome in outcomes)]
    yield ["labels", *(f"{outcome.labels:,}" for outcome in outcomes)]
    yield ["kills (-9)", *(str(outcome.kills) for outcome in outcomes)]
    yield ["pauses past the session", *(str(outcome.pauses) for outcome in outcomes)]
    yield ["workers ended by themselves", *(str(outcome.ended) for outcome in outcomes)]
    yield ["malformed messages sent", *(f"{outcome.garbage_sent:,}" for outcome in outcomes)]
    yield ["  of kinds", *(str(outcome.garbage_kinds) for outcome in outcomes)]
    yield ["  found once, reason right", *(f"{outcome.garbage_found:,}" for outcome in outcomes)]
    yield ["drift counts compared", *(f"{outcome.drift_counts:,}" for outcome in outcomes)]
    yield ["performance counts compared", *(f"{outcome.performance_counts:,}" for outcome in outcomes)]
    yield ["differences", *(str(outcome.differences) for outcome in outcomes)]
    yield ["replay, seconds", *(f"{outcome.replay_s:.0f}" for outcome in outcomes)]
    yield ["in all, seconds", *(f"{outcome.seconds:.0f}" for outcome in outcomes)]
    yield ["", *("[green]equal[/green]" if outcome.equal else "[red]AMISS[/red]" for outcome in outcomes)]
