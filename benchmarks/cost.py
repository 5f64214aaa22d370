"""What an event costs over models, partitions and features, what a pane costs, and 1,000 models at a steady rate."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Annotated, NamedTuple

import typer

from benchmarks import measuring, throughput, traffic
from benchmarks.figures import Curve, Figure, figure
from benchmarks.pacer import pace_of, pacing
from streamer.settings import Settings, TopicSettings

MODELS = (1, 10, 50, 200, 1_000)
PARTITIONS = (4, 16, 64)
FEATURES = (10, 50, 100, 500)
# From one to so many models an event is to cost the same.
_FLAT_TO = 200
_MANY = 1_000
_RATE = 20_000
_WARM_S = 10
# Of models that say nothing else.
_PANE_MS = 300_000
# Every run has about as many values to count, and none so few events that a flush is all it measures.
_VALUES = 4_000_000
_LEAST_EVENTS = 20_000
_FIRST_EVENTS = 20
_COMMAND = "make bench ARGS='--only cost'"


def register(app: typer.Typer) -> None:
    """Add `cost` to the command line."""
    app.command("cost")(cost)


def cost(
    models: Annotated[int, typer.Option(help="How many models the events go round over.", min=1)] = 1,
    partitions: Annotated[int, typer.Option(help="Partitions of the predictions topic.", min=1)] = 4,
    features: Annotated[int, typer.Option(help="Features of each model.", min=3)] = traffic.FEATURES,
    events: Annotated[int, typer.Option(help="How many predictions.", min=1)] = 300_000,
) -> None:
    """Measure one point of the curves: microseconds of CPU an event."""
    print(f"{_event_us(models, partitions, features, events):.2f} µs")


def figures(*, quick: bool) -> tuple[list[Figure], list[Curve]]:
    """Measure the three curves, and the steady rate; fewer points where `quick`."""
    measured: dict[Shape, float] = {}
    over_models = _curve("models", (1, 50, 200) if quick else MODELS, measured, quick=quick)
    over_partitions = _curve("partitions", (4, 64) if quick else PARTITIONS, measured, quick=quick)
    over_features = _curve("features", (10, 100) if quick else FEATURES, measured, quick=quick)
    curves = [over_models, over_partitions, over_features]
    of_many = measured[Shape(_FLAT_TO)]
    once = [_pane(of_many, quick=quick), _first(of_many, quick=quick)]
    return [*_flatness(*curves), *once, *_steady(quick=quick)], curves


class Shape(NamedTuple):
    """What an event's cost is measured over."""

    models: int = 1
    partitions: int = 4
    features: int = traffic.FEATURES


def _curve(over: str, counts: Iterable[int], measured: dict[Shape, float], *, quick: bool) -> Curve:
    """Measure the points of a curve, but for those that another has."""
    costs: dict[int, float] = {}
    for count in counts:
        shape = Shape()._replace(**{over: count})
        if shape not in measured:
            measured[shape] = _event_us(*shape, _events_of(shape, quick=quick))
        costs[count] = measured[shape]
        measuring.say(f"{count} {over}: {costs[count]:.2f} µs an event")
    picture = f"CPU an event, by {over}"
    return Curve(picture=picture, name="one worker", over=over, unit="µs", x=[*costs], y=[*costs.values()])


