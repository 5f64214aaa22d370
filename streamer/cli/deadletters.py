"""`driftloop dead-letters`: what could not be read, why, and sending it again."""

from __future__ import annotations

import base64
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from streamer.cli.failures import USAGE, CommandError
from streamer.cli.present import Json, console, moment, plain_table, write_json
from streamer.cli.surroundings import require_kafka, settings

if TYPE_CHECKING:
    from streamer.letters.deadletters import Letter, Wanted
    from streamer.letters.replay import Replayed
    from streamer.settings import Settings

_SOURCES = ("predictions", "features", "labels")
# Of a message larger than this, `show` prints the beginning.
_SHOWN_BYTES = 2_000
_TELL_S = 3.0

Topic = Annotated[str | None, typer.Option(help="Only from predictions, features or labels.")]
Field = Annotated[str | None, typer.Option(help="Only where this field was wrong, as model, ts or features.age.")]
Reason = Annotated[str | None, typer.Option(help="Only with this text in the reason.")]
Within = Annotated[str | None, typer.Option(help="Only of so long, as 15m, 6h or 2d.")]


def register(app: typer.Typer) -> None:
    """Add `dead-letters` to the command line."""
    group = typer.Typer(help="Messages that could not be used: list, show, send again.", no_args_is_help=True)
    group.command("list")(list_letters)
    group.command()(show)
    group.command()(replay)
    app.add_typer(group, name="dead-letters")


def list_letters(
    last: Annotated[int, typer.Option(min=1, max=100_000, help="How many of the newest.")] = 50,
    topic: Topic = None,
    field: Field = None,
    reason: Reason = None,
    within: Within = None,
    as_json: Json = False,
) -> None:
    """List the newest dead letters: where each stood and what was wrong with it."""
    from streamer.letters import deadletters

    configured = settings()
    wanted = _wanted(configured, topic, field, reason, within)
    require_kafka(configured)
    letters = deadletters.list_letters(configured, last, wanted)
    if as_json:
        write_json([_plain(letter) for letter in letters])
        return
    if not letters:
        asked = any(condition is not None for condition in (topic, field, reason, within))
        typer.echo("No dead letters like that." if asked else "No dead letters: everything that came could be used.")
        return
    table = plain_table("LETTER ID", "WHEN (UTC)", "FROM", "WHAT WAS WRONG")
    for column in table.columns[:2]:
        column.no_wrap = True
    for letter in letters:
        row = "" if letter.row is None else f" row {letter.row}"
        # Most reasons begin with the field.
        named = not letter.field or letter.reason.startswith(f"{letter.field}:")
        what = letter.reason if named else f"{letter.field}: {letter.reason}"
        table.add_row(
            letter.letter_id,
            moment(letter.at_ms),
            f"{escape(letter.source_topic)} {letter.source_partition}:{letter.source_offset}{row}",
            escape(_printable(what)),
        )
    console().print(table)


def show(
    letter_id: str,
    raw: Annotated[
        bool, typer.Option("--raw", help="Write the bytes that came, and nothing else: for a file.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show one dead letter, with the bytes that came; what a terminal would obey is written as an escape."""
    from streamer.letters import deadletters

    configured = settings()
    require_kafka(configured)
    letter = deadletters.show(configured, letter_id)
    if raw:
        sys.stdout.buffer.write(letter.value)
        return
    if as_json:
        write_json(_plain(letter))
        return
    value = _text(letter.value[:_SHOWN_BYTES])
    if len(letter.value) > _SHOWN_BYTES:
        value += f" … and {len(letter.value) - _SHOWN_BYTES:,} bytes more (--raw writes all)"
    typer.echo(f"letter  {letter.letter_id}, {moment(letter.at_ms)} UTC")
    typer.echo(f"from    {letter.source_topic}[{letter.source_partition}] offset {letter.source_offset}")
    typer.echo(f"field   {_printable(letter.field) or 'the whole message'}")
    typer.echo(f"wrong   {_printable(letter.reason)}")
    typer.echo(f"key     {'none' if letter.key is None else _text(letter.key)}")
    typer.echo(f"value   {value}")


def replay(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="LETTER_ID...", help="As `dead-letters list` shows them.")
    ] = None,
    topic: Topic = None,
    field: Field = None,
    reason: Reason = None,
    within: Within = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="Those too that were sent before; features and labels in context count twice."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Send dead letters to the topics they came from, once each: by their ids, or all that are of some kind."""
    from streamer.letters import replay as letter_replay

    configured = settings()
    wanted = _wanted(configured, topic, field, reason, within)
    filtered = any(condition is not None for condition in (topic, field, reason, within))
    if bool(ids) == filtered:
        raise CommandError("which? give ids, or some of --topic, --field, --reason and --within", code=USAGE)
    require_kafka(configured)
    progress = _Progress()
    if ids:
        done = letter_replay.replay(configured, ids, again=again, told=progress)
    else:
        done = letter_replay.replay_wanted(configured, wanted, again=again, told=progress)
    if as_json:
        write_json(done._asdict())
        return
    typer.echo(f"{done.sent:,} sent again")
    if done.already:
        typer.echo(f"{done.already:,} had been sent before and were left out (--again sends them)")
    if done.unsendable:
        typer.echo(f"{done.unsendable:,} cannot be sent: their bytes were not kept; their producers have to")


class _Progress:
    """Says on standard error, every few seconds, how many letters have been sent for good."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _TELL_S

    def __call__(self, done: Replayed) -> None:
        """Say how far it has come, unless that was said just now."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _TELL_S
            typer.echo(f"{done.sent:,} sent again so far, {sum(done) - done.sent:,} left out", err=True)


def _wanted(
    configured: Settings, topic: str | None, field: str | None, reason: str | None, within: str | None
) -> Wanted:
    from streamer.durations import Duration
    from streamer.letters.deadletters import Wanted

    if topic is not None and topic not in _SOURCES:
        raise CommandError(f"--topic: got {topic!r}, wanted one of {', '.join(_SOURCES)}", code=USAGE)
    since_ms = None
    if within is not None:
        try:
            since_ms = int(time.time() * 1000) - Duration.parse(within)
        except ValueError as error:
            raise CommandError(f"--within: {error}", code=USAGE) from error
    return Wanted(None if topic is None else configured.topic(topic), field, reason, since_ms)


def _text(raw: bytes) -> str:
    return _printable(raw.decode(errors="backslashreplace"))


def _printable(text: str) -> str:
    """Return a stranger's text without what a terminal would obey."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _plain(letter: Letter) -> dict[str, object]:
    """Return a letter with its bytes as text, which JSON can carry, and as base64 where they are none."""
    import msgspec

    plain: dict[str, object] = {}
    for name, value in msgspec.structs.asdict(letter).items():
        if isinstance(value, bytes):
            plain[name] = value.decode(errors="backslashreplace")
            if not _is_text(value):
                plain[f"{name}_base64"] = base64.b64encode(value).decode()
        else:
            plain[name] = value
    return plain


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
