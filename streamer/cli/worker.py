"""`driftloop worker` and `driftloop dev`: run the stream worker, or everything on this machine."""

from __future__ import annotations

import contextlib
import shlex
import signal
import threading
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from streamer.cli.failures import USAGE, CommandError
from streamer.cli.present import console
from streamer.cli.surroundings import (
    commands_here,
    exports_command,
    require_kafka,
    require_redis_access,
    settings,
)


class Role(StrEnum):
    """Which stages a worker runs."""

    all = "all"
    ingest = "ingest"
    evaluate = "evaluate"


def register(app: typer.Typer) -> None:
    """Add `dev` and `worker` to the command line."""
    app.command("dev")(dev)
    app.command("worker")(worker)


def worker(
    role: Annotated[Role, typer.Option(help="Which stages to run in this process.")] = Role.all,
    replica: Annotated[
        str | None,
        typer.Option(help="This worker's name among its like; no two may share one. Default: worker.replica."),
    ] = None,
) -> None:
    """Run the stream worker until SIGTERM: it reads events, keeps the live view and decides."""
    from streamer import app
    from streamer.kafka import access as kafka_access
    from streamer.process import memory

    memory.share()
    configured = settings()
    if replica is not None:
        configured = configured.model_copy(update={"worker": configured.worker.model_copy(update={"replica": replica})})
    require_kafka(configured)
    kafka_access.require_rights(configured, role.value)
    require_redis_access(configured)
    code = app.run(configured, role=role.value)
    if code:
        raise CommandError("the worker has ended with an error; the last lines of its log say which", code=code)


def dev(
    directory: Annotated[Path, typer.Option(help="Where state and logs go.")] = Path(".driftloop"),
    keep: Annotated[bool, typer.Option(help="Go on with the state of the last run instead of starting clean.")] = True,
    parts: Annotated[str, typer.Option(help="Which parts, separated by commas; all by default.")] = "",
    exports: Annotated[
        bool, typer.Option("--exports", help='Only print how to reach the one that runs: eval "$(… --exports)".')
    ] = False,
) -> None:
    """Run everything on this machine from packages alone: Kafka, Valkey, PostgreSQL, MLflow, Airflow, a worker."""
    if exports:
        _print_exports(_running(directory))
        return
    from streamer.local.processes import StackError
    from streamer.local.stack import PARTS, Stack

    screen = console()
    wanted = frozenset(part.strip() for part in parts.split(",") if part.strip()) or frozenset(PARTS)
    if unknown := wanted - set(PARTS):
        raise CommandError(f"--parts: got {', '.join(sorted(unknown))}, wanted some of {', '.join(PARTS)}", code=USAGE)
    try:
        stack = Stack(
            directory,
            parts=wanted,
            keep=keep,
            progress=lambda part, said: screen.print(f"[dim]{part:>9}[/]  {said}"),
        )
        with stack:
            _introduce(stack.environment(), directory)
            with _asked_to_stop() as asked:
                stack.wait(asked, lambda line: screen.print(f"[red]{escape(line)}[/]; Ctrl-C, then this command again"))
            screen.print("stopping …")
    except StackError as error:
        raise CommandError(str(error)) from error


def _introduce(environment: dict[str, str], directory: Path) -> None:
    screen = console()
    screen.print("\n[bold green]driftloop is running.[/] Ctrl-C stops all of it.\n")
    _print_exports(environment)
    first = commands_here(
        directory, {"driftloop watch": "what the worker sees", "driftloop doctor": "whether all is well"}
    )
    screen.print(
        f"\nLogs are under {(directory / 'logs').resolve()}. In another terminal, here:\n"
        f"{first}\n"
        "Your own programs, and terminals elsewhere, need the variables above first:\n"
        f"  {exports_command(directory)}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )


def _print_exports(environment: Mapping[str, str]) -> None:
    for name in _TOLD:
        if name in environment:
            typer.echo(f"export {name}={shlex.quote(environment[name])}")


def _running(directory: Path) -> Mapping[str, str]:
    from streamer.local.record import running_stack

    record = running_stack(directory)
    if record is None:
        raise CommandError(f"{directory}: no local stack runs here; start one: driftloop dev")
    return record.environment


_TOLD = (
    "DRIFTLOOP_CONFIG",
    "DRIFTLOOP_NAMESPACE",
    "DRIFTLOOP_KAFKA",
    "DRIFTLOOP_REDIS__URL",
    "DRIFTLOOP_MLFLOW__TRACKING_URI",
    "DRIFTLOOP_AIRFLOW__URL",
)


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """Give the event that Ctrl-C and SIGTERM set meanwhile; both end the stack in good order."""
    asked = threading.Event()
    before = {each: signal.signal(each, lambda *_: asked.set()) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
