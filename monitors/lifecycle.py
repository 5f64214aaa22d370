"""The request and rollout of one model as pure state machines: a state and a wish in, a state and an answer out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Literal

from monitors.canary import CanaryPlan, CanaryVerdict

RequestKind = Literal["drift", "performance", "manual"]
RequestStage = Literal[
    "raised",
    "accepted",
    "training",
    "validated",
    "rejected",
    "canary",
    "promoted",
    "rolled_back",
    "failed",
    "expired",
]
RolloutStage = Literal["active", "promoted", "rolled_back"]
FINAL: frozenset[str] = frozenset({"rejected", "promoted", "rolled_back", "failed", "expired"})
# How many answers are kept to be repeated; a sender sends again within minutes, not hundreds of commands later.
KEPT_ANSWERS = 200
CLOCK_ACTOR = "driftloop"
# Leaves room above the largest epoch that can be forced: all that follow stay exact as doubles too.
MAX_INTEGER = 2**52


@dataclass(frozen=True)
class Wish:
    """A command as the state machine sees it; `subject` is a request or rollout id, or the model's name."""

    command_id: str
    kind: str
    subject: str = ""
    payload: dict[str, Any] = field(default_factory=dict)
    actor: str = ""
    expected_epoch: int | None = None


@dataclass(frozen=True)
class DeploymentState:
    """Who serves what share; `champion` is "" before the first. The challenger is None when no rollout is active."""

    epoch: int = 0
    champion: str = ""
    challenger: str | None = None
    percent: float = 0.0
    step: int = -1
    since_ms: int = 0
    rollout_id: str | None = None
    salt: str = ""


@dataclass(frozen=True)
class RequestRecord:
    """One line of a request's history."""

    state: RequestStage
    at_ms: int
    actor: str = ""
    reason: str = ""


@dataclass(frozen=True)
class RequestState:
    """A retraining request. `version` is the one it was raised about, `candidate` the one it brought forth."""

    request_id: str
    kind: RequestKind
    version: str
    state: RequestStage
    since_ms: int
    raised_at_ms: int
    run_id: str | None = None
    attempt: int = 1
    published_at_ms: int = 0
    history: tuple[RequestRecord, ...] = ()
    candidate: str | None = None


@dataclass(frozen=True)
class RolloutRecord:
    """One line of a rollout's history; `verdict` is the one that allowed it, where one was needed."""

    state: RolloutStage
    step: int
    percent: float
    at_ms: int
    actor: str = ""
    reason: str = ""
    verdict: CanaryVerdict | None = None


