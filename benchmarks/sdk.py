"""What a call of the SDK costs its caller, whether Kafka is there or not."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.calling import Caller, Case
from benchmarks.figures import Curve, Figure, figure
from streamer.kafka import topics
from streamer.local.stack import Stack
from streamer.sdk import TransportName
from streamer.settings import Settings

_TRANSPORTS: tuple[TransportName, ...] = ("kafka-python", "librdkafka")
_AIM_US = 50.0
_COMMAND = "make bench ARGS='--only sdk'"
_SMALL_QUEUE = 1_000
_QUIET_S = 2.0
# One window says more of the machine than of the SDK: the p99 of encoding alone was 13 µs in one and 36 µs in another
# of the same run. So all cases at a pace take turns, and the median window is told, beside the least and the most.
_WINDOWS = 5


class Measured(msgspec.Struct, kw_only=True):
    """What `log_prediction` took of its caller in microseconds, and how many events a CPU second of the process.

    `late_p99_us` is how long after its time a call began, whose thread had slept until then. It, `waited` and
    `preempted` are None flat out, where they are not measured.
    `p99_us` is the median of the windows', beside the least and the most of them; all else is over all calls.
    """

    what: str
    transport: str
    calls: int
    p50_us: float
    p99_us: float
    p99_least_us: float
    p99_most_us: float
    p999_us: float
    max_us: float
    over_aim_share: float
    late_p99_us: float | None
    waited: int | None
    preempted: int | None
    per_cpu_s: int
    sent: int
    spooled: int
    dropped: int


_YARDSTICK = "check and encode, 2,000/s"
_CASES = (
    Case(what="up, 2,000/s", rate=2_000, windows=_WINDOWS),
    Case(what="up, flat out", seconds=3),
    Case(what="up, flat out, waits for room", seconds=6, patient=True),
    Case(what="down, 2,000/s", rate=2_000, windows=_WINDOWS, down=True),
    Case(what="down, flat out, queue full", seconds=3, down=True),
    Case(what="down, 2,000/s, queue full", rate=2_000, windows=_WINDOWS, down=True, queue_size=_SMALL_QUEUE),
    Case(what="down, 2,000/s, spool", rate=2_000, windows=_WINDOWS, down=True, spool=True),
    Case(what="down, flat out, spool", seconds=3, down=True, spool=True),
)


def register(app: typer.Typer) -> None:
    """Add `sdk` to the command line."""
    app.command("sdk")(sdk)


def sdk(
    only: Annotated[str, typer.Option(help="Only the cases with this in their names.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure `log_prediction` with 12 features: broker up, broker down, queue full, with a spool."""
    found = _measure([case for case in _CASES if only in case.what])
    if as_json:
        print(msgspec.json.encode(found).decode())
    else:
        _show(found)


def figures(*, quick: bool) -> tuple[list[Figure], list[Curve]]:
    """Measure every case, each for a window of two seconds where `quick`."""
    found = _measure([msgspec.structs.replace(case, windows=1, seconds=2.0) for case in _CASES] if quick else _CASES)
    alone = max((each for each in found if not each.transport), key=lambda each: each.p99_us)
    told = [figure(f"{_YARDSTICK}: p99, without the SDK", alone.p99_us, "µs", command=_COMMAND, note=_spread(alone))]
    for transport in _TRANSPORTS:
        mine = {each.what: each for each in found if each.transport == transport}
        down = max((each for what, each in mine.items() if what.startswith("down")), key=lambda each: each.p99_us)
        told += [
            _p99(f"broker up, 2,000/s, {transport}", mine["up, 2,000/s"]),
            _p99(f"broker up, flat out, {transport}", mine["up, flat out"]),
            _p99(f"broker down, the worst case, {transport}", down, note=down.what),
            figure(
                f"SDK: events a CPU second, logged to acknowledged, {transport}",
                mine["up, flat out, waits for room"].per_cpu_s,
                "",
                command=_COMMAND,
            ),
        ]
    return told, []


def _p99(what: str, measured: Measured, *, note: str = "") -> Figure:
    return figure(
        f"SDK: log_prediction, p99, {what}",
        measured.p99_us,
        "µs",
        at_most=_AIM_US,
        command=_COMMAND,
        note="; ".join(filter(None, (note, _spread(measured)))),
    )


