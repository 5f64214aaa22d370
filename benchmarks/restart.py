"""How long a killed worker takes from its start until it goes on: with how much state, and where the time goes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import psutil
import typer
from confluent_kafka import Producer
from rich.console import Console
from rich.table import Table

from benchmarks.figures import Curve, Figure, figure
from monitors.panes import Boundaries
from monitors.profile import ReferenceProfile, build_profile
from monitors.sketch import encode_pairs
from streamer.catalog import Model, describe
from streamer.evaluation.model_record import Watched
from streamer.evaluation.pane_store import PaneKey
from streamer.evaluation.shard import Shard
from streamer.events import Increment
from streamer.kafka import clients as kafka_clients
from streamer.kafka import topics
from streamer.kafka.partitioning import partition_of
from streamer.local.stack import Stack, environment_of
from streamer.models import parse_model
from streamer.settings import Settings
from streamer.stage import Record

_COMMAND = "make bench ARGS='--only restart'"
_PANE_MS = 60_000
_START_MS = 1_700_000_040_000
_PATIENCE_S = 300.0
# As many different panes as are drawn; counts of a pane are incompressible, so that their repeating saves nothing.
_DRAWN = 20
_SOURCES = [("predictions.v1", "x" * 22, number) for number in range(4)]


class Restart(msgspec.Struct, kw_only=True):
    """One start of a worker with all the state there is.

    Attributes
    ----------
    stored_mb, records : what was written to the state topic, compacted or not.
    process_s : until the worker's first line: imports.
    control_s : from there until Faust has the models and references, and the stages are assigned their partitions.
    read_s, decode_s : the state, read from Kafka and turned into panes.
    whole_s : from the start of the process until both stages read on.
    cpu_s, rss_mb : CPU and memory of the worker until then.
    bytes_per_model_feature : `rss_mb` less that of a worker without state, over models and features.
    """

    models: int
    features: int
    panes: int
    stored_mb: float
    records: int
    process_s: float
    control_s: float
    read_s: float
    decode_s: float
    whole_s: float
    cpu_s: float
    rss_mb: int
    bytes_per_model_feature: int


def register(app: typer.Typer) -> None:
    """Add `restart` to the command line."""
    app.command("restart")(restart)


def restart(
    models: Annotated[int, typer.Option(help="How many models.", min=1)] = 100,
    features: Annotated[int, typer.Option(help="Features a model.", min=1)] = 100,
    panes: Annotated[int, typer.Option(help="Panes a model.", min=1)] = 60,
    events: Annotated[int, typer.Option(help="Events a pane.", min=1)] = 1_000,
    rewrites: Annotated[int, typer.Option(help="How often each pane is stored: what compaction has to do.", min=1)] = 1,
    repeat: Annotated[int, typer.Option(help="How often the worker is killed and started.", min=1)] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure a worker's restart with the state of many models, written as evaluate writes it."""
    found = _measure((models, features, panes), events, rewrites, repeat)
    if as_json:
        print(msgspec.json.encode(found).decode())
    else:
        _show(found)


