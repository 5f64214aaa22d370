"""Where a stage goes on when a log is not as it left it."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from streamer.stage import Partition, Standing, resume
from tests.streamer.logs import COMMANDS, PARTIALS, Log, Player, catalog_of, config, predictions

PLACE = Partition("predictions.v1", 3)


@pytest.mark.parametrize(
    ("offset", "low", "high", "start", "event"),
    [
        (None, 5, 9, 5, None),
        (7, 5, 9, 7, None),
        (9, 5, 9, 9, None),
        (2, 5, 9, 5, "lost_range"),
        (12, 5, 9, 9, "offset_beyond_end"),
        (12, 5, None, 12, None),
    ],
)
def test_reading_goes_on_at_what_there_is_and_what_is_lost_is_told(
    offset: int | None, low: int, high: int | None, start: int, event: str | None
) -> None:
    with capture_logs() as lines:
        assert resume(PLACE, offset, low, high) == start
    told = [line for line in lines if line["log_level"] == "error"]
    assert [line["event"] for line in told] == ([event] if event else [])
    if told:
        assert (told[0]["topic"], told[0]["partition"], told[0]["start"]) == (*PLACE, offset)


def test_an_input_topic_made_anew_is_read_from_its_beginning_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(catalog_of(config()))
    log.flush(predictions(0, 50))
    player = Player(log, monkeypatch)
    ids = {"partials.v1": "A", "commands.v1": "B"}
    player.evaluate._topic_ids = ids
    player.evaluate.restore({PARTIALS: Standing(None, 0, 0), COMMANDS: Standing(None, 0, 0)})
    player.play()
    player.commit()
    player.restart()
    # The group's offsets went with the topic; the state still names the old one's.
    player.evaluate._topic_ids = {**ids, "partials.v1": "C"}
    with capture_logs() as lines:
        starts = player.evaluate.restore({PARTIALS: Standing(None, 0, 40), COMMANDS: Standing(None, 0, 0)})
    assert starts == {PARTIALS: 0, COMMANDS: 0}
    assert [(line["topic"], line["was"], line["is_now"]) for line in lines if line["event"] == "topic_made_anew"] == [
        ("partials.v1", "A", "C")
    ]


def test_a_model_whose_events_stop_is_stale_until_they_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(catalog_of(config(time={"stale": "5m"})))
    log.flush(predictions(0, 50))
    player = Player(log, monkeypatch)
    player.play()
    player.tick()
    record = player.evaluate._shards[0].models["churn"].record
    assert not record.stale
    with capture_logs() as lines:
        log.now_ms += 301_000
        log.flush()
        player.play()
        player.tick()
        player.tick()
    assert record.stale
    assert [line["event"] for line in lines if line["event"].startswith("stream_")] == ["stream_stale"]
    assert record.timeline[-1][1]["text"] == "no live events for 0.1 h"
    player.commit()
    player.restart()
    with capture_logs() as lines:
        log.flush(predictions(1, 5))
        player.play()
        player.tick()
    assert [line["event"] for line in lines if line["event"].startswith("stream_")] == ["stream_flows"]
    assert not player.evaluate._shards[0].models["churn"].record.stale


def test_events_that_wait_to_be_read_are_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(catalog_of(config(time={"stale": "5m"})))
    log.flush(predictions(0, 50))
    player = Player(log, monkeypatch)
    player.play()
    # Ingest stands still, or evaluate is behind with what it has sent; commands are read to their end.
    log.now_ms += 301_000
    player.tick()
    assert not player.evaluate._shards[0].models["churn"].record.stale
