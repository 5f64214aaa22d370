"""What was freed goes back to the system, in a process of its own: the test's has threads already."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import platform, threading
from pathlib import Path
from streamer.process import memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def work():
    # Too small to be mapped one by one; what is kept last holds the heap up.
    pieces = [bytes(50_000) for _ in range(2_000)]
    kept.append(pieces[-1])

memory.share()
kept = []
before = resident()
for _ in range(4):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
memory.give_back()
print(platform.libc_ver()[0], resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_threads_have_freed_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], check=True, capture_output=True, text=True)
    library, grown = done.stdout.split(" ")
    if library != "glibc":
        pytest.skip("another C library")
    assert int(grown) < 20_000_000


def test_a_worker_of_json_events_does_without_the_libraries_that_only_others_need() -> None:
    program = (
        "import sys, streamer.app; print(*{'pyarrow', 'polars', 'pandas', 'mlflow', 'sklearn'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []
