"""`driftloop recount`: count the whole log again by other means, and compare with what the workers have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from streamer.cli.failures import CommandError
from streamer.cli.present import Json, console, count, length, moment, plain_table, write_json
from streamer.cli.surroundings import require_kafka, settings

if TYPE_CHECKING:
    from streamer.audit.recount import Report


def register(app: typer.Typer) -> None:
    """Add `recount` to the command line."""
    app.command("recount")(recount)


def recount(as_json: Json = False) -> None:
    """Count every event of the log again and hold it against the workers' counts, which may go on meanwhile.

    Where a model's time.pane was changed, counts of the former panes and the present ones are compared by their sums.
    """
    from streamer.audit import recount as counting

    configured = settings()
    require_kafka(configured)
    report = counting.run(configured)
    if as_json:
        write_json(report)
        if not report.equal:
            raise typer.Exit(1)
        return
    typer.echo(
        f"{count(report.events)} events and {count(report.labels)} labels of the log counted again, "
        f"{count(report.refused)} refused; {count(report.compared)} counts compared"
    )
    if report.spanned or report.left_out:
        left_out = f"; {count(report.left_out)} left out, their span begins before what workers keep"
        typer.echo(
            f"time.pane was changed: {count(report.spanned)} of these are sums over spans that hold panes of both "
            f"widths{left_out if report.left_out else ''}"
        )
    if report.equal:
        typer.echo(_equal(report))
        return
    names = ("MODEL", "VERSION", "ORIGIN", "PANE (UTC)", "LONG", "COUNT", "LOG", "WORKERS")
    table = plain_table(*names, right=("LOG", "WORKERS"))
    for each in report.differences[:20]:
        table.add_row(
            escape(each.model),
            escape(each.version),
            each.origin,
            moment(each.pane_start_ms),
            length(each.pane_ms),
            escape(f"{each.kind} {each.name}".strip()),
            _few(each.wanted),
            _few(each.got),
        )
    console().print(table)
    why = (
        "" if report.log_is_whole else "; the log has lost its beginning to retention, so the workers rightly have more"
    )
    raise CommandError(f"{report.n_differences} counts differ{why}")


def _equal(report: Report) -> str:
    if not report.left_out:
        return "equal: the workers have exactly what the log says"
    if not report.compared:
        return "nothing could be compared: all there is was left out"
    return "equal as far as it could be compared"


def _few(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values[:3]) + (", …" if len(values) > 3 else "")
