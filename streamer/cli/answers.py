"""Sending a command to evaluate and showing its answer: accepted, repeated, or refused with the present state."""

from __future__ import annotations

import getpass
import socket
from typing import Any

import typer

from streamer.cli.failures import CommandError
from streamer.cli.present import write_json
from streamer.cli.surroundings import settings
from streamer.events import CommandKind, LedgerEntry
from streamer.models import ModelConfig

WAIT_S = 60.0


def ask(
    model: ModelConfig,
    kind: CommandKind,
    *,
    subject: str,
    payload: dict[str, Any],
    as_json: bool,
    expected_epoch: int | None = None,
) -> LedgerEntry:
    """Send a command, wait for its answer and show it; a refusal is a CommandError that names the present state."""
    from streamer import commands

    command = commands.new_command(
        kind,
        model=model.name,
        model_epoch=model.model_epoch,
        subject=subject,
        payload=payload,
        actor=actor(),
        expected_epoch=expected_epoch,
    )
    answer = commands.send(settings(), command, timeout_s=WAIT_S)
    if as_json:
        write_json(answer)
        if answer.outcome == "refused":
            raise typer.Exit(1)
        return answer
    if answer.outcome == "refused":
        raise CommandError(f"refused: {answer.reason or 'not possible now'}{present_state(answer)}")
    typer.echo(f"{answer.outcome}: {kind.replace('_', ' ')} {subject}{present_state(answer)}")
    return answer


def present_state(answer: LedgerEntry) -> str:
    """Write where an answer says the model stands: request, rollout, who serves."""
    present = answer.detail.get("present") or {}
    parts = [f"{name} {present[name]}" for name in ("request", "rollout") if present.get(name)]
    deployment = present.get("deployment") or {}
    if deployment.get("champion"):
        serving = f"champion {deployment['champion']}"
        if deployment.get("challenger"):
            serving += f", challenger {deployment['challenger']} at {deployment.get('percent', 0):g} %"
        parts.append(f"{serving}, epoch {deployment.get('epoch', answer.epoch)}")
    return f" (now: {'; '.join(parts)})" if parts else ""


def actor() -> str:
    """Return who gives a command, for the ledger: user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # No name for this user id, as in many containers.
        user = "cli"
    return f"{user}@{socket.gethostname()}"
