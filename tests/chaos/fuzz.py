"""A worker fed with malformed messages by the hundred thousand: `python -m tests.chaos.fuzz`."""

from __future__ import annotations

import json as json_module
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import psutil
import typer
from rich.console import Console, Group
from rich.table import Table

from monitors.profile import build_profile
from streamer.audit import recount
from streamer.catalog import Catalog
from streamer.evaluation.evaluate_state import read_committed
from streamer.kafka import topics
from streamer.letters import deadletters
from streamer.local.stack import Stack
from streamer.local.web import answers
from streamer.references import publish, publish_models
from streamer.settings import Settings
from streamer.telemetry import configure_logging
from tests.chaos.post import FEATURES, MODELS, Post
from tests.chaos.sent import Tally
from tests.integration.running import WorkerProcess

_DIRECTORY = Path(".driftloop/fuzz")
_READY_S = 60.0
_PATIENCE_S = 120.0
# A worker gives back what it has freed every ten seconds.
_GIVEN_BACK_S = 12.0


class Outcome(msgspec.Struct, kw_only=True):
    """What a run found; `equal` when nothing is amiss.

    Attributes
    ----------
    messages : malformed or damaged; `sound` of them are events all the same, and are counted.
    neighbours : sound messages sent between them.
    right : dead letters that are there once, with the reason, field, key and bytes they should have.
    compared, differences : counts of the worker's held against the recount of the log.
    rss_before_mb, rss_after_mb, rss_peak_mb : the worker's memory, before the first message and after the last.
    cpu_s : of the worker, from the first message until all were counted.
    """

    messages: int
    neighbours: int
    sound: int
    dead_letters: int
    right: int
    compared: int
    differences: int
    rss_before_mb: float
    rss_after_mb: float
    rss_peak_mb: float
    cpu_s: float
    sent_s: float
    seconds: float
    tallies: list[Tally]
    amiss: list[str]

    @property
    def equal(self) -> bool:
        """Whether every message is where it belongs."""
        return not self.amiss


@dataclass(frozen=True)
class Usage:
    """What a process has used."""

    rss_mb: float
    peak_mb: float
    cpu_s: float


def run(settings: Settings, messages: int, seed: int, *, say: Callable[[str], object], rest_s: float = 0.0) -> Outcome:
    """Send malformed messages with sound ones between them, and hold dead letters and counts against what was sent.

    Parameters
    ----------
    settings : a Kafka and a Valkey, in a namespace of which the topics are made and empty.
    rest_s : how long the worker rests before its memory is looked at.
    """
    began = time.monotonic()
    catalog = _publish(settings)
    worker = WorkerProcess(settings, commit_ms=settings.worker.commit_ms)
    try:
        _await_ready(worker)
        before = _usage(worker)
        post = Post(settings, catalog, messages, seed)
        post.send_all()
        sent_s = time.monotonic() - began
        say(f"{messages:,} malformed and {post.neighbours:,} sound messages sent in {sent_s:.0f} s")
        _settle(settings, catalog, post.sent.ends, worker)
        say(f"all read {time.monotonic() - began - sent_s:.0f} s later")
        time.sleep(rest_s)
        after = _usage(worker)
    except BaseException:
        say(worker.text()[-3_000:])
        raise
    finally:
        worker.kill()
    return _outcome(settings, catalog, post, (before, after), (began, sent_s))


def _publish(settings: Settings) -> Catalog:
    """Publish the models, and references for one version of each."""
    publish_models(settings, MODELS)
    random = np.random.default_rng(0)
    columns = {
        "hour": random.integers(0, 24, 5_000).astype(float),
        "carrier": np.array(["UA", "AA", "B6", "DL"], dtype=object)[random.integers(0, 4, 5_000)],
        "temp": random.normal(60, 15, 5_000),
    }
    kinds = {name: feature["kind"] for name, feature in FEATURES.items()}
    for model in MODELS:
        publish(
            settings,
            build_profile(
                model=model.name, version="1", columns=columns, kinds=kinds, panes=None, baseline=None, created_ms=0
            ),
        )
    return recount.read_catalog(settings)


def _await_ready(worker: WorkerProcess) -> None:
    deadline = time.monotonic() + _READY_S
    while not answers(f"http://127.0.0.1:{worker.port}/health"):
        if time.monotonic() > deadline or worker.process.poll() is not None:
            raise RuntimeError("worker: does not come up")
        time.sleep(0.1)


def _usage(worker: WorkerProcess) -> Usage:
    process = psutil.Process(worker.process.pid)
    times = process.cpu_times()
    status = Path(f"/proc/{process.pid}/status")
    peak = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    rss_mb = process.memory_info().rss / 2**20
    return Usage(rss_mb, int(peak[0]) / 2**10 if peak else rss_mb, times.user + times.system)