def figures(*, quick: bool) -> tuple[list[Figure], list[Curve]]:
    """Measure with the state of a hundred models of a hundred features, twenty where `quick`; the median of three."""
    models, features, panes = (20 if quick else 100), 100, 60
    found = sorted(_measure((models, features, panes), 1_000, 1, 3), key=lambda each: each.whole_s)
    middle = found[len(found) // 2]
    state = f"{models} models × {features} features × {panes} panes"
    note = (
        f"{middle.stored_mb:.0f} MB in {middle.records:,} records; imports {middle.process_s:.1f} s, control topics "
        f"{middle.control_s:.1f} s, state read {middle.read_s:.1f} s and decoded {middle.decode_s:.1f} s; "
        f"RSS {middle.rss_mb:,} MB"
    )
    memory = f"memory a model-feature, {state}, restored"
    return [
        figure(f"restart to caught up, {state}", middle.whole_s, "s", at_most=10.0, command=_COMMAND, note=note),
        figure(memory, middle.bytes_per_model_feature / 1024, "KiB", at_most=64.0, command=_COMMAND),
    ], []


def _measure(shape: tuple[int, int, int], events: int, rewrites: int, repeat: int) -> list[Restart]:
    models, features, panes = shape
    with (
        tempfile.TemporaryDirectory(prefix="driftloop-bench-") as directory,
        Stack(Path(directory), parts=frozenset({"kafka", "valkey"}), settings=Settings()) as stack,
    ):
        topics.ensure(stack.settings)
        empty = _start(stack.settings, Path(directory), shape, (0, 0), 0)
        known = [describe(parse_model(_document(index, features), "benchmarks")) for index in range(models)]
        profile = _profile(known[0])
        _publish(stack.settings, known, profile)
        stored = _store(stack.settings, known, profile, panes, events, rewrites)
        return [_start(stack.settings, Path(directory), shape, stored, empty.rss_mb) for _ in range(repeat)]


def _document(index: int, features: int) -> dict[str, Any]:
    return {
        "name": f"bench-{index}",
        "task": "binary",
        "positive": True,
        "features": {f"num_{number}": {"kind": "numeric"} for number in range(features)},
        "time": {"pane": "1m"},
        "window": {"max_age": "1h"},
    }


def _profile(model: Model) -> ReferenceProfile:
    rng = np.random.default_rng(0)
    names = list(model.config.features)
    return build_profile(
        model=model.name,
        version="1",
        columns={name: rng.normal(size=20_000) for name in names},
        kinds=dict.fromkeys(names, "numeric"),
        panes=None,
        baseline=None,
        created_ms=_START_MS,
    )


def _publish(settings: Settings, models: list[Model], profile: ReferenceProfile) -> None:
    producer = Producer(kafka_clients.producer_config(settings))
    for model in models:
        for part, value in replace(profile, model=model.name).to_parts().items():
            _send(producer, Record(settings.topic("references"), value, f"{model.name}/1/{part}".encode()))
        _send(producer, Record(settings.topic("models"), model.config.to_json(), model.name.encode()))
    producer.flush()


def _store(
    settings: Settings, models: list[Model], profile: ReferenceProfile, panes: int, events: int, rewrites: int
) -> tuple[int, int]:
    """Fill the state topic as evaluate does, one transaction a model; return the bytes and records written."""
    drawn = list(_draw(profile, events))
    producer = Producer(
        {**kafka_clients.producer_config(settings), "transactional.id": "benchmarks-state", "compression.type": "lz4"}
    )
    producer.init_transactions()
    shards = {index: Shard(index) for index in range(settings.internal_partitions)}
    for shard in shards.values():
        shard.position.applied = {settings.topic(topic): 0 for topic in ("partials", "commands")}
    bytes_, records = 0, 0
    for model in models:
        shard = shards[partition_of(model.name, settings.internal_partitions)]
        watched = shard.watched(model)
        for pane in range(panes):
            start_ms = _START_MS + pane * _PANE_MS
            watched.record.clock.observe(("predictions.v1", 0), start_ms, start_ms)
            increment = _increment(model, profile, drawn[pane % _DRAWN], start_ms, events)
            watched.add(PaneKey("1", "live", _PANE_MS, start_ms), increment, _SOURCES, late=False, schema=model.schema)
        _look(watched)
        for _ in range(rewrites):
            producer.begin_transaction()
            for record in shard.changes(settings.topic("state")):
                bytes_ += len(record.value or b"")
                records += 1
                _send(producer, record)
            producer.commit_transaction()
        shard.settle()
        # What is stored need not be held here as well.
        watched.panes.clear()
    return bytes_, records


def _look(watched: Watched) -> None:
    """Take every pane for looked at, as it was when it completed: a restart does not look again."""
    clock = watched.record.clock
    clock.complete = Boundaries(done_ms=clock.complete.crossings[-1][0])
    clock.mature = Boundaries(done_ms=clock.mature.crossings[-1][0])


def _draw(profile: ReferenceProfile, events: int) -> Iterator[bytes]:
    rng = np.random.default_rng(1)
    for _ in range(_DRAWN):
        whole = np.zeros(profile.layout.size, dtype=np.int64)
        for name, place in profile.layout.places.items():
            counts = profile.features[name].counts
            whole[place] = rng.multinomial(events, counts / counts.sum())
        yield encode_pairs(whole)


def _increment(model: Model, profile: ReferenceProfile, cells: bytes, start_ms: int, events: int) -> Increment:
    return Increment(
        model=model.name,
        model_epoch=model.epoch,
        version="1",
        origin="live",
        source="predictions",
        pane_start_ms=start_ms,
        pane_ms=_PANE_MS,
        fingerprint=profile.fingerprint,
        events=events,
        sampled=events,
        cells=cells,
        offsets=[number for source in range(len(_SOURCES)) for number in (source, 0, events)],
    )


def _send(producer: Producer, record: Record) -> None:
    where = -1 if record.partition is None else record.partition
    while True:
        try:
            producer.produce(record.topic, record.value, record.key, where)
            producer.poll(0)
            return
        except BufferError:
            producer.poll(0.1)


def _start(
    settings: Settings, directory: Path, shape: tuple[int, int, int], stored: tuple[int, int], empty_mb: int
) -> Restart:
    """Start a worker, wait until both its stages read on, and kill it."""
    log = directory / "bench-worker.log"
    variables = {**os.environ, **environment_of(settings), "DRIFTLOOP_WORKER__WEB_PORT": str(_free_port())}
    variables["DRIFTLOOP_WORKER__DATA_DIR"] = str(directory / "bench-worker")
    began = time.time()
    with log.open("wb") as out:
        command = [sys.executable, "-m", "streamer.cli", "worker"]
        process = subprocess.Popen(command, env=variables, stdout=out, stderr=out)
    try:
        events = _until_assigned(process, log)
        worker = psutil.Process(process.pid)
        rss_mb, times = worker.memory_info().rss // 2**20, worker.cpu_times()
    finally:
        process.kill()
        process.wait()
    first, restored = min(event["at_s"] for event in events), _newest(events, "restored")
    whole_s = max(event["at_s"] for event in events if event["event"] == "assigned") - began
    process_s, in_state_s = first - began, restored["read_s"] + restored["decode_s"]
    models, features, panes = shape
    return Restart(
        models=models,
        features=features,
        panes=panes,
        stored_mb=round(stored[0] / 2**20, 1),
        records=stored[1],
        process_s=round(process_s, 2),
        control_s=round(whole_s - process_s - in_state_s, 2),
        read_s=round(restored["read_s"], 2),
        decode_s=round(restored["decode_s"], 2),
        whole_s=round(whole_s, 2),
        cpu_s=round(times.user + times.system, 2),
        rss_mb=rss_mb,
        bytes_per_model_feature=round((rss_mb - empty_mb) * 2**20 / (models * features)),
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _until_assigned(process: subprocess.Popen[bytes], log: Path) -> list[dict[str, Any]]:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        events = [_line(line) for line in log.read_bytes().splitlines() if b"{" in line and line.endswith(b"}")]
        if sum(event["event"] == "assigned" and event["partitions"] > 0 for event in events) >= 2:
            return events
        time.sleep(0.1)
    raise RuntimeError(f"the worker did not come up:\n{log.read_text(errors='replace')[-2_000:]}")


def _line(line: bytes) -> dict[str, Any]:
    # Faust's own progress leaves a terminal's signs in front of a line.
    event: dict[str, Any] = msgspec.json.decode(line[line.index(b"{") :])
    return {**event, "at_s": datetime.fromisoformat(event["timestamp"]).timestamp()}


def _newest(events: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return [event for event in events if event["event"] == name][-1]


def _show(found: list[Restart]) -> None:
    first = found[0]
    table = Table(
        title=f"a killed worker's start: {first.models} models × {first.features} features × {first.panes} panes, "
        f"{first.stored_mb:,.0f} MB written in {first.records:,} records"
    )
    for heading in ("process s", "control tables s", "state read s", "decoded s", "whole s", "CPU s", "RSS MB"):
        table.add_column(heading, justify="right")
    table.add_column("bytes a model-feature", justify="right")
    for each in found:
        table.add_row(
            *(f"{value:.2f}" for value in (each.process_s, each.control_s, each.read_s, each.decode_s)),
            f"[bold]{each.whole_s:.2f}[/]",
            f"{each.cpu_s:.2f}",
            f"{each.rss_mb:,}",
            f"{each.bytes_per_model_feature:,}",
        )
    Console().print(table)
