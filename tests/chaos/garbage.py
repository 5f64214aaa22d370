"""Garbage on its way into the raw topics, and what became of it among the dead letters."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Annotated, NamedTuple

import typer
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from streamer.cli.surroundings import require_kafka, stack_environment
from streamer.kafka.access import Unreachable
from streamer.kafka.clients import producer_config
from streamer.kafka.reader import ReadError
from streamer.kafka.topics import MAX_MESSAGE_BYTES
from streamer.letters.deadletters import Letter, list_letters
from streamer.references import read_models
from streamer.settings import Settings, load_settings
from streamer.telemetry import configure_logging
from tests.chaos.faults import MODEL, Fault, mixture

# Topic, partition, offset.
Place = tuple[str, int, int]
# More dead letters than there can be.
MANY = 2**31 - 1
_PARTITIONS = 4
_LARGEST = 20_000_000
_FLUSH_S = 60.0
# A broker that is away is waited for.
_PATIENT = {"message.timeout.ms": 900_000, "log_level": 0}
_STEPS = 100
_BURIED_S = 60.0
_ANSWER_S = 5.0


class NotTaken(Exception):  # noqa: N818 - it says what is the matter
    """Kafka did not take what was sent; the message says how much."""


# What says that there is no stack, or none any more.
GONE = (KafkaException, Unreachable, ReadError, NotTaken)


class Sent(NamedTuple):
    """A malformed message as Kafka took it."""

    fault: Fault
    key: bytes | None
    value: bytes


class Found(NamedTuple):
    """What became of the messages sent.

    `found` is how many are among the dead letters once and as they should be, `faults` says what is wrong
    with the others, `strange` counts the letters of messages that are not among those sent.
    """

    found: int
    faults: list[str]
    strange: int


class Garbage:
    """Malformed messages of every kind, in an order that the seed gives, sent a few at a time.

    Attributes
    ----------
    sent : what Kafka has taken, by its place in the log.
    """

    def __init__(self, settings: Settings, messages: int, seed: int) -> None:
        self._settings = settings
        self._random = Random(seed)
        self._faults = mixture(messages, self._random)
        self._next = 0
        self._failed: list[KafkaError] = []
        self._producer = Producer(producer_config(settings, {"message.max.bytes": _LARGEST, **_PATIENT}))
        self.sent: dict[Place, Sent] = {}

    @property
    def kinds(self) -> int:
        """How many kinds have been sent, whatever the topic."""
        return len({sent.fault.name for sent in self.sent.values()})

    def send_up_to(self, share: float) -> None:
        """Send what is left of this share of all messages, 0 to 1."""
        end = round(share * len(self._faults))
        for number in range(self._next, end):
            self._send(number, self._faults[number])
        self._next = max(self._next, end)

    def require_broker(self) -> None:
        """Return when Kafka answers; KafkaException when it does not, which sending alone would wait for."""
        self._producer.list_topics(timeout=_ANSWER_S)

    def flush(self) -> None:
        """Wait until Kafka has every message; `NotTaken` when it does not take one."""
        left = self._producer.flush(_FLUSH_S)
        if left or self._failed:
            raise NotTaken(f"garbage: {left} messages not taken in {_FLUSH_S:.0f} s, refused: {self._failed[:3]}")

    def _send(self, number: int, fault: Fault) -> None:
        key, value = self._random.choice([b"garbage-%d" % number, b"\xff\0%d" % number, None]), fault.make(number)

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                self._failed.append(error)
                return
            place = (message.topic() or "", message.partition() or 0, message.offset() or 0)
            self.sent[place] = Sent(fault, key, value or b"")

        topic = self._settings.topic(fault.topic)
        self._producer.produce(topic, value, key, self._random.randrange(_PARTITIONS), on_delivery=delivered)
        self._producer.poll(0)


def hold_against(sent: dict[Place, Sent], letters: Iterable[Letter]) -> Found:
    """Compare what was sent with the dead letters: each once, with its reason, field, key and bytes."""
    seen: Counter[Place] = Counter()
    faults: list[str] = []
    wrong: set[Place] = set()
    strange = 0
    for letter in letters:
        place = (letter.source_topic, letter.source_partition, letter.source_offset)
        expected = sent.get(place)
        if expected is None:
            strange += 1
            continue
        seen[place] += 1
        amiss = _amiss(expected, letter)
        if amiss:
            wrong.add(place)
            faults.append(f"{_named(place, expected)}: {amiss}")
    for place, expected in sent.items():
        if seen[place] != 1:
            faults.append(f"{_named(place, expected)}: {seen[place]} dead letters, wanted one")
    once = {place for place, times in seen.items() if times == 1}
    return Found(len(once - wrong), faults, strange)


def _named(place: Place, sent: Sent) -> str:
    return f"{sent.fault.name} ({place[0]} {place[1]}:{place[2]})"


def _amiss(sent: Sent, letter: Letter) -> str | None:
    """Say what is wrong with a letter; of a message too large to be kept, only its bytes may be missing."""
    fault = sent.fault
    if letter.field != fault.field:
        return f"field: got {letter.field!r}, wanted {fault.field!r}"
    if not letter.reason.startswith(fault.reason):
        return f"reason: got {letter.reason!r}, wanted {fault.reason!r}"
    if letter.mode == "redacted" and len(sent.value) > MAX_MESSAGE_BYTES:
        return None
    if letter.key != sent.key:
        return f"key: got {letter.key!r}, wanted {sent.key!r}"
    if letter.value != sent.value:
        return f"value: got {letter.value[:60]!r}, wanted {sent.value[:60]!r}"
    return None


def main(
    directory: Annotated[Path, typer.Option(help="Where the running stack has its state.")] = Path(".driftloop"),
    messages: Annotated[int, typer.Option(min=1, help="How many to mix in.")] = 10_000,
    seconds: Annotated[float, typer.Option(min=0, help="Over how long; a demo goes on for about a minute.")] = 15.0,
    seed: Annotated[int, typer.Option(help="Draws which, in what order, and where to.")] = 0,
) -> None:
    """Mix garbage into a running stack, as `driftloop demo` starts one.

    Exit code 0 when all of it is buried rightly, 1 when not, 3 when no stack runs there or it ended meanwhile.
    """
    configure_logging(level="WARNING")
    os.environ.update(stack_environment(directory))
    settings = load_settings()
    try:
        require_kafka(settings)
        _await_model(settings)
    except GONE as error:
        typer.echo(f"no stack runs in {directory}: {_reason(error)}; start `driftloop demo` first", err=True)
        raise typer.Exit(3) from error
    garbage = Garbage(settings, messages, seed)
    try:
        found = _mix_in(settings, garbage, messages, seconds)
    except GONE as error:
        typer.echo(
            f"the stack in {directory} ended meanwhile ({_reason(error)}): Kafka had taken {len(garbage.sent):,} of "
            f"{messages:,} messages, which nobody can look at now; begin earlier, or send for fewer --seconds",
            err=True,
        )
        raise typer.Exit(3) from error
    typer.echo(f"{found.found:,} are dead letters, once each, with the reason and the field they should have")
    if found.faults:
        typer.echo("\n".join(found.faults[:20]), err=True)
        raise typer.Exit(1)


def _mix_in(settings: Settings, garbage: Garbage, messages: int, seconds: float) -> Found:
    """Send over so many seconds, and wait for the dead letters."""
    for step in range(_STEPS):
        garbage.send_up_to((step + 1) / _STEPS)
        garbage.require_broker()
        time.sleep(seconds / _STEPS)
    garbage.flush()
    typer.echo(f"{len(garbage.sent):,} malformed messages of {garbage.kinds} kinds sent")
    deadline = time.monotonic() + _BURIED_S
    while (found := hold_against(garbage.sent, list_letters(settings, MANY))).found < messages:
        if time.monotonic() > deadline:
            break
        time.sleep(1.0)
    return found


def _await_model(settings: Settings) -> None:
    """Wait until the model is published: before that, other things are wrong with some of the messages."""
    deadline = time.monotonic() + _BURIED_S
    while MODEL not in read_models(settings):
        if time.monotonic() > deadline:
            typer.echo(f"model: {MODEL} is not published; start `driftloop demo` first", err=True)
            raise typer.Exit(3)
        time.sleep(0.5)


def _reason(error: BaseException) -> str:
    """Return what Kafka's client says, which is no sentence of ours."""
    reason = error.args[0] if error.args else error
    return reason.str() if isinstance(reason, KafkaError) else str(error)


if __name__ == "__main__":
    typer.run(main)
