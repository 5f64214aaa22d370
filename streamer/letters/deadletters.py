"""Messages that could not be used: building dead letters, and reading them back."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec
from confluent_kafka import Message

from streamer.kafka.reader import offsets_at, read_ranges
from streamer.kafka.topics import MAX_MESSAGE_BYTES
from streamer.settings import Settings

Mode = Literal["raw", "redacted"]
Headers = list[tuple[str, bytes]]

REPLAYED_HEADER = "replayed-dead-letter"
# Of a record in the dead letters' own topic that says which of them were replayed.
REPLAYED_MARK = "replayed"
_MAX_REASON = 1_000
# Letters that lie so near each other are read in one go.
_STRETCH = 5_000


class DeadLetterError(Exception):
    """A dead letter cannot be shown or replayed; the message says which and why."""


class Letter(msgspec.Struct, kw_only=True, frozen=True):
    """One dead letter.

    `letter_id` is `<partition>:<offset>` in the dead-letter topic; `source_*` say where the message
    stood; `row` is its row where it came with many others; `value` is what came, or, where `mode` is
    redacted, how large it was.
    """

    letter_id: str
    at_ms: int
    source_topic: str
    source_partition: int
    source_offset: int
    row: int | None
    reason: str
    field: str
    mode: Mode
    key: bytes | None
    value: bytes


@dataclass(frozen=True)
class Wanted:
    """Which dead letters: all conditions given must hold.

    Parameters
    ----------
    topic : the full name of the topic they came from.
    field : the field that was wrong, or one of its entries (`features` has `features.age` too).
    reason : a part of the reason.
    since_ms : not older than this.
    """

    topic: str | None = None
    field: str | None = None
    reason: str | None = None
    since_ms: int | None = None

    def includes(self, letter: Letter) -> bool:
        """Tell whether a letter is wanted."""
        return (
            self.topic in (None, letter.source_topic)
            and (self.field is None or letter.field == self.field or letter.field.startswith(f"{self.field}."))
            and (self.reason is None or self.reason in letter.reason)
            and (self.since_ms is None or letter.at_ms >= self.since_ms)
        )


EVERYTHING = Wanted()


def build(
    *,
    raw: bytes,
    key: bytes | None,
    topic: str,
    partition: int,
    offset: int,
    row: int | None,
    reason: str,
    field: str,
    mode: Mode,
) -> tuple[bytes | None, bytes, Headers]:
    """Return the key, value and headers of a dead letter.

    Parameters
    ----------
    raw : the event's own bytes; of a row of many, that row as a JSON event, so that it can be replayed alone.
    key : the message's key as it came.
    topic, partition, offset, row : where it stood; `row` is None for a message that is one event.
    reason, field : what was wrong (`streamer.explain.explain_invalid`).
    mode : "raw" keeps the bytes; "redacted" only says how many there were, and leaves the key out too.

    Notes
    -----
    What came compressed may be larger than any message that can be sent: it is redacted, whatever the mode.
    """
    if len(raw) + len(key or b"") > MAX_MESSAGE_BYTES:
        mode = "redacted"
    headers = [
        ("source-topic", topic.encode()),
        ("source-partition", b"%d" % partition),
        ("source-offset", b"%d" % offset),
        ("row", b"" if row is None else b"%d" % row),
        # What came may hold text that UTF-8 cannot carry: it must not bring ingest down.
        ("reason", reason[:_MAX_REASON].encode(errors="backslashreplace")),
        ("field", field.encode(errors="backslashreplace")),
        ("mode", mode.encode()),
    ]
    if mode == "redacted":
        return None, msgspec.json.encode({"redacted": True, "bytes": len(raw)}), headers
    return key, raw, headers


def read(settings: Settings, newest: int | None = None, *, since_ms: int | None = None) -> Iterator[Letter]:
    """Yield the dead letters there are, one at a time; those of one partition in order.

    Parameters
    ----------
    newest : only those among the last so many offsets of each partition; all by default.
    since_ms : what is older may be left out.
    """
    ends = _ends(settings)
    starts = _floors(settings, ends, since_ms)
    if newest is not None:
        starts = {number: max(start, ends[number] - newest) for number, start in starts.items()}
    yield from _between(settings, starts, ends)


def _ends(settings: Settings) -> dict[int, int]:
    return offsets_at(settings, settings.topic("dead-letters"), None)


def _floors(settings: Settings, ends: dict[int, int], since_ms: int | None) -> dict[int, int]:
    """Return each partition's first offset that is not older; its end where there is none."""
    if since_ms is None:
        return dict.fromkeys(ends, 0)
    first = offsets_at(settings, settings.topic("dead-letters"), since_ms)
    return {number: end if first.get(number, -1) < 0 else first[number] for number, end in ends.items()}


def _between(settings: Settings, starts: dict[int, int], ends: dict[int, int]) -> Iterator[Letter]:
    ranges = {number: (start, ends[number]) for number, start in starts.items()}
    for message in read_ranges(settings, settings.topic("dead-letters"), ranges):
        if not is_mark(message):
            yield _read(message)


def list_letters(settings: Settings, limit: int = 100, wanted: Wanted = EVERYTHING) -> list[Letter]:
    """Return the newest dead letters that are wanted, at most `limit`, oldest first.

    The topic is read from its end backwards, so that the newest of millions come at once.
    """
    upper = ends = _ends(settings)
    floors = _floors(settings, ends, wanted.since_ms)
    found: dict[int, list[Letter]] = {number: [] for number in ends}
    depth = 2 * limit + 100
    while True:
        lower = {number: max(floors[number], end - depth) for number, end in ends.items()}
        newest: dict[int, deque[Letter]] = {number: deque(maxlen=limit) for number in ends}
        for letter in _between(settings, lower, upper):
            if wanted.includes(letter):
                newest[_place(letter.letter_id)[0]].append(letter)
        found = {number: [*newest[number], *kept][-limit:] for number, kept in found.items()}
        if sum(map(len, found.values())) >= limit or lower == floors:
            together = sorted((letter for kept in found.values() for letter in kept), key=lambda letter: letter.at_ms)
            return together[-limit:]
        upper, depth = lower, depth * 10


def count_since(settings: Settings, since_ms: int) -> int:
    """Return about how many dead letters have come since then, by their offsets alone."""
    topic = settings.topic("dead-letters")
    ends, starts = offsets_at(settings, topic, None), offsets_at(settings, topic, since_ms)
    return sum(ends[number] - (ends[number] if start < 0 else start) for number, start in starts.items())


def show(settings: Settings, letter_id: str) -> Letter:
    """Return one dead letter.

    Raises
    ------
    DeadLetterError
        There is none of that id, or the id is none.
    """
    return find(settings, [letter_id])[0]


def find(settings: Settings, ids: Collection[str]) -> list[Letter]:
    """Return dead letters by their ids.

    Raises
    ------
    DeadLetterError
        One of them is not there, or an id is none.
    """
    wanted = {letter_id: _place(letter_id) for letter_id in ids}
    if not wanted:
        return []
    ends, places = _ends(settings), set(wanted.values())
    waiting: dict[int, list[int]] = defaultdict(list)
    for number, offset in sorted(places, reverse=True):
        if offset < ends.get(number, 0):
            waiting[number].append(offset)
    found: dict[tuple[int, int], Letter] = {}
    # A stretch of each partition at a time, from its next letter on.
    while waiting := {number: offsets for number, offsets in waiting.items() if offsets}:
        lower = {number: offsets[-1] for number, offsets in waiting.items()}
        upper = {number: min(start + _STRETCH, ends[number]) for number, start in lower.items()}
        for number, offsets in waiting.items():
            while offsets and offsets[-1] < upper[number]:
                last = offsets.pop()
            upper[number] = last + 1
        for letter in _between(settings, lower, upper):
            place = _place(letter.letter_id)
            if place in places:
                found[place] = letter
    missing = [letter_id for letter_id, place in wanted.items() if place not in found]
    if missing:
        raise DeadLetterError(
            f"{', '.join(missing)}: no such dead letter; it may have expired: driftloop dead-letters list"
        )
    return [found[place] for place in wanted.values()]


def is_mark(message: Message) -> bool:
    """Tell whether a record of the topic is no letter, but says which have been replayed."""
    return REPLAYED_MARK in dict(message.headers() or ())


def _place(letter_id: str) -> tuple[int, int]:
    partition, _, offset = letter_id.partition(":")
    if not (partition.isdecimal() and offset.isdecimal()):
        raise DeadLetterError(
            f"letter_id: got {letter_id!r}, wanted <partition>:<offset> as `dead-letters list` shows it"
        )
    return int(partition), int(offset)


def _read(message: Message) -> Letter:
    headers = dict(message.headers() or [])

    def text(name: str, default: str = "") -> str:
        value = headers.get(name) or default
        return value if isinstance(value, str) else value.decode(errors="replace")

    letter_id = f"{message.partition()}:{message.offset()}"
    key, value = message.key(), message.value()
    try:
        return Letter(
            letter_id=letter_id,
            at_ms=message.timestamp()[1],
            source_topic=text("source-topic"),
            source_partition=int(text("source-partition", "-1")),
            source_offset=int(text("source-offset", "-1")),
            row=int(text("row")) if text("row") else None,
            reason=text("reason"),
            field=text("field"),
            mode="redacted" if text("mode") == "redacted" else "raw",
            key=key.encode() if isinstance(key, str) else key,
            value=value.encode() if isinstance(value, str) else value or b"",
        )
    except ValueError as error:
        raise DeadLetterError(f"{letter_id}: not a dead letter of driftloop's: {error}") from error
