"""Send a wish to evaluate and wait for its answer; DAG steps and the command line use it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec
import structlog
import uuid_utils
from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from streamer.events import SCHEMA_HEADER, SCHEMA_VERSION, Command, CommandKind, LedgerEntry, encode
from streamer.kafka.clients import consumer_config, producer_config
from streamer.kafka.partitioning import partition_of
from streamer.settings import Settings

RESEND_S = 5.0
_POLL_S = 0.1
_BATCH = 500
_FINAL = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
}

log = structlog.get_logger(__name__)
_decode = msgspec.json.Decoder(LedgerEntry).decode


class CommandError(Exception):
    """A command could not be sent, or was not carried out."""


class CommandTimeout(CommandError):  # noqa: N818 - a time-out, by the name everybody uses
    """No answer came in time. The command may still be carried out: send the same command_id again to find out."""


class CommandRefused(CommandError):  # noqa: N818
    """Evaluate refused the command; `answer` has the reason and the present state."""

    def __init__(self, command: Command, answer: LedgerEntry) -> None:
        self.answer = answer
        super().__init__(
            f"{command.kind} of {command.subject or command.model} was refused: {answer.reason or 'no reason given'}; "
            f"it is {answer.state!r} now (deployment epoch {answer.epoch})"
        )


def new_command(
    kind: CommandKind,
    *,
    model: str,
    model_epoch: int,
    subject: str = "",
    payload: Mapping[str, Any] | None = None,
    actor: str,
    expected_epoch: int | None = None,
    command_id: str | None = None,
) -> Command:
    """Make a command.

    Parameters
    ----------
    kind : what is wished.
    model, model_epoch : of which model; a model deleted and made again has another epoch.
    subject : the request or rollout it is about, "" for the model itself.
    payload : what the kind needs, e.g. {"version": "8"}.
    actor : who wishes it, for the ledger.
    expected_epoch : refuse it unless the deployment stands at this epoch.
    command_id : a UUIDv7 where not given; a step that may be retried gives one that stays the same,
        so that its repetition is answered and not carried out twice.
    """
    return Command(
        command_id=str(uuid_utils.uuid7()) if command_id is None else command_id,
        kind=kind,
        model=model,
        model_epoch=model_epoch,
        subject=subject,
        expected_epoch=expected_epoch,
        payload=dict(payload or {}),
        actor=actor,
    )


def send(settings: Settings, command: Command, *, timeout_s: float = 60.0, check: bool = False) -> LedgerEntry:
    """Append a command and return evaluate's answer to it.

    The command is appended again every five seconds without an answer, which is safe: evaluate
    carries a command_id out once and repeats its stored answer.

    Parameters
    ----------
    timeout_s : how long to wait for the answer in all.
    check : raise when the answer is a refusal, or repeats one.

    Returns
    -------
    The answer: `outcome` is accepted, refused or repeated; `detail` has the present state, or for a
    repeated one the first answer.

    Raises
    ------
    CommandTimeout
        When no answer came; the command may still be carried out later.
    CommandRefused
        With `check`, when it was refused.
    CommandError
        When Kafka refuses to take the command.
    """
    deadline = time.monotonic() + timeout_s
    partition = partition_of(command.model, settings.internal_partitions)
    consumer = Consumer(consumer_config(settings, group_id=f"driftloop-answer-{command.command_id}"))
    try:
        _tail(consumer, TopicPartition(settings.topic("ledger"), partition), command, deadline)
        answer = _ask(settings, consumer, command, partition, timeout_s, deadline)
    finally:
        consumer.close()
    log.info("command_answered", command=command.kind, subject=command.subject, outcome=answer.outcome)
    if check and was_refused(answer):
        raise CommandRefused(command, answer)
    return answer


def was_refused(answer: LedgerEntry) -> bool:
    """Tell whether an answer is a refusal, or repeats one."""
    return answer.outcome == "refused" or (answer.outcome == "repeated" and answer.detail.get("outcome") == "refused")


def _tail(consumer: Consumer, ledger: TopicPartition, command: Command, deadline: float) -> None:
    """Stand at the ledger's end before the command is appended, so that its answer can only come after."""
    end = OFFSET_INVALID
    while end == OFFSET_INVALID:
        try:
            _, end = consumer.get_watermark_offsets(ledger, timeout=max(0.1, deadline - time.monotonic()))
        except KafkaException as error:
            # A partition may be changing its leader; a topic that is not there, or not ours to read, stays so.
            if error.args[0].code() in _FINAL or time.monotonic() >= deadline:
                raise CommandTimeout(
                    f"{command.kind}: the ledger {ledger.topic}[{ledger.partition}] could not be read, so nothing was "
                    f"sent: {error.args[0].str()}; check that Kafka runs and that `driftloop topics create` was run"
                ) from error
            time.sleep(_POLL_S)
    consumer.assign([TopicPartition(ledger.topic, ledger.partition, end)])


