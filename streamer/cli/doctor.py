"""`driftloop doctor`: is everything there and set as it must be; if not, what to do."""

from __future__ import annotations

import typer
from rich.markup import escape

from streamer.cli.failures import FAILED, UNREACHABLE
from streamer.cli.present import Json, console, now_ms, write_json
from streamer.cli.surroundings import settings

_MARKS = {
    "ok": "[green]ok[/]",
    "warning": "[yellow]warning[/]",
    "failed": "[bold red]failed[/]",
    "unreachable": "[bold red]unreachable[/]",
    "skipped": "[dim]skipped[/]",
}


def register(app: typer.Typer) -> None:
    """Add `doctor` to the command line."""
    app.command("doctor")(doctor)


def doctor(as_json: Json = False) -> None:
    """Check configuration, Kafka, topics, Redis, models, workers, clocks, MLflow, Airflow; say what to do."""
    from streamer.diagnosis.doctor import examine

    screen = console()
    checks = []
    for check in examine(settings(), now_ms=now_ms()):
        checks.append(check)
        if as_json:
            continue
        padding = " " * (11 - len(check.status))
        screen.print(f"{_MARKS[check.status]}{padding}  [bold]{check.name}[/]: {escape(check.found)}", soft_wrap=True)
        if check.remedy and check.status != "ok":
            screen.print(f"{'':13}→ {escape(check.remedy)}", soft_wrap=True)
    if as_json:
        write_json(checks)
    stood = {check.status for check in checks}
    if "unreachable" in stood:
        raise typer.Exit(UNREACHABLE)
    if "failed" in stood:
        raise typer.Exit(FAILED)
