"""A command goes to its model's partition; its answer is found among others; silence is told apart from a refusal."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from streamer import commands
from streamer.commands import CommandError, CommandRefused, CommandTimeout, new_command, was_refused
from streamer.events import Command, LedgerEntry, encode
from streamer.settings import KafkaSettings, Settings

COMMAND = new_command(
    "set_step",
    model="churn",
    model_epoch=1,
    subject="canary-r",
    payload={"step": 1},
    actor="dag:canary",
    command_id="c1",
    expected_epoch=4,
)


def _entry(**changes: Any) -> LedgerEntry:
    fields: dict[str, Any] = {
        "model": "churn",
        "model_epoch": 1,
        "at_ms": 1,
        "subject_kind": "rollout",
        "subject": "canary-r",
        "state": "active",
        "epoch": 5,
        "command_id": "c1",
        "command_kind": "set_step",
        "outcome": "accepted",
    }
    return LedgerEntry(**{**fields, **changes})


class Said:
    """A message of a consumer."""

    def __init__(self, value: bytes | None, error: KafkaError | None = None) -> None:
        self._value, self._error = value, error

    def value(self) -> bytes | None:
        return self._value

    def error(self) -> KafkaError | None:
        return self._error


def test_a_command_has_an_id_of_its_own_or_the_one_given() -> None:
    assert (
        Command(
            command_id="c1",
            kind="set_step",
            model="churn",
            model_epoch=1,
            subject="canary-r",
            expected_epoch=4,
            payload={"step": 1},
            actor="dag:canary",
        )
        == COMMAND
    )
    made = new_command("request", model="churn", model_epoch=1, actor="me")
    assert uuid.UUID(made.command_id).version == 7
    assert (made.payload, made.subject, made.expected_epoch) == ({}, "", None)


def test_the_payload_is_the_commands_own() -> None:
    payload = {"step": 1}
    made = new_command("set_step", model="churn", model_epoch=1, payload=payload, actor="me")
    payload["step"] = 2
    assert made.payload == {"step": 1}


def test_the_answer_is_the_entry_with_the_commands_id_and_an_outcome() -> None:
    messages = [
        Said(encode(_entry(command_id="other"))),
        Said(encode(_entry(command_id="other", reason="instead of c1"))),
        Said(encode(_entry(outcome=None))),
        Said(None),
        Said(None, KafkaError(KafkaError._TRANSPORT)),
        Said(encode(_entry(reason="first"))),
        Said(encode(_entry(reason="second"))),
    ]
    found = commands._answer(messages, COMMAND)  # type: ignore[arg-type]
    assert found is not None
    assert found.reason == "first"
    assert commands._answer(messages[:5], COMMAND) is None  # type: ignore[arg-type]


def test_a_ledger_that_may_not_be_read_is_said_at_once() -> None:
    denied = Said(None, KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    with pytest.raises(CommandError, match="set_step: the ledger cannot be read"):
        commands._answer([denied], COMMAND)  # type: ignore[list-item]


def test_what_kafka_will_not_take_is_no_time_out() -> None:
    commands._raise_refusal_by_kafka(COMMAND, [KafkaError(KafkaError._MSG_TIMED_OUT)])
    with pytest.raises(CommandError, match="set_step of canary-r: Kafka did not take it"):
        commands._raise_refusal_by_kafka(COMMAND, [KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)])


def test_a_refusal_repeated_is_still_a_refusal() -> None:
    assert was_refused(_entry(outcome="refused"))
    assert was_refused(_entry(outcome="repeated", detail={"outcome": "refused"}))
    assert not was_refused(_entry(outcome="repeated", detail={"outcome": "accepted"}))
    assert not was_refused(_entry())
    error = CommandRefused(COMMAND, _entry(outcome="refused", reason="the verdict is running", state="active"))
    assert "set_step of canary-r was refused: the verdict is running; it is 'active' now" in str(error)
    assert error.answer.epoch == 5


def test_without_kafka_nothing_was_sent_and_it_says_so() -> None:
    away = Settings(kafka=KafkaSettings(**{"bootstrap.servers": "127.0.0.1:1", "log_level": "0"}))
    with pytest.raises(CommandTimeout, match=r"so nothing was sent: .*check that Kafka runs") as timed_out:
        commands.send(away, COMMAND, timeout_s=0.5)
    assert isinstance(timed_out.value.__cause__, KafkaException)
