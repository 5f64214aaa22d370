"""The request and rollout of one model as pure state machines: a state and a wish in, a state and an answer out."""

from monitors.lifecycle.machine import (
    CLOCK_ACTOR,
    KEPT_ANSWERS,
    answer,
    expire,
    fault,
    published,
    raise_request,
    republish_due,
)
from monitors.lifecycle.states import (
    FINAL,
    Answer,
    Deadlines,
    DeploymentState,
    ModelState,
    RequestStage,
    RequestState,
    RolloutState,
    Transition,
    is_open,
    manual_request_id,
    present,
    rollout_id_of,
)
from monitors.lifecycle.wishes import Wish

__all__ = [
    "CLOCK_ACTOR",
    "FINAL",
    "KEPT_ANSWERS",
    "Answer",
    "Deadlines",
    "DeploymentState",
    "ModelState",
    "RequestStage",
    "RequestState",
    "RolloutState",
    "Transition",
    "Wish",
    "answer",
    "expire",
    "fault",
    "is_open",
    "manual_request_id",
    "present",
    "published",
    "raise_request",
    "republish_due",
    "rollout_id_of",
]
