"""`status` and `watch`: readable at any width, complete, and clear about what is not there."""

from __future__ import annotations

import io
import json
import time

import msgspec
import pytest
import redis
from rich.console import Console

from streamer import documents
from streamer.cli import watch as watching
from streamer.cli.present import ago, length, moment, number, share, sparkline
from streamer.cli.surroundings import live_view, settings
from streamer.state import Keys
from tests.streamer.cli.conftest import Run
from tests.streamer.live_documents import DRIFT, NOW, SUMMARY, fill

KEYS = Keys()
HEADS = ("Drift", "Performance", "Request", "Canary", "WORKER")


@pytest.fixture
def filled(store: redis.Redis, store_url: str, monkeypatch: pytest.MonkeyPatch) -> redis.Redis:
    monkeypatch.setenv("DRIFTLOOP_REDIS__URL", store_url)
    fill(store, KEYS, now_ms=time.time_ns() // 1_000_000)
    return store


@pytest.fixture
def empty(store: redis.Redis, store_url: str, monkeypatch: pytest.MonkeyPatch) -> redis.Redis:
    monkeypatch.setenv("DRIFTLOOP_REDIS__URL", store_url)
    return store


def test_an_empty_view_says_what_to_do_first(run: Run, empty: redis.Redis) -> None:
    result = run("status")
    assert result.exit_code == 0
    assert "driftloop models apply MODEL.toml" in result.output
    assert "No worker runs" in result.output
    assert json.loads(run("status", "--json").output) == {"models": [], "workers": []}
    unknown = run("status", "churn")
    assert unknown.exit_code == 1
    assert unknown.stderr.startswith("driftloop: churn: no events of it have been counted yet; driftloop models list")


def test_an_unknown_model_is_told_which_there_are(run: Run, filled: redis.Redis) -> None:
    assert "(of churn there have)" in run("status", "chrun").stderr


def test_the_list_has_a_line_a_model(run: Run, filled: redis.Redis) -> None:
    output = run("status").output
    [line] = [line for line in output.splitlines() if line.startswith("churn")]
    assert line.split() == ["churn", "1", "raised", "–", "–", "2023-11-14", "22:13:15"]
    assert "NEWEST EVENT (UTC)" in output
    assert "1,234    56   now" in output


def test_an_event_time_is_told_as_such_however_near_it_is(run: Run, filled: redis.Redis) -> None:
    now_ms = time.time_ns() // 1_000_000
    filled.hset(KEYS.models(), "churn", msgspec.json.encode(msgspec.structs.replace(SUMMARY, watermark_ms=now_ms)))
    told = f"{moment(now_ms)} UTC (event time)"
    assert f"events   newest {told}  numbers as of" in run("status", "churn").output
    [line] = [line for line in run("status").output.splitlines() if line.startswith("churn")]
    assert line.endswith(moment(now_ms))


@pytest.mark.parametrize("width", [80, 100, 140])
def test_a_models_screen_fits_and_holds_everything(run: Run, filled: redis.Redis, width: int) -> None:
    output = run("status", "churn", COLUMNS=str(width)).output
    assert max(map(len, output.splitlines())) <= width
    for words in (
        "churn  binary  raised for 1 min of event time",
        "serving  1 90 %, 2 10 %  epoch 7",
        "events   newest 2023-11-14 22:13:15 UTC (event time)  numbers as of ",
        "fault    plan: all unseen",
        "accuracy by pane",
        "labels for 400 of 1,000 predictions (40 %); a pane is judged 1 h after it",
        "none yet for the last 30 min of predictions",
        "drop against the reference +0.050 (+0.010 to +0.090)",
        "age: psi 0.310, limit 0.100",
        "raised → accepted → canary",
        "running: challenger − champion +0.010 (-0.020 to +0.040)",
        "on 100 and 900 outcomes",
        "look 2",
    ):
        assert words in output


def test_features_stand_by_drift_with_why_a_number_is_missing(run: Run, filled: redis.Redis) -> None:
    lines = run("status", "churn").output.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("FEATURE"))
    age, plan, tenure = (lines[first + number].split() for number in (2, 3, 4))
    assert age == ["age", "0.310", "0.100", "0.200", "0.150", "900", "drift"]
    assert plan == ["plan", "0.010", "0.100", "–", "–", "900", "all", "unseen"]
    assert tenure == ["tenure", "–", "–", "–", "–", "3", "too", "few", "events"]


def test_shares_and_the_course_stand_where_there_is_room(run: Run, filled: redis.Redis) -> None:
    assert "PSI OVER TIME" not in run("status", "churn", COLUMNS="80").output
    wide = run("status", "churn", COLUMNS="140").output
    assert "PSI OVER TIME" in wide
    assert "2.0 %" in wide
    assert "▁·█" in wide


def test_a_model_without_anything_yet_is_shown_as_such(run: Run, empty: redis.Redis) -> None:
    summary = documents.ModelSummary(model="bare", task="regression", as_of_ms=NOW)
    empty.hset(KEYS.models(), "bare", msgspec.json.encode(summary))
    output = run("status", "bare").output
    for words in (
        "no champion named: driftloop split bare --champion",
        "no events of this version yet",
        "no predictions yet",
        "Request  none",
        "Canary   none",
        "Timeline nothing yet",
        "events   none yet",
    ):
        assert words in output
    assert "0.000" not in output


def test_a_worker_tells_its_transactions_and_what_it_set_apart(run: Run, filled: redis.Redis) -> None:
    output = " ".join(run("status").output.split())
    assert "last transactions: evaluate 45 ms, ingest 12 ms; 7 partials and commands unread" in output
    assert "98,765 events in" in output
    assert "21 late, 3 too late, 4 dead letters, 1,050 labels ahead of their prediction" in output
    [worker] = json.loads(run("status", "--json").output)["workers"]
    assert (worker["late"], worker["dead_letters"], worker["transaction_ms"]["ingest"]) == (21, 4, 12.4)


