"""What the canary document says to one who waits for the verdict of a step, and to nobody else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from streamer.documents import CanaryView

RUNNING = "running"
ENDED = "ended"


@dataclass(frozen=True)
class Awaited:
    """Which verdict is waited for: of this rollout, at this step and deployment epoch, newer than `seen_ms`.

    `seen_ms` is the time of a verdict that has been answered already: "inconclusive" stands until the next pane.
    """

    model: str
    rollout_id: str
    step: int
    epoch: int
    seen_ms: int | None = None


def read_verdict(document: bytes | str | None, awaited: Awaited) -> dict[str, Any] | None:
    """Return the verdict waited for, as {status, reason, at_ms}; None while there is none.

    A verdict of another rollout, step or epoch is none; nor is one that is still running. A rollout that has
    ended some other way answers "ended": nothing will come.
    """
    if document is None:
        return None
    view = msgspec.json.decode(document, type=CanaryView)
    if view.rollout_id != awaited.rollout_id:
        return None
    if view.state != "active":
        return {"status": ENDED, "reason": f"the rollout is {view.state}", "at_ms": view.as_of_ms}
    verdict = view.verdict
    if verdict is None or (verdict.step, verdict.epoch) != (awaited.step, awaited.epoch):
        return None
    if verdict.status == RUNNING:
        return None
    if awaited.seen_ms is not None and (verdict.at_ms or 0) <= awaited.seen_ms:
        return None
    return {"status": verdict.status, "reason": verdict.reason, "at_ms": verdict.at_ms}
