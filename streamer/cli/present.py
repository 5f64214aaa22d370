"""How the command line writes numbers, times and reasons; consoles, and JSON for machines."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Write JSON, for machines.")]

NOTHING = "–"
_LONG_AGO_MS = 2 * 86_400_000
_BARS = "▁▂▃▄▅▆▇█"
_MISSING = {
    "warming_up": "warming up",
    "no_reference": "no reference",
    "too_few_events": "too few events",
    "no_labels_yet": "no labels yet",
    "low_coverage": "too few labels",
}
STATE_STYLES = {
    "quiet": "green",
    "healthy": "green",
    "suspected": "yellow",
    "cooling": "cyan",
    "cooling_down": "cyan",
    "raised": "bold red",
    "stale": "yellow",
    "faulted": "bold magenta",
    "promoted": "green",
    "pass": "green",
    "running": "cyan",
    "inconclusive": "yellow",
    "rejected": "yellow",
    "failed": "bold red",
    "fail": "bold red",
    "error": "bold red",
    "rolled_back": "yellow",
    "expired": "yellow",
}


def console() -> Console:
    """Return the console of standard output (made anew, so that a redirected stdout is followed)."""
    return Console(highlight=False)


def write_json(value: Any) -> None:
    """Write one value as indented JSON; structs and paths are written as plain data."""
    typer.echo(msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2).decode())


def write_json_line(value: Any) -> None:
    """Write one value as one line of JSON."""
    typer.echo(msgspec.json.encode(value, enc_hook=str).decode())


def now_ms() -> int:
    """Return this machine's time in epoch milliseconds."""
    return time.time_ns() // 1_000_000


def number(value: float | None, digits: int = 3) -> str:
    """Write a statistic; an absent one is a dash, never a zero."""
    if value is None or value != value:
        return NOTHING
    return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:,.0f}"


def signed(value: float | None, digits: int = 3) -> str:
    """Write a difference with its sign."""
    return NOTHING if value is None or value != value else f"{value:+.{digits}f}"


def count(value: float | None) -> str:
    """Write a number of things."""
    return NOTHING if value is None else f"{value:,.0f}"


def share(value: float | None) -> str:
    """Write a share as a percentage."""
    if value is None or value != value:
        return NOTHING
    percent = 100 * value
    return f"{percent:.0f} %" if percent in (0, 100) or percent >= 10 else f"{percent:.1f} %"


def moment(at_ms: int | None) -> str:
    """Write a time as UTC to the second."""
    if not at_ms:
        return NOTHING
    return dt.datetime.fromtimestamp(at_ms / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")


def clock(at_ms: int | None) -> str:
    """Write a time's hour, minute and second, UTC."""
    return moment(at_ms)[11:] if at_ms else NOTHING


def length(span_ms: float | None) -> str:
    """Write a length of time in its two largest units: "3 h 20 min"."""
    if span_ms is None:
        return NOTHING
    left = int(abs(span_ms) // 1000)
    parts = []
    for unit, seconds in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        amount, left = divmod(left, seconds)
        if amount:
            parts.append(f"{amount} {unit}")
    return " ".join(parts[:2]) or "0 s"


def ago(at_ms: int | None, now: int) -> str:
    """Write how long ago a time was; one more than two days back, as when the past is played again, as itself."""
    if not at_ms:
        return "never"
    if now - at_ms > _LONG_AGO_MS:
        return f"{moment(at_ms)} UTC"
    return f"{length(now - at_ms)} ago" if now - at_ms >= 1000 else "now"


def why_missing(reason: str | None) -> str:
    """Write in words why a number is not there."""
    return "" if not reason else _MISSING.get(reason, reason.replace("_", " "))


def state(name: str) -> str:
    """Write a state in its colour, as rich markup."""
    style = STATE_STYLES.get(name)
    text = name.replace("_", " ")
    return f"[{style}]{text}[/]" if style else text


def sparkline(values: Sequence[float | None], *, top: float, width: int = 24) -> str:
    """Draw the last values as bars from 0 to `top`; an absent one is a dot."""
    return "".join(
        "·" if value is None or value != value else _BARS[min(7, max(0, int(8 * value / top)))]
        for value in list(values)[-width:]
    )


def plain_table(*columns: str, right: Sequence[str] = (), title: str | None = None) -> Table:
    """Return a table with a rule under its headings and no other lines; `right` names the columns of numbers."""
    from rich import box

    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        title=title,
        title_justify="left",
        title_style="bold",
    )
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=column in right)
    return table
