"""Workers as child processes, for tests that need them to be killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from confluent_kafka.admin import AdminClient
from kafka import KafkaAdminClient
from kafka.admin import MemberToRemove

from streamer.kafka import clients as kafka_clients
from streamer.settings import Settings

T = TypeVar("T")


def environment(settings: Settings) -> dict[str, str]:
    """Return the variables by which a child process gets these settings."""
    return {
        **os.environ,
        "DRIFTLOOP_NAMESPACE": settings.namespace,
        "DRIFTLOOP_INTERNAL_PARTITIONS": str(settings.internal_partitions),
        "DRIFTLOOP_KAFKA": json.dumps(settings.kafka.properties()),
        **_redis(settings),
        "DRIFTLOOP_MLFLOW__TRACKING_URI": settings.mlflow.tracking_uri,
    }


def _redis(settings: Settings) -> dict[str, str]:
    table = {name: value for name, value in settings.redis if value is not None}
    secret = settings.redis.password
    return {
        f"DRIFTLOOP_REDIS__{name.upper()}": secret.get_secret_value() if value is secret else str(value)
        for name, value in table.items()
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class WorkerProcess:
    """One worker; `kill` is kill -9."""

    def __init__(
        self,
        settings: Settings,
        *,
        replica: str = "0",
        role: str = "all",
        commit_ms: int = 500,
        command: list[str] | None = None,
    ) -> None:
        self.replica = replica
        self.port = free_port()
        directory = Path(tempfile.mkdtemp(prefix="driftloop-worker-"))
        self.log = directory / "worker.log"
        variables = {
            **environment(settings),
            "DRIFTLOOP_WORKER__REPLICA": replica,
            "DRIFTLOOP_WORKER__WEB_PORT": str(self.port),
            "DRIFTLOOP_WORKER__DATA_DIR": str(directory),
            "DRIFTLOOP_WORKER__COMMIT_MS": str(commit_ms),
        }
        self._command = command or [sys.executable, "-m", "streamer.cli", "worker", "--role", role]
        self._variables = variables
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(self._command, env=self._variables, stdout=out, stderr=out)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self, timeout_s: float = 60.0) -> int:
        self.process.terminate()
        return self.process.wait(timeout_s)

    def text(self) -> str:
        return self.log.read_text(errors="replace")


@contextmanager
def running_worker(settings: Settings, **options: str) -> Iterator[WorkerProcess]:
    """Run a worker for the length of a test; show its log when the test fails."""
    worker = WorkerProcess(settings, **options)
    try:
        yield worker
        assert worker.stop() == 0, worker.text()[-3000:]
    except BaseException:
        if worker.process.poll() is None:
            worker.kill()
            time.sleep(0.1)
        sys.stderr.write(worker.text()[-6000:])
        raise


def wait_for(read: Callable[[], T], wanted: Callable[[T], object], timeout_s: float = 120.0) -> T:
    """Read until what is read is wanted; fail with the last of it."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = read()
        if wanted(found):
            return found
        assert time.monotonic() < deadline, f"still {found}"
        time.sleep(0.2)


def let_expire(settings: Settings, stage: str) -> None:
    """Delete a group and its offsets, as Kafka does once it has been without members for long enough."""
    group = f"{settings.namespace}-{stage}"
    admin = KafkaAdminClient(**kafka_clients.kafka_python(settings.kafka.properties()))
    try:
        # A static member is one until its session is over.
        admin.remove_group_members(group, [MemberToRemove(group_instance_id=f"{group}-0")])
    finally:
        admin.close()
    # Kept by name: results do not arrive once the client is gone.
    deleting = AdminClient({**settings.kafka.properties()})
    deleting.delete_consumer_groups([group])[group].result()
