"""`driftloop ledger`: every transition of a model's requests and rollouts, with who and why."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from streamer.cli.models import published_model
from streamer.cli.present import Json, console, count, moment, number, plain_table, state, write_json
from streamer.cli.surroundings import settings
from streamer.events import Finding, LedgerEntry


def register(app: typer.Typer) -> None:
    """Add `ledger` to the command line."""
    app.command("ledger")(ledger)


def ledger(
    model: str,
    everything: Annotated[bool, typer.Option("--all", help="Answers to commands too, refusals among them.")] = False,
    last: Annotated[int, typer.Option(min=1, help="How many of the newest entries.")] = 50,
    as_json: Json = False,
) -> None:
    """Print what has happened to a model's requests, rollouts and deployment: when, who, why."""
    from streamer.kafka.partitioning import partition_of
    from streamer.kafka.reader import read_to_end

    configured = settings()
    published_model(configured, model)
    place = partition_of(model, configured.internal_partitions)
    entries = [
        entry
        for message in read_to_end(configured, configured.topic("ledger"), [place])
        if (entry := msgspec.json.decode(message.value() or b"", type=LedgerEntry)).model == model
        and (everything or entry.state)
    ][-last:]
    if as_json:
        write_json(entries)
        return
    if not entries:
        typer.echo(f"{model}: nothing has happened yet")
        return
    screen = console()
    rows = [
        (moment(entry.at_ms), entry.subject or entry.subject_kind, _what(entry), entry.actor, why(entry))
        for entry in entries
    ]
    screen.print(_table(rows) if _table_width(rows) <= screen.width else _blocks(rows))


# When, subject, what (as rich markup), who, why.
Row = tuple[str, str, str, str, str]
_HEADINGS = ("WHEN (UTC)", "SUBJECT", "WHAT", "BY", "WHY")


def _table_width(rows: list[Row]) -> int:
    cells = [[*map(Text, row[:2]), Text.from_markup(row[2]), *map(Text, row[3:])] for row in rows]
    columns = zip(map(Text, _HEADINGS), *cells, strict=True)
    return sum(max(cell.cell_len for cell in column) + 3 for column in columns)


def _table(rows: list[Row]) -> Table:
    table = plain_table(*_HEADINGS)
    for at, subject, what, actor, reason in rows:
        table.add_row(at, escape(subject), what, escape(actor), escape(reason))
    return table


def _blocks(rows: list[Row]) -> Table:
    """Return the same for a narrow screen, two lines an entry: ids stay whole, for they are pasted elsewhere."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for at, subject, what, actor, reason in rows:
        grid.add_row(f"{at} UTC", f"{escape(subject)}  {what}")
        grid.add_row("", f"[dim]by {escape(actor)}[/]{f': {escape(reason)}' if reason else ''}")
    return grid


def why(entry: LedgerEntry) -> str:
    """Return the reason an entry gives; where nobody gave one, what its detail says of it.

    A command's evidence may be anything: of what is not as a DAG or evaluate sends it, nothing is said.
    """
    if entry.reason or not entry.state:
        return entry.reason
    detail, evidence = entry.detail, entry.detail.get("evidence")
    if not isinstance(evidence, dict):
        evidence = {}
    rows, gates = evidence.get("rows"), evidence.get("gates")
    said = [
        f"{detail['kind']} of version {detail.get('version', '?')}" if "kind" in detail else "",
        _strongest(evidence.get("findings")) if entry.state == "raised" else "",
        f"{evidence['winner']} is version {detail.get('version', '?')}" if "winner" in evidence else "",
        f"{count(rows)} rows" if isinstance(rows, int | float) else "",
        f"passed {len(gates)} gates" if entry.state == "validated" and gates and isinstance(gates, dict) else "",
        f"step {detail['step'] + 1} of its ramp" if entry.subject_kind == "rollout" and "step" in detail else "",
        f"until {moment(detail['until_ms'])} UTC" if "until_ms" in detail else "",
    ]
    return ", ".join(part for part in said if part)


def _strongest(findings: Any) -> str:
    """Return what a request was raised for above all, and of how much data that was found."""
    if not findings or not isinstance(findings, list):
        return ""
    try:
        finding = msgspec.convert(findings[0], Finding)
    except msgspec.ValidationError:
        return ""
    sure = "" if finding.p_value is None else f"p {finding.p_value:.2g}, "
    found = f"{finding.subject}: {finding.statistic} {number(finding.value)}, limit {number(finding.limit)}"
    return f"{found} ({sure}{count(finding.n_current)} events)"


def _what(entry: LedgerEntry) -> str:
    if not entry.state:
        return f"{escape(entry.command_kind.replace('_', ' '))}: {state(entry.outcome or '')}"
    if entry.subject_kind == "deployment":
        held = entry.detail
        challenger = f", {held['challenger']} {held.get('percent', 0):g} %" if held.get("challenger") else ""
        return escape(f"{held.get('champion', '')} serves{challenger} (epoch {entry.epoch})")
    moved = entry.previous and entry.previous != entry.state
    at = f" at {entry.detail['percent']:g} %" if "percent" in entry.detail else ""
    return f"{state(entry.previous)} → {state(entry.state)}" if moved else state(entry.state) + at
