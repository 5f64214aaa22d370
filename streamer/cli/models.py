"""`driftloop models`: tell driftloop about models, see what it knows, and let one go on after a data fault."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from streamer.cli.answers import ask
from streamer.cli.failures import CommandError
from streamer.cli.present import Json, console, length, now_ms, plain_table, write_json
from streamer.cli.surroundings import require_kafka, settings
from streamer.durations import Duration
from streamer.models import ModelConfig, read_model
from streamer.settings import Settings


def register(app: typer.Typer) -> None:
    """Add `models` to the command line."""
    group = typer.Typer(help="Tell driftloop about models, and see what it knows.", no_args_is_help=True)
    for function in (apply, show, allow):
        group.command()(function)
    group.command("list")(list_models)
    group.command("clear-fault")(clear_fault)
    app.add_typer(group, name="models")


def apply(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="TOML files, one a model.")],
    check: Annotated[bool, typer.Option("--check", help="Only say whether the files are valid.")] = False,
    as_json: Json = False,
) -> None:
    """Check models' TOML files and publish them; workers take them up within a second."""
    models = [read_model(file) for file in files]
    twice = {model.name for model in models if sum(other.name == model.name for other in models) > 1}
    if twice:
        raise CommandError(f"{', '.join(sorted(twice))}: given twice; one file a model")
    if not check:
        from streamer import references

        configured = settings()
        require_kafka(configured)
        references.publish_models(configured, models)
    if as_json:
        write_json([{"model": model.name, "published": not check} for model in models])
        return
    for model in models:
        done = "valid" if check else "applied"
        typer.echo(f"{model.name}: {done} ({model.task}, {len(model.features)} features)")


def list_models(as_json: Json = False) -> None:
    """List the models driftloop knows, with the versions that have a reference."""
    from streamer import references

    configured = settings()
    require_kafka(configured)
    models = references.read_models(configured)
    versions = references.published_versions(configured)
    if as_json:
        write_json(
            [
                {
                    "model": name,
                    "task": model.task,
                    "model_epoch": model.model_epoch,
                    "references": versions.get(name, []),
                }
                for name, model in models.items()
            ]
        )
        return
    if not models:
        typer.echo("No model yet: driftloop models apply FILE")
        return
    table = plain_table("MODEL", "TASK", "FEATURES", "PANE", "REFERENCES", right=("FEATURES",))
    for name, model in models.items():
        known = ", ".join(versions.get(name, [])) or "[yellow]none: driftloop reference build[/]"
        table.add_row(name, model.task, str(len(model.features)), length(model.time.pane), known)
    console().print(table)


def show(model: str, as_json: Json = False) -> None:
    """Show a model's whole configuration as driftloop has it, defaults included; with --json, times in milliseconds."""
    found = published_model(settings(), model)
    if as_json:
        write_json(found.model_dump(mode="json", by_alias=True))
        return
    console().print_json(data=_as_written(found))


def _as_written(value: Any) -> Any:
    """Return a configuration as plain data, with lengths of time as in the model's file."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {field.alias or name: _as_written(getattr(value, name)) for name, field in fields.items()}
    if isinstance(value, Duration):
        return value.text
    if isinstance(value, dict):
        return {key: _as_written(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple | frozenset | set) else value


def allow(
    model: str,
    span: Annotated[str, typer.Option("--for", help="How long: 6h, 2d.")],
    as_json: Json = False,
) -> None:
    """Let a model be retrained although its data has a fault, for a while."""
    try:
        until_ms = now_ms() + Duration.parse(span)
    except ValueError as error:
        raise CommandError(f"--for: {error}", code=2) from error
    config = published_model(settings(), model)
    ask(config, "allow", subject=model, payload={"until_ms": until_ms}, as_json=as_json)


def clear_fault(model: str, as_json: Json = False) -> None:
    """Start a model's looks again after an error in its own folding or deciding stopped them."""
    ask(published_model(settings(), model), "clear_fault", subject=model, payload={}, as_json=as_json)


def published_model(configured: Settings, name: str) -> ModelConfig:
    """Return a published model; an unknown name is an error that names those there are."""
    from streamer import references

    require_kafka(configured)
    models = references.read_models(configured)
    if name in models:
        return models[name]
    if not models:
        raise CommandError(f"{name}: no model yet: driftloop models apply FILE")
    raise CommandError(f"{name}: no such model; known: {', '.join(models)}")
