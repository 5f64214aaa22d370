"""Whether anything grows: a worker under steady traffic whose event time runs faster than the clock.

Panes, the label horizon and every topic's retention pass many times over; sampled are the worker's memory, each topic's
size on the broker's disk, the store's memory and its keys.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import psutil
import redis
import typer

from benchmarks import measuring, traffic
from benchmarks.figures import Curve, Figure, figure
from benchmarks.pacer import pace_of, pacing
from streamer.durations import Duration
from streamer.local.stack import Stack
from streamer.settings import LabelStoreSettings, Settings, TopicSettings

RATE = 4_000
MINUTES = 30.0
_SPEED = 60.0
_MODELS = 4
_EVERY_S = 30.0
_GARBAGE_EVERY = 200
_KEPT = Duration.parse("2m")
# In event time: a pane is a second of the clock, an hour of them a minute.
_TIME = {"pane": "1m", "lateness": "1m", "retention": "1h"}
_LABELS = {"horizon": "1m", "maturity": "5m"}
_HELD = Duration.parse("1m")
_RETAINED = ("predictions", "features", "labels", "partials", "commands", "retrain-requests", "ledger", "dead-letters")
_WATCHED = ("predictions", "labels", "partials", "state", "commands", "ledger", "dead-letters")
# Kafka looks for what is past its retention every five minutes.
_FULL_MINUTES = 20
_MIB = 2**20


class Sample(NamedTuple):
    """How things stand at a moment; sizes in bytes."""

    minutes: float
    rss: int
    store: int
    keys: int
    topics: dict[str, int]
    events: int

    @property
    def disk(self) -> int:
        """What all watched topics take on the broker's disk."""
        return sum(self.topics.values())


def register(app: typer.Typer) -> None:
    """Add `soak` to the command line."""
    app.command("soak")(soak)


def soak(
    minutes: Annotated[float, typer.Option(help="How long.", min=0.5)] = MINUTES,
    rate: Annotated[int, typer.Option(help="Predictions a second; as many labels.", min=1)] = RATE,
    every: Annotated[float, typer.Option(help="Seconds between samples.", min=1)] = _EVERY_S,
) -> None:
    """Run a worker under steady traffic and print what it and its servers hold, sample by sample."""
    samples = _samples(minutes, rate, every)
    for each in _figures(samples, minutes, rate):
        print(f"{each.name}: {each.value:,.3g} {each.unit} {each.note}")


def figures(*, quick: bool) -> tuple[list[Figure], list[Curve]]:
    """Run for half an hour; three minutes where `quick`, for memory and store: topics need longer to be full."""
    minutes, every_s = (3.0, 5.0) if quick else (MINUTES, _EVERY_S)
    samples = _samples(minutes, RATE, every_s)
    return _figures(samples, minutes, RATE), _curves(samples)


def _samples(minutes: float, rate: int, every_s: float) -> list[Sample]:
    topics = {name: TopicSettings(retention=_KEPT) for name in _RETAINED}
    seconds = minutes * 60
    with measuring.running(Settings(topics=topics, labels=LabelStoreSettings(hold=_HELD))) as stack:
        settings = stack.settings
        configs = [traffic.model(index, labels="join", time=_TIME, labels_of=_LABELS) for index in range(_MODELS)]
        # So far back that the faster time does not overtake the clock: what lies in the future is a dead letter.
        start_ms = int(time.time() * 1000 - seconds * 1000 * _SPEED)
        measuring.publish_models(settings, configs, start_ms)
        workers = measuring.workers(stack)
        measuring.until_at_rest(workers)
        pace = pace_of(
            stack,
            rate=rate,
            seconds=seconds,
            start_ms=start_ms,
            models=_MODELS,
            speed=_SPEED,
            labels=settings.topic("labels"),
            label_after_ms=120_000,
            garbage_every=_GARBAGE_EVERY,
        )
        with pacing(stack, pace) as pacer:
            began, samples = time.monotonic(), list[Sample]()
            while (passed := time.monotonic() - began) < seconds and pacer.process.poll() is None:
                samples.append(_sample(stack, workers, passed))
                measuring.say(_told(samples[-1]))
                time.sleep(min(every_s, max(0.1, seconds - passed)))
            pacer.wait(60)
        samples.append(_sample(stack, workers, time.monotonic() - began))
    return samples


