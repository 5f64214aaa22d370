"""What a fuzz run has sent and what must become of it, a few bytes a message; dead letters are held against it."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np

from streamer.letters.deadletters import Letter
from tests.chaos.faults import Fault

_MOST_TOLD = 20


def key_of(number: int) -> bytes | None:
    """Return the key of the message of that number: text, bytes that are no text, or none."""
    return (b"fuzz-%d" % number, b"\xff\0%d" % number, None)[number % 3]


def comparable(reason: str) -> str:
    """Return a reason without what depends on when the message was sent."""
    return reason.partition(",")[0] if " ms ahead of its record" in reason else reason


@dataclass(frozen=True)
class Kind:
    """A kind of malformed message; `fault` is None where what must be said differs from message to message."""

    name: str
    fault: Fault | None = None


@dataclass
class Tally:
    """What became of one kind: how many were sent, were sound after all, are dead letters once, and rightly so."""

    kind: str
    sent: int
    sound: int
    buried: int
    right: int


@dataclass
class Sent:
    """Messages by number, in arrays; a number is the order in which they were made.

    Attributes
    ----------
    strange : dead letters of messages that must have none. amiss : the first things that are wrong, in words.
    """

    kinds: Sequence[Kind]
    messages: int
    strange: int = 0
    amiss: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._kind = np.zeros(self.messages, dtype=np.uint16)
        self._value = np.zeros(self.messages, dtype=np.uint32)
        # Of the reason and field the letter must have; 0 for a message that is sound.
        self._said = np.zeros(self.messages, dtype=np.uint32)
        self._letters = np.zeros(self.messages, dtype=np.uint8)
        self._right = np.zeros(self.messages, dtype=np.bool_)
        self._places: dict[tuple[str, int], array[int]] = {}

    @property
    def refused(self) -> int:
        """How many messages must be dead letters."""
        return int((self._said != 0).sum())

    @property
    def ends(self) -> dict[tuple[str, int], int]:
        """The end of every partition written to."""
        return {place: len(numbers) for place, numbers in self._places.items()}

    def expect(self, number: int, kind: int, value: bytes | None, wanted: tuple[str, str] | None) -> None:
        """Note what a message is, and the reason and field its dead letter must have; None where it is sound."""
        self._kind[number] = kind
        self._value[number] = crc32(value or b"")
        self._said[number] = 0 if wanted is None else _digest(*wanted)

    def taken(self, number: int, topic: str, partition: int, offset: int) -> None:
        """Note where Kafka has put a message; a neighbour has the number -1."""
        numbers = self._places.setdefault((topic, partition), array("q"))
        # Reports come in the order of the log, and nobody else writes to it.
        if offset != len(numbers):
            raise RuntimeError(f"{topic}[{partition}]: got offset {offset}, wanted {len(numbers)}; who else writes?")
        numbers.append(number)

    def hold_against(self, letters: Iterable[Letter]) -> None:
        """Compare every dead letter with the message it is of."""
        for letter in letters:
            numbers = self._places.get((letter.source_topic, letter.source_partition), array("q"))
            number = numbers[letter.source_offset] if letter.source_offset < len(numbers) else -1
            if number < 0 or not self._said[number]:
                self.strange += 1
                self._tell(f"{_place(letter)}: a dead letter of a sound message: {letter.reason} [{letter.field}]")
                continue
            self._letters[number] = min(self._letters[number] + 1, 255)
            fault = self._fault(number, letter)
            self._right[number] = fault is None
            if fault is not None:
                self._tell(f"{self.kinds[self._kind[number]].name} ({_place(letter)}): {fault}; {letter.value[:200]!r}")

    def tallies(self) -> list[Tally]:
        """Return what became of each kind, and say what is missing."""
        found = []
        once = self._letters == 1
        for index, kind in enumerate(self.kinds):
            here = self._kind == index
            sound = here & (self._said == 0)
            tally = Tally(
                kind.name,
                int(here.sum()),
                int(sound.sum()),
                int((here & once).sum()),
                int((here & once & self._right).sum()),
            )
            if tally.buried != tally.sent - tally.sound:
                self._tell(f"{kind.name}: {tally.buried} of {tally.sent - tally.sound} are dead letters once")
            found.append(tally)
        return found

    def _fault(self, number: int, letter: Letter) -> str | None:
        fault = self.kinds[self._kind[number]].fault
        if fault is not None:
            if letter.field != fault.field or not letter.reason.startswith(fault.reason):
                return f"got {letter.reason!r} [{letter.field}], wanted {fault.reason!r} [{fault.field}]"
        elif _digest(comparable(letter.reason), letter.field) != self._said[number]:
            return f"got {letter.reason!r} [{letter.field}], which is not what the plain decoder says"
        if letter.mode == "redacted":
            # A message too large to be kept in a letter; how large says its reason.
            return None if fault is not None and fault.large else "got it redacted, wanted its bytes"
        if crc32(letter.value) != self._value[number]:
            return "the bytes are not those that were sent"
        if letter.key != key_of(number):
            return f"key: got {letter.key!r}, wanted {key_of(number)!r}"
        return None

    def _tell(self, what: str) -> None:
        if len(self.amiss) < _MOST_TOLD:
            self.amiss.append(what)


def _digest(reason: str, field: str) -> int:
    # As the letter's headers carry them, which is not always Unicode.
    text = "\0".join((reason[:1_000], field)).encode(errors="backslashreplace")
    return crc32(text) or 1


def _place(letter: Letter) -> str:
    return f"{letter.source_topic}[{letter.source_partition}]:{letter.source_offset}"
