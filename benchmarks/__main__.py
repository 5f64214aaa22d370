"""`python -m benchmarks`: every subject, one table; `python -m benchmarks <subject> …`: one, with its own options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from benchmarks import (
    cost,
    folding,
    latency,
    memory,
    outage,
    packing,
    pair,
    pane_size,
    picture,
    rebalance,
    report,
    restart,
    sdk,
    soak,
    suite,
    throughput,
)
from benchmarks.figures import write_results

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)
for module in (
    throughput,
    latency,
    packing,
    pane_size,
    pair,
    memory,
    rebalance,
    restart,
    soak,
    cost,
    sdk,
    outage,
    folding,
):
    module.register(app)


@app.callback(invoke_without_command=True)
def everything(
    context: typer.Context,
    only: Annotated[str, typer.Option(help=f"Some of {', '.join(suite.SUBJECTS)}, separated by commas.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Shorter runs, for a look; nothing is kept.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure driftloop on this machine; every subject starts and stops the servers it needs.

    What is measured is kept in benchmarks/results/latest.json, drawn in docs/performance.png, and put into README.
    """
    if context.invoked_subcommand is not None:
        return
    try:
        names = suite.chosen(only)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--only") from error
    results = suite.run(names, quick=quick)
    if as_json:
        print(msgspec.json.encode(results).decode())
    else:
        report.show(results, only=set(names))
    failed = [name for name in names if results.subjects[name].fault]
    if not quick:
        write_results(results)
        picture.draw(results)
        report.write_page(results)
    if failed:
        typer.echo(f"failed: {', '.join(failed)}", err=True)
        raise typer.Exit(1)


@app.command("subject", hidden=True)
def subject(name: str, target: Path, quick: Annotated[bool, typer.Option("--quick")] = False) -> None:
    """Measure one subject and write what it found to a file."""
    target.write_bytes(msgspec.json.encode(suite.run_one(name, quick=quick)))


if __name__ == "__main__":
    app()
