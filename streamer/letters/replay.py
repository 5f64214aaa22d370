"""Sending dead letters to the topics they came from once more: each once, however often it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import msgspec
from confluent_kafka import Producer

from streamer.client.entry import Headers
from streamer.decoding.arrow_schema import is_batch
from streamer.events import ARROW_STREAM, CONTENT_TYPE_HEADER
from streamer.kafka.clients import producer_config
from streamer.kafka.reader import read_to_end
from streamer.kafka.topics import MAX_DEAD_LETTER_BYTES
from streamer.letters.deadletters import (
    REPLAYED_HEADER,
    REPLAYED_MARK,
    DeadLetterError,
    Letter,
    Wanted,
    find,
    is_mark,
    read,
)
from streamer.settings import Settings

_RAW_TOPICS = ("predictions", "features", "labels")
_TIMEOUT_S = 30.0
# So many letters go in one transaction, and are told of in one mark.
_AT_ONCE = 5_000


class Replayed(NamedTuple):
    """How many letters were sent, had been sent before, and could not be sent since their bytes were not kept."""

    sent: int
    already: int
    unsendable: int


Told = Callable[[Replayed], object]


def replay(
    settings: Settings, ids: Collection[str], *, again: bool = False, told: Told = lambda _done: None
) -> Replayed:
    """Send the bytes of dead letters to the topics and partitions they came from.

    Parameters
    ----------
    again : send those too that were replayed before; events that no join recognises then count twice.
    told : is given what has been done so far, for good, after each transaction.

    Raises
    ------
    DeadLetterError
        A letter is not there or is redacted, or its source is none of the raw topics: nothing is sent.
    KafkaException
        Kafka did not take them.

    Notes
    -----
    A letter and the mark that it has been replayed are written in one transaction, and all replays of a namespace
    share one transactional id: of two at once, the later ends the earlier.
    """
    letters = find(settings, ids)
    for letter in letters:
        why = _unsendable(settings, letter)
        if why is not None:
            raise DeadLetterError(f"{letter.letter_id}: {why}")
    return _replay(settings, letters, again=again, told=told)


def replay_wanted(
    settings: Settings, wanted: Wanted, *, again: bool = False, told: Told = lambda _done: None
) -> Replayed:
    """Send every dead letter that is wanted and can be sent, as `replay` does."""
    letters = (letter for letter in read(settings, since_ms=wanted.since_ms) if wanted.includes(letter))
    return _replay(settings, letters, again=again, told=told)


def _replay(settings: Settings, letters: Iterable[Letter], *, again: bool, told: Told) -> Replayed:
    producer = Producer(
        {
            **producer_config(settings, {"message.max.bytes": MAX_DEAD_LETTER_BYTES}),
            "transactional.id": f"{settings.namespace or 'driftloop'}-dead-letters-replay",
        }
    )
    # First, so that what another replay has begun is over: done and marked, or not done.
    producer.init_transactions(_TIMEOUT_S)
    before = set() if again else _marked(settings)
    sent = already = unsendable = 0
    remaining = iter(letters)
    while batch := list(islice(remaining, _AT_ONCE)):
        sendable = [letter for letter in batch if _unsendable(settings, letter) is None]
        fresh = [letter for letter in sendable if letter.letter_id not in before]
        unsendable += len(batch) - len(sendable)
        already += len(sendable) - len(fresh)
        if fresh:
            _send(settings, producer, fresh)
            sent += len(fresh)
        told(Replayed(sent, already, unsendable))
    return Replayed(sent, already, unsendable)


def _send(settings: Settings, producer: Producer, letters: list[Letter]) -> None:
    producer.begin_transaction()
    try:
        for letter in letters:
            _produce(
                producer,
                letter.source_topic,
                letter.value,
                key=letter.key,
                partition=letter.source_partition,
                headers=[(REPLAYED_HEADER, letter.letter_id.encode()), *_content_type(letter.value)],
            )
        mark = msgspec.json.encode([letter.letter_id for letter in letters])
        _produce(producer, settings.topic("dead-letters"), mark, headers=[(REPLAYED_MARK, b"")])
        producer.commit_transaction(_TIMEOUT_S)
    except BaseException:
        # An interruption too: left open, it would hold up whoever reads these topics.
        producer.abort_transaction(_TIMEOUT_S)
        raise


def _content_type(value: bytes) -> Headers:
    """Return the header that a message of many events has."""
    return [(CONTENT_TYPE_HEADER, ARROW_STREAM)] if is_batch(value) else []


def _produce(producer: Producer, topic: str, value: bytes, **options: object) -> None:
    while True:
        try:
            producer.produce(topic, value, **options)  # type: ignore[arg-type]
            producer.poll(0)
            return
        except BufferError:
            producer.poll(0.1)


def _marked(settings: Settings) -> set[str]:
    """Return the ids of the letters that have been replayed."""
    return {letter_id for ids in _marks(settings) for letter_id in ids}


def _marks(settings: Settings) -> Iterator[list[str]]:
    for message in read_to_end(settings, settings.topic("dead-letters")):
        if is_mark(message):
            yield msgspec.json.decode(message.value() or b"[]", type=list[str])


def _unsendable(settings: Settings, letter: Letter) -> str | None:
    """Return why a letter cannot be sent; None if it can."""
    allowed = {settings.topic(name) for name in _RAW_TOPICS}
    if letter.mode == "redacted":
        return (
            "redacted, its bytes were not kept; have its producer send it again "
            f"({letter.source_topic}[{letter.source_partition}] offset {letter.source_offset})"
        )
    if letter.source_topic not in allowed:
        return f"came from {letter.source_topic!r}, wanted one of {', '.join(sorted(allowed))}"
    return None
