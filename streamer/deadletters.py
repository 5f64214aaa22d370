"""Messages that could not be used: building, listing and replaying the dead letters."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterator
from typing import Literal

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from streamer.arrow_schema import is_batch
from streamer.events import ARROW_STREAM, CONTENT_TYPE_HEADER
from streamer.kafka_clients import producer_config
from streamer.settings import Settings
from streamer.topic_reader import read_to_end
from streamer.topics import MAX_MESSAGE_BYTES

Mode = Literal["raw", "redacted"]
Headers = list[tuple[str, bytes]]

REPLAYED_HEADER = "replayed-dead-letter"
_RAW_TOPICS = ("predictions", "features", "labels")
_MAX_REASON = 1_000
_TIMEOUT_S = 30.0


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
    reason, field : what was wrong (`streamer.decode.explain_invalid`).
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


def read(settings: Settings) -> Iterator[Letter]:
    """Yield every dead letter there is, one at a time; those of one partition in order."""
    for message in read_to_end(settings, settings.topic("dead-letters")):
        yield _read(message)


def list_letters(settings: Settings, limit: int = 100) -> list[Letter]:
    """Return the newest dead letters, at most `limit`, oldest first."""
    newest: dict[int | None, deque[Letter]] = defaultdict(lambda: deque(maxlen=limit))
    for message in read_to_end(settings, settings.topic("dead-letters")):
        newest[message.partition()].append(_read(message))
    letters = sorted((letter for kept in newest.values() for letter in kept), key=lambda letter: letter.at_ms)
    return letters[max(len(letters) - limit, 0) :]


def show(settings: Settings, letter_id: str) -> Letter:
    """Return one dead letter.

    Raises
    ------
    DeadLetterError
        There is none of that id, or the id is none.
    """
    return _find(settings, [letter_id])[0]


def replay(settings: Settings, ids: Collection[str]) -> list[Letter]:
    """Send the bytes of dead letters to the topics and partitions they came from, and return those letters.

    A letter is not marked as replayed: replayed again, it is sent again. Predictions and labels of
    models with a label join are recognised by their prediction_id; other events count twice.

    Raises
    ------
    DeadLetterError
        A letter is not there or is redacted, or its source is none of the raw topics: nothing is sent.
    KafkaException
        Kafka did not take all of them; those it took are sent.
    """
    letters = _find(settings, ids)
    allowed = {settings.topic(name) for name in _RAW_TOPICS}
    for letter in letters:
        if letter.mode == "redacted":
            raise DeadLetterError(
                f"{letter.letter_id}: redacted, its bytes were not kept; have its producer send it again "
                f"({letter.source_topic}[{letter.source_partition}] offset {letter.source_offset})"
            )
        if letter.source_topic not in allowed:
            raise DeadLetterError(
                f"{letter.letter_id}: came from {letter.source_topic!r}, wanted one of {', '.join(sorted(allowed))}"
            )
    _send(settings, letters)
    return letters


def _send(settings: Settings, letters: list[Letter]) -> None:
    failures: list[KafkaError] = []

    def delivered(error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            failures.append(error)

    producer = Producer(producer_config(settings))
    for letter in letters:
        producer.produce(
            letter.source_topic,
            letter.value,
            letter.key,
            letter.source_partition,
            headers=[(REPLAYED_HEADER, letter.letter_id.encode()), *content_type(letter.value)],
            on_delivery=delivered,
        )
        producer.poll(0)
    left = producer.flush(_TIMEOUT_S)
    if failures:
        raise KafkaException(failures[0])
    if left:
        raise KafkaException(KafkaError(KafkaError._MSG_TIMED_OUT))


def content_type(value: bytes) -> Headers:
    """Return the header that a message of many events has."""
    return [(CONTENT_TYPE_HEADER, ARROW_STREAM)] if is_batch(value) else []


def _find(settings: Settings, ids: Collection[str]) -> list[Letter]:
    wanted = {letter_id: _place(letter_id) for letter_id in ids}
    if not wanted:
        return []
    found: dict[tuple[int | None, int | None], Letter] = {}
    places = set(wanted.values())
    for message in read_to_end(settings, settings.topic("dead-letters")):
        place = (message.partition(), message.offset())
        if place in places:
            found[place] = _read(message)
    missing = [letter_id for letter_id, place in wanted.items() if place not in found]
    if missing:
        raise DeadLetterError(
            f"{', '.join(missing)}: no such dead letter; it may have expired: driftloop dead-letters list"
        )
    return [found[place] for place in wanted.values()]


def _place(letter_id: str) -> tuple[int, int]:
    partition, _, offset = letter_id.partition(":")
    if not (partition.isdecimal() and offset.isdecimal()):
        raise DeadLetterError(f"id: got {letter_id!r}, wanted <partition>:<offset> as `dead-letters list` shows it")
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
