"""Where a model stands: its deployment, its newest request and rollout, and what has been answered about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

from monitors.canary import CanaryVerdict

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
