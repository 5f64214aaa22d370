"""`driftloop topics`: make the topics, or compare those there are with the configuration."""

from __future__ import annotations

import typer

from streamer.cli.failures import CommandError
from streamer.cli.present import Json, console, plain_table, write_json
from streamer.cli.surroundings import require_kafka, settings


def register(app: typer.Typer) -> None:
    """Add `topics` to the command line."""
    group = typer.Typer(help="Make the Kafka topics, or check them.", no_args_is_help=True)
    group.command("create")(create)
    group.command("check")(check)
    app.add_typer(group, name="topics")


def create(as_json: Json = False) -> None:
    """Make the topics that are missing; safe to repeat."""
    from streamer.kafka import topics

    configured = settings()
    require_kafka(configured)
    reports = topics.ensure(configured)
    _show([(each.name, each.outcome, dict(each.differences)) for each in reports], as_json)


def check(as_json: Json = False) -> None:
    """Compare the topics there are with the configuration; make nothing. Fails when one is missing."""
    from streamer.diagnosis.doctor import missing_topics
    from streamer.kafka import topics

    configured = settings()
    require_kafka(configured)
    missing = missing_topics(configured)
    reports = topics.ensure(configured, [name for name in topics.TOPICS if name not in missing])
    found = {each.name: (each.name, str(each.outcome), dict(each.differences)) for each in reports}
    full = [configured.topic(name) for name in topics.TOPICS]
    _show([found.get(name, (name, "missing", {})) for name in full], as_json)
    if missing:
        raise CommandError(f"{len(missing)} of {len(full)} topics are missing: driftloop topics create")


def _show(rows: list[tuple[str, str, dict[str, tuple[str, str]]]], as_json: bool) -> None:
    if as_json:
        write_json([{"name": name, "outcome": outcome, "differences": found} for name, outcome, found in rows])
        return
    table = plain_table("TOPIC", "STATE", "DIFFERS FROM THE CONFIGURATION")
    styles = {"missing": "red", "differs": "yellow", "made": "green", "same": "green"}
    for name, outcome, differences in rows:
        told = ", ".join(f"{key} is {has}, wanted {wanted}" for key, (has, wanted) in differences.items())
        table.add_row(name, f"[{styles[outcome]}]{outcome}[/]", told)
    console().print(table)
