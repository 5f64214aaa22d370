"""Dead letters on a real Kafka: listed, shown, and sent again to where they came from."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import Producer

from streamer.kafka.reader import read_to_end
from streamer.letters import deadletters
from streamer.letters import replay as letter_replay
from streamer.letters.deadletters import (
    REPLAYED_HEADER,
    DeadLetterError,
    Wanted,
    build,
    count_since,
    find,
    list_letters,
    show,
)
from streamer.letters.replay import Replayed, replay, replay_wanted
from streamer.settings import Settings

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


def test_letters_are_found_by_their_ids_however_far_they_lie_apart(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadletters, "_STRETCH", 3)
    bury(settings, 60)
    ids = [letter.letter_id for letter in list_letters(settings)]
    wanted = [ids[0], ids[59], ids[58], ids[7], ids[31]]
    assert [letter.letter_id for letter in find(settings, wanted)] == wanted
    assert [letter.letter_id for letter in find(settings, ids)] == ids
    with pytest.raises(DeadLetterError, match=r"^9:0, 0:1000: no such dead letter"):
        find(settings, [ids[3], "9:0", "0:1000"])


def test_an_interrupted_replay_has_sent_what_it_told_of_and_goes_on_where_it_was(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letter_replay, "_AT_ONCE", 2)
    bury(settings, 7)
    told: list[Replayed] = []

    def interrupt(done: Replayed) -> None:
        told.append(done)
        if done.sent == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay_wanted(settings, Wanted(), told=interrupt)
    assert told == [Replayed(2, 0, 0), Replayed(4, 0, 0)]
    assert replay_wanted(settings, Wanted()) == Replayed(3, 4, 0)
    assert len(list(read_to_end(settings, settings.topic("predictions")))) == 7


def test_a_replayed_letter_stands_in_its_topic_and_partition_as_it_came(settings: Settings) -> None:
    bury(settings, 3)
    letters = list_letters(settings)
    assert replay(settings, [letters[0].letter_id, letters[2].letter_id]) == Replayed(2, 0, 0)
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


def test_letters_are_found_by_topic_field_reason_and_age_from_the_newest_backwards(settings: Settings) -> None:
    bury(settings, 3, field="features.age", reason="got an array of 2")
    bury(settings, 400, field="ts")
    bury(settings, 2, field="model", topic=settings.topic("labels"))
    assert len(list_letters(settings, 10, Wanted(field="features"))) == 3
    assert len(list_letters(settings, 2, Wanted(reason="array"))) == 2
    assert len(list_letters(settings, 10, Wanted(topic=settings.topic("labels"), field="model"))) == 2
    assert list_letters(settings, 10, Wanted(field="features", reason="empty")) == []
    newest = list_letters(settings, 1)[0].at_ms
    assert list_letters(settings, 10, Wanted(since_ms=newest + 1)) == []
    assert count_since(settings, newest - 3_600_000) == 405
    assert count_since(settings, newest + 3_600_000) == 0


def test_a_replay_sends_each_letter_once_however_often_it_is_asked_for(settings: Settings) -> None:
    bury(settings, 5, field="model")
    bury(settings, 2, field="model", mode="redacted")
    bury(settings, 1, field="ts")
    first = list_letters(settings)[0].letter_id
    assert replay(settings, [first]) == Replayed(1, 0, 0)
    assert replay_wanted(settings, Wanted(field="model")) == Replayed(4, 1, 2)
    assert replay_wanted(settings, Wanted(field="model")) == Replayed(0, 5, 2)
    assert len(list(read_to_end(settings, settings.topic("predictions")))) == 5
    assert replay(settings, [first], again=True) == Replayed(1, 0, 0)
    # The marks are no letters.
    assert len(list_letters(settings)) == 8
