"""`driftloop dead-letters`: what could not be read, why, and sending it again."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from streamer.cli.present import Json, console, moment, plain_table, write_json
from streamer.cli.surroundings import require_kafka, settings


def register(app: typer.Typer) -> None:
    """Add `dead-letters` to the command line."""
    group = typer.Typer(help="Messages that could not be used: list, show, send again.", no_args_is_help=True)
    group.command("list")(list_letters)
    group.command()(show)
    group.command()(replay)
    app.add_typer(group, name="dead-letters")


def list_letters(
    last: Annotated[int, typer.Option(min=1, help="How many of the newest.")] = 50, as_json: Json = False
) -> None:
    """List the newest dead letters: where each stood and what was wrong with it."""
    from streamer import deadletters

    configured = settings()
    require_kafka(configured)
    letters = deadletters.list_letters(configured, last)
    if as_json:
        write_json([_plain(letter) for letter in letters])
        return
    if not letters:
        typer.echo("No dead letters: everything that came could be used.")
        return
    table = plain_table("ID", "WHEN (UTC)", "FROM", "WHAT WAS WRONG")
    for column in table.columns[:2]:
        column.no_wrap = True
    for letter in letters:
        row = "" if letter.row is None else f" row {letter.row}"
        table.add_row(
            letter.letter_id,
            moment(letter.at_ms),
            f"{escape(letter.source_topic)} {letter.source_partition}:{letter.source_offset}{row}",
            escape(letter.reason),
        )
    console().print(table)


def show(letter_id: str, as_json: Json = False) -> None:
    """Show one dead letter whole, with the bytes that came."""
    from streamer import deadletters

    configured = settings()
    require_kafka(configured)
    letter = deadletters.show(configured, letter_id)
    if as_json:
        write_json(_plain(letter))
        return
    typer.echo(f"id      {letter.letter_id}, {moment(letter.at_ms)} UTC")
    typer.echo(f"from    {letter.source_topic}[{letter.source_partition}] offset {letter.source_offset}")
    typer.echo(f"wrong   {letter.reason}")
    typer.echo(f"key     {'none' if letter.key is None else letter.key.decode(errors='backslashreplace')}")
    typer.echo(f"value   {letter.value.decode(errors='backslashreplace')}")


def replay(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="As `dead-letters list` shows them.")],
    as_json: Json = False,
) -> None:
    """Send dead letters to the topics they came from again, as after their model was applied."""
    from streamer import deadletters

    configured = settings()
    require_kafka(configured)
    sent = deadletters.replay(configured, ids)
    if as_json:
        write_json({"replayed": [letter.letter_id for letter in sent]})
        return
    for letter in sent:
        typer.echo(f"{letter.letter_id}: sent to {letter.source_topic} again")


def _plain(letter: object) -> dict[str, object]:
    """Return a letter with its bytes as text, which JSON can carry."""
    import msgspec

    fields = msgspec.structs.asdict(letter)  # type: ignore[arg-type]
    return {
        name: value.decode(errors="backslashreplace") if isinstance(value, bytes) else value
        for name, value in fields.items()
    }
