"""The README's way to a model of one's own, typed word for word by somebody who has only the repository."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).parents[2]
SECTION = "## Watch your own model"


def blocks() -> list[list[str]]:
    """Return the commands of each console block of the section."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    section = text.split(SECTION)[1].split("\n## ")[0]
    found = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    return [[line[2:] for line in block.splitlines() if line.startswith("$ ")] for block in found]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A directory that looks like a checkout, so that no stack of the user's is in the way."""
    for name in ("examples", "config"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    return tmp_path


@pytest.fixture
def variables() -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("DRIFTLOOP_")}
    return {**own, "PATH": f"{Path(sys.executable).parent}:{own['PATH']}", "COLUMNS": "120"}


@pytest.fixture
def stack_of_the_first_terminal(checkout: Path, variables: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """What the first block starts, until it says that it runs; Ctrl-C ends it."""
    ((command,), _) = blocks()
    with (checkout / "first.log").open("wb") as out:
        running = subprocess.Popen(
            ["bash", "-c", f"exec {command}"], cwd=checkout, env=variables, stdout=out, stderr=out
        )
    try:
        deadline = time.monotonic() + 120
        while "driftloop is running" not in (said := (checkout / "first.log").read_text()):
            assert running.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.2)
        yield running
    finally:
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 0


@pytest.mark.usefixtures("stack_of_the_first_terminal")
def test_a_model_of_ones_own_is_watched_by_the_commands_as_they_stand(
    checkout: Path, variables: dict[str, str]
) -> None:
    _, commands = blocks()
    assert commands[-1] == "driftloop status shuttle"
    everything = "\n".join(["set -e", *commands[:-1]])
    done = subprocess.run(
        ["bash", "-c", everything],
        cwd=checkout,
        env=variables,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "shuttle version 1: published" in done.stdout
    assert "14,832 readings, 0 events not taken" in done.stdout
    deadline = time.monotonic() + 60
    while True:
        status = subprocess.run(
            ["bash", "-c", commands[-1]], cwd=checkout, env=variables, capture_output=True, text=True, check=False
        )
        seen = status.stdout
        if "labels for 14,832 of 14,832 predictions" in seen and "Request  raised  drift" in seen:
            break
        assert time.monotonic() < deadline, seen + status.stderr
        time.sleep(1)
    assert re.search(r"^@score .* drift *$", seen, re.MULTILINE), seen
