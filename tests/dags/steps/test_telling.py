from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from dags.steps import notify, rollout
from dags.steps.outcomes import BadConfError
from dags.steps.requests import new_runs, request_of, run_id_of
from dags.steps.verdicts import Awaited, read_verdict
from monitors.lifecycle import rollout_id_of
from streamer.commands import CommandRefused
from streamer.documents import CanaryView, Verdict
from streamer.events import Command, LedgerEntry
from streamer.settings import Settings
from tests.dags.steps.test_workspace import request

MINE = rollout.Rollout("toy", 1, "rq-1", "2", "run-1")


def entry(command: Command, said: str = "accepted", why: str = "", /, **detail: Any) -> LedgerEntry:
    return LedgerEntry(
        model="toy",
        model_epoch=1,
        at_ms=5,
        subject_kind="rollout",
        subject=command.subject,
        state="",
        command_id=command.command_id,
        outcome=said,  # type: ignore[arg-type]
        reason=why,
        detail=detail,
    )


Answering = Callable[..., list[Command]]


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Answering:
    """Have commands answered by a function of each; returns what was sent."""

    def use(answer: Callable[[Command], LedgerEntry]) -> list[Command]:
        sent: list[Command] = []

        def send(_settings: Settings, command: Command, **_: Any) -> LedgerEntry:
            sent.append(command)
            return answer(command)

        monkeypatch.setattr(notify, "send", send)
        return sent

    return use


def test_a_step_tried_again_repeats_its_command(settings: Settings, answering: Answering) -> None:
    sent = answering(entry)
    for _ in range(2):
        rollout.set_step(settings, MINE, 0)
    rollout.set_step(settings, MINE, 1)
    assert sent[0] == sent[1]
    assert len({command.command_id for command in sent}) == 2
    assert sent[0].actor == "airflow:run-1"


def test_a_refusal_of_before_is_asked_anew(settings: Settings, answering: Answering) -> None:
    def answer(command: Command) -> LedgerEntry:
        if command.command_id.count("-") == 1:
            return entry(command, "repeated", outcome="refused")
        return entry(command)

    sent = answering(answer)
    assert rollout.set_step(settings, MINE, 0) == {}
    assert len(sent) == 2
    assert sent[1].command_id.startswith(sent[0].command_id + "-")
    assert sent[1].payload == sent[0].payload


def test_acceptance_holds_only_while_the_request_goes_on() -> None:
    wish = Command(command_id="c", kind="accept")
    going = {"present": {"request": "training", "rollout": None, "deployment": {"epoch": 1}}}
    over = {"present": {"request": "failed", "rollout": None, "deployment": {"epoch": 1}}}
    assert notify.refusal(entry(wish, **going), run_id="r") is None
    assert notify.refusal(entry(wish, "repeated", outcome="accepted", detail={}, **going), run_id="r") is None
    repeated = entry(wish, "repeated", outcome="accepted", detail={"request_state": "raised"}, **over)
    assert "is failed" in str(notify.refusal(repeated, run_id="r"))
    assert notify.refusal(entry(wish, "refused", "another run's"), run_id="r") == "another run's"


def test_what_stands_is_what_the_answer_says_of_now_not_of_then() -> None:
    wish = Command(command_id="c", kind="set_step")
    repeated = entry(
        wish,
        "repeated",
        outcome="accepted",
        detail={"epoch": 3, "step": 0, "rollout_id": "canary-rq-1"},
        present={"request": "canary", "rollout": "active", "deployment": {"epoch": 4, "step": 1, "percent": 10.0}},
    )
    stands = notify.standing(repeated)
    assert (stands["epoch"], stands["step"], stands["rollout_id"]) == (4, 1, "canary-rq-1")


def active(step: int, epoch: int = 4) -> dict[str, Any]:
    return {
        "rollout_id": "canary-rq-1",
        "rollout_state": "active",
        "request_id": "rq-1",
        "request_state": "canary",
        "step": step,
        "epoch": epoch,
    }


def test_a_step_whose_pass_was_lost_waits_for_it(settings: Settings, answering: Answering) -> None:
    answering(lambda command: entry(command, "refused", "the verdict is running", **active(0)))
    with pytest.raises(rollout.Held) as held:
        rollout.set_step(settings, MINE, 1)
    assert (held.value.step, held.value.epoch) == (0, 4)