def test_a_model_tells_which_events_were_set_apart(run: Run, filled: redis.Redis) -> None:
    assert "apart    5 late, 2 repeated" in run("status", "churn").output


def test_a_silent_worker_is_told_apart(run: Run, filled: redis.Redis) -> None:
    filled.hset(KEYS.workers(), "1", json.dumps({"replica": "1", "role": "ingest", "as_of_ms": NOW}))
    assert "2023-11-14 22:13:20 UTC: silent" in run("status").output


def test_a_models_screen_says_at_its_top_that_its_numbers_stand_still(run: Run, filled: redis.Redis) -> None:
    assert "The last worker beat" not in run("status", "churn").output
    silent = json.dumps({"replica": "0", "role": "all", "as_of_ms": time.time_ns() // 1_000_000 - 60_000})
    filled.hset(KEYS.workers(), "0", silent)
    lines = run("status", "churn", COLUMNS="120").output.splitlines()
    assert lines.index(next(line for line in lines if line.startswith("The last worker beat 1 min"))) < 6
    filled.delete(KEYS.workers())
    assert "No worker runs" in "".join(run("status", "churn", COLUMNS="120").output.splitlines()[:6])


def test_what_a_worker_tells_hangs_beside_its_name(run: Run, filled: redis.Redis) -> None:
    lines = run("status").output.splitlines()
    [first] = [number for number, line in enumerate(lines) if "last transactions" in line]
    assert lines[first].startswith("0  ")
    assert all(line.startswith("   ") for line in lines[first + 1 :] if line.strip())


def test_drift_of_a_quiet_model_says_what_may_raise_a_request(run: Run, filled: redis.Redis) -> None:
    assert "policy and alert" not in run("status", "churn").output
    filled.hset(KEYS.models(), "churn", msgspec.json.encode(msgspec.structs.replace(SUMMARY, state="quiet")))
    assert "policy and alert" in run("status", "churn").output


def test_what_came_from_outside_is_not_taken_for_markup(run: Run, empty: redis.Redis) -> None:
    empty.hset(KEYS.models(), "churn", msgspec.json.encode(SUMMARY))
    empty.hset(KEYS.drift("churn", "1"), "[red]x[/red]", msgspec.json.encode(DRIFT["plan"]))
    assert "[red]x[/red]" in run("status", "churn").output


def test_json_is_the_documents_themselves(run: Run, filled: redis.Redis) -> None:
    found = json.loads(run("status", "churn", "--json").output)
    assert found["model"]["drift"]["tenure"] == {**msgspec.to_builtins(DRIFT["tenure"])}
    assert found["model"]["drift"]["tenure"]["psi"] is None
    assert found["workers"][0]["replica"] == "0"


def test_watch_follows_the_only_model(run: Run, filled: redis.Redis) -> None:
    result = run("watch", "--times", "2", "--interval", "0.1")
    assert result.exit_code == 0
    assert result.output.count("Drift of version 1") == 2
    lines = run("watch", "churn", "--json", "--times", "2", "--interval", "0.1").output.splitlines()
    assert [json.loads(line)["model"]["version"] for line in lines] == ["1", "1"]


def test_watch_shows_the_list_of_several_and_waits_for_one_to_come(run: Run, filled: redis.Redis) -> None:
    filled.hset(KEYS.models(), "other", msgspec.json.encode(msgspec.structs.replace(SUMMARY, model="other")))
    assert "other" in run("watch", "--times", "1").output
    waiting = run("watch", "later", "--times", "1")
    assert waiting.exit_code == 0
    assert "later: no events of it have been counted yet" in waiting.output.replace("\n", " ")


@pytest.mark.parametrize(("height", "whole"), [(24, False), (60, True)])
def test_on_a_low_screen_the_request_and_the_canary_come_first(filled: redis.Redis, height: int, whole: bool) -> None:
    screen = Console(width=80, height=height, force_terminal=True, color_system=None, record=True, file=io.StringIO())
    with live_view(settings()) as view:
        screen.print(watching._body(view, "churn", None, screen, time.time_ns() // 1_000_000))
    lines = screen.export_text().splitlines()[:height]
    at = {word: next((row for row, line in enumerate(lines) if line.startswith(word)), None) for word in HEADS}
    assert None not in (at["Request"], at["Canary"], at["Drift"], at["Performance"])
    assert (at["WORKER"] is not None) is whole
    assert (at["Drift"] < at["Request"]) is whole  # type: ignore[operator]


def test_watch_lives_through_a_store_that_goes_away(
    run: Run, filled: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise redis.exceptions.ConnectionError("gone")

    monkeypatch.setattr(watching, "_body", gone)
    result = run("watch", "--times", "2", "--interval", "0.1")
    assert result.exit_code == 0
    assert result.output.count("does not answer (gone)") == 2


def test_numbers_and_times_are_written_for_people() -> None:
    assert [number(None), number(float("nan")), number(0.12345), number(12345.6)] == ["–", "–", "0.123", "12,346"]
    assert [share(None), share(0.0), share(0.0123), share(0.5), share(1.0)] == ["–", "0 %", "1.2 %", "50 %", "100 %"]
    assert [length(None), length(0), length(61_000), length(90_000_000)] == ["–", "0 s", "1 min 1 s", "1 d 1 h"]
    assert [ago(None, NOW), ago(NOW, NOW), ago(NOW - 5_000, NOW)] == ["never", "now", "5 s ago"]
    assert sparkline([0.0, None, 1.0, 2.0], top=1.0) == "▁·██"