@dataclass(frozen=True)
class RolloutState:
    """A challenger on its way up the ramp; step −1 is before the first. `since_ms`: when the step began."""

    rollout_id: str
    request_id: str
    state: RolloutStage
    step: int
    percent: float
    since_ms: int
    history: tuple[RolloutRecord, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What became of a wish; `detail` holds the state it met or made (see `present`).

    With outcome "repeated", `detail` is {"outcome", "reason", "detail"} of the answer that stands: the
    first one to this command_id, or "accepted" where another command had done the same before.
    """

    command_id: str
    outcome: Literal["accepted", "refused", "repeated"]
    reason: str = ""
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Transition:
    """A change of state, for the ledger; `subject` is "" for the model and its deployment."""

    subject_kind: Literal["request", "rollout", "model", "deployment"]
    subject: str
    state: str
    previous: str
    actor: str
    reason: str = ""
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelState:
    """All of a model's lifecycle: who serves, its newest request and rollout, its fault, the answers given."""

    deployment: DeploymentState = DeploymentState()
    request: RequestState | None = None
    rollout: RolloutState | None = None
    faulted: str | None = None
    allow_until_ms: int | None = None
    answers: tuple[Answer, ...] = ()


@dataclass(frozen=True)
class Deadlines:
    """How long a request waits for the command that takes it on, in ms; `republish_ms` between its copies."""

    republish_ms: int
    accept_ms: int
    train_ms: int
    validate_ms: int
    hand_over_ms: int
    canary_ms: int


Changed = tuple[ModelState, tuple[Transition, ...]]


class _RefusedError(Exception):
    """The wish is not valid in this state."""


class _RepeatedError(Exception):
    """What the wish wants is already so."""


@dataclass(frozen=True)
class _Context:
    """What a wish is judged with beside the state."""

    now_ms: int
    plan: CanaryPlan
    verdict: CanaryVerdict | None
    has_reference: bool | Callable[[str], bool]
    salt: str


def is_open(state: ModelState) -> bool:
    """Return whether a request is on its way: at most one is, per model."""
    return state.request is not None and state.request.state not in FINAL


def rollout_id_of(request_id: str) -> str:
    """Return the id of a request's rollout."""
    return f"canary-{request_id}"


def manual_request_id(command_id: str) -> str:
    """Return the id of the request a command asks for: the same for the same command."""
    return f"manual-{blake2b(command_id.encode(), digest_size=8).hexdigest()}"


def present(state: ModelState) -> dict[str, Any]:
    """Return where everything stands, as the detail of an answer."""
    deployment, request, rollout = state.deployment, state.request, state.rollout
    return {
        "epoch": deployment.epoch,
        "champion": deployment.champion,
        "challenger": deployment.challenger,
        "percent": deployment.percent,
        "step": deployment.step,
        "request_id": request.request_id if request else None,
        "request_state": request.state if request else None,
        "run_id": request.run_id if request else None,
        "candidate": request.candidate if request else None,
        "rollout_id": rollout.rollout_id if rollout else None,
        "rollout_state": rollout.state if rollout else None,
        "faulted": state.faulted,
        "allow_until_ms": state.allow_until_ms,
    }


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
    context = _Context(now_ms, plan, verdict, has_reference, salt)
    transitions: tuple[Transition, ...] = ()
    try:
        changed, transitions = _handle(state, wish, context)
        given = Answer(wish.command_id, "accepted", detail=present(changed))
    except _RefusedError as refusal:
        changed, given = state, Answer(wish.command_id, "refused", str(refusal), present(state))
    except _RepeatedError as repeat:
        standing = {"outcome": "accepted", "reason": str(repeat), "detail": present(state)}
        changed, given = state, Answer(wish.command_id, "repeated", str(repeat), standing)
    return replace(changed, answers=(*changed.answers, given)[-KEPT_ANSWERS:]), given, transitions


def raise_request(state: ModelState, *, request_id: str, kind: RequestKind, version: str, now_ms: int) -> Changed:
    """Open a request, published now; while one is open, or if this one was raised before, nothing changes."""
    if is_open(state) or (state.request is not None and state.request.request_id == request_id):
        return state, ()
    return _raised(state, request_id, kind, version, now_ms, CLOCK_ACTOR, "")


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
    return _ended(state, end, now_ms, CLOCK_ACTOR, f"{request.state} for {allowed_ms} ms: out of time")


def _standing(first: Answer) -> dict[str, Any]:
    """Return the content of the answer that stands behind a repeated command_id: never a repeat within a repeat."""
    if first.outcome == "repeated":
        return first.detail
    return {"outcome": first.outcome, "reason": first.reason, "detail": first.detail}


def _handle(state: ModelState, wish: Wish, context: _Context) -> Changed:
    """Find the wish's rule and apply it."""
    handler = _HANDLERS.get(wish.kind)
    if handler is None:
        raise _RefusedError(f"kind: got {wish.kind!r}, wanted one of {sorted(_HANDLERS)}")
    epoch = state.deployment.epoch
    # The emergency exit must not fail on an epoch that moved while somebody reached for it.
    if wish.kind != "force_rollback" and wish.expected_epoch is not None and wish.expected_epoch != epoch:
        raise _RefusedError(f"expected_epoch: got {wish.expected_epoch}, the deployment is at {epoch}")
    return handler(state, wish, context)


def _set_champion(state: ModelState, wish: Wish, context: _Context) -> Changed:
    version = _text(wish, "version")
    if _active(state) is not None:
        raise _RefusedError("a rollout is active; roll it back or promote it first")
    if state.deployment.champion == version:
        raise _RepeatedError(f"{version} is the champion")
    return _deploy(state, replace(state.deployment, champion=version), wish.actor, context.now_ms)


def _request(state: ModelState, wish: Wish, context: _Context) -> Changed:
    request_id, version = manual_request_id(wish.command_id), state.deployment.champion or "_"
    # Its answer may be forgotten; its id is not to be raised a second time, whoever has seen it takes it for done.
    if state.request is not None and state.request.request_id == request_id:
        raise _RepeatedError(f"the request was raised; it is {state.request.state}")
    if is_open(state):
        raise _RefusedError("a request is open; one at a time")
    return _raised(state, request_id, "manual", version, context.now_ms, wish.actor, _text(wish, "reason", ""))


def _allow(state: ModelState, wish: Wish, context: _Context) -> Changed:
    until_ms = _integer(wish, "until_ms")
    if state.allow_until_ms == until_ms:
        raise _RepeatedError(f"allowed until {until_ms}")
    previous = "allowed" if (state.allow_until_ms or 0) > context.now_ms else ""
    transition = Transition("model", "", "allowed", previous, wish.actor, detail={"until_ms": until_ms})
    return replace(state, allow_until_ms=until_ms), (transition,)


def _clear_fault(state: ModelState, wish: Wish, context: _Context) -> Changed:
    if state.faulted is None:
        raise _RepeatedError("the model is healthy")
    return replace(state, faulted=None), (Transition("model", "", "healthy", "faulted", wish.actor, state.faulted),)


def _accept(state: ModelState, wish: Wish, context: _Context) -> Changed:
    request, run_id = _named(state, wish), _text(wish, "run_id")
    if request.state == "raised":
        return _moved(state, replace(request, run_id=run_id), "accepted", wish, context)
    _same_run(request, run_id)
    if request.state in FINAL:
        raise _RefusedError(f"the request is {request.state}")
    raise _RepeatedError(f"accepted by {run_id}")


def _train(state: ModelState, wish: Wish, context: _Context) -> Changed:
    request = _named(state, wish)
    _same_run(request, _text(wish, "run_id"))
    if request.state == "training":
        raise _RepeatedError("the request is training")
    _in_state(request, "accepted")
    return _moved(state, request, "training", wish, context)


def _validate(state: ModelState, wish: Wish, context: _Context) -> Changed:
    request, version = _named(state, wish), _text(wish, "version")
    _same_run(request, wish.payload.get("run_id", request.run_id))
    if request.state == "validated" and request.candidate == version:
        raise _RepeatedError(f"validated with {version}")
    _in_state(request, "training")
    evidence = {"version": version, "evidence": wish.payload.get("evidence", {})}
    return _moved(state, replace(request, candidate=version), "validated", wish, context, evidence)


def _reject(state: ModelState, wish: Wish, context: _Context) -> Changed:
    request = _named(state, wish)
    _same_run(request, wish.payload.get("run_id", request.run_id))
    if request.state == "rejected":
        raise _RepeatedError("the request is rejected")
    _in_state(request, "accepted", "training")
    return _moved(state, request, "rejected", wish, context, {"evidence": wish.payload.get("evidence", {})})


def _fail(state: ModelState, wish: Wish, context: _Context) -> Changed:
    request = _named(state, wish)
    # A run that was never the accepted one must not end the request of the run that is.
    _same_run(request, wish.payload.get("run_id", request.run_id))
    if request.state == "failed":
        raise _RepeatedError("the request has failed")
    if request.state in FINAL:
        raise _RefusedError(f"the request is {request.state}")
    return _ended(state, "failed", context.now_ms, wish.actor, _text(wish, "reason", ""))


def _start_rollout(state: ModelState, wish: Wish, context: _Context) -> Changed:
    request, now_ms = state.request, context.now_ms
    request_id, challenger = _text(wish, "request_id"), _text(wish, "challenger")
    if request is None or request.request_id != request_id:
        raise _RefusedError(f"request_id: got {request_id!r}, the newest request is another")
    if wish.subject != rollout_id_of(request_id):
        raise _RefusedError(f"subject: got {wish.subject!r}, wanted {rollout_id_of(request_id)!r}")
    running = _active(state)
    if running is not None and running.rollout_id == wish.subject and state.deployment.challenger == challenger:
        raise _RepeatedError("the rollout is active")
    _in_state(request, "validated")
    _deployable(state, wish, context, challenger)
    rollout = RolloutState(wish.subject, request_id, "active", -1, 0.0, now_ms)
    rollout = replace(rollout, history=(RolloutRecord("active", -1, 0.0, now_ms, wish.actor),))
    deployment = replace(
        state.deployment, challenger=challenger, percent=0.0, step=-1, rollout_id=wish.subject, salt=context.salt
    )
    state, moved = _moved(state, request, "canary", wish, context)
    state, deployed = _deploy(replace(state, rollout=rollout), deployment, wish.actor, now_ms)
    started = Transition("rollout", wish.subject, "active", "", wish.actor, detail={"challenger": challenger})
    return state, (*moved, started, *deployed)


def _set_step(state: ModelState, wish: Wish, context: _Context) -> Changed:
    rollout, step, plan = _active_named(state, wish), _integer(wish, "step"), context.plan
    if step == rollout.step and step >= 0:
        raise _RepeatedError(f"the rollout is at step {step}")
    if step != rollout.step + 1 or step > plan.last_step:
        raise _RefusedError(
            f"step: got {step}, the rollout is at {rollout.step} of {plan.last_step}; steps go one by one"
        )
    verdict = _passed(state, context) if rollout.step >= 0 else None
    percent = plan.percent_at(step)
    record = RolloutRecord("active", step, percent, context.now_ms, wish.actor, verdict=verdict)
    rollout = replace(rollout, step=step, percent=percent, since_ms=context.now_ms, history=(*rollout.history, record))
    deployment = replace(state.deployment, step=step, percent=percent)
    state, deployed = _deploy(replace(state, rollout=rollout), deployment, wish.actor, context.now_ms)
    detail = {"step": step, "percent": percent}
    return state, (Transition("rollout", rollout.rollout_id, "active", "active", wish.actor, detail=detail), *deployed)


def _promote(state: ModelState, wish: Wish, context: _Context) -> Changed:
    if state.rollout is not None and (state.rollout.rollout_id, state.rollout.state) == (wish.subject, "promoted"):
        raise _RepeatedError("the rollout is promoted")
    rollout = _active_named(state, wish)
    if rollout.step != context.plan.last_step:
        raise _RefusedError(f"the rollout is at step {rollout.step}, the last is {context.plan.last_step}")
    verdict, challenger = _passed(state, context), state.deployment.challenger or ""
    state, ended = _rollout_ended(state, "promoted", challenger, context.now_ms, wish.actor, "", verdict)
    request = _newest(state)
    state, moved = _moved(state, request, "promoted", wish, context)
    return state, (*moved, *ended)


def _rollback(state: ModelState, wish: Wish, context: _Context) -> Changed:
    if state.rollout is not None and (state.rollout.rollout_id, state.rollout.state) == (wish.subject, "rolled_back"):
        raise _RepeatedError("the rollout is rolled back")
    _active_named(state, wish)
    return _ended(state, "rolled_back", context.now_ms, wish.actor, _text(wish, "reason", ""))


def _force_rollback(state: ModelState, wish: Wish, context: _Context) -> Changed:
    """Roll back whatever is active, and go on from an epoch above the one Redis was forced to."""
    given, now_ms = _integer(wish, "epoch"), context.now_ms
    if _active(state) is None:
        if given <= state.deployment.epoch:
            raise _RepeatedError("no rollout is active")
        return _deploy(state, state.deployment, wish.actor, now_ms, at_least=given)
    reason = _text(wish, "reason", "forced")
    return _ended(state, "rolled_back", now_ms, wish.actor, reason, at_least=given)


_HANDLERS: dict[str, Callable[[ModelState, Wish, _Context], Changed]] = {
    "set_champion": _set_champion,
    "request": _request,
    "allow": _allow,
    "clear_fault": _clear_fault,
    "accept": _accept,
    "train": _train,
    "validate": _validate,
    "reject": _reject,
    "fail": _fail,
    "start_rollout": _start_rollout,
    "set_step": _set_step,
    "promote": _promote,
    "rollback": _rollback,
    "force_rollback": _force_rollback,
}


def _raised(
    state: ModelState, request_id: str, kind: RequestKind, version: str, now_ms: int, actor: str, reason: str
) -> Changed:
    """Put a new request in the place of the last, ended one."""
    history = (RequestRecord("raised", now_ms, actor, reason),)
    request = RequestState(request_id, kind, version, "raised", now_ms, now_ms, published_at_ms=now_ms, history=history)
    detail = {"kind": kind, "version": version}
    return replace(state, request=request), (Transition("request", request_id, "raised", "", actor, reason, detail),)


def _moved(
    state: ModelState,
    request: RequestState,
    to: RequestStage,
    wish: Wish,
    context: _Context,
    detail: dict[str, Any] | None = None,
) -> Changed:
    """Take the request to another state, as a wish asks."""
    return _request_moved(state, request, to, context.now_ms, wish.actor, _text(wish, "reason", ""), detail)


def _request_moved(
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


def _ended(state: ModelState, to: RequestStage, now_ms: int, actor: str, reason: str, at_least: int = 0) -> Changed:
    """End the open request without a promotion, and with it its rollout where one is active."""
    state, moved = _request_moved(state, _newest(state), to, now_ms, actor, reason)
    if _active(state) is None:
        return state, moved
    champion = state.deployment.champion
    state, ended = _rollout_ended(state, "rolled_back", champion, now_ms, actor, reason, None, at_least)
    return state, (*moved, *ended)


def _rollout_ended(
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
    state, deployed = _deploy(replace(state, rollout=ended), deployment, actor, now_ms, at_least=at_least)
    return state, (Transition("rollout", rollout.rollout_id, to, rollout.state, actor, reason), *deployed)


def _deploy(state: ModelState, to: DeploymentState, actor: str, now_ms: int, at_least: int = 0) -> Changed:
    """Put a deployment in force, at the next epoch."""
    epoch = max(state.deployment.epoch + 1, at_least)
    deployment = replace(to, epoch=epoch, since_ms=now_ms)
    was, now = ("canary" if each.challenger else "serving" for each in (state.deployment, deployment))
    names = ("epoch", "champion", "challenger", "percent", "step")
    detail = {name: getattr(deployment, name) for name in names}
    return replace(state, deployment=deployment), (Transition("deployment", "", now, was, actor, detail=detail),)


def _newest(state: ModelState) -> RequestState:
    """Return the newest request, which must be."""
    if state.request is None:
        raise _RefusedError("there is no request")
    return state.request


def _named(state: ModelState, wish: Wish) -> RequestState:
    """Return the request the wish is about."""
    request = _newest(state)
    if request.request_id != wish.subject:
        raise _RefusedError(f"subject: got {wish.subject!r}, the newest request is {request.request_id!r}")
    return request


def _active(state: ModelState) -> RolloutState | None:
    """Return the active rollout, if any."""
    return state.rollout if state.rollout is not None and state.rollout.state == "active" else None


def _active_named(state: ModelState, wish: Wish) -> RolloutState:
    """Return the active rollout, which must be the one the wish is about."""
    if state.rollout is None or state.rollout.rollout_id != wish.subject:
        newest = None if state.rollout is None else state.rollout.rollout_id
        raise _RefusedError(f"subject: got {wish.subject!r}, the newest rollout is {newest!r}")
    if state.rollout.state != "active":
        raise _RefusedError(f"the rollout is {state.rollout.state}")
    return state.rollout


def _in_state(request: RequestState, *wanted: RequestStage) -> None:
    """Refuse when the request is in none of the states wanted."""
    if request.state not in wanted:
        raise _RefusedError(f"the request is {request.state}, wanted {' or '.join(wanted)}")


def _same_run(request: RequestState, run_id: object) -> None:
    """Refuse a run that is not the one that was accepted."""
    if request.run_id != run_id:
        raise _RefusedError(f"run_id: got {run_id!r}, the request is bound to {request.run_id!r}")


def _deployable(state: ModelState, wish: Wish, context: _Context, challenger: str) -> None:
    """Refuse a challenger that is not the request's, has no reference, or has nothing to be compared with."""
    candidate = _newest(state).candidate
    if challenger != candidate:
        raise _RefusedError(f"challenger: got {challenger!r}, the request was validated with {candidate!r}")
    if challenger == state.deployment.champion:
        raise _RefusedError(f"challenger: {challenger!r} is the champion")
    if not state.deployment.champion:
        raise _RefusedError("there is no champion to compare with; set one (set_champion)")
    known = context.has_reference(challenger) if callable(context.has_reference) else context.has_reference
    if not known:
        raise _RefusedError(f"challenger: no reference profile of {challenger!r} is known; publish it first")
    steps = wish.payload.get("steps")
    if steps is not None and (not isinstance(steps, list | tuple) or list(steps) != list(context.plan.steps)):
        raise _RefusedError(f"steps: got {steps}, the model's configuration has {list(context.plan.steps)}")


def _passed(state: ModelState, context: _Context) -> CanaryVerdict:
    """Return the verdict if it says pass, of the deployment as it stands now."""
    verdict, deployment = context.verdict, state.deployment
    if verdict is None:
        raise _RefusedError("there is no verdict yet")
    if (verdict.step, verdict.epoch) != (deployment.step, deployment.epoch):
        raise _RefusedError(
            f"the verdict is of step {verdict.step} at epoch {verdict.epoch}, "
            f"the deployment is at step {deployment.step}, epoch {deployment.epoch}"
        )
    if verdict.status != "pass":
        raise _RefusedError(f"the verdict is {verdict.status}: {verdict.reason}")
    return verdict


def _text(wish: Wish, name: str, default: str | None = None) -> str:
    """Return a text of the payload."""
    value = wish.payload.get(name, default)
    if not isinstance(value, str) or (default is None and not value):
        raise _RefusedError(f"payload.{name}: got {value!r}, wanted a text")
    return value


def _integer(wish: Wish, name: str) -> int:
    """Return a whole number of the payload."""
    value = wish.payload.get(name)
    # Redis compares epochs as doubles, and msgpack holds no integer of more than 64 bits.
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > MAX_INTEGER:
        raise _RefusedError(f"payload.{name}: got {value!r}, wanted a whole number within ±2**52")
    return value
