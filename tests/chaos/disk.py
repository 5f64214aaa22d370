"""A broker whose disk fills up under a worker, and gets room again: `python -m tests.chaos.disk`."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import typer
from confluent_kafka import KafkaError, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from streamer.audit import recount
from streamer.diagnosis import doctor
from streamer.evaluation.evaluate_state import read_committed
from streamer.kafka import topics
from streamer.kafka.clients import admin_config, producer_config
from streamer.local.stack import Stack
from streamer.settings import Settings
from streamer.telemetry import configure_logging
from tests.integration.events import MODEL, publish, send_events
from tests.integration.running import WorkerProcess, wait_for

_SMALL, _LARGE = "128m", "512m"
_FILLER = "filler"
_MESSAGE = 900_000
_EVENTS = 300


class Fault(Exception):  # noqa: N818 - it says what was found
    """Something was not as it should be; the message says what."""


def main() -> None:
    """Fill the broker's disk under a worker, make room, and hold the counts against the log; exit 1 on a difference."""
    configure_logging(level="WARNING")
    root = Path(tempfile.mkdtemp(prefix="driftloop-disk-"))
    data = root / "kafka"
    data.mkdir()
    try:
        with _mounted(data), Stack(root, parts=frozenset({"kafka", "valkey"}), keep=True, settings=Settings()) as stack:
            settings = stack.settings.model_copy(update={"internal_partitions": 4})
            topics.ensure(settings)
            _play(stack, settings, data)
    except PermissionError as error:
        typer.echo(f"skipped: {error}")
    except Fault as fault:
        typer.echo(f"AMISS: {fault}", err=True)
        raise typer.Exit(1) from fault
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def _mounted(directory: Path) -> Iterator[None]:
    """Give a directory a small file system of its own; PermissionError where that cannot be done."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        raise PermissionError("a small disk is made by mounting a tmpfs, which needs root")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SMALL}", "tmpfs", str(directory)], check=False)
    if made.returncode:
        raise PermissionError("mount: refused here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=False)


def _play(stack: Stack, settings: Settings, data: Path) -> None:
    publish(settings, MODEL, "1")
    catalog = recount.read_catalog(settings)
    sent = send_events(settings, panes=1, per_pane=_EVENTS, shift_from=9)
    worker = WorkerProcess(settings)
    try:
        _await_counts(settings, sent)
        _told("the disk has room", settings, "kafka disks", {"ok", "warning"})
        _fill(settings)
        _told("the disk is full", settings, "kafka", {"unreachable"})
        code = worker.process.wait(120)
        if code == 0 or '"stage_failed"' not in worker.text():
            raise Fault(f"worker: ended with {code}; wanted an error and a line that says why")
        typer.echo(f"the worker has ended with {code}")
        subprocess.run(["mount", "-o", f"remount,size={_LARGE}", str(data)], check=True)
        stack.restart("kafka")
        typer.echo("the disk has been enlarged and the broker started")
        worker.start()
        sent += send_events(settings, panes=1, per_pane=_EVENTS, shift_from=9, first=1)
        _await_counts(settings, sent)
        differences = recount.compare(recount.recount(settings, catalog), read_committed(settings, catalog).panes)
        if differences:
            raise Fault(f"{len(differences)} counts differ from the log's, the first: {differences[0]}")
        typer.echo(f"{sent:,} predictions and their labels counted, 0 differences")
    finally:
        worker.kill()


def _fill(settings: Settings) -> None:
    """Write until the broker takes no more."""
    admin = AdminClient({**admin_config(settings)})
    for future in admin.create_topics([NewTopic(_FILLER, num_partitions=1, replication_factor=1)]).values():
        future.result()
    refused: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            refused.append(error)

    producer = Producer({**producer_config(settings), "message.timeout.ms": 5_000, "log_level": 0})
    deadline = time.monotonic() + 60
    while not refused:
        if time.monotonic() > deadline:
            raise Fault("the disk does not fill up")
        with suppress(BufferError):
            producer.produce(_FILLER, os.urandom(_MESSAGE), on_delivery=delivered)
        producer.poll(0.02)
    producer.purge()


def _told(what: str, settings: Settings, name: str, wanted: set[str]) -> None:
    """Ask the doctor, and say what it found."""
    checks = doctor.examine(settings, now_ms=int(time.time() * 1000))
    found = next(check for check in checks if check.name == name)
    typer.echo(f"{what}; doctor says of {name}: {found.status}, {found.found}")
    if found.status not in wanted:
        raise Fault(f"doctor: {name} is {found.status}, wanted {' or '.join(sorted(wanted))}")


def _await_counts(settings: Settings, sent: int) -> None:
    catalog = recount.read_catalog(settings)

    def counted() -> tuple[int, int]:
        panes = read_committed(settings, catalog).panes
        kinds = ("events", "labelled")
        events, labelled = (sum(int(panes[key].sum()) for key in panes if key.kind == kind) for kind in kinds)
        return events, labelled

    wait_for(counted, lambda found: found == (sent, sent))


if __name__ == "__main__":
    typer.run(main)
