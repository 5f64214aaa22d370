"""Mixing garbage into a stack that is not there, or ends meanwhile, ends with a clear line and exit code 3."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from confluent_kafka import Producer
from typer.testing import CliRunner

from tests.chaos import garbage
from tests.chaos.post import MODELS


@pytest.fixture
def mix_in() -> typer.Typer:
    found = typer.Typer()
    found.command()(garbage.main)
    return found


@pytest.fixture
def mock() -> list[Producer]:
    """Return a broker inside librdkafka, there as long as it is in the list; with a published model."""
    producer = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0})
    (model,) = (each for each in MODELS if each.name == garbage.MODEL)
    producer.produce("models.v1", model.to_json(), model.name)
    assert producer.flush(10) == 0
    return [producer]


def test_where_no_stack_runs_garbage_says_so(
    mix_in: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIFTLOOP_KAFKA", json.dumps({"bootstrap.servers": "127.0.0.1:1"}))
    monkeypatch.setattr("streamer.cli.surroundings.PATIENCE_S", 0.1)
    done = CliRunner().invoke(mix_in, ["--directory", str(tmp_path)])
    assert done.exit_code == 3
    assert done.stderr.startswith(f"no stack runs in {tmp_path}: ")


def test_where_the_stack_ends_meanwhile_garbage_says_how_far_it_came(
    mix_in: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mock: list[Producer]
) -> None:
    (broker,) = mock[0].list_topics(timeout=10).brokers.values()
    monkeypatch.setenv("DRIFTLOOP_KAFKA", json.dumps({"bootstrap.servers": f"{broker.host}:{broker.port}"}))
    monkeypatch.setattr(garbage, "_ANSWER_S", 0.5)
    send = garbage.Garbage.send_up_to

    def send_until_it_ends(self: garbage.Garbage, share: float) -> None:
        send(self, share)
        if share == 0.5:
            self.flush()
            mock.clear()

    monkeypatch.setattr(garbage.Garbage, "send_up_to", send_until_it_ends)
    done = CliRunner().invoke(mix_in, ["--directory", str(tmp_path), "--messages", "1000", "--seconds", "0"])
    assert done.exit_code == 3
    assert done.stderr.startswith(f"the stack in {tmp_path} ended meanwhile (")
    assert "Kafka had taken 500 of 1,000 messages" in done.stderr
