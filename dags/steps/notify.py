"""Telling evaluate what a run wants of a request: commands whose repetition by a retried task changes nothing."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from streamer.commands import CommandRefused, new_command, send, was_refused
from streamer.documents import FINAL_STATES
from streamer.events import Command, CommandKind, LedgerEntry
from streamer.settings import Settings

ACTOR = "airflow"
TIMEOUT_S = 60.0


def command_id(kind: str, *parts: object) -> str:
    """Return the id of a step's command: the same whenever the step is tried again."""
    text = "\0".join((kind, *(str(part) for part in parts)))
    return f"{kind}-{blake2b(text.encode(), digest_size=12).hexdigest()}"


def tell(
    settings: Settings,
    kind: CommandKind,
    *,
    model: str,
    model_epoch: int,
    subject: str,
    run_id: str,
    payload: Mapping[str, Any] | None = None,
    expected_epoch: int | None = None,
    part: str = "",
) -> LedgerEntry:
    """Send a command for a run and return the answer, whatever it is.

    Parameters
    ----------
    run_id : the Airflow run; with kind, subject and `part` it names the command.
    part : tells apart commands of one kind that a run sends about one subject.

    Notes
    -----
    A refusal is an answer too, and would be repeated for good; whether it still holds is asked anew.
    """
    wish = new_command(
        kind,
        model=model,
        model_epoch=model_epoch,
        subject=subject,
        payload=payload,
        actor=f"{ACTOR}:{run_id}",
        expected_epoch=expected_epoch,
        command_id=command_id(kind, run_id, subject, part),
    )
    answer = send(settings, wish, timeout_s=TIMEOUT_S)
    if answer.outcome == "repeated" and was_refused(answer):
        answer = send(settings, _anew(wish), timeout_s=TIMEOUT_S)
    return answer


def insist(settings: Settings, kind: CommandKind, **wish: Any) -> LedgerEntry:
    """Send a command as `tell` does; CommandRefused when it was refused."""
    answer = tell(settings, kind, **wish)
    if was_refused(answer):
        command = new_command(
            kind, model=wish["model"], model_epoch=wish["model_epoch"], subject=wish["subject"], actor=ACTOR
        )
        raise CommandRefused(command, answer)
    return answer


def refusal(answer: LedgerEntry, *, run_id: str) -> str | None:
    """Return why a run may not go on with a request after its `accept`; None when it may.

    A repeated acceptance of a request that has ended since is none.
    """
    if was_refused(answer):
        return answer.reason or "refused"
    state = standing(answer).get("request_state")
    if state in FINAL_STATES:
        return f"the request is {state}; the run {run_id} has nothing left to do"
    return None


def standing(answer: LedgerEntry) -> dict[str, Any]:
    """Return where request, rollout and deployment stand now, by the answer (see `monitors.lifecycle.present`)."""
    present = answer.detail.get("present", {})
    detail = answer.detail
    if answer.outcome == "repeated" and isinstance(detail.get("detail"), dict):
        detail = detail["detail"]
    deployment = present.get("deployment") or {}
    now = {
        name: deployment[name] for name in ("epoch", "champion", "challenger", "percent", "step") if name in deployment
    }
    if present:
        now |= {"request_state": present.get("request"), "rollout_state": present.get("rollout")}
    return {**detail, **now}


def _anew(wish: Command) -> Command:
    return new_command(
        wish.kind,
        model=wish.model,
        model_epoch=wish.model_epoch,
        subject=wish.subject,
        payload=wish.payload,
        actor=wish.actor,
        expected_epoch=wish.expected_epoch,
        command_id=f"{wish.command_id}-{uuid.uuid4().hex[:8]}",
    )
