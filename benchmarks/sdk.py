"""What a call of the SDK costs its caller, whether Kafka is there or not."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
import uuid_utils
from rich.console import Console
from rich.table import Table

from benchmarks import traffic
from benchmarks.figures import Curve, Figure, figure
from streamer.client.arguments import checked_prediction, encoded
from streamer.events import Prediction
from streamer.kafka import topics
from streamer.local.stack import Stack
from streamer.sdk import Client, TransportName
from streamer.settings import Settings

_TRANSPORTS: tuple[TransportName, ...] = ("kafka-python", "librdkafka")
_WARM_UP = 2_000
_AIM_US = 50.0
_COMMAND = "make bench ARGS='--only sdk'"
_SMALL_QUEUE = 1_000
_FLUSH_S = 60.0
_QUIET_S = 2.0


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One way to use a client: `rate` calls a second (0 for as many as there can be), for `seconds`.

    A `patient` caller waits while the queue is half full, so that all it logs is sent.
    """

    what: str
    rate: int = 0
    seconds: float = 6.0
    down: bool = False
    queue_size: int = 100_000
    spool: bool = False
    patient: bool = False


class Measured(msgspec.Struct, kw_only=True):
    """What `log_prediction` took of its caller in microseconds, and how many events a CPU second of the process."""

    what: str
    transport: str
    calls: int
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float
    over_aim_share: float
    per_cpu_s: int
    sent: int
    spooled: int
    dropped: int


_CASES = (
    Case(what="up, 2,000/s", rate=2_000),
    Case(what="up, flat out", seconds=3),
    Case(what="up, flat out, waits for room", seconds=6, patient=True),
    Case(what="down, 2,000/s", rate=2_000, down=True),
    Case(what="down, flat out, queue full", seconds=3, down=True),
    Case(what="down, 2,000/s, queue full", rate=2_000, down=True, queue_size=_SMALL_QUEUE),
    Case(what="down, 2,000/s, spool", rate=2_000, down=True, spool=True),
    Case(what="down, flat out, spool", seconds=3, down=True, spool=True),
)


_YARDSTICK = Case(what="check and encode, 2,000/s", rate=2_000)


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
    """Measure every case, those under way for two seconds where `quick`."""
    found = _measure([msgspec.structs.replace(case, seconds=2.0) for case in _CASES] if quick else _CASES)
    told = [figure(f"{_YARDSTICK.what}: p99, without the SDK", found[0].p99_us, "µs", command=_COMMAND)]
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
        f"SDK: log_prediction, p99, {what}", measured.p99_us, "µs", at_most=_AIM_US, command=_COMMAND, note=note
    )


def _measure(cases: Sequence[Case]) -> list[Measured]:
    found = [_yardstick()] if any(case.rate for case in cases) else []
    with (
        tempfile.TemporaryDirectory(prefix="driftloop-bench-") as directory,
        Stack(Path(directory), parts=frozenset({"kafka"}), settings=Settings()) as stack,
    ):
        topics.ensure(stack.settings)
        for down in (False, True):
            started = [
                _Running(case, transport, stack.settings.kafka.bootstrap_servers, Path(directory))
                for case in cases
                if case.down == down
                for transport in _TRANSPORTS
            ]
            if down:
                stack.part("kafka").stop()
                time.sleep(_QUIET_S)
            found += [running.measured() for running in started]
    return found


