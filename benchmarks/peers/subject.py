"""driftloop, Faust and Quix Streams keep the same counts of the same topic: events a CPU second of each."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks import measuring, throughput, traffic
from benchmarks.figures import Curve, Figure, figure
from benchmarks.peers.cells import Feature, Plan, Step
from benchmarks.peers.environment import quix_python
from benchmarks.picture import BARS
from monitors.profile import ReferenceProfile
from streamer.local.processes import MARKER
from streamer.local.stack import Stack

_COMMAND = "make bench ARGS='--only peers'"
_QUIX, _EACH, _TAKE = "Quix Streams", "Faust, event by event", "Faust, 1,000 at once"
# Taken in batches, Faust is no longer what it is made for; told without an aim.
_AIMS = {_QUIX: 4.0, _EACH: 25.0, _TAKE: None}
_STOP_S = 20.0
_WITHIN_S = 180.0


class Peer(NamedTuple):
    """A peer's program: its interpreter and module, which form of it, and over how many events it is measured."""

    name: str
    python: str
    module: str
    form: str
    events: int


def figures(*, quick: bool) -> tuple[list[Figure], list[Curve]]:
    """Measure ourselves, then each peer on the same topic, one after the other."""
    events = 200_000 if quick else 400_000
    peers = _peers(quick=quick)
    start_ms = int(time.time() * 1000) - traffic.SPAN_MS
    config = traffic.model(0, labels="context")
    with measuring.running() as stack:
        settings = stack.settings
        measuring.publish_models(settings, [config], start_ms)
        (worker,) = measuring.workers(stack)
        measuring.until_at_rest([worker])
        view = measuring.live_view(settings)
        ours = throughput.measure(
            "predictions, context",
            traffic.predictions(events, 1, start_ms=start_ms),
            settings,
            "predictions",
            worker,
            lambda: measuring.counted(view) == events,
        ).per_cpu_s
        stack.part("worker").stop()
        profile = traffic.reference(config, created_ms=start_ms)
        rates = {peer.name: _rate(peer, stack, profile, int(config.time.pane)) for peer in peers}
    return _held_against(ours, rates), [
        Curve(picture="the same counts, by program", name=name, over=BARS, unit="events a CPU second", x=[0], y=[rate])
        for name, rate in {"driftloop": ours, **rates}.items()
    ]


def _peers(*, quick: bool) -> list[Peer]:
    faust, scale = "benchmarks.peers.faust_app", 1 if quick else 2
    return [
        Peer(_QUIX, quix_python(), "benchmarks.peers.quix_app", "keyed", 60_000 * scale),
        Peer(_EACH, sys.executable, faust, "each", 10_000 * scale),
        Peer(_TAKE, sys.executable, faust, "take", 30_000 * scale),
    ]


def _held_against(ours: float, rates: dict[str, float]) -> list[Figure]:
    note = "each keeps its counts in its own state with a changelog, at least once; no label join, no looks, no view"
    found = [figure("counts alone, on the peers' topic", ours, "events/CPU s", command=_COMMAND)]
    for name, rate in rates.items():
        found.append(figure(f"{name}, the same counts", rate, "events/CPU s", command=_COMMAND, note=note))
    for name, rate in rates.items():
        what = f"driftloop against {name}"
        found.append(figure(what, ours / rate, "×", at_least=_AIMS[name], command=_COMMAND))
    return found


def _rate(peer: Peer, stack: Stack, profile: ReferenceProfile, pane_ms: int) -> float:
    """Return how many events a peer counts a CPU second, once it is under way."""
    data = stack.root / f"peer-{peer.form}"
    data.mkdir()
    plan = _plan(stack, profile, pane_ms, data, peer.form)
    (data / "plan.json").write_bytes(msgspec.json.encode(plan))
    progress = Path(plan.progress)
    with _process(peer, stack, data) as process:

        def enough() -> bool:
            if process.poll() is not None:
                said = (data / "log").read_text(errors="replace")[-2000:]
                raise measuring.MeasurementError(f"{peer.name}: ended with code {process.returncode}: {said}")
            steps = steps_in(progress)
            return bool(steps) and steps[-1].events >= peer.events

        measuring.until(enough, f"{peer.name}: {peer.events:,} events not counted", within_s=_WITHIN_S, look_s=0.2)
        steps = steps_in(progress)
    first = steps[len(steps) // 10]
    measuring.say(f"{peer.name}: {steps[-1]}")
    return (steps[-1].events - first.events) / (steps[-1].cpu_s - first.cpu_s)


def _plan(stack: Stack, profile: ReferenceProfile, pane_ms: int, data: Path, form: str) -> Plan:
    settings = stack.settings
    features, cells = plan_features(profile)
    return Plan(
        broker=settings.kafka.bootstrap_servers,
        topic=settings.topic("predictions"),
        partitions=4,
        pane_ms=pane_ms,
        features=features,
        cells=cells,
        progress=str(data / "progress"),
        data=str(data / "state"),
        form=form,
    )


def plan_features(profile: ReferenceProfile) -> tuple[list[Feature], int]:
    """Return the cells of a reference's features as a peer is told them, and how many they are in all."""
    features, at = [], 0
    for name, feature in profile.features.items():
        if not name.startswith("@"):
            features.append(Feature(name, at, list(feature.binning.edges), list(feature.binning.categories)))
            at += feature.binning.size
    return features, at


def steps_in(progress: Path) -> Sequence[Step]:
    """Return what a peer has told so far."""
    if not progress.is_file():
        return []
    # The last line may be half written.
    lines = progress.read_bytes().split(b"\n")[:-1]
    return [msgspec.json.decode(line, type=Step) for line in lines]


@contextlib.contextmanager
def _process(peer: Peer, stack: Stack, data: Path) -> Iterator[subprocess.Popen[bytes]]:
    # With the stack's mark, its guardian ends this one too, should we be killed.
    environment = {**os.environ, MARKER: str(stack.root), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [peer.python, "-m", peer.module, str(data / "plan.json")]
    with (data / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
