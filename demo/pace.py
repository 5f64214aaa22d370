"""How far event time may run ahead: as fast as the worker looks, and not at all while somebody else is at work."""

from __future__ import annotations

from dataclasses import dataclass

from demo.flights import DAY_MS
from streamer.documents import FINAL_STATES, ModelView

# Event time goes on while the worker looks at the days before. The nearer a decision, the shorter the lead, so
# that what is decided is done on about the day it was decided of.
QUIET_LEAD_MS = 12 * DAY_MS
WATCHFUL_LEAD_MS = 4 * DAY_MS
DECIDED = frozenset({"pass", "fail", "inconclusive", "error"})
_AT_WORK = {
    "raised": "the request waits for Airflow",
    "accepted": "Airflow gets the data of the request",
    "training": "Airflow trains and tests candidates",
    "validated": "Airflow hands the new model over to the canary",
}


@dataclass(frozen=True)
class Pace:
    """How far event time may go (epoch ms), and whom it waits for if it may not go on at all."""

    until_ms: int
    held: str | None = None


def pace(view: ModelView | None, *, start_ms: int, sent_ms: int) -> Pace:
    """Return how far event time may go now.

    Parameters
    ----------
    view : the model's documents as they stand; None before the worker has shown any.
    start_ms : where the replay began. sent_ms : where it has got to.
    """
    if view is None:
        return Pace(start_ms + QUIET_LEAD_MS)
    held = _held(view)
    if held is not None:
        return Pace(sent_ms, held)
    suspected = view.alerts is not None and view.alerts.phase == "suspected"
    lead_ms = WATCHFUL_LEAD_MS if suspected or _ramping(view) else QUIET_LEAD_MS
    return Pace(max(view.summary.looked_ms or 0, start_ms) + lead_ms)


def _held(view: ModelView) -> str | None:
    """Return whom event time waits for: a minute of training is not to be two months of flights."""
    request, canary = view.request, view.canary
    if request is None or request.state in FINAL_STATES:
        return None
    if request.state in _AT_WORK:
        return _AT_WORK[request.state]
    if canary is None or canary.request_id != request.request_id or canary.step < 0:
        return "the canary is being prepared"
    if canary.state == "active" and canary.verdict is not None and canary.verdict.status in DECIDED:
        last = canary.step == len(canary.steps) - 1
        higher = "the promotion" if last else f"{canary.steps[canary.step + 1]:g} %"
        verdict = canary.verdict.status
        return f"{canary.steps[canary.step]:g} %: {verdict}; on to {higher if verdict == 'pass' else 'the rollback'}"
    return None


def _ramping(view: ModelView) -> bool:
    return view.canary is not None and view.canary.state == "active"