class _Running:
    """A case in a process of its own, its client connected."""

    def __init__(self, case: Case, transport: TransportName, servers: str, directory: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        spool = directory / f"{case.what}-{transport}".replace("/", "-")
        self._process = context.Process(target=_run, args=(case, transport, servers, spool, theirs))
        self._process.start()
        theirs.close()
        self._pipe.recv()

    def measured(self) -> Measured:
        """Let it run, and return what it measured."""
        self._pipe.send(None)
        measured: Measured = self._pipe.recv()
        self._process.join()
        return measured


def _run(case: Case, transport: TransportName, servers: str, spool: Path, parent: Connection) -> None:
    client = Client(
        servers,
        redis_url=None,
        transport=transport,
        queue_size=case.queue_size,
        spool=spool if case.spool else None,
    )
    rows = list(_rows(5_000))
    for number in range(_WARM_UP):
        client.log_prediction(**rows[number % len(rows)])
        if number % 100 == 0:
            time.sleep(0.01)
    client.flush(_FLUSH_S)
    parent.send(None)
    parent.recv()
    before = client.stats()
    began = _cpu_s()
    taken_ns = _call(client.log_prediction, case, rows, wait=lambda: _until_room(client, case))
    if not case.down:
        client.flush(_FLUSH_S)
    cpu_s = _cpu_s() - began
    stats = client.stats()
    client.close(0)
    spool.unlink(missing_ok=True)
    parent.send(
        _measured(
            case.what,
            transport,
            taken_ns,
            cpu_s,
            sent=stats.sent - before.sent,
            spooled=stats.spooled,
            dropped=stats.dropped - before.dropped,
        )
    )


def _measured(what: str, transport: str, taken_ns: array[int], cpu_s: float, **counts: int) -> Measured:
    taken_us = sorted(value / 1_000 for value in taken_ns)
    return Measured(
        what=what,
        transport=transport,
        calls=len(taken_us),
        p50_us=round(statistics.median(taken_us), 1),
        p99_us=round(taken_us[int(len(taken_us) * 0.99)], 1),
        p999_us=round(taken_us[int(len(taken_us) * 0.999)], 1),
        max_us=round(taken_us[-1], 1),
        over_aim_share=sum(value > _AIM_US for value in taken_us) / len(taken_us),
        per_cpu_s=round(len(taken_us) / cpu_s),
        **counts,
    )


def _yardstick() -> Measured:
    """Measure the same calls at the same pace where they end with the event's bytes: no thread, no queue, no Kafka."""
    began = _cpu_s()
    taken_ns = _call(_encode_alone, _YARDSTICK, list(_rows(5_000)))
    return _measured(_YARDSTICK.what, "", taken_ns, _cpu_s() - began, sent=0, spooled=0, dropped=0)


def _encode_alone(**row: Any) -> None:
    event = Prediction(prediction_id=str(uuid_utils.uuid7()), ts=time.time_ns() // 1_000_000, **row)
    encoded(checked_prediction(event))


def _until_room(client: Client, case: Case) -> None:
    while client.stats().queued > case.queue_size // 2:
        time.sleep(0.005)


def _call(
    log: Callable[..., object], case: Case, rows: Sequence[dict[str, Any]], *, wait: Callable[[], None] = lambda: None
) -> array[int]:
    """Log for the length of the case; return what each call took in nanoseconds."""
    taken = array("q")
    clock = time.perf_counter_ns
    step_ns = 1_000_000_000 // case.rate if case.rate else 0
    number, due = 0, clock()
    end = due + int(case.seconds * 1e9)
    while True:
        began = clock()
        if began > end:
            return taken
        log(**rows[number % len(rows)])
        taken.append(clock() - began)
        number += 1
        if step_ns:
            due += step_ns
            if (wait_ns := due - clock()) > 0:
                time.sleep(wait_ns / 1e9)
        elif case.patient and number % 1_000 == 0:
            wait()


def _rows(count: int) -> Iterator[dict[str, Any]]:
    for _key, value in traffic.predictions(count, 1, start_ms=1_700_000_000_000):
        event = msgspec.json.decode(value)
        names = ("model", "version", "features", "prediction", "score")
        yield {**{name: event[name] for name in names}, "entity_id": event["prediction_id"]}


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _show(found: Sequence[Measured]) -> None:
    table = Table(title="log_prediction, 12 features: microseconds a call")
    texts, ends = ("case", "transport"), ("sent", "spooled", "dropped")
    for heading in (*texts, "calls", "p50", "p99", "p99.9", "max", "over 50 µs", "a CPU s", *ends):
        table.add_column(heading, justify="left" if heading in texts else "right")
    for each in found:
        figures = (each.p50_us, each.p99_us, each.p999_us, each.max_us)
        table.add_row(
            each.what,
            each.transport,
            f"{each.calls:,}",
            *(f"{figure:,.1f}" for figure in figures),
            f"{each.over_aim_share:.2%}",
            f"{each.per_cpu_s:,}",
            *(f"{figure:,}" for figure in (each.sent, each.spooled, each.dropped)),
        )
    Console(width=150).print(table)