def _ask(
    settings: Settings, consumer: Consumer, command: Command, partition: int, timeout_s: float, deadline: float
) -> LedgerEntry:
    """Append the command, again and again, until its answer stands in the ledger or time is up."""
    taken: list[Message] = []
    faults: list[KafkaError] = []
    producer = Producer(producer_config(settings, {"linger.ms": 0, "log_level": 3}))
    append_at = float("-inf")

    def delivered(fault: KafkaError | None, message: Message) -> None:
        if fault is None:
            taken.append(message)
        else:
            faults.append(fault)

    try:
        while (now := time.monotonic()) < deadline:
            if now >= append_at:
                producer.produce(
                    settings.topic("commands"),
                    encode(command),
                    key=command.model.encode(),
                    partition=partition,
                    headers=[(SCHEMA_HEADER, SCHEMA_VERSION)],
                    on_delivery=delivered,
                )
                append_at = now + RESEND_S
            producer.poll(0)
            _raise_refusal_by_kafka(command, faults)
            answer = _answer(consumer.consume(_BATCH, min(_POLL_S, deadline - now)), command)
            if answer is not None:
                return answer
    finally:
        producer.purge()
        # Takes the reports of what was purged; left there, librdkafka warns of them on standard error.
        producer.flush(1.0)
    if taken:
        raise CommandTimeout(_no_answer(command, timeout_s))
    fault = faults[-1] if faults else KafkaError(KafkaError._MSG_TIMED_OUT)
    raise CommandTimeout(
        f"{command.kind} of {command.subject or command.model}: Kafka did not take it in {timeout_s:g} s: "
        f"{fault.str()}; check that it runs, then send the same command_id again ({command.command_id})"
    ) from KafkaException(fault)


def _raise_refusal_by_kafka(command: Command, faults: list[KafkaError]) -> None:
    """Raise for what appending again cannot mend."""
    for fault in faults:
        if fault.code() not in {KafkaError._MSG_TIMED_OUT, KafkaError._TIMED_OUT} and not fault.retriable():
            raise CommandError(
                f"{command.kind} of {command.subject or command.model}: Kafka did not take it: {fault.str()}"
            )


def _answer(messages: list[Message], command: Command) -> LedgerEntry | None:
    """Return the first answer to the command among ledger entries."""
    wanted = command.command_id.encode()
    for message in messages:
        fault, value = message.error(), message.value()
        if fault is not None:
            if fault.fatal() or fault.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                raise CommandError(f"{command.kind}: the ledger cannot be read: {fault.str()}")
            continue  # the client itself goes on trying, until time is up
        # The ledger holds every model of the partition: only what mentions the command is decoded.
        if value is None or wanted not in value:
            continue
        entry = _decode(value)
        if entry.command_id == command.command_id and entry.outcome is not None:
            return entry
    return None


def _no_answer(command: Command, timeout_s: float) -> str:
    return (
        f"{command.kind} of {command.subject or command.model}: no answer in {timeout_s:g} s; it may still be carried "
        f"out (command_id {command.command_id}); check that an evaluate worker runs (`driftloop status`), "
        f"then send the same command_id again"
    )
