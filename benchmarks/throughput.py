"""How many events one worker takes a CPU second: from the topic to counts that are committed and seen in Redis."""

from __future__ import annotations

import contextlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import psutil
import redis
import typer
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from rich.console import Console
from rich.table import Table

from benchmarks import traffic
from streamer import kafka_clients
from streamer.events import Prediction
from streamer.local.stack import Stack
from streamer.settings import Settings
from streamer.state import Keys
from streamer.view import LiveView

_PATIENCE_S = 600.0
_LOOK_S = 0.05
_IDLE_S = 4.0
_SETTLE_S = 30.0

Wait = Callable[[], bool]


class Measured(msgspec.Struct, kw_only=True):
    """One run of messages through one worker.

    `cpu_s` is user and system time of the whole worker process from the moment the messages could be read until
    they were committed and seen, `idle_share` the CPU it takes a second with nothing to do, which is in `cpu_s`.
    `yardstick_per_cpu_s` is how many of these predictions this process decodes a CPU second, before and after: it
    tells how fast the machine is, and how far its neighbours slow it down.
    """

    what: str
    messages: int
    mean_bytes: float
    cpu_s: float
    wall_s: float
    per_cpu_s: int
    idle_share: float
    rss_mb: int
    yardstick_per_cpu_s: int


def register(app: typer.Typer) -> None:
    """Add `throughput` to the command line."""
    app.command("throughput")(throughput)


