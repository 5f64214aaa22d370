"""Dead letters on a real Kafka: listed, shown, and sent again to where they came from."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import Producer

from streamer.deadletters import REPLAYED_HEADER, DeadLetterError, build, list_letters, replay, show
from streamer.settings import Settings
from streamer.topic_reader import read_to_end

pytestmark = pytest.mark.integration


def bury(settings: Settings, n: int, **changes: Any) -> None:
    producer = Producer({**settings.kafka.properties()})
    for offset in range(n):
        letter: dict[str, Any] = {
            "raw": b"raw %d" % offset,
            "key": b"k%d" % offset,
            "topic": settings.topic("predictions"),
            "partition": 2,
            "offset": offset,
            "row": None,
            "reason": "empty: got no content",
            "field": "",
            "mode": "raw",
        }
        key, value, headers = build(**{**letter, **changes})
        producer.produce(settings.topic("dead-letters"), value, key, headers=headers)
    assert producer.flush(10) == 0


def test_letters_are_listed_newest_last_and_shown_whole(settings: Settings) -> None:
    assert list_letters(settings) == []
    bury(settings, 12, row=3, field="ts")
    letters = list_letters(settings)
    assert sorted(letter.source_offset for letter in letters) == list(range(12))
    assert len(list_letters(settings, 5)) == 5
    found = show(settings, letters[4].letter_id)
    assert found == letters[4]
    assert (found.row, found.field, found.source_partition, found.mode) == (3, "ts", 2, "raw")
    assert found.value == b"raw %d" % found.source_offset
    with pytest.raises(DeadLetterError, match="no such dead letter"):
        show(settings, "0:999")


def test_a_replayed_letter_stands_in_its_topic_and_partition_as_it_came(settings: Settings) -> None:
    bury(settings, 3)
    letters = list_letters(settings)
    sent = replay(settings, [letters[0].letter_id, letters[2].letter_id])
    assert [letter.letter_id for letter in sent] == [letters[0].letter_id, letters[2].letter_id]
    found = list(read_to_end(settings, settings.topic("predictions")))
    assert {message.value() for message in found} == {letters[0].value, letters[2].value}
    assert {message.partition() for message in found} == {2}
    assert {message.key() for message in found} == {letters[0].key, letters[2].key}
    assert (found[0].headers() or [])[0][0] == REPLAYED_HEADER


def test_nothing_is_sent_when_one_of_the_letters_cannot_be(settings: Settings) -> None:
    bury(settings, 2)
    good = [letter.letter_id for letter in list_letters(settings)]
    bury(settings, 1, mode="redacted")
    bury(settings, 1, topic="elsewhere")
    bad = [letter for letter in list_letters(settings) if letter.letter_id not in good]
    for letter in bad:
        with pytest.raises(DeadLetterError, match="redacted" if letter.mode == "redacted" else "came from 'elsewhere'"):
            replay(settings, [*good, letter.letter_id])
    assert list(read_to_end(settings, settings.topic("predictions"))) == []
