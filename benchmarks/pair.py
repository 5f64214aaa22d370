"""Two workers against one on the same topic: events a CPU second of both together, and wall time, each on a core."""

from __future__ import annotations

import statistics
import time
from typing import Annotated

import psutil
import typer

from benchmarks import measuring, traffic
from benchmarks.figures import Curve, Figure, figure
from streamer.local.worker import DEFAULT_COMMAND

_MODELS = 8
# Some eight seconds of a core: what a worker takes for being there, waiting for its next commit included, is paid twice
# by two, and is most of what a backlog of one second would tell of.
_EVENTS = 2_000_000
_COMMAND = "make bench ARGS='--only pair'"


def register(app: typer.Typer) -> None:
    """Add `pair` to the command line."""
    app.command("pair")(pair)


def pair(events: Annotated[int, typer.Option(help="How many predictions.", min=1)] = _EVENTS) -> None:
    """Measure one worker and two over a backlog of the same events."""
    for each in _measure(events):
        print(f"{each.name}: {each.value:,.2f} {each.unit} {each.note}")


def figures(*, quick: bool) -> tuple[list[Figure], list[Curve]]:
    """Measure over two million events, fewer where `quick`."""
    return _measure(100_000 if quick else _EVENTS), []


def _measure(events: int) -> list[Figure]:
    # In this order, what a machine does to a measurement in the course of minutes falls on both.
    runs = [(count, *_work_off(events, count)) for count in (1, 2, 2, 1)]
    one_cpu_s, two_cpu_s = (statistics.mean(cpu_s for count, cpu_s, _, _ in runs if count == n) for n in (1, 2))
    one_wall_s, two_wall_s = (statistics.mean(wall_s for count, _, wall_s, _ in runs if count == n) for n in (1, 2))
    pinned = runs[0][3]
    how = "each worker pinned to a core of its own" if pinned else "not pinned: this system cannot"
    note = (
        f"{how}; {events / one_cpu_s:,.0f} events a CPU second with one, {events / two_cpu_s:,.0f} with two. "
        "Two cores are also the broker's, so what two workers do on cores of their own is twice that ratio"
    )
    wall = f"{one_wall_s:.1f} s with one, {two_wall_s:.1f} s with two; broker and store share the cores"
    return [
        figure(
            "two workers against one, CPU-bound",
            2 * one_cpu_s / two_cpu_s,
            "×",
            at_least=1.8,
            command=_COMMAND,
            note=note,
        ),
        figure("two workers against one, wall time here", one_wall_s / two_wall_s, "×", command=_COMMAND, note=wall),
    ]


def _work_off(events: int, count: int) -> tuple[float, float, bool]:
    """Return the CPU and the wall time that workers take for a backlog, and whether they were pinned."""
    start_ms = int(time.time() * 1000) - traffic.SPAN_MS
    with measuring.running(commands=[DEFAULT_COMMAND] * count) as stack:
        settings = stack.settings
        configs = [traffic.model(index, labels="join") for index in range(_MODELS)]
        measuring.publish_models(settings, configs, start_ms)
        workers = measuring.workers(stack)
        pinned = _pin(workers)
        measuring.until_at_rest(workers)
        view = measuring.live_view(settings)
        backlog = measuring.Backlog(settings, "predictions")
        backlog.write(traffic.predictions(events, _MODELS, start_ms=start_ms))
        before, began = measuring.cpu_s(workers), time.monotonic()
        backlog.release()
        measuring.until(lambda: measuring.counted(view) == events, f"{count} workers: not all is in the live view")
        wall_s = time.monotonic() - began
        measuring.until_committed(settings)
        return measuring.cpu_s(workers) - before, wall_s, pinned


def _pin(workers: list[psutil.Process]) -> bool:
    if not hasattr(psutil.Process, "cpu_affinity"):
        return False
    cores = workers[0].cpu_affinity()
    for ordinal, worker in enumerate(workers):
        # All its threads: those that run already keep the affinity they started with.
        for thread in worker.threads():
            psutil.Process(thread.id).cpu_affinity([cores[ordinal % len(cores)]])
    return True
