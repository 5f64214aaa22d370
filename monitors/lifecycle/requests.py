"""The rules of a request: who may take it on, what it may become, and that a stranger's run may not end it."""

from __future__ import annotations

from dataclasses import replace

from monitors.lifecycle.moves import end_request, move, must_be_in, must_be_run, named_request, open_request
from monitors.lifecycle.states import FINAL, Changed, ModelState, is_open, manual_request_id
from monitors.lifecycle.wishes import Context, RefusedError, RepeatedError, Wish, text_of


def request(state: ModelState, wish: Wish, context: Context) -> Changed:
    """Open a request that a person asks for."""
    request_id, version = manual_request_id(wish.command_id), state.deployment.champion or "_"
    # Its answer may be forgotten; its id is not to be raised a second time, whoever has seen it takes it for done.
    if state.request is not None and state.request.request_id == request_id:
        raise RepeatedError(f"the request was raised; it is {state.request.state}")
    if is_open(state):
        raise RefusedError("a request is open; one at a time")
    return open_request(state, request_id, "manual", version, context.now_ms, wish.actor, text_of(wish, "reason", ""))


def accept(state: ModelState, wish: Wish, context: Context) -> Changed:
    """Bind the request to the run that takes it on; only one does."""
    request, run_id = named_request(state, wish), text_of(wish, "run_id")
    if request.state == "raised":
        return move(state, replace(request, run_id=run_id), "accepted", wish, context)
    must_be_run(request, run_id)
    if request.state in FINAL:
        raise RefusedError(f"the request is {request.state}")
    raise RepeatedError(f"accepted by {run_id}")


def train(state: ModelState, wish: Wish, context: Context) -> Changed:
    """Note that its run has begun to train."""
    request = named_request(state, wish)
    must_be_run(request, text_of(wish, "run_id"))
    if request.state == "training":
        raise RepeatedError("the request is training")
    must_be_in(request, "accepted")
    return move(state, request, "training", wish, context)


def validate(state: ModelState, wish: Wish, context: Context) -> Changed:
    """Note the version its run has brought forth, and on what evidence."""
    request, version = named_request(state, wish), text_of(wish, "version")
    must_be_run(request, wish.payload.get("run_id", request.run_id))
    if request.state == "validated" and request.candidate == version:
        raise RepeatedError(f"validated with {version}")
    must_be_in(request, "training")
    evidence = {"version": version, "evidence": wish.payload.get("evidence", {})}
    return move(state, replace(request, candidate=version), "validated", wish, context, evidence)


def reject(state: ModelState, wish: Wish, context: Context) -> Changed:
    """End the request: no candidate was good enough."""
    request = named_request(state, wish)
    must_be_run(request, wish.payload.get("run_id", request.run_id))
    if request.state == "rejected":
        raise RepeatedError("the request is rejected")
    must_be_in(request, "accepted", "training")
    return move(state, request, "rejected", wish, context, {"evidence": wish.payload.get("evidence", {})})


def fail(state: ModelState, wish: Wish, context: Context) -> Changed:
    """End the request: its run could not go on."""
    request = named_request(state, wish)
    # A run that was never the accepted one must not end the request of the run that is.
    must_be_run(request, wish.payload.get("run_id", request.run_id))
    if request.state == "failed":
        raise RepeatedError("the request has failed")
    if request.state in FINAL:
        raise RefusedError(f"the request is {request.state}")
    return end_request(state, "failed", context.now_ms, wish.actor, text_of(wish, "reason", ""))
