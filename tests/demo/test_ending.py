"""What the demo says at its end: closed or not and why, the table, and where it was left."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from demo import bookmark
from demo.bookmark import Bookmark
from demo.chronicle import Candidate, Drifted, Request, Step, Storm, Tale
from demo.ending import summarize
from demo.flights import DAY_MS
from demo.report import Comparison, Links, Scores, Summary, render
from demo.screen import Screen
from streamer.documents import Verdict
from tests.demo.views import T0, request


def tale(ended: str | None) -> Tale:
    finding = request().findings[0]
    verdict = Verdict(status="pass", delta=0.04, lower=0.01, upper=0.07, n_champion=900, n_challenger=100)
    return Tale(
        drifted={"temp": Drifted(feature="temp", since_ms=T0 - DAY_MS, statistic="PSI", value=0.5, threshold=0.4)},
        storms=[
            Storm(began_ms=T0 - 60 * DAY_MS, end_ms=T0 - 50 * DAY_MS, accuracy=0.6, drop=0.01, over=True),
            Storm(began_ms=T0 - 9 * DAY_MS, end_ms=T0 - 3 * DAY_MS, accuracy=0.55, drop=0.03),
        ],
        request=Request(
            request_id="rq-1",
            kind="performance",
            at_ms=T0,
            looked_back_to_ms=T0 - 35 * DAY_MS,
            finding=finding,
            run_id="retrain__rq-1",
        ),
        candidate=Candidate(version="2", evidence={"winner": "forest", "rows": 126_367, "gates": {"latency": {}}}),
        steps=[
            Step(percent=5.0, began_ms=T0, ended_ms=T0 + DAY_MS, verdict=verdict),
            Step(percent=98.0, began_ms=T0 + DAY_MS, ended_ms=None, verdict=None),
        ],
        ended=ended,
        ended_ms=T0 + 2 * DAY_MS if ended else None,
        reason="accuracy fell",
    )


def place(ended: str | None, *, sabotage: bool = False) -> Bookmark:
    return Bookmark(sabotage=sabotage, champion="1", sent_ms=T0, flights=9, labels=8, tale=tale(ended))


def shown(summary: Summary, width: int = 160) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render(summary), crop=False)
    return console.export_text()


@pytest.mark.parametrize(
    ("ended", "sabotage", "closed", "serves"),
    [
        ("promoted", False, True, "2"),
        ("rolled_back", False, False, "1"),
        ("rolled_back", True, True, "1"),
        ("promoted", True, False, "2"),
        ("rejected", False, False, "1"),
        (None, False, False, "1"),
    ],
)
def test_the_loop_closes_only_as_the_story_was_meant_to_end(
    ended: str | None, sabotage: bool, closed: bool, serves: str
) -> None:
    summary = summarize(place(ended, sabotage=sabotage), None, seconds={})
    assert summary.closed is closed
    assert summary.champion_after == serves


def test_a_story_that_was_cut_short_has_not_closed_and_says_why() -> None:
    summary = summarize(place("promoted"), "not closed after 900 s: still replaying", seconds={})
    assert not summary.closed
    assert summary.reason == "not closed after 900 s: still replaying"


def test_a_request_that_ended_otherwise_is_told_with_its_reason() -> None:
    assert summarize(place("rejected"), None, seconds={}).reason == "the request ended: rejected: accuracy fell"


def test_a_rollback_is_told_with_its_reason_which_may_be_a_person() -> None:
    told = place("rolled_back")
    told.tale.reason = "asked for by hand"
    reason = summarize(told, None, seconds={}).reason
    assert reason == "Rolled back, the old champion serves everybody again: asked for by hand"


def test_the_table_tells_each_thing_with_its_evidence() -> None:
    summary = summarize(place("promoted"), None, seconds={"replay": 12.0})
    scores = Scores(version="1", accuracy=0.81, auc=0.7, log_loss=0.43)
    summary.comparisons = [
        Comparison(when="while the canary ran", start_ms=T0, end_ms=T0 + DAY_MS, flights=5, old=scores, new=scores)
    ]
    summary.links = Links(airflow="http://127.0.0.1:1/dags/retrain", evidently="file:///tmp/report.html")
    text = shown(summary)
    for words in (
        "temp drifts",
        "a bad week, ridden out",
        "a bad week, in the request",
        "lost 0.090",
        "version 2 is trained",
        "forest on 126,367 rows, gates passed: 1",
        "retrain__rq-1",
        "lets lost accuracy alone raise a request",
        "On the last step 2 % stay with the champion",
        "100 flights against 900",
        "no verdict",
        "version 2 serves everybody",
        "while the canary ran",
        "0.810",
        "Evidently's report",
        "replay 12 s",
    ):
        assert words in text, words


def test_in_a_narrow_terminal_names_are_whole_and_an_address_stays_beside_its_label() -> None:
    told = place("promoted")
    run_id = "retrain__rq-08c7de1c351d658910b6"
    assert told.tale.request is not None
    told.tale.request.run_id = run_id
    summary = summarize(told, None, seconds={})
    canary, page = f"http://127.0.0.1:45321/dags/canary/runs/canary__{run_id}", f"file:///{'d' * 90}/report.html"
    summary.links = Links(canary=canary, evidently=page)
    lines = shown(summary, 80).splitlines()
    assert f"Canary in Airflow     {canary}" in lines
    assert f"Evidently's report    {page}" in lines
    assert any(f"│ {run_id} " in line for line in lines)
    assert max(len(line) for line in lines if "://" not in line) <= 80


def test_a_story_without_a_request_ends_in_a_table_all_the_same() -> None:
    nothing = Bookmark(sabotage=False, champion="1", sent_ms=T0)
    assert "the flights ended" in shown(summarize(nothing, "the flights ended before the loop closed", seconds={}))


def test_a_bookmark_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = bookmark.path_under(tmp_path)
    bookmark.write(place("promoted"), path)
    assert bookmark.read(path) == place("promoted")


def test_what_is_no_bookmark_is_taken_for_none(tmp_path: Path) -> None:
    path = tmp_path / "demo.json"
    assert bookmark.read(path) is None
    path.write_text('{"champion": 3}')
    assert bookmark.read(path) is None


def test_a_screen_that_is_no_terminal_keeps_each_line_whole() -> None:
    console = Console(width=40, record=True, file=io.StringIO())
    with Screen(console) as screen:
        screen.part("kafka", "starting")
        screen.part("kafka", "ready in 3.0 s")
        screen.say("a line that is a good deal longer than forty columns", day_ms=T0)
        screen.stand(day_ms=T0, flights=3, view=None, held="Airflow trains")
        screen.rest()
    text = console.export_text()
    assert "kafka ready in 3.0 s" in text
    assert "1 April      a line that is a good deal longer than forty columns" in text
    assert "starting" not in text
