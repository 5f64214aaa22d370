"""The command line: `driftloop …`, one small module a group of commands."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and leave with its exit code: 0 done, 1 failed, 2 usage, 3 a dependency is unreachable."""
    try:
        import typer  # noqa: F401  the SDK is installed without it
    except ModuleNotFoundError:
        sys.stderr.write("driftloop: the command line is not installed; pip install 'driftloop[worker]'\n")
        raise SystemExit(1) from None
    from streamer.cli.frame import build

    build()(prog_name="driftloop")
