"""What the runs found, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tests.chaos.schedule import FAULTS
from tests.chaos.storm import Outcome


def render(outcomes: Sequence[Outcome]) -> RenderableType:
    """Return a column a run, what was done above what was found, and below it what is amiss."""
    table = Table(title="Counted once, whatever happened", title_justify="left", header_style="bold")
    for column in ("", *(outcome.name for outcome in outcomes), "in all"):
        table.add_column(column, justify="right" if column else "left")
    for fault in FAULTS:
        counts = [outcome.faults.get(fault, 0) for outcome in outcomes]
        if any(counts):
            table.add_row(fault, *(str(count or "") for count in counts), str(sum(counts)))
    table.add_section()
    for name, counts in _counts(outcomes):
        table.add_row(name, *(f"{count:,}" for count in counts), f"{sum(counts):,}")
    table.add_section()
    verdicts = ("[green]equal[/green]" if outcome.equal else "[red]AMISS[/red]" for outcome in outcomes)
    table.add_row("seconds", *(f"{outcome.seconds:.0f}" for outcome in outcomes), "")
    table.add_row("", *verdicts, "")
    faults = [f"{outcome.name}: {fault}" for outcome in outcomes for fault in outcome.findings.amiss]
    return Group(table, *(Text(fault, style="red") for fault in faults))


def _counts(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, list[int]]]:
    found = [outcome.findings for outcome in outcomes]
    yield "[bold]faults[/bold]", [sum(outcome.faults.values()) for outcome in outcomes]
    yield "bytes Valkey's crashes have lost", [outcome.lost_bytes for outcome in outcomes]
    yield "workers ended by themselves", [outcome.ended for outcome in outcomes]
    yield "events", [each.events for each in found]
    yield "labels", [each.labels for each in found]
    yield "malformed messages sent", [each.garbage_sent for each in found]
    yield "  found once, reason right", [each.garbage_found for each in found]
    yield "drift counts compared", [each.drift_counts for each in found]
    yield "performance counts compared", [each.performance_counts for each in found]
    yield "decisions and panes compared", [each.decisions for each in found]
    yield "[bold]differences[/bold]", [each.differences for each in found]
