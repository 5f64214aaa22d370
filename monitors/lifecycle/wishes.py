"""A wish, what it is judged with, and why it may be turned down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from monitors.canary import CanaryVerdict
from monitors.comparison import CanaryPlan

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
class Context:
    """What a wish is judged with beside the state."""

    now_ms: int
    plan: CanaryPlan
    verdict: CanaryVerdict | None
    has_reference: bool | Callable[[str], bool]
    salt: str


class RefusedError(Exception):
    """The wish is not valid in this state."""


class RepeatedError(Exception):
    """What the wish wants is already so."""


def text_of(wish: Wish, name: str, default: str | None = None) -> str:
    """Return a text of the payload."""
    value = wish.payload.get(name, default)
    if not isinstance(value, str) or (default is None and not value):
        raise RefusedError(f"payload.{name}: got {value!r}, wanted a text")
    return value


def integer_of(wish: Wish, name: str) -> int:
    """Return a whole number of the payload."""
    value = wish.payload.get(name)
    # Redis compares epochs as doubles, and msgpack holds no integer of more than 64 bits.
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > MAX_INTEGER:
        raise RefusedError(f"payload.{name}: got {value!r}, wanted a whole number within ±2**52")
    return value
