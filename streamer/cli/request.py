"""`driftloop request`, `split` and `rollback`: what a person may want of a model's request and rollout."""

from __future__ import annotations

from typing import Annotated

import typer

from streamer.cli.answers import actor, ask
from streamer.cli.failures import UNREACHABLE, CommandError
from streamer.cli.models import published_model
from streamer.cli.present import NOTHING, Json, moment, write_json
from streamer.cli.surroundings import live_view, settings
from streamer.settings import Settings


def register(app: typer.Typer) -> None:
    """Add `request`, `split` and `rollback` to the command line."""
    app.command("request")(request)
    app.command("split")(split)
    app.command("rollback")(rollback)


def request(
    model: str,
    reason: Annotated[str, typer.Option(help="Why, for the ledger and the training run.")],
    as_json: Json = False,
) -> None:
    """Ask for a model to be retrained now."""
    ask(published_model(settings(), model), "request", subject=model, payload={"reason": reason}, as_json=as_json)


def split(
    model: str,
    champion: Annotated[
        str | None,
        typer.Option(help="Name the version that serves, an earlier one to go back to it; not while a rollout runs."),
    ] = None,
    unreferenced: Annotated[
        bool, typer.Option("--unreferenced", help="Name it though others have a reference and it has none.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show who serves what share of a model's traffic, or name the version that does."""
    configured = settings()
    if champion is not None:
        config = published_model(configured, model)
        if not unreferenced:
            _require_reference(configured, model, champion)
        ask(config, "set_champion", subject=model, payload={"version": champion}, as_json=as_json)
        return
    with live_view(configured) as view:
        found = view.split(model)
    if found is None:
        published_model(configured, model)
        raise CommandError(f"{model}: nobody has named a champion: driftloop split {model} --champion VERSION")
    if as_json:
        write_json(found)
        return
    typer.echo(f"champion    {found.champion}  {100 - found.percent:g} %")
    if found.challenger:
        # As the ledger counts them, from one; until the ramp is begun the challenger serves nobody.
        step = f"step {found.step + 1}" if found.step >= 0 else "ramp not begun"
        typer.echo(f"challenger  {found.challenger}  {found.percent:g} %  {step}  {found.rollout_id}")
    typer.echo(f"epoch {found.epoch}, since {moment(found.since_ms) if found.since_ms else NOTHING} UTC")


def rollback(
    model: str,
    reason: Annotated[str, typer.Option(help="Why, for the ledger.")] = "asked for by hand",
    force: Annotated[
        bool, typer.Option("--force", help="At once, also with no worker running: routers follow within a second.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Give all traffic back to the champion and end the running rollout."""
    configured = settings()
    if force:
        from streamer import rollback as forced

        done = forced.force(configured, model, reason=reason, actor=actor())
        if as_json:
            write_json(done)
        else:
            typer.echo(f"{model}: {done.champion} is to serve 100 % at epoch {done.epoch}")
            typer.echo(f"routers   split {done.split}")
            waiting = "; evaluate has not answered and will follow when it is back" if done.command == "sent" else ""
            typer.echo(f"evaluate  command {done.command}{waiting}")
        if not done.complete:
            raise CommandError(f"{model}: only in part rolled back; run it again", code=UNREACHABLE)
        return
    with live_view(configured) as view:
        found = view.split(model)
    config = published_model(configured, model)
    if found is None or not found.rollout_id:
        serving = f"{found.champion} serves everybody" if found else "nobody has named a champion"
        raise CommandError(
            f"{model}: no rollout is running, {serving}; nothing to roll back. "
            f"To let another version serve: driftloop split {model} --champion VERSION"
        )
    ask(config, "rollback", subject=found.rollout_id, payload={"reason": reason}, as_json=as_json)


def _require_reference(configured: Settings, model: str, version: str) -> None:
    """Refuse a champion that is most likely a slip of the pen: routers would ask for it within a second."""
    from streamer import references

    known = references.published_versions(configured).get(model, [])
    if known and version not in known:
        raise CommandError(
            f"--champion: got {version!r}, of which no reference is published; there are {', '.join(known)}. "
            "Every answer would be asked of it, and its drift could not be told; --unreferenced names it all the same"
        )
