"""Where commands find their servers: the user's word first, then the local stack that runs here, then defaults."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from streamer.cli.surroundings import STACK_DIRECTORY, commands_here, exports_command, settings, stack_environment
from streamer.local.processes import identify
from streamer.local.record import Record

HERE = {
    "DRIFTLOOP_KAFKA": '{"bootstrap.servers": "127.0.0.1:1234"}',
    "DRIFTLOOP_REDIS__URL": "redis://127.0.0.1:2345/0",
}
GIVES_ADDRESSES = '[kafka]\n"bootstrap.servers" = "broker:9092"\n[redis]\nurl = "redis://store:6379/0"\n'


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set and deleted, so that what a command itself puts there goes with the test.
    for name in ("DRIFTLOOP_KAFKA", "DRIFTLOOP_REDIS__URL", "DRIFTLOOP_CONFIG", "DRIFTLOOP_NAMESPACE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def stack(tmp_path: Path, *, running: bool = True, **more: str) -> Path:
    owner = identify("owner", os.getpid()) if running else None
    directory = tmp_path / ".driftloop"
    directory.mkdir(exist_ok=True)
    Record(owner=owner, environment={**HERE, **more}).write(directory)
    return directory


def configured(text: str) -> Path:
    Path("config").mkdir()
    path = Path("config/driftloop.toml")
    path.write_text(text)
    return path


def test_the_stack_that_runs_here_is_found(tmp_path: Path) -> None:
    stack(tmp_path, DRIFTLOOP_NAMESPACE="dev")
    found = settings()
    assert found.kafka.bootstrap_servers == "127.0.0.1:1234"
    assert found.redis.url == "redis://127.0.0.1:2345/0"
    assert found.namespace == "dev"


def test_without_a_stack_or_with_a_stopped_one_the_defaults_stand(tmp_path: Path) -> None:
    assert stack_environment(tmp_path) == {}
    stack(tmp_path, running=False)
    assert settings().redis.url == "redis://127.0.0.1:6379/0"


@pytest.mark.parametrize("variable", ["DRIFTLOOP_KAFKA", "DRIFTLOOP_REDIS__URL"])
def test_addresses_in_the_environment_are_the_users_word(
    tmp_path: Path, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = stack(tmp_path)
    monkeypatch.setenv(variable, json.dumps({"bootstrap.servers": "x:1"}))
    assert stack_environment(directory) == {}


def test_a_file_that_gives_addresses_wins_over_a_stack_started_without_it(tmp_path: Path) -> None:
    stack(tmp_path)
    configured(GIVES_ADDRESSES)
    assert settings().kafka.bootstrap_servers == "broker:9092"


def test_a_stack_started_with_that_very_file_knows_better(tmp_path: Path) -> None:
    path = configured(GIVES_ADDRESSES)
    stack(tmp_path, DRIFTLOOP_CONFIG=str(path.resolve()))
    assert settings().kafka.bootstrap_servers == "127.0.0.1:1234"


def test_a_file_without_addresses_leaves_them_to_the_stack(tmp_path: Path) -> None:
    stack(tmp_path)
    configured("internal_partitions = 8\n")
    found = settings()
    assert (found.internal_partitions, found.redis.url) == (8, "redis://127.0.0.1:2345/0")


def test_a_stack_in_another_directory_is_found_by_the_commands_that_are_told(tmp_path: Path) -> None:
    other = tmp_path / "a stack"
    assert exports_command(other) == f"eval \"$(driftloop dev --directory '{other}' --exports)\""
    assert commands_here(other, {"driftloop watch": "what"}).splitlines()[0].strip() == exports_command(other)
    assert commands_here(STACK_DIRECTORY, {"driftloop watch": "what"}) == "  driftloop watch   what"