@pytest.mark.parametrize(
    "stands",
    [
        active(2),
        {**active(0), "rollout_state": "rolled_back"},
        {**active(0), "rollout_id": "canary-rq-9"},
        {},
    ],
)
def test_a_step_out_of_place_is_not_waited_for(
    stands: dict[str, Any], settings: Settings, answering: Answering
) -> None:
    answering(lambda command: entry(command, "refused", "no", **stands))
    with pytest.raises(rollout.OutOfPlaceError):
        rollout.set_step(settings, MINE, 1)


def test_the_start_waits_for_the_reference_and_for_nothing_else(
    settings: Settings, answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout.time, "sleep", lambda _s: None)
    answers = iter(["refused", "refused", "accepted"])
    waiting = {"request_id": "rq-1", "request_state": "validated"}
    sent = answering(lambda command: entry(command, next(answers), "no reference profile", **waiting))
    rollout.start(settings, MINE)
    assert len(sent) == 3
    answering(lambda command: entry(command, "refused", "the request is failed", request_state="failed"))
    with pytest.raises(CommandRefused):
        rollout.start(settings, MINE)


def test_a_run_without_its_conf_says_what_it_lacks() -> None:
    with pytest.raises(BadConfError, match=r"\['request_id', 'challenger'\]"):
        rollout.Rollout.from_conf({"model": "toy", "model_epoch": "1"}, "run")
    assert (
        rollout.Rollout.from_conf(
            {"model": "toy", "model_epoch": "1", "request_id": "rq-1", "challenger": "2"}, "run-1"
        )
        == MINE
    )
    assert rollout_id_of("rq-1") == MINE.rollout_id


def view(**changes: Any) -> bytes:
    verdict = Verdict(status="pass", reason="", step=1, epoch=5, at_ms=100)
    fields: dict[str, Any] = {"rollout_id": "canary-rq-1", "state": "active", "step": 1, "epoch": 5, "as_of_ms": 1}
    for name, value in changes.items():
        if (name in Verdict.__struct_fields__ and name not in ("step", "epoch")) or name.startswith("v_"):
            setattr(verdict, name.removeprefix("v_"), value)
        else:
            fields[name] = value
    return msgspec.json.encode(CanaryView(verdict=verdict, **fields))


WAITED = Awaited("toy", "canary-rq-1", 1, 5)


@pytest.mark.parametrize("status", ["pass", "fail", "inconclusive", "error"])
def test_a_verdict_of_this_step_is_taken(status: str) -> None:
    found = read_verdict(view(status=status), WAITED)
    assert found is not None
    assert found["status"] == status


@pytest.mark.parametrize(
    "document",
    [
        None,
        view(status="running"),
        view(rollout_id="canary-rq-9"),
        view(v_step=0),
        view(v_epoch=4),
        msgspec.json.encode(CanaryView(rollout_id="canary-rq-1", state="active")),
    ],
    ids=["nothing", "running", "another's", "of another step", "of an older epoch", "no verdict yet"],
)
def test_a_verdict_that_is_stale_or_anothers_is_none(document: bytes | None) -> None:
    assert read_verdict(document, WAITED) is None


def test_a_verdict_that_was_answered_is_not_taken_twice() -> None:
    seen = Awaited("toy", "canary-rq-1", 1, 5, seen_ms=100)
    assert read_verdict(view(status="inconclusive"), seen) is None
    assert read_verdict(view(status="inconclusive", at_ms=101), seen) is not None


def test_a_rollout_that_has_ended_otherwise_is_said_to_have() -> None:
    found = read_verdict(view(state="rolled_back"), WAITED)
    assert found is not None
    assert found["status"] == "ended"


def test_a_request_starts_one_run_however_often_it_came_and_bad_events_hold_up_none() -> None:
    first, second = (msgspec.to_builtins(request(name)) for name in ("rq-1", "rq-2"))
    extras: list[Any] = [
        {"from_trigger": True, "payload": first},
        {"payload": {"nonsense": 1}},
        {"payload": None},
        first,
        {"payload": second},
        {"payload": {**first, "attempt": 2}},
    ]
    runs = new_runs(extras, exists=lambda _run: False)
    assert [run["trigger_run_id"] for run in runs] == [run_id_of("rq-1"), run_id_of("rq-2")]
    assert request_of(runs[0]["conf"]).request_id == "rq-1"
    assert new_runs(extras, exists=lambda run: run == run_id_of("rq-1"))[0]["trigger_run_id"] == run_id_of("rq-2")


@pytest.mark.parametrize("conf", [None, {}, {"request": None}, {"request": {"model": "toy"}}])
def test_a_run_started_by_hand_is_told_how_to_ask(conf: Any) -> None:
    with pytest.raises(BadConfError, match="driftloop request"):
        request_of(conf)
