"""`driftloop reference`: build what a version is compared with from a table, publish it, look at it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from streamer.cli.failures import CommandError
from streamer.cli.present import (
    NOTHING,
    Json,
    console,
    count,
    moment,
    now_ms,
    number,
    plain_table,
    share,
    write_json,
)
from streamer.cli.surroundings import require_kafka, settings
from streamer.events import NAME_PATTERN
from streamer.models import read_model

if TYPE_CHECKING:
    # scipy takes seconds to load: only what builds or reads a reference pays for it.
    from monitors.binning import Binning
    from monitors.profile import ReferenceProfile

Column = Annotated[str | None, typer.Option(metavar="COLUMN", help="Default: the column of the option's own name.")]


def register(app: typer.Typer) -> None:
    """Add `reference` to the command line."""
    group = typer.Typer(help="Build, publish and show what a model version is compared with.", no_args_is_help=True)
    for function in (build, publish, show):
        group.command()(function)
    app.add_typer(group, name="reference")


def build(
    model: Annotated[Path, typer.Option(help="The model's TOML file.")],
    data: Annotated[Path, typer.Option(help="Parquet or CSV: the rows the version was trained or tested on.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A file, or a directory for <model>-<version>.json.")],
    version: Annotated[str, typer.Option(help="The version these rows belong to; events carry the same.")] = "1",
    score_column: Column = None,
    prediction_column: Column = None,
    label_column: Column = None,
    ts_column: Column = None,
    as_json: Json = False,
) -> None:
    """Build a version's reference from a table with a column a feature.

    With columns for the prediction (and score) and the label the reference also says how well the version did;
    with a time for each row, how much rows of the same time are alike, so that chance is judged rightly.
    """
    from streamer import reference_table, references

    config = read_model(model)
    _check_version(version)
    table = reference_table.read_table(data)
    columns = reference_table.OutputColumns.find(
        table, config, prediction=prediction_column, score=score_column, label=label_column, ts=ts_column
    )
    profile = reference_table.build(config, table, columns, version=version, created_ms=now_ms())
    path = references.save(profile, output)
    if as_json:
        write_json({"file": path, **_summary(profile)})
        return
    typer.echo(f"{path}: {profile.model} version {profile.version}, {count(profile.rows)} rows")
    used = {name: getattr(columns, name) for name in ("prediction", "score", "label", "ts")}
    for name, column in used.items():
        typer.echo(f"  {name:<10} {column or _ABSENT[name]}")
    if profile.baseline is not None:
        typer.echo(
            f"  baseline   {profile.baseline.primary} {number(profile.baseline.value)} on {count(profile.baseline.n)}"
        )
    typer.echo(f"next: driftloop reference publish {path}")


_ABSENT = {
    "prediction": "none: performance is shown but not judged (--prediction-column)",
    "score": "none: no AUC, no log loss (--score-column)",
    "label": "none: performance is shown but not judged (--label-column)",
    "ts": "none: rows count as independent (--ts-column)",
}


def publish(file: Annotated[Path, typer.Argument(help="What `reference build` wrote.")], as_json: Json = False) -> None:
    """Publish a reference; workers take it up within a second. A published one never changes."""
    from streamer import references

    profile = references.load(file)
    configured = settings()
    require_kafka(configured)
    new = references.publish(configured, profile)
    if as_json:
        write_json({"published": new, **_summary(profile)})
        return
    typer.echo(f"{profile.model} version {profile.version}: {'published' if new else 'is published already'}")
    if profile.model not in references.read_models(configured):
        typer.echo(f"driftloop does not know {profile.model} yet: driftloop models apply <its TOML file>")


def show(
    target: Annotated[str, typer.Argument(metavar="FILE|MODEL", help="A reference's file, or a model's name.")],
    version: Annotated[str | None, typer.Option(help="Of a model; the one there is by default.")] = None,
    as_json: Json = False,
) -> None:
    """Show a reference: its features, their cells and shares, and how well the version did."""
    from streamer import references

    path = Path(target)
    profile = references.load(path) if path.exists() else _published(target, version)
    if as_json:
        write_json(_summary(profile))
        return
    screen = console()
    screen.print(
        f"[bold]{escape(profile.model)}[/] version {escape(profile.version)}  {count(profile.rows)} rows  "
        f"[dim]built {moment(profile.created_ms)} UTC  {profile.fingerprint}[/]"
    )
    table = plain_table("FEATURE", "KIND", "CELLS", "RANGE", "MISSING", "DESIGN EFFECT", right=("CELLS", "MISSING"))
    for name, feature in profile.features.items():
        binning = feature.binning
        missing = int(feature.counts[binning.missing]) / feature.rows if feature.rows else None
        table.add_row(
            escape(name),
            binning.kind,
            str(binning.cells),
            _range(binning),
            share(missing),
            number(feature.design_effect, 1),
        )
    screen.print(table)
    baseline = profile.baseline
    if baseline is None:
        screen.print("no baseline: the table had no label and prediction columns; performance is shown but not judged")
        return
    told = ", ".join(
        f"{name.replace('_', ' ')} {number(value)}" for name, value in baseline.metrics.items() if name != "n"
    )
    screen.print(f"baseline on {count(baseline.n)} rows: {told}")


def _published(model: str, version: str | None) -> ReferenceProfile:
    from streamer import references

    configured = settings()
    require_kafka(configured)
    versions = references.published_versions(configured).get(model, [])
    if not versions:
        raise CommandError(f"{model}: no such file, and no reference of a model of that name is published")
    if version is None and len(versions) > 1:
        raise CommandError(f"{model}: has references {', '.join(versions)}; choose one with --version")
    profile = references.read(configured, model, version or versions[0])
    if profile is None:
        raise CommandError(f"{model}: no whole reference {version}; there are {', '.join(versions)}")
    return profile


def _check_version(version: str) -> None:
    if not re.fullmatch(NAME_PATTERN, version):
        raise CommandError(f"--version: got {version!r}, wanted 1 to 100 of a-z, 0-9, '.', '_' and '-'", code=2)


def _range(binning: Binning) -> str:
    if binning.edges or binning.values:
        marks = binning.edges or binning.values
        return f"{marks[0]:,.6g} to {marks[-1]:,.6g}"
    shown = ", ".join(binning.categories[:4])
    return escape(shown + (", …" if len(binning.categories) > 4 else "")) or NOTHING


def _summary(profile: ReferenceProfile) -> dict[str, object]:
    return {
        "model": profile.model,
        "version": profile.version,
        "fingerprint": profile.fingerprint,
        "rows": profile.rows,
        "created_ms": profile.created_ms,
        "features": {
            name: {
                "kind": feature.binning.kind,
                "cells": feature.binning.cells,
                "missing_share": int(feature.counts[feature.binning.missing]) / feature.rows if feature.rows else None,
                "design_effect": feature.design_effect,
            }
            for name, feature in profile.features.items()
        },
        "baseline": None if profile.baseline is None else profile.baseline.metrics,
    }
