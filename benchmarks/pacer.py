"""A producer in a process of its own that keeps a rate: `python -m benchmarks.pacer <file>`, see `Pace`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import msgspec
from confluent_kafka import Producer

from benchmarks import measuring, traffic
from streamer.kafka import clients as kafka_clients
from streamer.local.processes import MARKER
from streamer.local.stack import Stack

_CHUNK_S = 0.01
_ROOT = Path(__file__).parents[1]


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent, and how fast.

    Attributes
    ----------
    kafka : the producer's properties.
    speed : how much faster event time runs than the clock.
    start_ms : the event time it begins at.
    labels : a topic to send labels to, `label_after_ms` of event time after their predictions; none if "".
    garbage_every : every so many messages, one that is malformed; 0 for none.
    """

    kafka: dict[str, str | int | bool]
    topic: str
    rate: float
    seconds: float
    start_ms: int
    models: int = 1
    features: int = traffic.FEATURES
    speed: float = 1.0
    labels: str = ""
    label_after_ms: int = 60_000
    garbage_every: int = 0
    seed: int = 11


class Sent(msgspec.Struct, frozen=True, array_like=True):
    """How many predictions had been sent at a moment of the machine's monotonic clock."""

    at_s: float
    events: int


class Pacer:
    """A running pacer: `sent` is what it has told so far."""

    def __init__(self, process: subprocess.Popen[bytes], told: Path) -> None:
        self.process = process
        self._told = told

    def sent(self) -> list[Sent]:
        """Return what was sent by when, so far."""
        lines = self._told.read_bytes().split(b"\n")[:-1] if self._told.is_file() else []
        return [msgspec.json.decode(line, type=Sent) for line in lines]

    def wait(self, within_s: float) -> list[Sent]:
        """Wait until all is sent, and return what was sent by when.

        Raises
        ------
        MeasurementError
            When it takes longer, or has ended with an error.
        """
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired as error:
            raise measuring.MeasurementError(f"the paced producer: not done after {within_s:.0f} s") from error
        if code:
            raise measuring.MeasurementError(f"the paced producer: ended with exit code {code}; see above")
        return self.sent()


@contextlib.contextmanager
def pacing(stack: Stack, pace: Pace) -> Iterator[Pacer]:
    """Send at a pace while the block runs; at its end the process is gone."""
    number = time.monotonic_ns()
    plan, told = stack.root / f"pace-{number}.json", stack.root / f"pace-{number}.sent"
    plan.write_bytes(msgspec.json.encode(pace))
    # With the stack's mark, its guardian ends this one too, should we be killed.
    environment = {**os.environ, MARKER: str(stack.root), "PYTHONPATH": str(_ROOT)}
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.pacer", str(plan), str(told)], env=environment)
    try:
        yield Pacer(process, told)
    finally:
        process.kill()
        process.wait()


def pace_of(stack: Stack, *, rate: float, seconds: float, **options: object) -> Pace:
    """Return a pace on a stack's predictions, in event time that is the clock's unless `options` say otherwise."""
    settings = stack.settings
    return msgspec.convert(
        {
            "kafka": kafka_clients.producer_config(settings),
            "topic": settings.topic("predictions"),
            "rate": rate,
            "seconds": seconds,
            "start_ms": int(time.time() * 1000),
            **options,
        },
        Pace,
    )


def send_paced(pace: Pace, told: Path) -> None:
    """Send until the time is over; a moment's delay is made up for at once."""
    events = traffic.Events(pace.models, features=pace.features, seed=pace.seed)
    producer = Producer(pace.kafka)
    due: deque[tuple[int, int, str]] = deque()
    began, sent = time.monotonic(), 0
    with told.open("wb", buffering=0) as file:
        while (passed := time.monotonic() - began) < pace.seconds:
            ts_ms = pace.start_ms + int(passed * 1000 * pace.speed)
            for number in range(sent, int(passed * pace.rate)):
                key, value = events.message(number, ts_ms)
                measuring.send(producer, pace.topic, value, key)
                if pace.labels:
                    due.append((ts_ms + pace.label_after_ms, number, key))
                if pace.garbage_every and number % pace.garbage_every == 0:
                    measuring.send(producer, pace.topic, value[:-2], key)
                sent = number + 1
            while due and due[0][0] <= ts_ms:
                label_ms, number, key = due.popleft()
                key, value = traffic.label(key, number, pace.models, label_ms)
                measuring.send(producer, pace.labels, value, key)
            producer.poll(0)
            file.write(msgspec.json.encode(Sent(time.monotonic(), sent)) + b"\n")
            time.sleep(max(0.0, began + passed + _CHUNK_S - time.monotonic()))
    producer.flush()


if __name__ == "__main__":
    send_paced(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Pace), Path(sys.argv[2]))
