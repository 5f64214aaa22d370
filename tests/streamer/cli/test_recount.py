"""`driftloop recount`: what it says of counts that are equal, that differ, and of panes of two widths."""

from __future__ import annotations

import json
from typing import Any

import pytest

from streamer.audit.recount import Difference, Report
from tests.streamer.cli.conftest import Run

AGE = Difference(
    model="churn",
    version="1",
    origin="live",
    pane_ms=300_000,
    pane_start_ms=1_700_000_100_000,
    kind="cells",
    name="age",
    wanted=[1.0, 2.0, 0.0, 7.0],
    got=[1.0, 3.0, 0.0, 7.0],
)
EVENTS = Difference(
    model="churn",
    version="[1]",
    origin="shadow",
    pane_ms=60_000,
    pane_start_ms=1_700_000_160_000,
    kind="events",
    name="",
    wanted=[12.0],
    got=[0.0],
)


@pytest.fixture
def found(run: Run, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command with a report made of these differences, and changes to the rest of it."""
    monkeypatch.setattr("streamer.cli.recount.require_kafka", lambda _settings: None)

    def invoke(*differences: Difference, words: tuple[str, ...] = (), **changes: Any) -> Any:
        told: dict[str, Any] = {"equal": not differences, "compared": 9_000, "spanned": 0, "left_out": 0}
        told |= {"events": 1_500, "labels": 700, "refused": 3, "log_is_whole": True}
        told |= {"n_differences": len(differences), "differences": list(differences)}
        monkeypatch.setattr("streamer.audit.recount.run", lambda _settings: Report(**{**told, **changes}))
        return run("recount", *words, COLUMNS="120")

    return invoke


def test_equal_counts_are_said_to_be(found: Any) -> None:
    result = found()
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "1,500 events and 700 labels of the log counted again, 3 refused; 9,000 counts compared",
        "equal: the workers have exactly what the log says",
    ]


@pytest.mark.parametrize(
    ("compared", "words"),
    [(9_000, "equal as far as it could be compared"), (0, "nothing could be compared: all there is was left out")],
)
def test_what_was_left_out_is_not_said_to_be_equal(found: Any, compared: int, words: str) -> None:
    assert found(compared=compared, left_out=23).output.splitlines()[-1] == words


def test_each_difference_has_a_line_of_where_it_is_and_what_was_wanted_and_got(found: Any) -> None:
    result = found(AGE, EVENTS)
    assert result.exit_code == 1
    assert result.stderr == "driftloop: 2 counts differ\n"
    heads, _rule, age, events = result.stdout.splitlines()[1:5]
    assert " ".join(heads.split()) == "MODEL VERSION ORIGIN PANE (UTC) LONG COUNT LOG WORKERS"
    assert " ".join(age.split()) == "churn 1 live 2023-11-14 22:15:00 5 min cells age 1, 2, 0, … 1, 3, 0, …"
    assert " ".join(events.split()) == "churn [1] shadow 2023-11-14 22:16:00 1 min events 12 0"


def test_of_many_differences_the_first_stand_in_the_table_and_all_in_the_number(found: Any) -> None:
    result = found(*[AGE] * 50, n_differences=1_234)
    assert sum(line.startswith("churn") for line in result.stdout.splitlines()) == 20
    assert "1234 counts differ" in result.stderr


def test_a_log_that_has_lost_its_beginning_is_named_as_the_cause(found: Any) -> None:
    assert "the log has lost its beginning to retention" in found(AGE, log_is_whole=False).stderr
    assert "retention" not in found(log_is_whole=False).output


def test_panes_of_a_former_width_are_told(found: Any) -> None:
    output = found(spanned=40).output
    assert "time.pane was changed: 40 of these are sums over spans that hold panes of both widths\n" in output
    assert "; 7 left out, their span begins before what workers keep" in found(left_out=7).output


def test_a_machine_is_told_all_of_it_and_the_exit_code_says_whether_it_is_equal(found: Any) -> None:
    result = found(EVENTS, words=("--json",))
    assert (result.exit_code, json.loads(result.output)["differences"][0]["wanted"]) == (1, [12.0])
    result = found(words=("--json",))
    assert (result.exit_code, json.loads(result.output)["equal"]) == (0, True)
