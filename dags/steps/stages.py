"""What the retrain DAG's tasks call: the stages of `dags.steps.retraining`, with evaluate told of each turn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dags.steps import notify, readiness, retraining
from dags.steps.configuration import read_config
from dags.steps.outcomes import NothingToDo, Unmendable
from dags.steps.requests import request_of
from dags.steps.workspace import Workspace
from streamer.events import CommandKind, LedgerEntry, RetrainRequest
from streamer.settings import Settings, load_settings

ALLOWED = "allowed.json"
# What a `reject` carries stays in the ledger for a year; the whole of it stands in the workspace.
EVIDENCE_BYTES = 20_000


class Superseded(NothingToDo):
    """The request is another run's, or is over."""


def accept(conf: Mapping[str, Any] | None, run_id: str) -> str:
    """Bind the request to this run and open its workspace, whose path is returned.

    Raises
    ------
    Superseded
        When evaluate refuses, or the request has ended since this run took it.
    """
    settings, request = load_settings(), request_of(conf)
    config = read_config(settings, request.model)
    if config.model_epoch != request.model_epoch:
        raise Superseded(f"{request.model} is at epoch {config.model_epoch}, the request is of {request.model_epoch}")
    answer = _tell(settings, "accept", request, run_id)
    refusal = notify.refusal(answer, run_id=run_id)
    if refusal is not None:
        raise Superseded(refusal)
    stands = notify.standing(answer)
    workspace = retraining.begin(settings, request, config, champion=str(stands.get("champion") or ""), run_id=run_id)
    workspace.write_json(ALLOWED, (stands.get("allow_until_ms") or 0) > answer.at_ms)
    return str(workspace.root)


def check(work: str) -> dict[str, Any]:
    """Check that the monitor's view is fresh and no data fault stands; see `dags.steps.readiness.check`."""
    workspace = _open(work)
    return readiness.check(
        load_settings(),
        retraining.config_of(workspace),
        allowed=workspace.read_json(ALLOWED),
        now_ms=retraining.now_ms(),
    )


def extract(work: str) -> dict[str, Any]:
    """Bring the data into the workspace."""
    return retraining.extract(load_settings(), _open(work))


def validate(work: str) -> dict[str, Any]:
    """Check the data; where it cannot be trained on, the request is rejected and the run ends."""
    workspace = _open(work)
    try:
        return retraining.validate(workspace)
    except retraining.Rejected as rejection:
        _reject(workspace, rejection)
        raise


def report(work: str) -> dict[str, Any]:
    """Keep Evidently's page with the request's run."""
    return retraining.report(load_settings(), _open(work))


def choose_features(work: str) -> list[str]:
    """Tell evaluate that training begins, and choose the features; return the families."""
    workspace = _open(work)
    _insist(workspace, "train")
    return retraining.choose_features(workspace)


def train(work: str, family: str) -> dict[str, Any]:
    """Train one family; return its scores."""
    summary = retraining.train(_open(work), family)
    return {name: summary[name] for name in ("family", "parameters", "metrics", "seconds")}


def select(work: str) -> dict[str, Any]:
    """Choose the winner."""
    return retraining.select(_open(work))


def gate(work: str) -> dict[str, Any]:
    """Run the gates; where one fails, the request is rejected and the run ends."""
    workspace = _open(work)
    try:
        return retraining.gate(workspace)
    except retraining.Rejected as rejection:
        _reject(workspace, rejection)
        raise


def register(work: str) -> str:
    """Register the winner; return its version."""
    return retraining.register(load_settings(), _open(work))


def stage(work: str) -> dict[str, Any]:
    """Check the registered version and tell evaluate that it is validated; return what the challenger's asset says."""
    workspace, settings = _open(work), load_settings()
    retraining.stage(settings, workspace)
    version = retraining.version_of(workspace)
    _insist(workspace, "validate", {"version": version, "evidence": retraining.evidence(workspace)})
    request = retraining.request_of(workspace)
    return {"model": request.model, "version": version, "request_id": request.request_id}


def fail(conf: Mapping[str, Any] | None, run_id: str, reason: str) -> None:
    """Tell evaluate that the request has failed; a run that was never the accepted one is refused, and is right."""
    _tell(load_settings(), "fail", request_of(conf), run_id, {"reason": reason})


def _open(work: str) -> Workspace:
    root = Path(work)
    if not root.is_dir():
        raise Unmendable(
            f"{work}: is not there; with workers on several machines, airflow.work_dir must lie on a disk they share"
        )
    return Workspace(root)


def _tell(
    settings: Settings,
    kind: CommandKind,
    request: RetrainRequest,
    run_id: str,
    payload: Mapping[str, Any] | None = None,
) -> LedgerEntry:
    return notify.tell(
        settings,
        kind,
        model=request.model,
        model_epoch=request.model_epoch,
        subject=request.request_id,
        run_id=run_id,
        payload={"run_id": run_id, **(payload or {})},
    )


def _insist(workspace: Workspace, kind: CommandKind, payload: Mapping[str, Any] | None = None) -> LedgerEntry:
    request, run_id = retraining.request_of(workspace), retraining.run_of(workspace)
    return notify.insist(
        load_settings(),
        kind,
        model=request.model,
        model_epoch=request.model_epoch,
        subject=request.request_id,
        run_id=run_id,
        payload={"run_id": run_id, **(payload or {})},
    )


def _reject(workspace: Workspace, rejection: retraining.Rejected) -> None:
    evidence = rejection.evidence
    if len(json.dumps(evidence)) > EVIDENCE_BYTES:
        evidence = {"failed": evidence.get("failed"), "workspace": str(workspace.root)}
    _insist(workspace, "reject", {"reason": str(rejection), "evidence": evidence})