def _spread(measured: Measured) -> str:
    if measured.waited is None:
        return ""
    return f"windows from {measured.p99_least_us} to {measured.p99_most_us} µs, {measured.waited} calls waited"


def _measure(cases: Sequence[Case]) -> list[Measured]:
    found = []
    with (
        tempfile.TemporaryDirectory(prefix="driftloop-bench-") as directory,
        Stack(Path(directory), parts=frozenset({"kafka"}), settings=Settings()) as stack,
    ):
        topics.ensure(stack.settings)
        for down in (False, True):
            callers = _callers(
                [case for case in cases if case.down == down], stack.settings.kafka.bootstrap_servers, Path(directory)
            )
            if down:
                stack.part("kafka").stop()
                time.sleep(_QUIET_S)
            # A neighbour's turn, or a slow spell of the processor, meets all that take turns alike.
            for window in range(max((caller.case.windows for caller in callers), default=0)):
                for caller in callers:
                    if window < caller.case.windows:
                        caller.call()
            found += [_measured(caller) for caller in callers]
    return found


def _callers(cases: Sequence[Case], servers: str, directory: Path) -> list[Caller]:
    """Return them connected: those at a pace first, what a call is without the SDK among them."""
    callers = []
    paced = [case for case in cases if case.rate]
    if paced:
        alone = msgspec.structs.replace(paced[0], what=f"{_YARDSTICK}, broker {'down' if paced[0].down else 'up'}")
        callers.append(Caller(alone, None, servers, directory))
    return callers + [
        Caller(case, transport, servers, directory)
        for case in (*paced, *(case for case in cases if not case.rate))
        for transport in _TRANSPORTS
    ]


def _measured(caller: Caller) -> Measured:
    ended, windows = caller.ended, caller.windows
    p99s_us = [_quantile_us(window.taken_ns, 0.99) for window in windows]
    taken_ns = sorted(value for window in windows for value in window.taken_ns)
    late_ns = sorted(value for window in windows for value in window.late_ns)
    return Measured(
        what=caller.case.what,
        transport=caller.transport or "",
        calls=len(taken_ns),
        p50_us=_quantile_us(taken_ns, 0.5),
        p99_us=statistics.median(p99s_us),
        p99_least_us=min(p99s_us),
        p99_most_us=max(p99s_us),
        p999_us=_quantile_us(taken_ns, 0.999),
        max_us=round(taken_ns[-1] / 1_000, 1),
        over_aim_share=sum(value > _AIM_US * 1_000 for value in taken_ns) / len(taken_ns),
        late_p99_us=_quantile_us(late_ns, 0.99) if late_ns else None,
        waited=sum(window.waited for window in windows) if caller.case.rate else None,
        preempted=sum(window.preempted for window in windows) if caller.case.rate else None,
        per_cpu_s=round(len(taken_ns) / sum(window.cpu_s for window in windows)),
        sent=ended.sent,
        spooled=ended.spooled,
        dropped=ended.dropped,
    )


def _quantile_us(sorted_ns: Sequence[int], share: float) -> float:
    return round(sorted_ns[int(len(sorted_ns) * share)] / 1_000, 1)


def _show(found: Sequence[Measured]) -> None:
    table = Table(title="log_prediction, 12 features: microseconds a call")
    texts, ends = ("case", "transport"), ("waited", "preempted", "a CPU s", "sent", "spooled", "dropped")
    for heading in (*texts, "calls", "p50", "p99", "windows' p99", "p99.9", "max", "over 50 µs", "late, p99", *ends):
        table.add_column(heading, justify="left" if heading in texts else "right")
    for each in found:
        counts = (each.waited, each.preempted, each.per_cpu_s, each.sent, each.spooled, each.dropped)
        table.add_row(
            each.what,
            each.transport,
            f"{each.calls:,}",
            f"{each.p50_us:,.1f}",
            f"{each.p99_us:,.1f}",
            f"{each.p99_least_us:,.1f} to {each.p99_most_us:,.1f}",
            f"{each.p999_us:,.1f}",
            f"{each.max_us:,.1f}",
            f"{each.over_aim_share:.2%}",
            "" if each.late_p99_us is None else f"{each.late_p99_us:,.1f}",
            *("" if count is None else f"{count:,}" for count in counts),
        )
    Console(width=200).print(table)
