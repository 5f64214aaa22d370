"""The local stack for real: it starts, resumes, and leaves no process behind however its owner ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from confluent_kafka import Consumer, Producer

from streamer.kafka import topics
from streamer.local.processes import Launcher, StackError, identify, marked
from streamer.local.record import Record, running_stack
from streamer.local.stack import Stack, environment_of
from streamer.settings import AirflowSettings, KafkaSettings, RedisSettings, Settings

pytestmark = pytest.mark.integration

BOTH = frozenset({"kafka", "valkey"})
VALKEY = frozenset({"valkey"})
OWNER = """
import sys, time
from pathlib import Path
from streamer.local.stack import Stack
with Stack(Path(sys.argv[1]), parts=frozenset(sys.argv[2].split(",")), keep=True):
    print("ready", flush=True)
    time.sleep(600)
"""


def wait_until(condition: Callable[[], bool], *, patience_s: float = 60.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


@contextlib.contextmanager
def owner(root: Path, parts: frozenset[str]) -> Iterator[subprocess.Popen[str]]:
    """Run a stack in a process of its own, ready."""
    command = [sys.executable, "-c", OWNER, str(root), ",".join(parts)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def left(record: Record) -> list[str]:
    return [process.name for process in record.processes if process.alive()]


@pytest.mark.parametrize(("number", "parts"), [(signal.SIGKILL, BOTH), (signal.SIGTERM, VALKEY)])
def test_no_process_outlives_its_owner_for_long(tmp_path: Path, number: int, parts: frozenset[str]) -> None:
    with owner(tmp_path, parts) as process:
        record = running_stack(tmp_path)
        assert record is not None
        assert sorted(left(record)) == sorted(parts | {"guardian"})
        process.send_signal(number)
        process.wait()
        wait_until(lambda: not left(record) and not marked(str(tmp_path)))
    assert running_stack(tmp_path) is None


def test_a_grandchild_in_a_session_of_its_own_ends_too(tmp_path: Path) -> None:
    stack = Stack(tmp_path, parts=VALKEY, settings=Settings())
    with stack:
        detached = "import subprocess; subprocess.Popen(['sleep', '600'], start_new_session=True)"
        stack._launcher.run("parent", [sys.executable, "-c", detached], log=tmp_path / "log", within_s=20)
        assert marked(str(tmp_path))
    assert not marked(str(tmp_path))


def test_a_child_inherits_all_but_what_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__UNIT_TEST_MODE", "True")
    monkeypatch.setenv("SPARED", "yes")
    launcher = Launcher(str(tmp_path), tmp_path / "guardian.log")
    launcher.open()
    try:
        env = {"AIRFLOW__CORE__UNIT_TEST_MODE": None, "OWN": "1"}
        launcher.run("env", ["/usr/bin/env"], log=tmp_path / "env.log", within_s=30, env=env)
    finally:
        launcher.close()
    lines = (tmp_path / "env.log").read_text().splitlines()
    assert "SPARED=yes" in lines
    assert "OWN=1" in lines
    assert not [line for line in lines if line.startswith("AIRFLOW__CORE__UNIT_TEST_MODE")]


def test_a_killed_run_is_cleared_away_and_resumed_with_its_data_and_addresses(tmp_path: Path) -> None:
    with owner(tmp_path, BOTH) as process:
        first = running_stack(tmp_path)
        assert first is not None
        settings = settings_of(first)
        topics.ensure(settings, ["labels"])
        produce(settings, "labels.v1", b"kept")
        client(settings).set("kept", "yes")
        time.sleep(1.2)  # The append-only file is written out every second.
        process.kill()
        process.wait()
        # At once: the guardian may still be busy.
        with Stack(tmp_path, parts=BOTH, settings=Settings(), keep=True) as stack:
            assert not left(first)
            assert stack.settings.kafka == settings.kafka
            assert stack.settings.redis == settings.redis
            assert consume_one(stack.settings, "labels.v1") == b"kept"
            assert client(stack.settings).get("kept") == b"yes"


def test_a_clean_start_has_no_old_data_and_spares_what_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with Stack(tmp_path, parts=VALKEY, settings=Settings()) as stack:
        client(stack.settings).set("old", "data")
    with Stack(tmp_path, parts=VALKEY, settings=Settings()) as stack:
        assert client(stack.settings).get("old") is None
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_stopping_leaves_nothing_and_may_be_repeated(tmp_path: Path) -> None:
    stack = Stack(tmp_path, parts=VALKEY, settings=Settings())
    stack.start()
    record = running_stack(tmp_path)
    assert record is not None
    stack.stop()
    stack.stop()
    assert not left(record)
    assert not marked(str(tmp_path))
    assert running_stack(tmp_path) is None


def test_a_pid_that_now_belongs_to_another_process_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as stranger:
        now = identify("kafka", stranger.pid)
        earlier = type(now)(now.name, now.pid, now.created - 3600)
        Record(processes=[earlier]).write(tmp_path)
        with Stack(tmp_path, parts=VALKEY, settings=Settings()):
            assert stranger.poll() is None
        stranger.kill()


def test_a_second_stack_under_the_same_root_is_refused(tmp_path: Path) -> None:
    second = Stack(tmp_path, parts=VALKEY, settings=Settings())
    refused = pytest.raises(StackError, match=f"process {os.getpid()} runs a stack here; stop it")
    with Stack(tmp_path, parts=VALKEY, settings=Settings()), refused:
        second.start()


def test_a_taken_port_is_not_insisted_on(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        Record(ports={"valkey": port}).write(tmp_path)
        with Stack(tmp_path, parts=VALKEY, settings=Settings(), keep=True) as stack:
            assert client(stack.settings).ping()
            assert f":{port}/" not in stack.settings.redis.url


def test_a_port_taken_between_choice_and_use_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        Record(ports={"valkey": taken.getsockname()[1]}).write(tmp_path)
        # As if it had been free when it was looked at.
        monkeypatch.setattr("streamer.local.ports.is_free", lambda port: True)
        with Stack(tmp_path, parts=VALKEY, settings=Settings(), keep=True) as stack:
            assert client(stack.settings).ping()


def test_a_part_that_cannot_start_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    data = tmp_path / "valkey"
    (data / "appendonlydir").mkdir(parents=True)
    (data / "appendonlydir" / "appendonly.aof.manifest").write_text("no manifest at all\n")
    with pytest.raises(StackError, match=r"valkey: ended with code 1 while starting; the end of .*valkey\.log"):
        Stack(tmp_path, parts=VALKEY, settings=Settings(), keep=True).start()
    assert running_stack(tmp_path) is None
    assert not marked(str(tmp_path))


def test_a_killed_part_comes_back_on_its_address_with_its_data(tmp_path: Path) -> None:
    with Stack(tmp_path, parts=BOTH, settings=Settings()) as stack:
        before = stack.settings
        client(before).set("kept", "yes")
        client(before).execute_command("WAITAOF", 1, 0, 0)
        for name in BOTH:
            stack.kill(name)
            assert not any(child.running for child in stack.part(name).children)
            stack.restart(name)
        assert stack.settings == before
        assert client(before).get("kept") == b"yes"
        assert topics.ensure(before, ["labels"])[0].outcome == "made"


def test_a_server_that_ends_by_itself_is_told_once_while_the_stack_waits(tmp_path: Path) -> None:
    asked, told = threading.Event(), list[str]()

    def tell(line: str) -> None:
        told.append(line)
        threading.Timer(1.5, asked.set).start()

    with Stack(tmp_path, parts=VALKEY, settings=Settings()) as stack:
        assert stack.ended() == []
        stack.part("valkey").children[0].process.kill()
        stack.wait(asked, tell)
    assert told == [f"valkey has ended by itself, with code -9; its log is {tmp_path / 'logs' / 'valkey.log'}"]


def test_a_worker_that_fails_is_started_again(tmp_path: Path) -> None:
    program = tmp_path / "worker.py"
    program.write_text(
        "import os, sys, http.server\n"
        "counter = os.environ['DRIFTLOOP_WORKER__DATA_DIR'] + '/starts'\n"
        "open(counter, 'a').write('x')\n"
        "if len(open(counter).read()) < 2: sys.exit(3)\n"
        "class Well(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_response(200); self.end_headers()\n"
        "http.server.HTTPServer(('127.0.0.1', int(os.environ['DRIFTLOOP_WORKER__WEB_PORT'])), Well).serve_forever()\n"
    )
    commands = [[sys.executable, str(program)]] * 2
    with Stack(tmp_path, parts=BOTH | {"worker"}, settings=Settings(), worker_commands=commands) as stack:
        counters = [tmp_path / "worker" / str(ordinal) / "starts" for ordinal in (0, 1)]
        assert [counter.read_text() for counter in counters] == ["xx", "xx"]
        stack.part("worker").children[0].process.kill()
        wait_until(lambda: counters[0].read_text() == "xxx")
        record = running_stack(tmp_path)
        assert record is not None
        assert {"worker-0", "worker-1"} <= set(left(record))
    assert not marked(str(tmp_path))


def test_the_environment_makes_the_same_settings_again(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        namespace="a.b",
        kafka=KafkaSettings.model_validate({"bootstrap.servers": "127.0.0.1:1", "client.id": "x"}),
        redis=RedisSettings(url="redis://127.0.0.1:2/0"),
        airflow=AirflowSettings(loaders=("a", "b.c")),
        internal_partitions=3,
    )
    for name, value in environment_of(settings).items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings


def settings_of(record: Record) -> Settings:
    kafka = json.loads(record.environment["DRIFTLOOP_KAFKA"])
    redis_settings = RedisSettings(url=record.environment["DRIFTLOOP_REDIS__URL"])
    return Settings(kafka=KafkaSettings.model_validate(kafka), redis=redis_settings)


def client(settings: Settings) -> redis.Redis:
    return redis.Redis.from_url(settings.redis.url)


def produce(settings: Settings, topic: str, value: bytes) -> None:
    producer = Producer({**settings.kafka.properties()})
    producer.produce(topic, value, partition=0)
    assert producer.flush(10) == 0


def consume_one(settings: Settings, topic: str) -> bytes | None:
    options = {"group.id": "test", "auto.offset.reset": "earliest"}
    consumer = Consumer({**settings.kafka.properties(), **options})
    consumer.subscribe([topic])
    try:
        message = consumer.poll(20)
        return None if message is None else message.value()
    finally:
        consumer.close()
