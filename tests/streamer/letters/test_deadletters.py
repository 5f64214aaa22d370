"""What a dead letter carries, raw and redacted."""

from __future__ import annotations

from typing import Any

import pytest

from streamer.kafka.topics import MAX_MESSAGE_BYTES
from streamer.letters.deadletters import DeadLetterError, build, show
from streamer.settings import Settings

LETTER: dict[str, Any] = {
    "raw": b'{"model": "m", "mail": "alice@example.org"',
    "key": b"alice",
    "topic": "predictions.v1",
    "partition": 3,
    "offset": 12,
    "row": None,
    "reason": "truncated: got an end inside the object",
    "field": "",
    "mode": "raw",
}


def test_a_raw_letter_keeps_the_bytes_and_says_where_they_stood() -> None:
    key, value, headers = build(**LETTER)
    assert (key, value) == (LETTER["key"], LETTER["raw"])
    assert dict(headers) == {
        "source-topic": b"predictions.v1",
        "source-partition": b"3",
        "source-offset": b"12",
        "row": b"",
        "reason": LETTER["reason"].encode(),
        "field": b"",
        "mode": b"raw",
    }


def test_a_redacted_letter_keeps_nothing_of_what_came() -> None:
    key, value, headers = build(**{**LETTER, "mode": "redacted", "row": 7})
    assert key is None
    assert value == b'{"redacted":true,"bytes":42}'
    assert dict(headers)["row"] == b"7"
    assert b"alice" not in value + b"".join(content for _, content in headers)


def test_what_is_larger_than_any_message_can_be_is_redacted() -> None:
    largest = b"x" * (MAX_MESSAGE_BYTES - len(LETTER["key"]))
    assert build(**{**LETTER, "raw": largest})[1] == largest
    key, value, headers = build(**{**LETTER, "raw": largest + b"x"})
    assert (key, value) == (None, b'{"redacted":true,"bytes":%d}' % (len(largest) + 1))
    assert dict(headers)["mode"] == b"redacted"


def test_a_reason_that_utf8_cannot_carry_or_that_is_endless_still_makes_a_letter() -> None:
    _, _, headers = build(**{**LETTER, "reason": "got \ud800" + "x" * 5_000, "field": "features.\udfff"})
    found = dict(headers)
    assert found["reason"].startswith(b"got \\ud800x")
    assert len(found["reason"]) < 1_100
    assert found["field"] == b"features.\\udfff"


@pytest.mark.parametrize("letter_id", ["", "7", "a:1", "1:b", "1:2:3", "-1:2"])
def test_an_id_that_is_none_is_refused_before_anything_is_read(letter_id: str) -> None:
    with pytest.raises(DeadLetterError, match="wanted <partition>:<offset>"):
        show(Settings(), letter_id)