def _events_of(shape: Shape, *, quick: bool) -> int:
    return max(_LEAST_EVENTS, _VALUES // shape.features) // (2 if quick else 1)


def _event_us(
    models: int, partitions: int, features: int, events: int, *, span_ms: int | None = None, warm: bool = True
) -> float:
    """Return the CPU an event costs the worker, in microseconds, its label record stored.

    Event time runs as at the steady rate where `span_ms` says nothing else: what a pane costs, whatever falls into it,
    is no event's cost. Nor is what a worker does once with a new model: where it is to be `warm`, every model has had
    some events before.
    """
    span_ms = events * 1_000 // _RATE if span_ms is None else span_ms
    first = max(_FIRST_EVENTS * models, _LEAST_EVENTS) if warm else 0
    start_ms = int(time.time() * 1000) - span_ms
    settings = Settings(topics={"predictions": TopicSettings(partitions=partitions)})
    with measuring.running(settings) as stack:
        configs = [traffic.model(index, labels="join", features=features) for index in range(models)]
        measuring.publish_models(stack.settings, configs, start_ms)
        (worker,) = measuring.workers(stack)
        measuring.until_at_rest([worker])
        view = measuring.live_view(stack.settings)

        def of(count: int, after_ms: int, span_ms: int, counted: int, seed: int) -> float:
            messages = traffic.predictions(
                count, models, start_ms=after_ms, features=features, span_ms=span_ms, seed=seed
            )
            found = throughput.measure(
                "predictions",
                messages,
                stack.settings,
                "predictions",
                worker,
                lambda: measuring.counted(view) == counted,
            )
            measuring.until_at_rest([worker])
            return found.per_cpu_s

        if first:
            before_ms = first * 1_000 // _RATE
            of(first, start_ms - before_ms, before_ms, first, traffic.SEED + 1)
        return 1e6 / of(events, start_ms, span_ms, first + events, traffic.SEED)


def _flatness(models: Curve, partitions: Curve, features: Curve) -> list[Figure]:
    flat = [cost for count, cost in zip(models.x, models.y, strict=True) if count <= _FLAT_TO]
    slopes = [
        (after - before) / (more - fewer)
        for fewer, more, before, after in zip(features.x, features.x[1:], features.y, features.y[1:], strict=False)
    ]
    whole = (features.y[-1] - features.y[0]) / (features.x[-1] - features.x[0])
    return [
        figure(
            f"cost of an event, {_FLAT_TO} models against one",
            flat[-1] / flat[0],
            "×",
            at_most=1.2,
            command=_COMMAND,
            note=_points(models),
        ),
        figure(
            f"cost of an event, {partitions.x[-1]:.0f} partitions against {partitions.x[0]:.0f}",
            partitions.y[-1] / partitions.y[0],
            "×",
            at_most=1.2,
            command=_COMMAND,
            note=_points(partitions),
        ),
        figure(
            "cost of one more feature, steepest stretch against the whole (1 is a line)",
            max(slopes) / whole,
            "×",
            at_most=1.5,
            command=_COMMAND,
            note=_points(features),
        ),
    ]


def _pane(event_us: float, *, quick: bool) -> Figure:
    """Measure what a model's pane costs: the same events over an hour have twelve panes a model."""
    shape = Shape(_FLAT_TO)
    events = _events_of(shape, quick=quick)
    over_an_hour_us = _event_us(*shape, events, span_ms=traffic.SPAN_MS)
    panes = _FLAT_TO * traffic.SPAN_MS / _PANE_MS
    name = f"a pane of a model with {shape.features} features: folded, stored, looked at, shown"
    note = (
        f"{_FLAT_TO} models, {events:,} events in an hour of panes of five minutes: {over_an_hour_us:.2f} µs an event"
    )
    return figure(name, (over_an_hour_us - event_us) * events / panes / 1_000, "ms", command=_COMMAND, note=note)


def _first(event_us: float, *, quick: bool) -> Figure:
    """Measure what a worker does once with a new model: the same events to one that has had none of these models."""
    shape = Shape(_FLAT_TO)
    events = _events_of(shape, quick=quick)
    cold_us = _event_us(*shape, events, warm=False)
    name = f"a model with {shape.features} features: its first events, once"
    note = f"{_FLAT_TO} models, {events:,} events: {cold_us:.2f} µs an event where none has come before"
    return figure(name, (cold_us - event_us) * events / _FLAT_TO / 1_000, "ms", command=_COMMAND, note=note)


def _points(curve: Curve) -> str:
    return ", ".join(f"{x:,.0f}: {y:.2f} µs" for x, y in zip(curve.x, curve.y, strict=True))


def _steady(*, quick: bool) -> list[Figure]:
    """Measure 1,000 models and one at the same steady rate."""
    seconds = 15 if quick else 40
    (one_us, one), (many_us, many) = _steady_us(1, seconds), _steady_us(_MANY, seconds)
    note = f"{one_us:.2f} and {many_us:.2f} µs an event, view included, over {seconds} s; {one}; {many}"
    what = f"{_MANY:,} models against one, CPU at {_RATE:,} events/s"
    return [figure(what, many_us / one_us, "×", at_most=1.5, command=_COMMAND, note=note)]


def _steady_us(models: int, seconds: int) -> tuple[float, str]:
    """Return the CPU of each event that a worker counts at the steady rate, in microseconds, and how far it kept up."""
    with measuring.running() as stack:
        configs = [traffic.model(index, labels="join") for index in range(models)]
        measuring.publish_models(stack.settings, configs, int(time.time() * 1000))
        (worker,) = measuring.workers(stack)
        measuring.until_at_rest([worker])
        view = measuring.live_view(stack.settings)
        with pacing(stack, pace_of(stack, rate=_RATE, seconds=_WARM_S + seconds, models=models)) as pacer:
            time.sleep(_WARM_S)
            before, counted = measuring.cpu_s([worker]), measuring.counted(view)
            time.sleep(seconds - 1)
            cpu_s, events = measuring.cpu_s([worker]) - before, measuring.counted(view) - counted
            sent = pacer.wait(60)[-1].events
    if not events:
        raise measuring.MeasurementError(f"{models} models: nothing was counted in {seconds} s at {_RATE:,} events/s")
    share = min(1.0, events / (sent * (seconds - 1) / (_WARM_S + seconds)))
    return 1e6 * cpu_s / events, f"{models:,}: {share:.0%} of what was sent meanwhile was counted meanwhile"
