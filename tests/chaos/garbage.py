"""Garbage on its way into the raw topics, and what became of it among the dead letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from random import Random
from typing import NamedTuple

from confluent_kafka import KafkaError, Message, Producer

from streamer.deadletters import Letter
from streamer.kafka_clients import producer_config
from streamer.settings import Settings
from streamer.topics import MAX_MESSAGE_BYTES
from tests.chaos.faults import Fault, mixture

# Topic, partition, offset.
Place = tuple[str, int, int]
_PARTITIONS = 4
_LARGEST = 20_000_000
_FLUSH_S = 60.0


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
        self._producer = Producer(producer_config(settings, {"message.max.bytes": _LARGEST}))
        self.sent: dict[Place, Sent] = {}

    @property
    def kinds(self) -> int:
        """How many kinds have been sent, the same fault in another topic being another."""
        return len({(sent.fault.topic, sent.fault.name) for sent in self.sent.values()})

    def send_up_to(self, share: float) -> None:
        """Send what is left of this share of all messages, 0 to 1."""
        end = round(share * len(self._faults))
        for number in range(self._next, end):
            self._send(number, self._faults[number])
        self._next = max(self._next, end)

    def flush(self) -> None:
        """Wait until Kafka has every message; RuntimeError when it does not take one."""
        left = self._producer.flush(_FLUSH_S)
        if left or self._failed:
            raise RuntimeError(f"garbage: {left} messages not taken in {_FLUSH_S:.0f} s, refused: {self._failed[:3]}")

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
