"""What evaluate's decisions put into the log: requests, ledger entries, deployments, and answers to commands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from hashlib import sha256
from typing import Any, Literal

import msgspec

from monitors import lifecycle
from monitors.policy import Look
from streamer.catalog import Model
from streamer.counting.fold import UNVERSIONED
from streamer.evaluation.model_record import ModelRecord, Watched
from streamer.evaluation.pane_store import offset_ranges
from streamer.events import (
    SCHEMA_HEADER,
    SCHEMA_VERSION,
    Command,
    Deployment,
    Finding,
    LedgerEntry,
    RetrainRequest,
    encode,
)
from streamer.models import ModelConfig
from streamer.settings import Settings
from streamer.stage import Record

# As many of a request's findings stand in the ledger, too; the request has all of them.
_TOLD_FINDINGS = 5
HEADERS = [(SCHEMA_HEADER, SCHEMA_VERSION)]


def request_id_of(namespace: str, model: str, epoch: int, version: str, pane_end_ms: int, kind: str) -> str:
    """Return the request's identity: the same decision has the same id, whoever takes it and however often."""
    text = "\0".join((namespace, model, str(epoch), version, str(pane_end_ms), kind))
    return "rq-" + sha256(text.encode()).hexdigest()[:20]


def build_request(
    settings: Settings,
    model: Model,
    watched: Watched,
    version: str,
    kind: Literal["drift", "performance", "manual"],
    look: Look | None,
    *,
    pane_end_ms: int | None = None,
    request_id: str | None = None,
    now_ms: int,
    reason: str = "",
) -> RetrainRequest:
    """Return the trigger event of a decision, with its evidence and the offsets of its training window."""
    config = model.config
    end_ms = look.pane_end_ms if look is not None else (pane_end_ms or 0)
    # Of panes that are kept no longer nobody could say which offsets were theirs.
    start_ms = end_ms - min(int(config.retrain.window), int(config.time.retention))
    pane_ms = int(config.time.pane)
    events = [
        pane
        for key, pane in watched.panes.items()
        if key.origin != "shadow" and start_ms <= key.start_ms < end_ms and key.version != UNVERSIONED
    ]
    # Labels come after their predictions, so those of the window may stand anywhere behind its start.
    labels = [
        pane for key, pane in watched.panes.items() if key.version == UNVERSIONED and key.start_ms >= start_ms - pane_ms
    ]
    label_topic = settings.topic("labels")
    return RetrainRequest(
        request_id=request_id or request_id_of(settings.namespace, model.name, model.epoch, version, end_ms, kind),
        namespace=settings.namespace,
        model=model.name,
        model_epoch=model.epoch,
        version=version,
        kind=kind,
        pane_end_ms=end_ms,
        window_start_ms=start_ms,
        window_end_ms=end_ms,
        raised_at_ms=now_ms,
        findings=[] if look is None else findings(config, look),
        offsets=[
            *offset_ranges([*events, *labels], lambda topic: topic != label_topic),
            *offset_ranges(labels, lambda topic: topic == label_topic),
        ],
        policy=config.policy.model_dump(mode="json"),
        reason=reason,
    )


def findings(config: ModelConfig, look: Look) -> list[Finding]:
    """Return what a look showed as evidence, the strongest first."""
    found: list[Finding] = []
    for drift in look.drift or ():
        if drift.missing is None:
            found.append(_finding(drift.feature, "psi", drift.psi, drift.threshold_psi, config.policy.psi, drift))
    found.sort(key=lambda finding: finding.value / max(finding.threshold, finding.floor), reverse=True)
    performance = look.performance
    if performance is not None and performance.missing is None:
        found.insert(
            0,
            Finding(
                subject="performance",
                statistic="drop",
                value=performance.drop,
                threshold=performance.lower,
                floor=config.policy.performance_drop,
                n_reference=0,
                n_current=performance.n,
                reference_value=performance.baseline,
            ),
        )
    return found


def _finding(subject: str, statistic: str, value: float, threshold: float, floor: float, drift: Any) -> Finding:
    return Finding(
        subject=subject,
        statistic=statistic,
        value=value,
        threshold=threshold,
        floor=floor,
        n_reference=drift.n_reference,
        n_current=drift.n,
        p_value=drift.p_psi,
    )


def evidenced(transitions: Iterable[lifecycle.Transition], request: RetrainRequest) -> list[lifecycle.Transition]:
    """Return transitions in which the request's own says what it was raised for."""
    evidence = {
        "findings": msgspec.to_builtins(request.findings[:_TOLD_FINDINGS]),
        "n_findings": len(request.findings),
        "pane_end_ms": request.pane_end_ms,
        "window_start_ms": request.window_start_ms,
        "window_end_ms": request.window_end_ms,
    }
    return [
        replace(moved, detail={**moved.detail, "evidence": evidence}) if moved.subject_kind == "request" else moved
        for moved in transitions
    ]


def manual_request(settings: Settings, model: Model, watched: Watched, command: Command, now_ms: int) -> RetrainRequest:
    """Return the trigger event a person asked for: its window ends with the newest completed pane."""
    request = watched.record.life.request
    if request is None:
        raise ValueError("a manual request was accepted but none is open")
    return build_request(
        settings,
        model,
        watched,
        request.version,
        "manual",
        None,
        pane_end_ms=watched.record.clock.complete.done_ms,
        request_id=request.request_id,
        now_ms=now_ms,
        reason=str(command.payload.get("reason", "")),
    )


