"""`driftloop dead-letters`: what it takes, and that a stranger's bytes do nothing to a terminal."""

from __future__ import annotations

import json

import pytest

from streamer.cli import deadletters as command
from streamer.letters import deadletters
from streamer.letters.deadletters import Letter, Wanted
from tests.streamer.cli.conftest import Run

LETTER = Letter(
    letter_id="2:7",
    at_ms=1_700_000_000_000,
    source_topic="predictions.v1",
    source_partition=3,
    source_offset=12,
    row=None,
    reason="got \x1b[31mred\x07",
    field="features.\x1b]0;title",
    mode="raw",
    key=b"\xff\x1b",
    value=b"{\x1b[2J\n" + b"x" * 3_000,
)


@pytest.fixture
def one_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for Kafka: these tests are of what is printed."""
    monkeypatch.setattr(command, "require_kafka", lambda _: None)
    monkeypatch.setattr(deadletters, "show", lambda *_: LETTER)
    monkeypatch.setattr(deadletters, "list_letters", lambda *_: [LETTER])


def test_what_a_terminal_would_obey_is_written_as_an_escape_and_long_bytes_are_cut(run: Run, one_letter: None) -> None:
    shown = run("dead-letters", "show", "2:7").output
    listed = run("dead-letters", "list").output
    for text in (shown, listed):
        assert "\x1b" not in text
        assert "\x07" not in text
    assert "value   {\\x1b[2J\\nxxx" in shown
    assert "and 1,006 bytes more (--raw writes all)" in shown
    assert "key     \\xff\\x1b" in shown
    assert "got \\x1b[31mred" in shown


def test_the_bytes_come_whole_for_a_file_and_as_base64_in_json_where_they_are_no_text(
    run: Run, one_letter: None
) -> None:
    assert run("dead-letters", "show", "2:7", "--raw").stdout_bytes == LETTER.value
    plain = json.loads(run("dead-letters", "show", "2:7", "--json").output)
    assert plain["key_base64"] == "/xs="
    assert "value_base64" not in plain
    assert plain["value"].encode() == LETTER.value


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["replay"], "give ids, or some of --topic"),
        (["replay", "0:1", "--field", "ts"], "give ids, or some of --topic"),
        (["list", "--topic", "ledger"], "wanted one of predictions, features, labels"),
        (["list", "--within", "soon"], "--within: got 'soon', wanted a duration"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(run: Run, words: list[str], said: str) -> None:
    result = run("dead-letters", *words)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("wanted", "included"),
    [
        (Wanted(), True),
        (Wanted(topic="predictions.v1", field="features", reason="red", since_ms=LETTER.at_ms), True),
        (Wanted(topic="labels.v1"), False),
        (Wanted(field="feature"), False),
        (Wanted(reason="blue"), False),
        (Wanted(since_ms=LETTER.at_ms + 1), False),
    ],
)
def test_a_letter_is_wanted_when_all_conditions_hold(wanted: Wanted, included: bool) -> None:
    assert wanted.includes(LETTER) is included