def throughput(
    events: Annotated[int, typer.Option(help="How many predictions.", min=1)] = 500_000,
    labels: Annotated[bool, typer.Option("--labels", help="Then send a label to each, and measure the join.")] = False,
    context: Annotated[
        bool, typer.Option("--context", help="Without the label-join store: labels.mode = context.")
    ] = False,
    models: Annotated[int, typer.Option(help="Spread over how many models.", min=1)] = 1,
    repeat: Annotated[int, typer.Option(help="How often; each time with servers and a worker of its own.", min=1)] = 1,
    profile: Annotated[Path | None, typer.Option(help="Write py-spy's stacks of the worker to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure one worker's CPU over a backlog of events, topic to committed counts and live view."""
    if labels and context:
        raise typer.BadParameter("labels are joined, or bring their context; not both")
    mode: Literal["join", "context"] = "context" if context else "join"
    found = [
        measured
        for _ in range(repeat)
        for measured in _run(events, models, mode=mode, with_labels=labels, profile=profile)
    ]
    if as_json:
        print(msgspec.json.encode(found).decode())
    else:
        _show(found)


def _run(
    events: int, models: int, *, mode: Literal["join", "context"], with_labels: bool, profile: Path | None
) -> list[Measured]:
    start_ms = int(time.time() * 1000) - traffic.SPAN_MS
    with (
        tempfile.TemporaryDirectory(prefix="driftloop-bench-") as directory,
        Stack(Path(directory), parts=frozenset({"kafka", "valkey", "worker"}), settings=Settings()) as stack,
    ):
        settings = stack.settings
        _publish_models(settings, models, mode, start_ms)
        worker = psutil.Process(stack.part("worker").children[0].identity.pid)
        _until_at_rest(worker)
        view = LiveView(redis.Redis.from_url(settings.redis.url), Keys(settings.namespace))
        what = "predictions" if mode == "join" else "predictions, context"
        with _profiled(worker, profile):
            found = [
                _measure(
                    what,
                    traffic.predictions(events, models, start_ms=start_ms),
                    settings,
                    "predictions",
                    worker,
                    lambda: sum(summary.n or 0 for summary in view.models()) == events,
                )
            ]
        if with_labels:
            names = [f"bench-{index}" for index in range(models)]
            found.append(
                _measure(
                    "labels",
                    traffic.labels(events, models, start_ms=start_ms),
                    settings,
                    "labels",
                    worker,
                    lambda: _labelled(view, names) == events,
                )
            )
    return found


def _labelled(view: LiveView, names: Sequence[str]) -> int:
    found = [view.model(name, version=traffic.VERSION) for name in names]
    return sum(each.performance.labelled or 0 for each in found if each is not None and each.performance is not None)


def _publish_models(settings: Settings, models: int, mode: Literal["join", "context"], now_ms: int) -> None:
    producer = Producer(kafka_clients.producer_config(settings))
    for index in range(models):
        config = traffic.model(index, labels=mode)
        for part, value in traffic.reference(config, created_ms=now_ms).to_parts().items():
            producer.produce(settings.topic("references"), value, f"{config.name}/{traffic.VERSION}/{part}")
            producer.poll(0)
        producer.produce(settings.topic("models"), config.to_json(), config.name)
    producer.flush()


def _measure(
    what: str,
    messages: Iterable[traffic.Message],
    settings: Settings,
    kind: str,
    worker: psutil.Process,
    seen: Wait,
) -> Measured:
    """Send a backlog that becomes readable all at once, and take the worker's CPU until it is dealt with."""
    topic = settings.topic(kind)
    # In one transaction: the worker, already well and at rest, is shown nothing before it is committed.
    producer = Producer(
        {
            **kafka_clients.producer_config(settings),
            "transactional.id": f"benchmarks-{kind}",
            "transaction.timeout.ms": 600_000,
            "linger.ms": 100,
        }
    )
    producer.init_transactions()
    producer.begin_transaction()
    count = total = 0
    for key, value in messages:
        count += 1
        total += len(value)
        while True:
            try:
                producer.produce(topic, value, key)
                break
            except BufferError:
                producer.poll(0.1)
        if count % 1_000 == 0:
            producer.poll(0)
    producer.flush()
    idle = _cpu_s(worker)
    time.sleep(_IDLE_S)
    idle_share = (_cpu_s(worker) - idle) / _IDLE_S
    yardstick = _yardstick()
    began, before = time.monotonic(), _cpu_s(worker)
    producer.commit_transaction()
    _until(seen, f"{what}: not all are in the live view")
    _until_committed(settings)
    cpu_s, wall_s = _cpu_s(worker) - before, time.monotonic() - began
    return Measured(
        what=what,
        messages=count,
        mean_bytes=round(total / count, 1),
        cpu_s=round(cpu_s, 2),
        wall_s=round(wall_s, 2),
        per_cpu_s=round(count / cpu_s),
        idle_share=round(idle_share, 3),
        rss_mb=worker.memory_info().rss // 2**20,
        yardstick_per_cpu_s=round(statistics.mean((yardstick, _yardstick()))),
    )


def _yardstick() -> float:
    values = [value for _key, value in traffic.predictions(5_000, 1, start_ms=10**12)]
    decode = msgspec.json.Decoder(Prediction).decode
    taken = []
    for _ in range(9):
        began = time.process_time()
        for value in values:
            decode(value)
        taken.append(time.process_time() - began)
    return len(values) / statistics.median(taken)


def _until_committed(settings: Settings) -> None:
    """Wait until ingest has committed all there is, and evaluate all that ingest had published by then."""
    prefix = settings.namespace or "driftloop"
    admin = AdminClient({**kafka_clients.admin_config(settings), "log_level": 0})
    raw = [settings.topic(kind) for kind in ("predictions", "labels")]
    ends = _ends(settings, raw)
    _until(lambda: _reached(admin, f"{prefix}-ingest", ends), "ingest has not committed")
    ends = _ends(settings, [settings.topic("partials")])
    _until(lambda: _reached(admin, f"{prefix}-evaluate", ends), "evaluate has not committed")


def _ends(settings: Settings, topics: Iterable[str]) -> dict[tuple[str, int], int]:
    consumer = Consumer(kafka_clients.consumer_config(settings, group_id="benchmarks"))
    try:
        found = consumer.list_topics(timeout=30).topics
        places = [(topic, number) for topic in topics for number in found[topic].partitions]
        ends = {place: consumer.get_watermark_offsets(TopicPartition(*place), timeout=30)[1] for place in places}
    finally:
        consumer.close()
    return {place: end for place, end in ends.items() if end}


def _reached(admin: AdminClient, group: str, ends: dict[tuple[str, int], int]) -> bool:
    found = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result()
    offsets = {(place.topic, place.partition): place.offset for place in found.topic_partitions or []}
    # The last offsets of a partition may be the markers of a transaction, which nobody reads.
    return all(offsets.get(place, -1) >= end - 1 for place, end in ends.items())


def _until(reached: Wait, otherwise: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not reached():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{otherwise} after {_PATIENCE_S:.0f} s")
        time.sleep(_LOOK_S)


def _until_at_rest(worker: psutil.Process) -> None:
    """Wait until what a worker does once, at its start, is behind it."""
    deadline = time.monotonic() + _SETTLE_S
    while time.monotonic() < deadline:
        before = _cpu_s(worker)
        time.sleep(2.0)
        if _cpu_s(worker) - before < 0.1:
            return


def _cpu_s(worker: psutil.Process) -> float:
    times = worker.cpu_times()
    return float(times.user + times.system)


@contextlib.contextmanager
def _profiled(worker: psutil.Process, target: Path | None) -> Iterator[None]:
    if target is None:
        yield
        return
    program = str(Path(sys.executable).parent / "py-spy")
    how = ["--rate", "100", "--threads", "--nonblocking", "--format", "raw", "--duration", "600"]
    command = [program, "record", "--pid", str(worker.pid), *how, "--output", str(target)]
    spy = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        spy.send_signal(signal.SIGINT)
        spy.wait()


def _show(found: Sequence[Measured]) -> None:
    table = Table(title="one worker, topic to committed counts and live view")
    for heading in ("what", "messages", "bytes each", "CPU s", "wall s", "per CPU s", "idle", "RSS MB", "yardstick"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for each in found:
        table.add_row(
            each.what,
            f"{each.messages:,}",
            f"{each.mean_bytes:.0f}",
            f"{each.cpu_s:.2f}",
            f"{each.wall_s:.1f}",
            f"[bold]{each.per_cpu_s:,}[/]",
            f"{each.idle_share:.1%}",
            f"{each.rss_mb:,}",
            f"{each.yardstick_per_cpu_s:,}",
        )
    Console().print(table)