def _settle(settings: Settings, catalog: Catalog, ends: dict[tuple[str, int], int], worker: WorkerProcess) -> None:
    """Wait until every evaluate partition has committed all that was sent; the worker must live so long."""
    left, progressed = -1, time.monotonic()
    while left:
        if worker.process.poll() is not None:
            raise RuntimeError(f"worker: has ended with {worker.process.returncode}")
        time.sleep(1.0)
        reached = read_committed(settings, catalog).ends.values()
        behind = sum(max(end - each.get(place, 0), 0) for place, end in ends.items() for each in reached)
        if behind != left:
            left, progressed = behind, time.monotonic()
        elif time.monotonic() > progressed + _PATIENCE_S:
            raise RuntimeError(f"worker: {left:,} messages not read, and none more in {_PATIENCE_S:.0f} s")


def _outcome(
    settings: Settings, catalog: Catalog, post: Post, usage: tuple[Usage, Usage], moments: tuple[float, float]
) -> Outcome:
    sent, (before, after), (began, sent_s) = post.sent, usage, moments
    sent.hold_against(deadletters.read(settings))
    tallies = sent.tallies()
    counted = recount.recount(settings, catalog)
    committed = read_committed(settings, catalog).panes
    differences = recount.compare(counted, committed)
    amiss = [
        *sent.amiss,
        *(
            f"{each.model} {each.version} {each.kind} {each.name} of pane {each.pane_start_ms}: "
            f"worker {each.got}, log {each.wanted}"
            for each in differences[:20]
        ),
    ]
    if counted.refused != sent.refused:
        amiss.append(f"the recount refuses {counted.refused}, wanted {sent.refused}")
    return Outcome(
        messages=sent.messages,
        neighbours=post.neighbours,
        sound=sum(tally.sound for tally in tallies),
        dead_letters=sum(tally.buried for tally in tallies),
        right=sum(tally.right for tally in tallies),
        compared=len(counted.panes.keys() | committed.keys()),
        differences=len(differences),
        rss_before_mb=before.rss_mb,
        rss_after_mb=after.rss_mb,
        rss_peak_mb=after.peak_mb,
        cpu_s=after.cpu_s - before.cpu_s,
        sent_s=sent_s,
        seconds=time.monotonic() - began,
        tallies=tallies,
        amiss=amiss,
    )


def main(
    messages: Annotated[int, typer.Option(min=1, help="How many malformed ones.")] = 1_000_000,
    seed: Annotated[int, typer.Option(help="Draws what is wrong with them.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Send malformed messages to a worker; exit 1 unless each is a dead letter as it should be and the others count."""
    configure_logging(level="WARNING")
    console = Console(stderr=True)
    with Stack(_DIRECTORY, parts=frozenset({"kafka", "valkey"})) as stack:
        settings = stack.settings.model_copy(update={"namespace": "fuzz", "internal_partitions": 4})
        topics.ensure(settings)
        outcome = run(
            settings,
            messages,
            seed,
            say=lambda line: console.print(line, markup=False, highlight=False),
            rest_s=_GIVEN_BACK_S,
        )
    if json:
        typer.echo(json_module.dumps({**msgspec.to_builtins(outcome), "equal": outcome.equal}, indent=2))
    else:
        Console(width=110).print(_table(outcome), *outcome.amiss, sep="\n", highlight=False)
    if not outcome.equal:
        raise typer.Exit(1)


def _table(outcome: Outcome) -> Group:
    kinds = Table(
        "KIND", "SENT", "EVENTS ALL THE SAME", "DEAD LETTERS", "AS THEY SHOULD BE", header_style="bold", box=None
    )
    # A kind stands there once a topic.
    names = dict.fromkeys(tally.kind for tally in outcome.tallies)
    for name in names:
        here = [tally for tally in outcome.tallies if tally.kind == name]
        numbers = (sum(getattr(tally, what) for tally in here) for what in ("sent", "sound", "buried", "right"))
        kinds.add_row(name, *(f"{number:,}" for number in numbers))
    kinds.columns[0].no_wrap = True
    for column in kinds.columns[1:]:
        column.justify = "right"
    whole = Table(header_style="bold", show_header=False)
    million = outcome.messages / 1_000_000
    for what, number in (
        ("malformed messages", f"{outcome.messages:,} of {len(names)} kinds"),
        ("dead letters, with their reason, field, key and bytes", f"{outcome.right:,} of {outcome.dead_letters:,}"),
        ("sound messages between them", f"{outcome.neighbours:,}"),
        ("counts compared with the recount", f"{outcome.compared:,}, {outcome.differences} differences"),
        (
            "worker's RSS before, after, at most",
            " / ".join(f"{size:.0f} MB" for size in (outcome.rss_before_mb, outcome.rss_after_mb, outcome.rss_peak_mb)),
        ),
        ("worker's CPU seconds a million", f"{outcome.cpu_s / million:.0f}"),
        ("seconds in all", f"{outcome.seconds:.0f}"),
        ("", "[green]equal[/]" if outcome.equal else "[red]AMISS[/]"),
    ):
        whole.add_row(what, number)
    return Group(kinds, whole)


if __name__ == "__main__":
    typer.run(main)
