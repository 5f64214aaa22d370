"""`driftloop bench`: the repository's measurements, ours against peers, in one table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import typer

from streamer.cli.failures import CommandError

_HERE = Path("benchmarks/__main__.py")


def register(app: typer.Typer) -> None:
    """Add `bench` to the command line."""
    app.command(
        "bench", context_settings={"ignore_unknown_options": True, "allow_extra_args": True}, add_help_option=False
    )(bench)


def bench(context: typer.Context) -> None:
    """Measure driftloop against its peers; every option is handed on (--help lists them)."""
    if not _HERE.is_file():
        raise CommandError("the measurements are not in the package; run this in a checkout of the repository")
    # A process of its own: what is measured must not share an interpreter with the command line.
    code = subprocess.run([sys.executable, "-m", "benchmarks", *context.args], check=False).returncode
    if code:
        raise CommandError(f"the measurements ended with exit code {code}; see above", code=1)
