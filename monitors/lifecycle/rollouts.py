"""The rules of a deployment and its rollout: one step after the other, each on a verdict that still stands."""

from __future__ import annotations

from dataclasses import replace

from monitors.canary import CanaryVerdict
from monitors.lifecycle.moves import (
    active_rollout,
    deploy,
    end_request,
    end_rollout,
    move,
    must_be_in,
    named_rollout,
    newest_request,
)
from monitors.lifecycle.states import Changed, ModelState, RolloutRecord, RolloutState, Transition, rollout_id_of
from monitors.lifecycle.wishes import Context, RefusedError, RepeatedError, Wish, integer_of, text_of


def set_champion(state: ModelState, wish: Wish, context: Context) -> Changed:
    """Let a version serve everybody; not while a rollout is active."""
    version = text_of(wish, "version")
    if active_rollout(state) is not None:
        raise RefusedError("a rollout is active; roll it back or promote it first")
    if state.deployment.champion == version:
        raise RepeatedError(f"{version} is the champion")
    return deploy(state, replace(state.deployment, champion=version), wish.actor, context.now_ms)


def start_rollout(state: ModelState, wish: Wish, context: Context) -> Changed:
    """Begin the request's rollout, at no traffic yet."""
    request, now_ms = state.request, context.now_ms
    request_id, challenger = text_of(wish, "request_id"), text_of(wish, "challenger")
    if request is None or request.request_id != request_id:
        raise RefusedError(f"request_id: got {request_id!r}, the newest request is another")
    if wish.subject != rollout_id_of(request_id):
        raise RefusedError(f"subject: got {wish.subject!r}, wanted {rollout_id_of(request_id)!r}")
    running = active_rollout(state)
    if running is not None and running.rollout_id == wish.subject and state.deployment.challenger == challenger:
        raise RepeatedError("the rollout is active")
    must_be_in(request, "validated")
    _deployable(state, wish, context, challenger)
    rollout = RolloutState(wish.subject, request_id, "active", -1, 0.0, now_ms)
    rollout = replace(rollout, history=(RolloutRecord("active", -1, 0.0, now_ms, wish.actor),))
    deployment = replace(
        state.deployment, challenger=challenger, percent=0.0, step=-1, rollout_id=wish.subject, salt=context.salt
    )
    state, moved = move(state, request, "canary", wish, context)
    state, deployed = deploy(replace(state, rollout=rollout), deployment, wish.actor, now_ms)
    started = Transition("rollout", wish.subject, "active", "", wish.actor, detail={"challenger": challenger})
    return state, (*moved, started, *deployed)


def set_step(state: ModelState, wish: Wish, context: Context) -> Changed:
    """Go up one step of the ramp, if the present one has passed."""
    rollout, step, plan = named_rollout(state, wish), integer_of(wish, "step"), context.plan
    if step == rollout.step and step >= 0:
        raise RepeatedError(f"the rollout is at step {step}")
    if step != rollout.step + 1 or step > plan.last_step:
        raise RefusedError(
            f"step: got {step}, the rollout is at {rollout.step} of {plan.last_step}; steps go one by one"
        )
    verdict = _passed(state, context) if rollout.step >= 0 else None
    percent = plan.percent_at(step)
    record = RolloutRecord("active", step, percent, context.now_ms, wish.actor, verdict=verdict)
    rollout = replace(rollout, step=step, percent=percent, since_ms=context.now_ms, history=(*rollout.history, record))
    deployment = replace(state.deployment, step=step, percent=percent)
    state, deployed = deploy(replace(state, rollout=rollout), deployment, wish.actor, context.now_ms)
    detail = {"step": step, "percent": percent}
    return state, (Transition("rollout", rollout.rollout_id, "active", "active", wish.actor, detail=detail), *deployed)


def promote(state: ModelState, wish: Wish, context: Context) -> Changed:
    """Make the challenger the champion, if the last step has passed."""
    if state.rollout is not None and (state.rollout.rollout_id, state.rollout.state) == (wish.subject, "promoted"):
        raise RepeatedError("the rollout is promoted")
    rollout = named_rollout(state, wish)
    if rollout.step != context.plan.last_step:
        raise RefusedError(f"the rollout is at step {rollout.step}, the last is {context.plan.last_step}")
    verdict, challenger = _passed(state, context), state.deployment.challenger or ""
    state, ended = end_rollout(state, "promoted", challenger, context.now_ms, wish.actor, "", verdict)
    request = newest_request(state)
    state, moved = move(state, request, "promoted", wish, context)
    return state, (*moved, *ended)


def roll_back(state: ModelState, wish: Wish, context: Context) -> Changed:
    """End the rollout: all traffic to the champion."""
    if state.rollout is not None and (state.rollout.rollout_id, state.rollout.state) == (wish.subject, "rolled_back"):
        raise RepeatedError("the rollout is rolled back")
    named_rollout(state, wish)
    return end_request(state, "rolled_back", context.now_ms, wish.actor, text_of(wish, "reason", ""))


def force_rollback(state: ModelState, wish: Wish, context: Context) -> Changed:
    """Roll back whatever is active, and go on from an epoch above the one Redis was forced to."""
    given, now_ms = integer_of(wish, "epoch"), context.now_ms
    if active_rollout(state) is None:
        if given <= state.deployment.epoch:
            raise RepeatedError("no rollout is active")
        return deploy(state, state.deployment, wish.actor, now_ms, at_least=given)
    reason = text_of(wish, "reason", "forced")
    return end_request(state, "rolled_back", now_ms, wish.actor, reason, at_least=given)


def _deployable(state: ModelState, wish: Wish, context: Context, challenger: str) -> None:
    """Refuse a challenger that is not the request's, has no reference, or has nothing to be compared with."""
    candidate = newest_request(state).candidate
    if challenger != candidate:
        raise RefusedError(f"challenger: got {challenger!r}, the request was validated with {candidate!r}")
    if challenger == state.deployment.champion:
        raise RefusedError(f"challenger: {challenger!r} is the champion")
    if not state.deployment.champion:
        raise RefusedError("there is no champion to compare with; set one (set_champion)")
    known = context.has_reference(challenger) if callable(context.has_reference) else context.has_reference
    if not known:
        raise RefusedError(f"challenger: no reference profile of {challenger!r} is known; publish it first")
    steps = wish.payload.get("steps")
    if steps is not None and (not isinstance(steps, list | tuple) or list(steps) != list(context.plan.steps)):
        raise RefusedError(f"steps: got {steps}, the model's configuration has {list(context.plan.steps)}")


def _passed(state: ModelState, context: Context) -> CanaryVerdict:
    """Return the verdict if it says pass, of the deployment as it stands now."""
    verdict, deployment = context.verdict, state.deployment
    if verdict is None:
        raise RefusedError("there is no verdict yet")
    if (verdict.step, verdict.epoch) != (deployment.step, deployment.epoch):
        raise RefusedError(
            f"the verdict is of step {verdict.step} at epoch {verdict.epoch}, "
            f"the deployment is at step {deployment.step}, epoch {deployment.epoch}"
        )
    if verdict.status != "pass":
        raise RefusedError(f"the verdict is {verdict.status}: {verdict.reason}")
    return verdict
