"""Commands against a real Kafka: asked once, answered once, sent again when nobody answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from streamer import commands
from streamer.commands import CommandRefused, CommandTimeout, new_command
from streamer.events import Command, LedgerEntry, encode
from streamer.kafka.clients import consumer_config, producer_config
from streamer.kafka.partitioning import partition_of
from streamer.settings import Settings

pytestmark = pytest.mark.integration


class Evaluate:
    """Answers commands in transactions, as evaluate does; `say` makes the answer, None keeps silent."""

    def __init__(self, settings: Settings, say: Callable[[Command, int], LedgerEntry | None]) -> None:
        self.settings, self.say = settings, say
        self.partition = partition_of("churn", settings.internal_partitions)
        self.seen: list[Command] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        consumer = Consumer(consumer_config(self.settings, group_id="fake-evaluate"))
        consumer.assign([TopicPartition(self.settings.topic("commands"), self.partition, 0)])
        producer = Producer(producer_config(self.settings, {"transactional.id": f"{self.settings.namespace}-fake"}))
        producer.init_transactions(30)
        while not self._stopped.is_set():
            message = consumer.poll(0.05)
            if message is None or message.error():
                continue
            command = msgspec.json.decode(message.value(), type=Command)
            self.seen.append(command)
            answer = self.say(command, len(self.seen))
            producer.begin_transaction()
            other = msgspec.structs.replace(_answer(command), command_id="somebody-elses")
            for entry in (other, *([answer] if answer else [])):
                producer.produce(self.settings.topic("ledger"), encode(entry), partition=self.partition)
            producer.commit_transaction(30)
        consumer.close()


def _answer(command: Command, outcome: str = "accepted", reason: str = "") -> LedgerEntry:
    return LedgerEntry(
        model=command.model,
        model_epoch=command.model_epoch,
        at_ms=int(time.time() * 1000),
        subject_kind="model",
        subject=command.subject,
        state="quiet",
        epoch=2,
        actor=command.actor,
        command_id=command.command_id,
        command_kind=command.kind,
        outcome=outcome,  # type: ignore[arg-type]
        reason=reason,
    )


Answering = Callable[[Callable[[Command, int], LedgerEntry | None]], Evaluate]


@pytest.fixture
def answering(settings: Settings) -> Iterator[Answering]:
    running: list[Evaluate] = []

    def start(say: Callable[[Command, int], LedgerEntry | None]) -> Evaluate:
        running.append(Evaluate(settings, say))
        return running[-1]

    yield start
    for evaluate in running:
        evaluate.stop()


def _command() -> Command:
    return new_command("set_champion", model="churn", model_epoch=1, payload={"version": "7"}, actor="test")


def test_the_answer_to_a_command_comes_back(settings: Settings, answering: Answering) -> None:
    evaluate = answering(lambda command, _: _answer(command))
    command = _command()
    answer = commands.send(settings, command, timeout_s=60)
    assert (answer.command_id, answer.outcome, answer.epoch) == (command.command_id, "accepted", 2)
    # Once: it was there before the command would have been sent again.
    assert evaluate.seen == [command]


def test_an_answer_given_before_is_not_taken_for_a_new_one(settings: Settings, answering: Answering) -> None:
    evaluate = answering(lambda command, times: _answer(command, reason=f"time {times}"))
    command = _command()
    assert commands.send(settings, command, timeout_s=60).reason == "time 1"
    assert commands.send(settings, command, timeout_s=60).reason == "time 2"
    assert evaluate.seen == [command, command]


def test_a_command_nobody_answers_is_sent_again(
    settings: Settings, answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "RESEND_S", 0.3)
    evaluate = answering(lambda command, times: _answer(command) if times == 3 else None)
    assert commands.send(settings, _command(), timeout_s=60).outcome == "accepted"
    assert len(evaluate.seen) == 3


def test_silence_is_a_time_out_that_says_the_command_may_still_be_carried_out(
    settings: Settings, answering: Answering
) -> None:
    evaluate = answering(lambda *_: None)
    command = _command()
    with pytest.raises(CommandTimeout, match=f"may still be carried out .command_id {command.command_id}") as silence:
        commands.send(settings, command, timeout_s=6)
    assert silence.value.__cause__ is None
    # Sent again while nobody answers, under the id it has.
    assert evaluate.seen[0] == command
    assert {each.command_id for each in evaluate.seen} == {command.command_id}


def test_a_refusal_is_an_answer_and_raises_only_when_asked_to(settings: Settings, answering: Answering) -> None:
    answering(lambda command, _: _answer(command, "refused", "a rollout is active"))
    assert commands.send(settings, _command(), timeout_s=60).outcome == "refused"
    with pytest.raises(CommandRefused, match="a rollout is active"):
        commands.send(settings, _command(), timeout_s=60, check=True)
