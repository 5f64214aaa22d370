"""What clients of the SDK lose of the events they log before, while and after the broker is away."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.figures import Curve, Figure, figure
from streamer.kafka import topics
from streamer.kafka.reader import read_to_end
from streamer.local.stack import Stack
from streamer.sdk import Client, CloseReport, TransportName
from streamer.settings import Settings

_TRANSPORTS: tuple[TransportName, ...] = ("kafka-python", "librdkafka")
_PATIENCE_S = 60.0
_COMMAND = "make bench ARGS='--only outage'"


class Outage(msgspec.Struct, kw_only=True):
    """What became of the events that were logged before, while and after the broker was away.

    `resumed_s` is how long after the broker answered again all that had waited was acknowledged.
    `behind` events came for the first time after a later one of their partition.
    """

    transport: str
    spool: bool
    logged: int
    lost: int
    doubled: int
    behind: int
    resumed_s: float
    most_spooled: int
    report: CloseReport


def register(app: typer.Typer) -> None:
    """Add `outage` to the command line."""
    app.command("outage")(outage)


def outage(
    seconds: Annotated[float, typer.Option(help="How long the broker is away.", min=1)] = 300.0,
    rate: Annotated[int, typer.Option(help="Events a second and client.", min=1)] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Take the broker away from four clients, with both transports, with and without a spool; count what is lost."""
    found = _measure(seconds, rate)
    if as_json:
        print(msgspec.json.encode(found).decode())
    else:
        _show(found, seconds)
    if any(each.lost for each in found):
        raise typer.Exit(1)


def figures(*, quick: bool) -> tuple[list[Figure], list[Curve]]:
    """Measure an outage of five minutes, of ten seconds where `quick`."""
    told = []
    for each in _measure(10.0 if quick else 300.0, 200):
        name = f"{each.transport}{', spool' if each.spool else ''}"
        note = f"{each.logged:,} events logged, {each.doubled:,} came twice"
        told += [
            figure(f"SDK: events lost to the outage, {name}", each.lost, "", at_most=0, command=_COMMAND, note=note),
            figure(f"SDK: broker back to all acknowledged, {name}", each.resumed_s, "s", command=_COMMAND),
        ]
    return told, []


def _measure(seconds: float, rate: int) -> list[Outage]:
    with (
        tempfile.TemporaryDirectory(prefix="driftloop-bench-") as directory,
        Stack(Path(directory), parts=frozenset({"kafka"}), settings=Settings()) as stack,
    ):
        topics.ensure(stack.settings)
        streams = [
            _Stream(transport, spool, stack.settings, Path(directory))
            for transport in _TRANSPORTS
            for spool in (False, True)
        ]
        _log(streams, rate, lambda: streams[0].logged < 2 * rate)
        stack.part("kafka").stop()
        end = time.monotonic() + seconds
        _log(streams, rate, lambda: time.monotonic() < end)
        for stream in streams:
            stream.before_return = stream.logged
        stack.part("kafka").start()
        back = time.monotonic()
        _log(streams, rate, lambda: not all(stream.resumed(back) for stream in streams))
        reports = [stream.client.close(_PATIENCE_S) for stream in streams]
        return _counted(streams, reports, stack.settings)


def _show(found: Sequence[Outage], seconds: float) -> None:
    table = Table(title=f"the broker away for {seconds:.0f} s")
    headings = ("logged", "lost", "doubled", "behind", "resumed, s", "most spooled", "dropped", "unsent")
    for heading in ("transport", "spool", *headings):
        table.add_column(heading, justify="right" if heading in headings else "left")
    for each in found:
        figures = (each.logged, each.lost, each.doubled, each.behind, each.resumed_s, each.most_spooled)
        table.add_row(
            each.transport,
            "yes" if each.spool else "no",
            *(f"{figure:,}" for figure in (*figures, each.report.dropped, each.report.unsent)),
        )
    Console(width=120).print(table)


class _Stream:
    """A client and what it has logged."""

    def __init__(self, transport: TransportName, spool: bool, settings: Settings, directory: Path) -> None:
        self.name = f"{transport}{'-spool' if spool else ''}"
        self.transport, self.spool = transport, spool
        self.client = Client(
            settings.kafka.bootstrap_servers,
            redis_url=None,
            transport=transport,
            queue_size=1_000_000,
            spool=directory / self.name if spool else None,
        )
        self.logged = self.before_return = self.most_spooled = 0
        self.resumed_s = float("nan")

    def log(self) -> None:
        self.client.log_label(f"{self.name}/{self.logged}", model="bench", label=1)
        self.logged += 1
        if self.logged % 100 == 0:
            self.most_spooled = max(self.most_spooled, self.client.stats().spooled)

    def resumed(self, back: float) -> bool:
        if self.resumed_s != self.resumed_s and self.client.stats().sent >= self.before_return:
            self.resumed_s = time.monotonic() - back
        return self.resumed_s == self.resumed_s or time.monotonic() - back > _PATIENCE_S


def _log(streams: Sequence[_Stream], rate: int, going_on: Callable[[], bool]) -> None:
    due = time.monotonic()
    while going_on():
        for stream in streams:
            stream.log()
        due += 1 / rate
        time.sleep(max(0.0, due - time.monotonic()))


def _counted(streams: Sequence[_Stream], reports: Sequence[CloseReport], settings: Settings) -> list[Outage]:
    seen: dict[str, Counter[int]] = {stream.name: Counter() for stream in streams}
    newest: dict[tuple[str, int], int] = {}
    behind: Counter[str] = Counter()
    for message in read_to_end(settings, settings.topic("labels")):
        name, _, text = (message.key() or b"").decode().partition("/")
        number, place = int(text), (name, message.partition() or 0)
        if number < newest.get(place, -1) and number not in seen[name]:
            behind[name] += 1
        newest[place] = max(number, newest.get(place, -1))
        seen[name][number] += 1
    return [
        Outage(
            transport=stream.transport,
            spool=stream.spool,
            logged=stream.logged,
            lost=stream.logged - len(seen[stream.name]),
            doubled=sum(times > 1 for times in seen[stream.name].values()),
            behind=behind[stream.name],
            resumed_s=round(stream.resumed_s, 1),
            most_spooled=stream.most_spooled,
            report=report,
        )
        for stream, report in zip(streams, reports, strict=True)
    ]