def wish(command: Command) -> lifecycle.Wish:
    """Return a command as the state machine takes it."""
    return lifecycle.Wish(
        command_id=command.command_id,
        kind=command.kind,
        subject=command.subject,
        payload=command.payload,
        actor=command.actor,
        expected_epoch=command.expected_epoch,
    )


def deadlines_of(config: ModelConfig) -> lifecycle.Deadlines:
    """Return how long a request may stand in each state."""
    deadlines = config.deadlines
    return lifecycle.Deadlines(
        republish_ms=int(deadlines.republish),
        accept_ms=int(deadlines.accept),
        train_ms=int(deadlines.train),
        validate_ms=int(deadlines.validate_),
        hand_over_ms=int(deadlines.hand_over),
        canary_ms=int(deadlines.canary),
    )


def deployment_of(record: ModelRecord) -> Deployment:
    """Return who serves what share of a model."""
    held = record.life.deployment
    return Deployment(
        model=record.name,
        model_epoch=record.model_epoch,
        epoch=held.epoch,
        champion=held.champion,
        challenger=held.challenger,
        percent=held.percent,
        step=held.step,
        since_ms=held.since_ms,
        rollout_id=held.rollout_id,
        salt=held.salt,
    )


def request_record(settings: Settings, request: RetrainRequest) -> Record:
    """Return the message that publishes a request."""
    topic = settings.topic("retrain-requests")
    return Record(topic, encode(request), key=request.model.encode(), headers=HEADERS)


def deployment_record(settings: Settings, partition: int, record: ModelRecord) -> Record:
    """Return the message that publishes a deployment."""
    value = encode(deployment_of(record))
    return Record(settings.topic("deployments"), value, key=record.name.encode(), partition=partition, headers=HEADERS)


def words(moved: lifecycle.Transition) -> str:
    """Return a transition as the timeline has it, for people."""
    detail = moved.detail
    if moved.subject_kind == "deployment" and detail.get("champion"):
        share = f", {detail['challenger']} {detail.get('percent', 0):g} %" if detail.get("challenger") else ""
        return f"{detail['champion']} serves{share}"
    at = f" at {detail['percent']:g} %" if moved.subject_kind == "rollout" and "percent" in detail else ""
    return " ".join(part for part in (moved.subject_kind, moved.subject, moved.state + at) if part)


def transition_records(
    settings: Settings,
    partition: int,
    record: ModelRecord,
    transitions: Iterable[lifecycle.Transition],
    now_ms: int,
) -> list[Record]:
    """Return the ledger entries of transitions."""
    return [
        _ledger(
            settings,
            partition,
            LedgerEntry(
                model=record.name,
                model_epoch=record.model_epoch,
                at_ms=now_ms,
                subject_kind=transition.subject_kind,
                subject=transition.subject,
                state=transition.state,
                previous=transition.previous,
                epoch=record.life.deployment.epoch,
                actor=transition.actor,
                reason=transition.reason,
                detail=transition.detail,
            ),
        )
        for transition in transitions
    ]


def answer_record(
    settings: Settings, partition: int, record: ModelRecord, command: Command, answer: lifecycle.Answer, now_ms: int
) -> Record:
    """Return the ledger entry that answers a command."""
    request, rollout = record.life.request, record.life.rollout
    present = {
        "request": None if request is None else request.state,
        "rollout": None if rollout is None else rollout.state,
        "deployment": asdict(record.life.deployment),
    }
    return _ledger(
        settings,
        partition,
        LedgerEntry(
            model=record.name,
            model_epoch=record.model_epoch,
            at_ms=now_ms,
            subject_kind=subject_kind_of(command),
            subject=command.subject or command.model,
            state="",
            epoch=record.life.deployment.epoch,
            actor=command.actor,
            command_id=command.command_id,
            command_kind=command.kind,
            outcome=answer.outcome,
            reason=answer.reason,
            detail={**answer.detail, "present": present},
        ),
    )


def refusal(settings: Settings, partition: int, command: Command, reason: str, now_ms: int) -> Record:
    """Return the answer to a command for a model that is not there."""
    entry = LedgerEntry(
        model=command.model,
        model_epoch=command.model_epoch,
        at_ms=now_ms,
        subject_kind="model",
        subject=command.subject or command.model,
        state="",
        actor=command.actor,
        command_id=command.command_id,
        command_kind=command.kind,
        outcome="refused",
        reason=reason,
    )
    return _ledger(settings, partition, entry)


def subject_kind_of(command: Command) -> Literal["request", "rollout", "model"]:
    """Return what kind of thing a command is about."""
    if command.kind in ("accept", "train", "validate", "reject", "fail"):
        return "request"
    if command.kind in ("start_rollout", "set_step", "promote", "rollback"):
        return "rollout"
    return "model"


def _ledger(settings: Settings, partition: int, entry: LedgerEntry) -> Record:
    topic = settings.topic("ledger")
    return Record(topic, encode(entry), key=entry.model.encode(), partition=partition, headers=HEADERS)
