"""A process that calls `log_prediction` at a pace, a window at a time, and times every call."""

from __future__ import annotations

import multiprocessing
import resource
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import uuid_utils

from benchmarks import traffic
from streamer.client.arguments import checked_prediction, encoded
from streamer.events import Prediction
from streamer.sdk import Client, TransportName

_WARM_UP = 2_000
_FLUSH_S = 60.0


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One way to use a client: `rate` calls a second (0 for as many as there can be), in windows of `seconds`.

    A `patient` caller waits while the queue is half full, so that all it logs is sent.
    """

    what: str
    rate: int = 0
    windows: int = 1
    seconds: float = 2.0
    down: bool = False
    queue_size: int = 100_000
    spool: bool = False
    patient: bool = False


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """What each call of a window took in nanoseconds, sorted, and how many lost the processor.

    `late_ns`, sorted too, is how long after its time each call began, where the caller had slept until then: what the
    timer takes, and until a processor and the interpreter are free. A call that `waited` gave the processor up: for a
    lock, the interpreter or a disk. A `preempted` one had it taken away by the kernel. Neither is counted flat out,
    where asking the kernel would cost a quarter of the call. The CPU is the process's, until the events of the window
    were acknowledged where Kafka is there.
    """

    taken_ns: array[int]
    late_ns: array[int] = msgspec.field(default_factory=lambda: array("q"))
    waited: int = 0
    preempted: int = 0
    cpu_s: float = 0.0


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the calls of all windows."""

    sent: int = 0
    spooled: int = 0
    dropped: int = 0


class Caller:
    """A case in a process of its own, its client connected; without a transport, what a call is without the SDK."""

    def __init__(self, case: Case, transport: TransportName | None, servers: str, directory: Path) -> None:
        self.case = case
        self.transport = transport
        self.windows: list[Window] = []
        self.ended = Ended()
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        spool = directory / f"{case.what}-{transport}".replace("/", "-")
        self._process = context.Process(target=_run, args=(case, transport, servers, spool, theirs))
        self._process.start()
        theirs.close()
        self._pipe.recv()

    def call(self) -> None:
        """Let it call for the length of a window; after its last one the process ends."""
        self._pipe.send(True)
        self.windows.append(self._pipe.recv())
        if len(self.windows) == self.case.windows:
            self._pipe.send(False)
            self.ended = self._pipe.recv()
            self._process.join()


def _run(case: Case, transport: TransportName | None, servers: str, spool: Path, parent: Connection) -> None:
    rows = list(_rows(5_000))
    if transport is None:
        _warm_up(_encode_alone, rows)
        parent.send(None)
        while parent.recv():
            parent.send(_window(_encode_alone, case, rows, wait=_nothing, end=_nothing))
        parent.send(Ended())
        return
    client = Client(
        servers,
        redis_url=None,
        transport=transport,
        queue_size=case.queue_size,
        spool=spool if case.spool else None,
    )
    _warm_up(client.log_prediction, rows)
    client.flush(_FLUSH_S)
    before = client.stats()
    parent.send(None)
    while parent.recv():
        parent.send(
            _window(
                client.log_prediction,
                case,
                rows,
                wait=lambda: _until_room(client, case),
                end=_nothing if case.down else lambda: client.flush(_FLUSH_S),
            )
        )
    stats = client.stats()
    client.close(0)
    spool.unlink(missing_ok=True)
    parent.send(
        Ended(
            sent=stats.sent - before.sent,
            spooled=stats.spooled,
            dropped=stats.dropped - before.dropped,
        )
    )


def _warm_up(log: Callable[..., object], rows: Sequence[dict[str, Any]]) -> None:
    for number in range(_WARM_UP):
        log(**rows[number % len(rows)])
        if number % 100 == 0:
            time.sleep(0.01)


def _encode_alone(**row: Any) -> None:
    event = Prediction(prediction_id=str(uuid_utils.uuid7()), ts=time.time_ns() // 1_000_000, **row)
    encoded(checked_prediction(event))


def _nothing() -> None:
    """Wait for nothing."""


def _until_room(client: Client, case: Case) -> None:
    while client.stats().queued > case.queue_size // 2:
        time.sleep(0.005)


def _window(
    log: Callable[..., object],
    case: Case,
    rows: Sequence[dict[str, Any]],
    *,
    wait: Callable[[], object],
    end: Callable[[], object],
) -> Window:
    began = _cpu_s()
    window = paced(log, case, rows) if case.rate else _flat_out(log, case, rows, wait)
    end()
    return msgspec.structs.replace(
        window,
        taken_ns=array("q", sorted(window.taken_ns)),
        late_ns=array("q", sorted(window.late_ns)),
        cpu_s=_cpu_s() - began,
    )


def paced(log: Callable[..., object], case: Case, rows: Sequence[dict[str, Any]]) -> Window:
    """Call at the rate, for the length of a window."""
    taken_ns, late_ns = array("q"), array("q")
    waited = preempted = number = 0
    clock, thread = time.perf_counter_ns, resource.RUSAGE_THREAD
    due = clock()
    end = due + int(case.seconds * 1e9)
    while True:
        before = resource.getrusage(thread)
        began = clock()
        if began > end:
            return Window(taken_ns=taken_ns, late_ns=late_ns, waited=waited, preempted=preempted)
        log(**rows[number % len(rows)])
        taken_ns.append(clock() - began)
        after = resource.getrusage(thread)
        waited += after.ru_nvcsw > before.ru_nvcsw
        preempted += after.ru_nivcsw > before.ru_nivcsw
        number += 1
        due += 1_000_000_000 // case.rate
        if (wait_ns := due - clock()) > 0:
            time.sleep(wait_ns / 1e9)
            late_ns.append(clock() - due)


def _flat_out(
    log: Callable[..., object], case: Case, rows: Sequence[dict[str, Any]], wait: Callable[[], object]
) -> Window:
    """Call as often as there can be, for the length of a window."""
    taken_ns = array("q")
    number, clock = 0, time.perf_counter_ns
    end = clock() + int(case.seconds * 1e9)
    while (began := clock()) <= end:
        log(**rows[number % len(rows)])
        taken_ns.append(clock() - began)
        number += 1
        if case.patient and number % 1_000 == 0:
            wait()
    return Window(taken_ns=taken_ns)


def _rows(count: int) -> Iterator[dict[str, Any]]:
    for _key, value in traffic.predictions(count, 1, start_ms=1_700_000_000_000):
        event = msgspec.json.decode(value)
        names = ("model", "version", "features", "prediction", "score")
        yield {**{name: event[name] for name in names}, "entity_id": event["prediction_id"]}


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
