"""A command line in an empty directory with nothing configured, and its output as text."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from streamer.cli.frame import build

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("DRIFTLOOP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DRIFTLOOP_KAFKA", '{"bootstrap.servers": "127.0.0.1:9"}')
    monkeypatch.setenv("DRIFTLOOP_REDIS__URL", "redis://127.0.0.1:9/0")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run() -> Run:
    """Run `driftloop` with these words; a keyword is a variable of the environment."""

    def invoke(*words: str, **variables: str) -> Result:
        result = CliRunner().invoke(build(), list(words), env=variables)
        assert "Traceback" not in result.output
        return result

    return invoke