def _sample(stack: Stack, workers: list[psutil.Process], passed_s: float) -> Sample:
    settings = stack.settings
    client = redis.Redis.from_url(settings.redis.url)
    logs = stack.root / "kafka" / "log"
    sample = Sample(
        minutes=passed_s / 60,
        rss=measuring.rss_bytes(workers),
        store=int(client.info("memory")["used_memory"]),
        keys=int(client.dbsize()),
        topics={name: _size(logs, settings.topic(name)) for name in _WATCHED},
        events=measuring.counted(measuring.live_view(settings)),
    )
    client.close()
    return sample


def _size(logs: Path, topic: str) -> int:
    """Return what a topic's partitions take on the broker's disk; a segment may go while one looks."""
    total = 0
    for path in logs.glob(f"{topic}-*/*.log"):
        try:
            total += path.stat().st_blocks * 512
        except OSError:
            continue
    return total


def _told(sample: Sample) -> str:
    sizes = ", ".join(f"{name} {size / _MIB:.1f}" for name, size in sample.topics.items())
    return (
        f"{sample.minutes:.1f} min: worker {sample.rss / _MIB:.0f} MiB, store {sample.store / _MIB:.1f} MiB in "
        f"{sample.keys} keys, {sample.events:,} events in view; topics in MiB: {sizes}"
    )


def _figures(samples: list[Sample], minutes: float, rate: int) -> list[Figure]:
    command = f"python -m benchmarks soak --minutes {minutes:g} --rate {rate}"
    where = f"soak of {minutes:g} min"
    rss = _growth([sample.rss for sample in samples])
    store = _growth([sample.store for sample in samples])
    disk = _growth([sample.disk for sample in samples])
    most = max(sample.rss for sample in samples) / _MIB
    last = samples[-1]
    sizes = ", ".join(f"{name} {size / _MIB:.1f}" for name, size in last.topics.items())
    how = f"{rate:,} predictions and labels a second, {minutes * _SPEED / 60:g} h of event time"
    note = "the last third against the one before, by medians"
    # What is kept for a while grows until the first of it goes: in a short run there is nothing to hold against an aim.
    rss_most, rest_most = (1.05, 1.1) if minutes >= _FULL_MINUTES else (None, None)
    found = [
        figure(f"{where}: the worker's largest RSS", most, "MiB", command=command, note=how),
        figure(f"{where}: growth of the worker's RSS", rss, "×", at_most=rss_most, command=command, note=note),
        figure(f"{where}: growth of the store", store, "×", at_most=rest_most, command=command, note=note),
    ]
    if minutes >= _FULL_MINUTES:
        what = f"{where}: growth of all topics on disk"
        found.append(figure(what, disk, "×", at_most=rest_most, command=command, note=f"at the end, MiB: {sizes}"))
    return found


def _growth(values: list[int]) -> float:
    """Return the median of the last third over that of the middle one: the first is still filling up."""
    third = max(1, len(values) // 3)
    return statistics.median(values[-third:]) / max(1.0, statistics.median(values[-2 * third : -third] or values[:1]))


def _curves(samples: list[Sample]) -> list[Curve]:
    minutes = [sample.minutes for sample in samples]
    rows = {
        "worker": [sample.rss for sample in samples],
        "store": [sample.store for sample in samples],
        "topics": [sample.disk for sample in samples],
    }
    return [
        Curve(picture="soak", name=name, over="minutes", unit="MiB", x=minutes, y=[value / _MIB for value in values])
        for name, values in rows.items()
    ]
