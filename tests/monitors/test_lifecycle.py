"""Every wish in every state is a documented move or is refused with the state it met; nothing waits for ever."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors.canary import CanaryVerdict
from monitors.comparison import CanaryPlan
from monitors.lifecycle import (
    CLOCK_ACTOR,
    FINAL,
    KEPT_ANSWERS,
    Answer,
    Deadlines,
    ModelState,
    RequestStage,
    Transition,
    Wish,
    answer,
    expire,
    fault,
    is_open,
    manual_request_id,
    present,
    published,
    raise_request,
    republish_due,
    rollout_id_of,
)

PLAN = CanaryPlan(steps=(10, 50, 100))
DEADLINES = Deadlines(republish_ms=10, accept_ms=100, train_ms=200, validate_ms=300, hand_over_ms=400, canary_ms=500)
ROLLOUT = rollout_id_of("r1")
START = {"request_id": "r1", "challenger": "v2"}


def verdict_for(state: ModelState, status: Any = "pass", **changes: Any) -> CanaryVerdict:
    """Return a verdict of the deployment as it stands."""
    deployment = state.deployment
    known = CanaryVerdict(status, "because", 0.0, -0.01, 0.01, 50.0, 900, 100, deployment.step, deployment.epoch, 1)
    return replace(known, **changes)


def ask(
    state: ModelState,
    kind: str,
    subject: str = "r1",
    *,
    command_id: str | None = None,
    now_ms: int = 0,
    verdict: CanaryVerdict | None = None,
    has_reference: Any = True,
    expected_epoch: int | None = None,
    actor: str = "ada",
    **payload: Any,
) -> tuple[ModelState, Answer, tuple[Transition, ...]]:
    wish = Wish(command_id or f"c{len(state.answers)}", kind, subject, payload, actor, expected_epoch)
    return answer(
        state, wish, now_ms=now_ms, plan=PLAN, verdict=verdict, has_reference=has_reference, salt=f"salt of {subject}"
    )


def accepted(state: ModelState, kind: str, subject: str = "r1", **rest: Any) -> ModelState:
    changed, given_answer, _ = ask(state, kind, subject, **rest)
    assert given_answer.outcome == "accepted", given_answer.reason
    return changed


def fresh() -> ModelState:
    return accepted(ModelState(), "set_champion", "m", version="v1")


def raised() -> ModelState:
    return raise_request(fresh(), request_id="r1", kind="drift", version="v1", now_ms=0)[0]


def canary(step: int) -> ModelState:
    state = accepted(STATES["validated"], "start_rollout", ROLLOUT, **START)
    for to in range(step + 1):
        state = accepted(state, "set_step", ROLLOUT, step=to, verdict=verdict_for(state))
    return state


STATES: dict[str, ModelState] = {"none": fresh(), "raised": raised()}
STATES["accepted"] = accepted(STATES["raised"], "accept", run_id="run")
STATES["training"] = accepted(STATES["accepted"], "train", run_id="run")
STATES["rejected"] = accepted(STATES["training"], "reject")
STATES["validated"] = accepted(STATES["training"], "validate", version="v2")
STATES |= {f"canary {step}": canary(step) for step in range(-1, 3)}
STATES["promoted"] = accepted(STATES["canary 2"], "promote", ROLLOUT, verdict=verdict_for(STATES["canary 2"]))
STATES["rolled_back"] = accepted(STATES["canary 1"], "rollback", ROLLOUT)
STATES["failed"] = accepted(STATES["training"], "fail")
STATES["expired"] = expire(STATES["raised"], now_ms=100, deadlines=DEADLINES)[0]

# Each command as it is rightly sent in the course of the one request: subject and payload.
COMMANDS: dict[str, tuple[str, dict[str, Any]]] = {
    "accept": ("r1", {"run_id": "run"}),
    "train": ("r1", {"run_id": "run"}),
    "validate": ("r1", {"version": "v2", "run_id": "run"}),
    "reject": ("r1", {"run_id": "run"}),
    "fail": ("r1", {"run_id": "run"}),
    "start_rollout": (ROLLOUT, START),
    "set_step 0": (ROLLOUT, {"step": 0}),
    "set_step 1": (ROLLOUT, {"step": 1}),
    "set_step 2": (ROLLOUT, {"step": 2}),
    "set_step 3": (ROLLOUT, {"step": 3}),
    "promote": (ROLLOUT, {}),
    "rollback": (ROLLOUT, {}),
    "request": ("m", {}),
    "set_champion": ("m", {"version": "v3"}),
    "set_champion same": ("m", {"version": "v1"}),
    "force_rollback": ("m", {"epoch": 1_000_000}),
    "allow": ("m", {"until_ms": 5}),
    "clear_fault": ("m", {}),
}
CANARIES = [f"canary {step}" for step in range(-1, 3)]
NOT_CANARIES = [name for name in STATES if name not in CANARIES]
ACCEPTED_ONCE = [name for name in STATES if name not in ("none", "raised", "expired")]

# The documented moves: (state, command) → the request's state afterwards, and who serves what share.
MOVES: dict[tuple[str, str], tuple[str | None, str, str | None, float]] = {
    ("raised", "accept"): ("accepted", "v1", None, 0),
    ("accepted", "train"): ("training", "v1", None, 0),
    ("training", "validate"): ("validated", "v1", None, 0),
    ("accepted", "reject"): ("rejected", "v1", None, 0),
    ("training", "reject"): ("rejected", "v1", None, 0),
    ("validated", "start_rollout"): ("canary", "v1", "v2", 0),
    ("canary -1", "set_step 0"): ("canary", "v1", "v2", 10),
    ("canary 0", "set_step 1"): ("canary", "v1", "v2", 50),
    ("canary 1", "set_step 2"): ("canary", "v1", "v2", 98),
    ("canary 2", "promote"): ("promoted", "v2", None, 0),
    **{(name, "fail"): ("failed", "v1", None, 0) for name in ("accepted", "training", "validated", *CANARIES)},
    **{(name, "rollback"): ("rolled_back", "v1", None, 0) for name in CANARIES},
    **{(name, "force_rollback"): ("rolled_back", "v1", None, 0) for name in CANARIES},
    # Outside a rollout it only lifts the epoch over the one Redis was forced to.
    **{(name, "force_rollback"): (None, "v2" if name == "promoted" else "v1", None, 0) for name in NOT_CANARIES},
    **{(name, "set_champion"): (None, "v3", None, 0) for name in NOT_CANARIES},
    ("promoted", "set_champion same"): (None, "v1", None, 0),
    **{
        (name, "request"): ("raised", "v2" if name == "promoted" else "v1", None, 0)
        for name in ("none", "rejected", "promoted", "rolled_back", "failed", "expired")
    },
    **{(name, "allow"): (None, "v2" if name == "promoted" else "v1", None, 0) for name in NOT_CANARIES},
    **{(f"canary {step}", "allow"): (None, "v1", "v2", PLAN.percent_at(step)) for step in range(-1, 3)},
}
# What is already so is neither done again nor refused.
REPEATS = {
    *((name, "accept") for name in ACCEPTED_ONCE if STATES[name].request.state not in FINAL),  # type: ignore[union-attr]
    ("training", "train"),
    ("validated", "validate"),
    ("rejected", "reject"),
    ("failed", "fail"),
    *((name, "start_rollout") for name in CANARIES),
    *((f"canary {step}", f"set_step {step}") for step in range(3)),
    ("promoted", "promote"),
    ("rolled_back", "rollback"),
    *((name, "set_champion same") for name in NOT_CANARIES if name != "promoted"),
    *((name, "clear_fault") for name in STATES),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", STATES)
def test_a_command_is_a_documented_move_or_is_refused_with_the_present_state(name: str, command: str):
    state = STATES[name]
    subject, payload = COMMANDS[command]
    changed, found, moved = ask(
        state, command.split()[0], subject, command_id="new", verdict=verdict_for(state), now_ms=7, **payload
    )
    if (name, command) in MOVES:
        stage, champion, challenger, percent = MOVES[name, command]
        assert found.outcome == "accepted", found.reason
        assert found.detail == present(changed)
        assert (changed.deployment.champion, changed.deployment.challenger) == (champion, challenger)
        assert changed.deployment.percent == percent
        if stage is None:
            assert changed.request == state.request
        else:
            assert changed.request is not None
            assert changed.request.state == stage
        assert moved
    else:
        assert found.outcome == ("repeated" if (name, command) in REPEATS else "refused"), found.reason
        assert (found.detail["detail"] if found.outcome == "repeated" else found.detail) == present(state)
        assert found.reason
        assert (replace(changed, answers=()), moved) == (replace(state, answers=()), ())


@pytest.mark.parametrize("name", sorted(FINAL))
def test_a_final_request_is_never_moved_again(name: str):
    """A new request may take its place; the old one stays as it ended."""
    state = STATES[name]
    assert expire(state, now_ms=10**12, deadlines=DEADLINES) == (state, ())
    for command, (subject, payload) in COMMANDS.items():
        kind, verdict = command.split()[0], verdict_for(state)
        changed, _, moved = ask(state, kind, subject, command_id="new", verdict=verdict, **payload)
        assert changed.request is not None
        assert changed.request == state.request or changed.request.request_id == manual_request_id("new")
        assert not any(move.subject_kind == "request" and move.subject == "r1" for move in moved)


@pytest.mark.parametrize(
    ("name", "allowed_ms", "end"),
    [
        ("raised", 100, "expired"),
        ("accepted", 200, "failed"),
        ("training", 300, "failed"),
        ("validated", 400, "failed"),
        *((name, 500, "rolled_back") for name in CANARIES),
    ],
)
def test_every_state_that_is_not_final_ends_at_its_deadline_and_not_before(name: str, allowed_ms: int, end: str):
    state = STATES[name]
    assert expire(state, now_ms=allowed_ms - 1, deadlines=DEADLINES) == (state, ())
    changed, moved = expire(state, now_ms=allowed_ms, deadlines=DEADLINES)
    assert changed.request is not None
    assert (changed.request.state, changed.request.since_ms) == (end, allowed_ms)
    assert changed.request.history[-1].reason.endswith(": out of time")
    assert moved[0].actor == CLOCK_ACTOR
    assert (changed.deployment.challenger, changed.deployment.champion) == (None, "v1")
    if name in CANARIES:
        assert changed.rollout is not None
        assert changed.rollout.state == "rolled_back"
        assert [move.subject_kind for move in moved] == ["request", "rollout", "deployment"]
    assert not is_open(changed)


def test_the_deadlines_cover_every_state_a_request_can_be_in():
    open_states = {state.request.state for state in STATES.values() if is_open(state) and state.request}
    assert open_states | FINAL == set(get_args(RequestStage))


def test_a_model_without_a_request_has_no_deadline():
    assert expire(ModelState(), now_ms=10**12, deadlines=DEADLINES) == (ModelState(), ())


# Raising and publishing


def test_a_request_is_raised_once_and_not_beside_an_open_one():
    state = STATES["raised"]
    again = {"kind": "drift", "version": "v1", "now_ms": 5}
    assert raise_request(state, request_id="r2", **again) == (state, ())
    assert raise_request(STATES["failed"], request_id="r1", **again) == (STATES["failed"], ())
    changed, (move,) = raise_request(STATES["failed"], request_id="r2", **again)
    assert is_open(changed)
    assert (move.subject, move.state, move.previous) == ("r2", "raised", "")
    assert move.detail == {"kind": "drift", "version": "v1"}


def test_a_request_nobody_accepts_is_published_again_until_it_is():
    state = STATES["raised"]
    assert not republish_due(state, now_ms=9, deadlines=DEADLINES)
    assert republish_due(state, now_ms=10, deadlines=DEADLINES)
    state = published(state, 10)
    assert state.request is not None
    assert (state.request.attempt, state.request.published_at_ms, state.request.since_ms) == (2, 10, 0)
    assert not republish_due(state, now_ms=19, deadlines=DEADLINES)
    assert not republish_due(STATES["accepted"], now_ms=10**6, deadlines=DEADLINES)
    assert not republish_due(ModelState(), now_ms=10**6, deadlines=DEADLINES)


@pytest.mark.parametrize("name", ["none", "accepted", "failed"])
def test_only_a_raised_request_can_be_published_again(name: str):
    with pytest.raises(ValueError, match="request: none is raised"):
        published(STATES[name], 5)


def test_a_persons_request_has_the_id_of_its_command_and_the_champions_version():
    state, _, (move,) = ask(fresh(), "request", "m", command_id="abc", reason="new prices", actor="ada")
    assert state.request is not None
    assert (state.request.request_id, state.request.kind) == (manual_request_id("abc"), "manual")
    assert state.request.version == "v1"
    assert (move.actor, move.reason) == ("ada", "new prices")
    assert manual_request_id("abc") == manual_request_id("abc") != manual_request_id("abd")
    nobody, _, _ = ask(ModelState(), "request", "m")
    assert nobody.request is not None
    assert nobody.request.version == "_"


def test_a_persons_request_is_not_raised_twice_even_when_its_answer_is_long_forgotten():
    state, _, _ = ask(fresh(), "request", "m", command_id="abc")
    for each in (state, expire(state, now_ms=100, deadlines=DEADLINES)[0]):
        changed, found, moved = ask(replace(each, answers=()), "request", "m", command_id="abc")
        assert (found.outcome, moved) == ("repeated", ())
        assert changed.request == each.request


# Runs and candidates


@pytest.mark.parametrize("command", ["accept", "train", "validate", "reject", "fail"])
@pytest.mark.parametrize("name", ["accepted", "training", "validated"])
def test_a_run_that_was_not_the_accepted_one_moves_nothing(name: str, command: str):
    payload = {**COMMANDS[command][1], "run_id": "another"}
    changed, found, _ = ask(STATES[name], command, "r1", **payload)
    assert found.outcome == "refused"
    assert found.reason == "run_id: got 'another', the request is bound to 'run'"
    assert changed.request == STATES[name].request


@pytest.mark.parametrize("command", ["accept", "train", "validate", "reject", "fail"])
@pytest.mark.parametrize("name", ["none", "training"])
def test_a_command_about_another_request_is_refused(name: str, command: str):
    found = ask(STATES[name], command, "r0", **COMMANDS[command][1])[1]
    assert found.outcome == "refused"
    assert found.reason == (
        "there is no request" if name == "none" else "subject: got 'r0', the newest request is 'r1'"
    )


def test_a_second_candidate_does_not_take_the_place_of_the_validated_one():
    found = ask(STATES["validated"], "validate", version="v9")[1]
    assert (found.outcome, found.detail["candidate"]) == ("refused", "v2")


def test_evidence_stands_in_the_ledger():
    evidence = {"accuracy": 0.9}
    (move,) = ask(STATES["training"], "validate", version="v2", evidence=evidence)[2]
    assert move.detail == {"version": "v2", "evidence": evidence}
    (move,) = ask(STATES["training"], "reject", evidence=evidence, reason="no better")[2]
    assert (move.detail, move.reason) == ({"evidence": evidence}, "no better")


# The rollout


def test_a_rollout_starts_without_traffic_and_with_its_own_salt():
    state = STATES["canary -1"]
    assert (state.deployment.percent, state.deployment.step) == (0.0, -1)
    assert (state.deployment.rollout_id, state.deployment.salt) == (ROLLOUT, f"salt of {ROLLOUT}")
    assert present(state)["rollout_state"] == "active"


@pytest.mark.parametrize(
    ("state", "changes", "message"),
    [
        ("validated", {"challenger": "v3"}, "challenger: got 'v3', the request was validated with 'v2'"),
        ("validated", {"request_id": "r0"}, "request_id: got 'r0', the newest request is another"),
        ("validated", {"subject": "canary-r0"}, "subject: got 'canary-r0', wanted 'canary-r1'"),
        ("validated", {"has_reference": False}, "no reference profile of 'v2' is known"),
        ("validated", {"has_reference": lambda version: version == "v1"}, "no reference profile of 'v2' is known"),
        ("validated", {"steps": [5, 100]}, r"steps: got \[5, 100\], the model's configuration has \[10, 50, 100\]"),
        ("validated", {"steps": 5}, "steps: got 5"),
        ("validated", {"steps": ["many"]}, r"steps: got \['many'\]"),
        ("validated", {"challenger": ""}, "payload.challenger: got '', wanted a text"),
        ("validated", {"challenger": 7}, "payload.challenger: got 7, wanted a text"),
        ("training", {}, "the request is training, wanted validated"),
        ("none", {}, "request_id: got 'r1', the newest request is another"),
    ],
)
def test_a_rollout_that_would_compare_the_wrong_things_does_not_start(
    state: str, changes: dict[str, Any], message: str
):
    changed, found, moved = ask(STATES[state], "start_rollout", **{"subject": ROLLOUT, **START, **changes})
    assert found.outcome == "refused"
    assert re.search(message, found.reason), found.reason
    assert (changed.rollout, moved) == (STATES[state].rollout, ())


@pytest.mark.parametrize("steps", [[10, 50, 100], (10.0, 50.0, 100.0), None])
def test_a_rollout_may_say_the_steps_it_expects(steps: Any):
    accepted(STATES["validated"], "start_rollout", ROLLOUT, **START, steps=steps, has_reference=lambda v: v == "v2")


def test_a_rollout_needs_a_champion_that_is_not_the_challenger():
    alone = replace(STATES["validated"], deployment=ModelState().deployment)
    assert "no champion" in ask(alone, "start_rollout", ROLLOUT, **START)[1].reason
    same = accepted(STATES["validated"], "set_champion", "m", version="v2")
    assert "'v2' is the champion" in ask(same, "start_rollout", ROLLOUT, **START)[1].reason


@pytest.mark.parametrize("status", ["running", "fail", "inconclusive", "error"])
@pytest.mark.parametrize(("name", "command"), [("canary 0", "set_step 1"), ("canary 2", "promote")])
def test_only_a_pass_takes_the_challenger_further(name: str, command: str, status: str):
    state = STATES[name]
    subject, payload = COMMANDS[command]
    found = ask(state, command.split()[0], subject, verdict=verdict_for(state, status), **payload)[1]
    assert (found.outcome, found.reason) == ("refused", f"the verdict is {status}: because")


@pytest.mark.parametrize(("name", "command"), [("canary 1", "set_step 2"), ("canary 2", "promote")])
@pytest.mark.parametrize("stale", [{"step": 0}, {"epoch": 1}, None])
def test_a_verdict_of_another_step_or_epoch_or_none_takes_nobody_further(name: str, command: str, stale: Any):
    state = STATES[name]
    subject, payload = COMMANDS[command]
    verdict = None if stale is None else verdict_for(state, **stale)
    found = ask(state, command.split()[0], subject, verdict=verdict, **payload)[1]
    assert found.outcome == "refused"
    assert found.reason.startswith("there is no verdict yet" if stale is None else "the verdict is of step")


def test_the_first_step_needs_no_verdict_and_every_later_one_keeps_the_one_that_allowed_it():
    state = accepted(STATES["canary -1"], "set_step", ROLLOUT, step=0)
    allowed = verdict_for(state)
    state = accepted(state, "set_step", ROLLOUT, step=1, verdict=allowed)
    assert state.rollout is not None
    assert [(record.step, record.verdict) for record in state.rollout.history] == [(-1, None), (0, None), (1, allowed)]


@pytest.mark.parametrize("command", ["set_step 0", "promote", "rollback"])
@pytest.mark.parametrize("name", ["none", "canary 1", "promoted", "rolled_back"])
def test_a_command_about_another_rollout_is_refused(name: str, command: str):
    found = ask(STATES[name], command.split()[0], "canary-r0", verdict=verdict_for(STATES[name]), step=0)[1]
    newest = STATES[name].rollout
    assert found.outcome == "refused"
    assert found.reason == f"subject: got 'canary-r0', the newest rollout is {newest and newest.rollout_id!r}"


def test_promotion_gives_all_traffic_to_the_challenger_and_keeps_the_verdict():
    state = STATES["promoted"]
    assert state.rollout is not None
    assert (state.rollout.state, state.rollout.percent) == ("promoted", 0.0)
    assert state.rollout.history[-1].verdict == verdict_for(STATES["canary 2"])
    assert state.deployment == replace(
        fresh().deployment, champion="v2", epoch=STATES["canary 2"].deployment.epoch + 1, since_ms=0
    )


def test_a_failed_canary_takes_its_challenger_off_the_traffic():
    state, _, moved = ask(STATES["canary 1"], "fail", reason="disk full")
    assert state.rollout is not None
    assert (state.rollout.state, state.deployment.challenger) == ("rolled_back", None)
    assert [(move.subject_kind, move.state, move.previous) for move in moved] == [
        ("request", "failed", "canary"),
        ("rollout", "rolled_back", "active"),
        ("deployment", "serving", "canary"),
    ]
    assert {move.reason for move in moved[:2]} == {"disk full"}


@pytest.mark.parametrize("name", ["canary 1", "none"])
def test_a_forced_rollback_goes_on_from_the_epoch_redis_was_forced_to(name: str):
    state = STATES[name]
    changed, found, _ = ask(state, "force_rollback", "m", epoch=1_000_000, expected_epoch=77)
    assert found.outcome == "accepted"
    assert (changed.deployment.epoch, changed.deployment.challenger) == (1_000_000, None)
    assert accepted(changed, "set_champion", "m", version="v5").deployment.epoch == 1_000_001


@pytest.mark.parametrize("epoch", [-5, 0, 1])
def test_a_forced_rollback_with_an_epoch_long_passed_still_rolls_back(epoch: int):
    state = STATES["canary 1"]
    assert accepted(state, "force_rollback", "m", epoch=epoch).deployment.epoch == state.deployment.epoch + 1
    assert ask(fresh(), "force_rollback", "m", epoch=epoch)[1].outcome == "repeated"


def test_under_a_plan_with_fewer_steps_a_rollout_can_only_be_rolled_back():
    state, shorter = STATES["canary 2"], CanaryPlan(steps=(10,))
    rest: dict[str, Any] = {"now_ms": 0, "plan": shorter, "has_reference": True, "salt": ""}
    for kind, payload in (("set_step", {"step": 3}), ("promote", {})):
        wish = Wish(kind, kind, ROLLOUT, payload)
        assert answer(state, wish, verdict=verdict_for(state), **rest)[1].outcome == "refused"
    assert answer(state, Wish("b", "rollback", ROLLOUT), verdict=None, **rest)[1].outcome == "accepted"


# The model


def test_a_fault_stands_with_its_first_reason_until_it_is_cleared():
    state, (move,) = fault(fresh(), reason="ValueError: x")
    assert (move.subject_kind, move.state, move.reason) == ("model", "faulted", "ValueError: x")
    assert fault(state, reason="another") == (state, ())
    assert present(state)["faulted"] == "ValueError: x"
    state, _, (move,) = ask(state, "clear_fault", "m")
    assert (state.faulted, move.state, move.previous, move.reason) == (None, "healthy", "faulted", "ValueError: x")


def test_a_person_allows_retraining_until_a_time_and_may_change_it():
    state, _, (move,) = ask(fresh(), "allow", "m", until_ms=50)
    assert (state.allow_until_ms, move.previous, move.detail) == (50, "", {"until_ms": 50})
    assert ask(state, "allow", "m", until_ms=50)[1].outcome == "repeated"
    state, _, (move,) = ask(state, "allow", "m", until_ms=0, now_ms=10)
    assert (state.allow_until_ms, move.previous) == (0, "allowed")


def test_there_is_one_champion_and_no_change_of_it_under_a_rollout():
    found = ask(STATES["canary 0"], "set_champion", "m", version="v9")[1]
    assert (found.outcome, found.reason) == ("refused", "a rollout is active; roll it back or promote it first")


@pytest.mark.parametrize("kind", ["set_champion", "accept", "fail", "set_step", "allow", "force_rollback", "rollback"])
def test_a_command_that_expects_another_epoch_is_refused_except_the_emergency_exit(kind: str):
    state = STATES["canary 0"]
    found = ask(state, kind, ROLLOUT, expected_epoch=99, epoch=5)[1]
    if kind == "force_rollback":
        assert found.outcome == "accepted"
    else:
        assert found.reason == f"expected_epoch: got 99, the deployment is at {state.deployment.epoch}"
        assert found.detail["epoch"] == state.deployment.epoch


def test_an_unknown_kind_is_refused_by_name():
    found = ask(fresh(), "destroy", "m")[1]
    assert found.outcome == "refused"
    assert found.reason.startswith("kind: got 'destroy', wanted one of ['accept',")


@pytest.mark.parametrize(
    ("kind", "payload", "message"),
    [
        ("set_champion", {}, "payload.version: got None, wanted a text"),
        ("set_champion", {"version": 3}, "payload.version: got 3, wanted a text"),
        ("allow", {}, "payload.until_ms: got None, wanted a whole number"),
        ("allow", {"until_ms": 1.5}, "payload.until_ms: got 1.5, wanted a whole number"),
        ("allow", {"until_ms": True}, "payload.until_ms: got True, wanted a whole number"),
        ("allow", {"until_ms": 2**70}, f"payload.until_ms: got {2**70}, wanted a whole number"),
        ("force_rollback", {"epoch": "high"}, "payload.epoch: got 'high', wanted a whole number"),
        ("force_rollback", {"epoch": 2**53}, f"payload.epoch: got {2**53}, wanted a whole number"),
        ("request", {"reason": 5}, "payload.reason: got 5, wanted a text"),
    ],
)
def test_a_payload_of_the_wrong_type_is_refused_by_field(kind: str, payload: dict[str, Any], message: str):
    changed, found, moved = ask(fresh(), kind, "m", **payload)
    assert (found.outcome, moved) == ("refused", ())
    assert found.reason.startswith(message)
    assert replace(changed, answers=()) == replace(fresh(), answers=())


# Answers


def test_a_tick_only_lets_time_pass():
    state = STATES["training"]
    assert ask(state, "tick", "", command_id="t") == (state, Answer("t", "accepted"), ())


@pytest.mark.parametrize("name", STATES)
def test_the_same_command_id_gets_the_same_answer_and_moves_nothing(name: str):
    state = STATES[name]
    for command, (subject, payload) in COMMANDS.items():
        kind, verdict = command.split()[0], verdict_for(state)
        changed, first, _ = ask(state, kind, subject, command_id="same", verdict=verdict, **payload)
        standing = first.detail if first.outcome == "repeated" else vars(first)
        for _ in range(2):
            again, second, moved = ask(changed, kind, subject, command_id="same", verdict=verdict, **payload)
            assert (again, moved) == (changed, ())
            assert (second.outcome, second.reason) == ("repeated", first.reason)
            assert second.detail == {key: standing[key] for key in ("outcome", "reason", "detail")}


def test_answers_are_kept_for_the_newest_commands_only():
    state = fresh()
    for number in range(KEPT_ANSWERS + 10):
        state, _, _ = ask(state, "clear_fault", "m", command_id=f"k{number}")
    assert [each.command_id for each in state.answers] == [f"k{number}" for number in range(10, KEPT_ANSWERS + 10)]


# Any sequence

identifiers = st.sampled_from(["r1", ROLLOUT, "m", "nonsense"])
junk = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
)
fields = ("run_id", "version", "request_id", "challenger", "step", "epoch", "until_ms", "reason", "steps", "evidence")
noise = st.builds(
    Wish,
    command_id=st.sampled_from([f"n{number}" for number in range(50)]),
    kind=st.sampled_from([*{command.split()[0] for command in COMMANDS}, "tick", "nonsense"]),
    subject=identifiers,
    payload=st.dictionaries(st.sampled_from(fields), junk, max_size=3),
    actor=st.just("noise"),
    expected_epoch=st.none() | st.integers(0, 5),
)
course = st.builds(
    lambda command, number: (command, f"s{number}"), st.sampled_from(sorted(COMMANDS)), st.integers(0, 60)
)
events = st.one_of(
    course,
    course,
    noise,
    st.sampled_from(["raise", "wait", "fault", "publish"]),
    # The right next command, so that sequences reach the far end.
    st.just("next"),
    st.just("next"),
)
NEXT = {
    "raised": "accept",
    "accepted": "train",
    "training": "validate",
    "validated": "start_rollout",
    "canary": "set_step",
}


def stepped(state: ModelState, event: Any, now_ms: int, number: int) -> tuple[ModelState, tuple[Transition, ...]]:
    """Let one event happen: a command, the right next one, a raised request, a fault, a deadline."""
    if isinstance(event, Wish):
        wish = event
    elif isinstance(event, tuple):
        subject, payload = COMMANDS[event[0]]
        wish = Wish(event[1], event[0].split()[0], subject, payload)
    elif event == "wait":
        return expire(state, now_ms=now_ms + 10_000, deadlines=DEADLINES)
    elif event == "fault":
        return fault(state, reason="x")
    elif event == "publish":
        due = republish_due(state, now_ms=now_ms, deadlines=DEADLINES)
        return (published(state, now_ms) if due else state), ()
    elif event == "raise" or state.request is None or not is_open(state):
        # The commands of COMMANDS are about r1; a pane raises its request once, so later ones have other ids.
        request_id = "r1" if state.request is None else f"pane{number}"
        return raise_request(state, request_id=request_id, kind="drift", version="v1", now_ms=now_ms)
    else:
        request_id, step = state.request.request_id, state.deployment.step
        kind = "promote" if step == PLAN.last_step else NEXT[state.request.state]
        payload = {
            "run_id": state.request.run_id or "run",
            "version": f"c{number}",
            "request_id": request_id,
            "challenger": state.request.candidate or "",
            "step": step + 1,
        }
        subject = rollout_id_of(request_id) if kind in ("start_rollout", "set_step", "promote") else request_id
        wish = Wish(f"next{number}", kind, subject, payload)
        changed, found, moved = answer(
            state, wish, now_ms=now_ms, plan=PLAN, verdict=verdict_for(state), has_reference=True, salt="s"
        )
        assert found.outcome == "accepted" or state.deployment.champion in ("", state.request.candidate)
        return changed, moved
    changed, found, moved = answer(
        state, wish, now_ms=now_ms, plan=PLAN, verdict=verdict_for(state), has_reference=True, salt="s"
    )
    assert found.outcome == "accepted" or not moved
    return changed, moved


@settings(max_examples=150, deadline=None)
@given(st.lists(events, max_size=40), st.booleans())
def test_no_sequence_of_events_breaks_the_lifecycle(sequence: list[Any], deployed: bool):
    state = fresh() if deployed else ModelState()
    stages: dict[str, dict[str, str]] = {"request": {}, "rollout": {}}
    for number, event in enumerate(sequence):
        before = state
        state, moved = stepped(state, event, number, number)
        old, new = before.deployment, state.deployment

        # The epoch only grows, and grows whenever anything about the deployment changes.
        assert new.epoch >= old.epoch
        assert (new.epoch > old.epoch) == (new != old) == any(move.subject_kind == "deployment" for move in moved)

        # A share only rises while its rollout lasts, and is 0 outside one.
        if new.rollout_id is not None and new.rollout_id == old.rollout_id:
            assert (new.percent, new.step) >= (old.percent, old.step)
        assert new.percent == PLAN.percent_at(new.step)

        # A challenger, an active rollout and a request in its canary are one thing.
        active = state.rollout is not None and state.rollout.state == "active"
        in_canary = state.request is not None and state.request.state == "canary"
        assert active == in_canary == (new.challenger is not None) == (new.rollout_id is not None)
        if active and state.rollout is not None:
            assert (new.rollout_id, new.step) == (state.rollout.rollout_id, state.rollout.step)
            assert state.rollout.request_id == (state.request and state.request.request_id)
            assert new.champion not in ("", new.challenger)
            rolled, found, _ = ask(state, "rollback", state.rollout.rollout_id, command_id="way out")
            assert (found.outcome, rolled.deployment.champion) == ("accepted", new.champion)
            assert rolled.deployment.challenger is None

        # An open request is never replaced, and only a promotion or a person changes the champion.
        if is_open(before) and before.request is not None:
            assert state.request is not None
            assert state.request.request_id == before.request.request_id
        if new.champion != old.champion and old.champion and new.champion not in ("v1", "v3"):
            assert state.rollout is not None
            assert (state.rollout.state, new.champion) == ("promoted", old.challenger) or isinstance(event, Wish)

        # The ledger alone tells where every request and rollout stands.
        for move in moved:
            if move.subject_kind in stages:
                assert stages[move.subject_kind].get(move.subject, "") == move.previous
                assert move.previous not in FINAL
                stages[move.subject_kind][move.subject] = move.state
        for kind, known, name in (("request", state.request, "request_id"), ("rollout", state.rollout, "rollout_id")):
            if known is not None:
                assert stages[kind][getattr(known, name)] == known.state == known.history[-1].state
        assert len(state.answers) <= KEPT_ANSWERS


@settings(max_examples=60, deadline=None)
@given(st.lists(noise, max_size=12))
def test_sending_every_command_of_a_log_twice_comes_to_the_same(wishes: list[Wish]):
    rest: dict[str, Any] = {"now_ms": 0, "plan": PLAN, "verdict": None, "has_reference": True, "salt": "s"}
    once = twice = STATES["validated"]
    for wish in wishes:
        once, _, moved = answer(once, wish, **rest)
        twice, _, moved_first = answer(twice, wish, **rest)
        twice, repeated, moved_again = answer(twice, wish, **rest)
        assert (moved_first, moved_again) == (moved, ())
        assert repeated.outcome == "repeated" or wish.kind == "tick"
    assert once == twice


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(STATES)), noise)
def test_no_payload_however_odd_is_an_error(name: str, wish: Wish):
    state = STATES[name]
    after, told, moved = answer(
        state, wish, now_ms=0, plan=PLAN, verdict=verdict_for(state), has_reference=True, salt="s"
    )
    assert told.command_id == wish.command_id
    if told.outcome != "accepted":
        assert told.reason
        assert (replace(after, answers=state.answers), moved) == (state, ())


@pytest.mark.parametrize("name", STATES)
def test_a_dag_that_always_sends_the_right_command_gets_from_any_open_state_to_promotion(name: str):
    state = STATES[name]
    for number in range(10):
        if not is_open(state):
            break
        state, _ = stepped(state, "next", 0, number)
    assert state.request is None or state.request.state in ("promoted", name)
