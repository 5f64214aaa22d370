"""All subjects, one after the other: each in a process of its own, with an end to its time; then table and picture."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import msgspec
import redis
from confluent_kafka import KafkaException

from benchmarks import measuring
from benchmarks.figures import Curve, Figure, Findings, Results, read_results
from benchmarks.machine import this_machine
from streamer.kafka.topics import TopicError
from streamer.local.processes import StackError

_STOP_S = 30.0


class Entry(NamedTuple):
    """A subject: the module whose `figures` measures it, what it is about, and how long it may take."""

    module: str
    about: str
    limit_s: float


SUBJECTS = {
    "throughput": Entry("benchmarks.throughput", "events, labels, counts alone: a CPU second of one worker", 540),
    "peers": Entry("benchmarks.peers.subject", "the same counts kept by a Faust and a Quix Streams application", 420),
    "latency": Entry("benchmarks.latency", "event to view at 20,000 a second, and over a backlog", 700),
    "pair": Entry("benchmarks.pair", "two workers against one on the same topic", 300),
    "memory": Entry("benchmarks.memory", "what a model's feature takes of memory", 300),
    "rebalance": Entry("benchmarks.rebalance", "how long models stand still when their worker is killed", 240),
    "restart": Entry("benchmarks.restart", "a killed worker's restart with the state of many models", 420),
    "soak": Entry("benchmarks.soak", "whether anything grows in half an hour", 2_100),
    "sdk": Entry("benchmarks.sdk", "what a call of the SDK costs its caller, broker up and down", 300),
    "outage": Entry("benchmarks.outage", "what five minutes without a broker cost of the SDK's events", 480),
    "cost": Entry("benchmarks.cost", "an event's cost over models, partitions and features", 900),
}


class Measure(Protocol):
    """What measures a subject."""

    def __call__(self, *, quick: bool) -> tuple[list[Figure], list[Curve]]:
        """Measure, in a shorter form where `quick`."""


def chosen(only: str) -> list[str]:
    """Return the subjects named, separated by commas; all where none is.

    Raises
    ------
    ValueError
        Naming one that is not there.
    """
    names = [name.strip() for name in only.split(",") if name.strip()]
    for name in names:
        if name not in SUBJECTS:
            raise ValueError(f"{name}: no such subject; the subjects are {', '.join(SUBJECTS)}")
    return names or [*SUBJECTS]


def measure_of(name: str) -> Measure:
    """Return what measures a subject."""
    return cast("Measure", importlib.import_module(SUBJECTS[name].module).figures)


def run_one(name: str, *, quick: bool) -> Findings:
    """Measure one subject in this process; what went wrong is among what it found."""
    measure = measure_of(name)
    began = time.monotonic()
    findings = Findings(measured=_now(), seconds=0.0, quick=quick)
    try:
        findings.figures, findings.curves = measure(quick=quick)
    except (RuntimeError, OSError, StackError, TopicError, KafkaException, redis.RedisError) as error:
        findings.fault = f"{type(error).__name__}: {error}"
    findings.seconds = round(time.monotonic() - began, 1)
    return findings


def run(names: Iterable[str], *, quick: bool) -> Results:
    """Measure subjects; what is kept of others on this machine stays beside them."""
    machine = this_machine()
    kept = read_results()
    # Figures of another machine or of other versions would stand beside these as if they could be compared.
    subjects = dict(kept.subjects) if kept is not None and kept.machine == machine else {}
    for name in names:
        measuring.say(f"{name}: {SUBJECTS[name].about}")
        findings = _apart(name, quick=quick)
        if findings.fault:
            measuring.say(f"{name}: failed: {findings.fault}")
        subjects[name] = findings
    return Results(machine=machine, subjects={name: subjects[name] for name in SUBJECTS if name in subjects})


def _apart(name: str, *, quick: bool) -> Findings:
    """Measure a subject in a process of its own: what it leaves behind, and that it ends, is none of the next one's."""
    began = time.monotonic()
    # Its own files go with ours, should it be killed; its servers may write to them for a moment longer.
    with tempfile.TemporaryDirectory(prefix="driftloop-bench-", ignore_cleanup_errors=True) as directory:
        target = Path(directory) / "findings.json"
        command = [sys.executable, "-m", "benchmarks", "subject", name, str(target), *(["--quick"] if quick else [])]
        process = subprocess.Popen(command, env={**os.environ, "TMPDIR": directory})
        fault = ""
        try:
            code = process.wait(SUBJECTS[name].limit_s)
            fault = f"ended with exit code {code}; what it said stands above" if code else ""
        except subprocess.TimeoutExpired:
            fault = f"not done after {SUBJECTS[name].limit_s:.0f} s, and stopped"
        finally:
            _end(process)
        if not fault:
            return msgspec.json.decode(target.read_bytes(), type=Findings)
    return Findings(measured=_now(), seconds=round(time.monotonic() - began, 1), quick=quick, fault=fault)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a subject that still runs: interrupted, it stops its servers; killed, their guardian does."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_S)
        return
    process.kill()
    process.wait()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
