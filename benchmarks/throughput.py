"""How many events one worker takes a CPU second: from the topic to counts that are committed and seen in Redis."""

from __future__ import annotations

import contextlib
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import psutil
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import batches, measuring, traffic
from benchmarks.figures import Curve, Figure, figure
from streamer.settings import Settings
from streamer.view import LiveView

_IDLE_S = 4.0
_UNIT = "events/CPU s"


class Measured(msgspec.Struct, kw_only=True):
    """One run of events through one worker.

    `cpu_s` is user and system time of the whole worker process from the moment the messages could be read until
    they were committed and seen, `idle_share` the CPU it takes a second with nothing to do, which is in `cpu_s`.
    `yardstick_per_cpu_s` is how many of these predictions this process decodes a CPU second, before and after: it
    tells how fast the machine is, and how far its neighbours slow it down.
    """

    what: str
    events: int
    mean_bytes: float
    cpu_s: float
    wall_s: float
    per_cpu_s: int
    idle_share: float
    rss_mb: int
    yardstick_per_cpu_s: int


def register(app: typer.Typer) -> None:
    """Add `throughput` to the command line."""
    app.command("throughput")(throughput)


def throughput(
    events: Annotated[int, typer.Option(help="How many predictions.", min=1)] = 500_000,
    labels: Annotated[bool, typer.Option("--labels", help="Then send a label to each, and measure the join.")] = False,
    context: Annotated[
        bool, typer.Option("--context", help="Without the label-join store: labels.mode = context.")
    ] = False,
    arrow: Annotated[
        bool, typer.Option("--arrow", help="Some thousand events a message, as the SDK's batch form.")
    ] = False,
    models: Annotated[int, typer.Option(help="Spread over how many models.", min=1)] = 1,
    repeat: Annotated[int, typer.Option(help="How often; each time with servers and a worker of its own.", min=1)] = 1,
    profile: Annotated[Path | None, typer.Option(help="Write py-spy's stacks of the worker to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure one worker's CPU over a backlog of events, topic to committed counts and live view."""
    if labels and context:
        raise typer.BadParameter("labels are joined, or bring their context; not both")
    mode: Literal["join", "context"] = "context" if context else "join"
    found = [
        measured
        for _ in range(repeat)
        for measured in _run(events, models, mode=mode, with_labels=labels, arrow=arrow, profile=profile)
    ]
    if as_json:
        print(msgspec.json.encode(found).decode())
    else:
        _show(found)


def figures(*, quick: bool) -> tuple[list[Figure], list[Curve]]:
    """Measure predictions with their label records stored, labels joined, and counts alone; JSON and Arrow."""
    events = 150_000 if quick else 500_000
    stored, joined = _run(events, 1, mode="join", with_labels=True, profile=None)
    (alone,) = _run(events, 1, mode="context", with_labels=False, profile=None)
    (columns,) = _run(4 * events, 1, mode="context", with_labels=False, arrow=True, profile=None)
    kept, met = _run(events, 1, mode="join", with_labels=True, arrow=True, profile=None)
    command = "make bench ARGS='--only throughput'"
    found = [
        figure("JSON events, label records stored", stored.per_cpu_s, _UNIT, at_least=150_000, command=command),
        figure("JSON events, counts alone", alone.per_cpu_s, _UNIT, at_least=250_000, command=command),
        figure("labels joined", joined.per_cpu_s, "labels/CPU s", at_least=100_000, command=command),
        figure("Arrow batches, counts alone", columns.per_cpu_s, _UNIT, at_least=1_000_000, command=command),
        figure("Arrow batches, label records stored", kept.per_cpu_s, _UNIT, command=command),
        figure("labels in Arrow batches, joined", met.per_cpu_s, "labels/CPU s", command=command),
        figure("yardstick: typed decode alone", alone.yardstick_per_cpu_s, _UNIT, command=command),
    ]
    return found, []


def _run(
    events: int,
    models: int,
    *,
    mode: Literal["join", "context"],
    with_labels: bool,
    arrow: bool = False,
    profile: Path | None,
) -> list[Measured]:
    source = batches if arrow else traffic
    start_ms = int(time.time() * 1000) - traffic.SPAN_MS
    with measuring.running() as stack:
        settings = stack.settings
        measuring.publish_models(settings, [traffic.model(index, labels=mode) for index in range(models)], start_ms)
        (worker,) = measuring.workers(stack)
        measuring.until_at_rest([worker])
        view = measuring.live_view(settings)
        what = ("predictions" if mode == "join" else "predictions, context") + (", Arrow" if arrow else "")
        with _profiled(worker, profile):
            found = [
                measure(
                    what,
                    source.predictions(events, models, start_ms=start_ms),
                    settings,
                    "predictions",
                    worker,
                    lambda: measuring.counted(view) == events,
                    events=events,
                )
            ]
        if with_labels:
            names = [f"bench-{index}" for index in range(models)]
            found.append(
                measure(
                    "labels, Arrow" if arrow else "labels",
                    source.labels(events, models, start_ms=start_ms),
                    settings,
                    "labels",
                    worker,
                    lambda: _labelled(view, names) == events,
                    events=events,
                )
            )
    return found


def _labelled(view: LiveView, names: Sequence[str]) -> int:
    found = [view.model(name, version=traffic.VERSION) for name in names]
    return sum(each.performance.labelled or 0 for each in found if each is not None and each.performance is not None)


def measure(
    what: str,
    messages: Iterable[traffic.Message | traffic.Batch],
    settings: Settings,
    kind: str,
    worker: psutil.Process,
    seen: measuring.Wait,
    *,
    events: int | None = None,
) -> Measured:
    """Send a backlog that becomes readable all at once, and take the worker's CPU until it is dealt with.

    Parameters
    ----------
    events : how many the messages hold; None for one each.
    """
    backlog = measuring.Backlog(settings, kind)
    backlog.write(messages)
    idle = measuring.cpu_s([worker])
    time.sleep(_IDLE_S)
    idle_share = (measuring.cpu_s([worker]) - idle) / _IDLE_S
    yardstick = measuring.yardstick()
    began, before = time.monotonic(), measuring.cpu_s([worker])
    backlog.release()
    measuring.until(seen, f"{what}: not all are in the live view")
    measuring.until_committed(settings)
    cpu_s, wall_s = measuring.cpu_s([worker]) - before, time.monotonic() - began
    events = backlog.messages if events is None else events
    return Measured(
        what=what,
        events=events,
        mean_bytes=round(backlog.bytes / events, 1),
        cpu_s=round(cpu_s, 2),
        wall_s=round(wall_s, 2),
        per_cpu_s=round(events / cpu_s),
        idle_share=round(idle_share, 3),
        rss_mb=measuring.rss_bytes([worker]) // 2**20,
        yardstick_per_cpu_s=round(statistics.mean((yardstick, measuring.yardstick()))),
    )


@contextlib.contextmanager
def _profiled(worker: psutil.Process, target: Path | None) -> Iterator[None]:
    if target is None:
        yield
        return
    program = str(Path(sys.executable).parent / "py-spy")
    how = ["--rate", "100", "--threads", "--nonblocking", "--format", "raw", "--duration", "600"]
    command = [program, "record", "--pid", str(worker.pid), *how, "--output", str(target)]
    spy = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        spy.send_signal(signal.SIGINT)
        spy.wait()


def _show(found: Sequence[Measured]) -> None:
    table = Table(title="one worker, topic to committed counts and live view")
    for heading in ("what", "events", "bytes each", "CPU s", "wall s", "per CPU s", "idle", "RSS MB", "yardstick"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for each in found:
        table.add_row(
            each.what,
            f"{each.events:,}",
            f"{each.mean_bytes:.0f}",
            f"{each.cpu_s:.2f}",
            f"{each.wall_s:.1f}",
            f"[bold]{each.per_cpu_s:,}[/]",
            f"{each.idle_share:.1%}",
            f"{each.rss_mb:,}",
            f"{each.yardstick_per_cpu_s:,}",
        )
    Console().print(table)
