"""The changes of state all rules are made of, each with its transitions for the ledger; and what a rule may demand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from monitors.canary import CanaryVerdict
from monitors.lifecycle.states import (
    Changed,
    DeploymentState,
    ModelState,
    RequestKind,
    RequestRecord,
    RequestStage,
    RequestState,
    RolloutRecord,
    RolloutStage,
    RolloutState,
    Transition,
)
from monitors.lifecycle.wishes import Context, RefusedError, Wish, text_of


def open_request(
    state: ModelState, request_id: str, kind: RequestKind, version: str, now_ms: int, actor: str, reason: str
) -> Changed:
    """Put a new request in the place of the last, ended one."""
    history = (RequestRecord("raised", now_ms, actor, reason),)
    request = RequestState(request_id, kind, version, "raised", now_ms, now_ms, published_at_ms=now_ms, history=history)
    detail = {"kind": kind, "version": version}
    return replace(state, request=request), (Transition("request", request_id, "raised", "", actor, reason, detail),)


def move(
    state: ModelState,
    request: RequestState,
    to: RequestStage,
    wish: Wish,
    context: Context,
    detail: dict[str, Any] | None = None,
) -> Changed:
    """Take the request to another state, as a wish asks."""
    return move_request(state, request, to, context.now_ms, wish.actor, text_of(wish, "reason", ""), detail)


def move_request(
    state: ModelState,
    request: RequestState,
    to: RequestStage,
    now_ms: int,
    actor: str,
    reason: str,
    detail: dict[str, Any] | None = None,
) -> Changed:
    """Take the request to another state and write its history."""
    history = (*request.history, RequestRecord(to, now_ms, actor, reason))
    transition = Transition("request", request.request_id, to, request.state, actor, reason, detail or {})
    moved = replace(request, state=to, since_ms=now_ms, history=history)
    return replace(state, request=moved), (transition,)


def end_request(
    state: ModelState, to: RequestStage, now_ms: int, actor: str, reason: str, at_least: int = 0
) -> Changed:
    """End the open request without a promotion, and with it its rollout where one is active."""
    state, moved = move_request(state, newest_request(state), to, now_ms, actor, reason)
    if active_rollout(state) is None:
        return state, moved
    champion = state.deployment.champion
    state, ended = end_rollout(state, "rolled_back", champion, now_ms, actor, reason, None, at_least)
    return state, (*moved, *ended)


def end_rollout(
    state: ModelState,
    to: RolloutStage,
    champion: str,
    now_ms: int,
    actor: str,
    reason: str,
    verdict: CanaryVerdict | None,
    at_least: int = 0,
) -> Changed:
    """End the active rollout: all traffic to `champion`, no challenger."""
    rollout = state.rollout
    if rollout is None:
        raise ValueError("rollout: none, wanted the active one")
    record = RolloutRecord(to, rollout.step, 0.0, now_ms, actor, reason, verdict)
    ended = replace(rollout, state=to, percent=0.0, since_ms=now_ms, history=(*rollout.history, record))
    deployment = replace(
        state.deployment, champion=champion, challenger=None, percent=0.0, step=-1, rollout_id=None, salt=""
    )
    state, deployed = deploy(replace(state, rollout=ended), deployment, actor, now_ms, at_least=at_least)
    return state, (Transition("rollout", rollout.rollout_id, to, rollout.state, actor, reason), *deployed)


def deploy(state: ModelState, to: DeploymentState, actor: str, now_ms: int, at_least: int = 0) -> Changed:
    """Put a deployment in force, at the next epoch."""
    epoch = max(state.deployment.epoch + 1, at_least)
    deployment = replace(to, epoch=epoch, since_ms=now_ms)
    was, now = ("canary" if each.challenger else "serving" for each in (state.deployment, deployment))
    names = ("epoch", "champion", "challenger", "percent", "step")
    detail = {name: getattr(deployment, name) for name in names}
    return replace(state, deployment=deployment), (Transition("deployment", "", now, was, actor, detail=detail),)


def newest_request(state: ModelState) -> RequestState:
    """Return the newest request, which must be."""
    if state.request is None:
        raise RefusedError("there is no request")
    return state.request


def named_request(state: ModelState, wish: Wish) -> RequestState:
    """Return the request the wish is about."""
    request = newest_request(state)
    if request.request_id != wish.subject:
        raise RefusedError(f"subject: got {wish.subject!r}, the newest request is {request.request_id!r}")
    return request


def active_rollout(state: ModelState) -> RolloutState | None:
    """Return the active rollout, if any."""
    return state.rollout if state.rollout is not None and state.rollout.state == "active" else None


def named_rollout(state: ModelState, wish: Wish) -> RolloutState:
    """Return the active rollout, which must be the one the wish is about."""
    if state.rollout is None or state.rollout.rollout_id != wish.subject:
        newest = None if state.rollout is None else state.rollout.rollout_id
        raise RefusedError(f"subject: got {wish.subject!r}, the newest rollout is {newest!r}")
    if state.rollout.state != "active":
        raise RefusedError(f"the rollout is {state.rollout.state}")
    return state.rollout


def must_be_in(request: RequestState, *wanted: RequestStage) -> None:
    """Refuse when the request is in none of the states wanted."""
    if request.state not in wanted:
        raise RefusedError(f"the request is {request.state}, wanted {' or '.join(wanted)}")


def must_be_run(request: RequestState, run_id: object) -> None:
    """Refuse a run that is not the one that was accepted."""
    if request.run_id != run_id:
        raise RefusedError(f"run_id: got {run_id!r}, the request is bound to {request.run_id!r}")
