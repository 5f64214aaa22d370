"""What a storm may cut off Valkey's file: never what somebody can have been told is on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
import redis

from streamer.local.stack import Stack
from streamer.settings import Settings
from tests.chaos import servers
from tests.chaos.probe import Probe
from tests.chaos.servers import Servers

pytestmark = pytest.mark.integration

_WRITTEN = 300


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path, parts=frozenset({"valkey"}), settings=Settings()) as running:
        yield running


@pytest.fixture
def client(valkey: Stack) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey.settings.redis.url) as connected:
        yield connected


def write(client: redis.Redis, name: str) -> None:
    """Write more than what a crash must have at stake."""
    for number in range(_WRITTEN):
        client.set(f"{name}-{number}", "x" * 100)


def test_an_answer_that_nobody_has_read_yet_is_an_answer(valkey: Stack, client: redis.Redis) -> None:
    with Probe(valkey.settings) as probe:
        probe.ask()
        write(client, "confirmed")
        # Whoever asked before has been answered by then.
        assert client.waitaof(1, 0, 5_000) == [1, 0]
        assert probe.unanswered() is None


def test_a_number_of_which_the_disk_has_not_told_is_unanswered(valkey: Stack, client: redis.Redis) -> None:
    client.config_set("appendfsync", "no")
    with Probe(valkey.settings) as probe:
        assert probe.unanswered() is None
        probe.ask()
        assert probe.unanswered() is not None


def test_a_crash_takes_nothing_that_is_confirmed_and_some_of_what_is_not(
    valkey: Stack, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(client, "confirmed")
    assert client.waitaof(1, 0, 5_000) == [1, 0]
    # From here on nobody is told that anything is on disk.
    client.config_set("appendfsync", "no")
    monkeypatch.setattr(Probe, "ask", asking_and_then(lambda: write(client, "unconfirmed")))
    assert Servers(valkey, valkey.settings, Random(1)).kill_valkey() > 0
    assert client.exists(f"confirmed-{_WRITTEN - 1}")
    assert not client.exists(f"unconfirmed-{_WRITTEN - 1}")


def test_a_crash_right_after_all_was_confirmed_takes_nothing(
    valkey: Stack, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def confirmed() -> None:
        write(client, "confirmed")
        assert client.waitaof(1, 0, 5_000) == [1, 0]

    monkeypatch.setattr(servers, "_PATIENCE_S", 0.5)
    monkeypatch.setattr(Probe, "ask", asking_and_then(confirmed))
    assert Servers(valkey, valkey.settings, Random(1)).kill_valkey() == 0
    assert client.exists(f"confirmed-{_WRITTEN - 1}")


def asking_and_then(act: Callable[[], None]) -> Callable[[Probe], None]:
    """Make a probe's asking go on with what others do before the crash."""
    ask = Probe.ask

    def asking(probe: Probe) -> None:
        ask(probe)
        act()

    return asking
