"""`python -m benchmarks <subject>`: each subject prints one table, or JSON."""

from __future__ import annotations

import typer

from benchmarks import throughput

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
throughput.register(app)


@app.callback()
def subjects() -> None:
    """Measure driftloop on this machine; every subject starts and stops the servers it needs."""


if __name__ == "__main__":
    app()
