"""How long an event takes until it is seen in Redis, at a steady rate; and whether a backlog holds up the live view."""

from __future__ import annotations

import threading
import time
from typing import Annotated

import numpy as np
import typer

from benchmarks import measuring, traffic
from benchmarks.figures import Curve, Figure, figure
from benchmarks.pacer import Sent, pace_of, pacing
from streamer.local.stack import Stack
from streamer.view import LiveView

RATE = 20_000
SECONDS = 300
BACKLOG = 2_000_000
_POLL_S = 0.01
_LAST_S = 30.0


def register(app: typer.Typer) -> None:
    """Add `latency` to the command line."""
    app.command("latency")(latency)


def latency(
    seconds: Annotated[int, typer.Option(help="How long events are sent.", min=5)] = SECONDS,
    rate: Annotated[int, typer.Option(help="Events a second.", min=1)] = RATE,
    backlog: Annotated[int, typer.Option(help="Events of the backlog; 0 leaves it out.", min=0)] = BACKLOG,
) -> None:
    """Measure event to view at a steady rate, then how often the view is rewritten over a backlog."""
    found, _ = _measure(seconds, rate, backlog)
    for each in found:
        print(f"{each.name}: {each.value:.3f} {each.unit} {each.note}")


def figures(*, quick: bool) -> tuple[list[Figure], list[Curve]]:
    """Measure over five minutes and two million events; over one minute and 300,000 where `quick`."""
    return _measure(60 if quick else SECONDS, RATE, 300_000 if quick else BACKLOG)


class Watch:
    """Looks at the view again and again, in a thread of its own, and keeps when it changed.

    Attributes
    ----------
    seen : (when, predictions counted, when the document was written by its own clock) at every rewrite.
    """

    def __init__(self, view: LiveView) -> None:
        self._view = view
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self.seen: list[tuple[float, int, int]] = []

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def events(self) -> int:
        """How many predictions the view shows."""
        return self.seen[-1][1] if self.seen else 0

    def _run(self) -> None:
        while not self._stop.wait(_POLL_S):
            found = self._view.models()
            now = time.monotonic()
            written = max((each.as_of_ms or 0 for each in found), default=0)
            if not self.seen or written != self.seen[-1][2]:
                self.seen.append((now, sum(each.n or 0 for each in found), written))


def _measure(seconds: int, rate: int, backlog: int) -> tuple[list[Figure], list[Curve]]:
    with measuring.running() as stack:
        settings = stack.settings
        measuring.publish_models(settings, [traffic.model(0, labels="join")], int(time.time() * 1000))
        measuring.until_at_rest(measuring.workers(stack))
        found, curves = _paced(stack, seconds, rate)
        if backlog:
            found += _backlog(stack, backlog)
    return found, curves


def _paced(stack: Stack, seconds: int, rate: int) -> tuple[list[Figure], list[Curve]]:
    (worker,) = measuring.workers(stack)
    with Watch(measuring.live_view(stack.settings)) as watch:
        with pacing(stack, pace_of(stack, rate=rate, seconds=seconds)) as pacer:
            measuring.until(lambda: bool(pacer.sent()), "the paced producer does not send", within_s=_LAST_S)
            before, began = measuring.cpu_s([worker]), time.monotonic()
            sent = pacer.wait(seconds + 60)
            share = (measuring.cpu_s([worker]) - before) / (time.monotonic() - began)
        measuring.until(
            lambda: watch.events >= sent[-1].events, "the last events are not in the view", within_s=_LAST_S
        )
    waits_s, weights = _waits(sent, watch)
    p50, p99 = _quantile(waits_s, weights, 0.5), _quantile(waits_s, weights, 0.99)
    where, command = f"at {rate:,} events/s for {seconds} s", f"python -m benchmarks latency --seconds {seconds}"
    reached = sent[-1].events / seconds
    note = f"{reached:,.0f} events/s were sent; longest {max(waits_s):.2f} s"
    found = [
        figure(f"event → visible in Redis, p50, {where}", p50, "s", at_most=1.0, command=command, note=note),
        figure(f"event → visible in Redis, p99, {where}", p99, "s", at_most=2.0, command=command, note=note),
        figure(f"worker's CPU {where}", share, "cores", command=command, note="label records stored"),
    ]
    levels = [0.01, *(step / 20 for step in range(1, 20)), 0.99, 0.999]
    curve = Curve(
        picture=f"event to view, {where}",
        name="seconds until visible",
        over="share of events",
        unit="s",
        x=levels,
        y=[_quantile(waits_s, weights, level) for level in levels],
    )
    return found, [curve]


def _waits(sent: list[Sent], watch: Watch) -> tuple[list[float], list[int]]:
    """Return how long each chunk waited until the view counted as many events, and how many events it is of.

    Events of several partitions do not come into view in the order they were sent, but as many: over all of them the
    waits are the same.
    """
    counts = [events for _at, events, _written in watch.seen]
    waits, weights, before = [], [], 0
    for each in sent:
        if each.events > before:
            at = int(np.searchsorted(counts, each.events, side="left"))
            waits.append(watch.seen[at][0] - each.at_s)
            weights.append(each.events - before)
            before = each.events
    return waits, weights


def _quantile(values: list[float], weights: list[int], level: float) -> float:
    order = np.argsort(values)
    cumulative = np.cumsum(np.asarray(weights)[order])
    return float(np.asarray(values)[order][np.searchsorted(cumulative, level * cumulative[-1])])


def _backlog(stack: Stack, events: int) -> list[Figure]:
    """Measure the longest time between two rewrites of the view while a backlog is worked off."""
    backlog = measuring.Backlog(stack.settings, "predictions")
    now_ms = int(time.time() * 1000)
    backlog.write(traffic.predictions(events, 1, start_ms=now_ms - traffic.SPAN_MS))
    view = measuring.live_view(stack.settings)
    before = measuring.counted(view)
    with Watch(view) as watch:
        began = time.monotonic()
        backlog.release()
        measuring.until(lambda: watch.events - before >= events, f"{events:,} events of a backlog are not in the view")
        took = time.monotonic() - began
    moments = [began, *(at for at, _events, _written in watch.seen[1:])]
    gaps = np.diff(moments)
    command = f"python -m benchmarks latency --backlog {events}"
    note = f"{len(gaps)} rewrites in {took:.1f} s, the median {np.median(gaps):.2f} s after the one before"
    what = f"longest time between two rewrites of the view over a backlog of {events:,}"
    return [
        figure(what, float(gaps.max()), "s", at_most=2.0, command=command, note=note),
        figure(f"backlog of {events:,}, until all is visible", took, "s", command=command),
    ]
