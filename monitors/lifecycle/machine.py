"""The state machine of one model: wishes are answered, requests raised, and what takes too long is ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from monitors.canary import CanaryVerdict
from monitors.comparison import CanaryPlan
from monitors.lifecycle import requests, rollouts
from monitors.lifecycle.moves import end_request, open_request
from monitors.lifecycle.states import (
    FINAL,
    Answer,
    Changed,
    Deadlines,
    ModelState,
    RequestKind,
    RequestStage,
    Transition,
    is_open,
    present,
)
from monitors.lifecycle.wishes import Context, RefusedError, RepeatedError, Wish, integer_of

# How many answers are kept to be repeated; a sender sends again within minutes, not hundreds of commands later.
KEPT_ANSWERS = 200
# A reason may quote what was wished.
_MAX_REASON = 500
CLOCK_ACTOR = "driftloop"


def answer(
    state: ModelState,
    wish: Wish,
    *,
    now_ms: int,
    plan: CanaryPlan,
    verdict: CanaryVerdict | None,
    has_reference: bool | Callable[[str], bool],
    salt: str,
) -> tuple[ModelState, Answer, tuple[Transition, ...]]:
    """Judge a wish against the state.

    Parameters
    ----------
    now_ms : the record time the wish is answered at.
    plan : the ramp and its percentages. verdict : the newest of the active rollout, if any.
    has_reference : whether the challenger's reference profile is known, or a function of its version.
    salt : what a rollout that starts now hashes its entities with.

    Returns
    -------
    The next state (the answer stored in it), the answer, and the transitions made; a refused or repeated
    wish makes none. A `tick` is accepted, changes nothing and is not stored.
    """
    if wish.kind == "tick":
        return state, Answer(wish.command_id, "accepted"), ()
    for first in state.answers:
        if first.command_id == wish.command_id:
            return state, Answer(wish.command_id, "repeated", first.reason, _standing(first)), ()
    context = Context(now_ms, plan, verdict, has_reference, salt)
    transitions: tuple[Transition, ...] = ()
    try:
        changed, transitions = _handle(state, wish, context)
        given = Answer(wish.command_id, "accepted", detail=present(changed))
    except RefusedError as refusal:
        changed, given = state, Answer(wish.command_id, "refused", str(refusal)[:_MAX_REASON], present(state))
    except RepeatedError as repeat:
        standing = {"outcome": "accepted", "reason": str(repeat), "detail": present(state)}
        changed, given = state, Answer(wish.command_id, "repeated", str(repeat), standing)
    return replace(changed, answers=(*changed.answers, given)[-KEPT_ANSWERS:]), given, transitions


def raise_request(state: ModelState, *, request_id: str, kind: RequestKind, version: str, now_ms: int) -> Changed:
    """Open a request, published now; while one is open, or if this one was raised before, nothing changes."""
    if is_open(state) or (state.request is not None and state.request.request_id == request_id):
        return state, ()
    return open_request(state, request_id, kind, version, now_ms, CLOCK_ACTOR, "")


def republish_due(state: ModelState, *, now_ms: int, deadlines: Deadlines) -> bool:
    """Return whether the raised request has waited long enough for `accept` to be published again."""
    request = state.request
    return (
        request is not None and request.state == "raised" and now_ms - request.published_at_ms >= deadlines.republish_ms
    )


def published(state: ModelState, now_ms: int) -> ModelState:
    """Return the state after the open request was published once more: the next attempt."""
    if state.request is None or state.request.state != "raised":
        raise ValueError("request: none is raised, wanted one to publish again; ask republish_due first")
    request = replace(state.request, attempt=state.request.attempt + 1, published_at_ms=now_ms)
    return replace(state, request=request)


def fault(state: ModelState, *, reason: str) -> Changed:
    """Mark the model faulted: its looks stop until `clear_fault`; the first reason stays."""
    if state.faulted is not None:
        return state, ()
    return replace(state, faulted=reason), (Transition("model", "", "faulted", "healthy", CLOCK_ACTOR, reason),)


def expire(state: ModelState, *, now_ms: int, deadlines: Deadlines) -> Changed:
    """End what has stood in its state for its whole deadline, so that a dead DAG blocks nothing.

    A raised request nobody accepted has expired; a canary that ran out is rolled back, its challenger
    off the traffic; accepted (not training by then), training (not validated) and validated (not handed
    over) have failed.
    """
    request = state.request
    if request is None or request.state in FINAL:
        return state, ()
    ends: dict[str, tuple[int, RequestStage]] = {
        "raised": (deadlines.accept_ms, "expired"),
        "accepted": (deadlines.train_ms, "failed"),
        "training": (deadlines.validate_ms, "failed"),
        "validated": (deadlines.hand_over_ms, "failed"),
        "canary": (deadlines.canary_ms, "rolled_back"),
    }
    allowed_ms, end = ends[request.state]
    if now_ms - request.since_ms < allowed_ms:
        return state, ()
    return end_request(
        state, end, now_ms, CLOCK_ACTOR, f"{request.state} for {timedelta(milliseconds=allowed_ms)}: out of time"
    )


def _standing(first: Answer) -> dict[str, Any]:
    """Return the content of the answer that stands behind a repeated command_id: never a repeat within a repeat."""
    if first.outcome == "repeated":
        return first.detail
    return {"outcome": first.outcome, "reason": first.reason, "detail": first.detail}


def _handle(state: ModelState, wish: Wish, context: Context) -> Changed:
    """Find the wish's rule and apply it."""
    rule = _RULES.get(wish.kind)
    if rule is None:
        raise RefusedError(f"kind: got {wish.kind!r}, wanted one of {sorted(_RULES)}")
    epoch = state.deployment.epoch
    # The emergency exit must not fail on an epoch that moved while somebody reached for it.
    if wish.kind != "force_rollback" and wish.expected_epoch is not None and wish.expected_epoch != epoch:
        raise RefusedError(f"expected_epoch: got {wish.expected_epoch}, the deployment is at {epoch}")
    return rule(state, wish, context)


def _allow(state: ModelState, wish: Wish, context: Context) -> Changed:
    until_ms = integer_of(wish, "until_ms")
    if state.allow_until_ms == until_ms:
        raise RepeatedError(f"allowed until {until_ms}")
    previous = "allowed" if (state.allow_until_ms or 0) > context.now_ms else ""
    transition = Transition("model", "", "allowed", previous, wish.actor, detail={"until_ms": until_ms})
    return replace(state, allow_until_ms=until_ms), (transition,)


def _clear_fault(state: ModelState, wish: Wish, context: Context) -> Changed:
    if state.faulted is None:
        raise RepeatedError("the model is healthy")
    return replace(state, faulted=None), (Transition("model", "", "healthy", "faulted", wish.actor, state.faulted),)


_RULES: dict[str, Callable[[ModelState, Wish, Context], Changed]] = {
    "set_champion": rollouts.set_champion,
    "request": requests.request,
    "allow": _allow,
    "clear_fault": _clear_fault,
    "accept": requests.accept,
    "train": requests.train,
    "validate": requests.validate,
    "reject": requests.reject,
    "fail": requests.fail,
    "start_rollout": rollouts.start_rollout,
    "set_step": rollouts.set_step,
    "promote": rollouts.promote,
    "rollback": rollouts.roll_back,
    "force_rollback": rollouts.force_rollback,
}
