"""Dead letters in the log: told at once, then together."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from streamer.letters import notices
from streamer.letters.notices import Notices


def test_the_first_are_told_at_once_and_those_that_follow_together_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(notices.time, "monotonic", lambda: now_s)
    told = Notices()
    with capture_logs() as lines:
        told.tell()
        told.add("predictions.v1", 2, 7, "got null, wanted a name", "model")
        told.add("predictions.v1", 2, 8, "empty: got no content", "")
        told.tell()
        told.add("labels.v1", 0, 1, "got text", "features.of.somebody")
        now_s += 5
        told.tell()
        now_s += 5
        told.tell()
        told.tell()
    assert [line["event"] for line in lines] == ["dead_letters"] * 2
    assert (lines[0]["count"], lines[0]["fields"]) == (2, {"model": 1, "(message)": 1})
    assert lines[0]["first"] == "predictions.v1[2] offset 7: got null, wanted a name"
    assert (lines[1]["count"], lines[1]["fields"]) == (1, {"features": 1})
