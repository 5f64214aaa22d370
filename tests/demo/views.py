"""Views of the demo's model as the worker shows them while a story goes on."""

from __future__ import annotations

from typing import Any

from demo.flights import DAY_MS, at
from streamer import documents

MODEL = "flight_delay"
T0 = at(4, 1)


def view(**parts: Any) -> documents.ModelView:
    summary = parts.pop("summary", documents.ModelSummary(model=MODEL, looked_ms=T0))
    return documents.ModelView(summary=summary, version="1", **parts)


def weeks(accuracy: list[float], *, baseline: float = 0.75) -> documents.Performance:
    """A performance document whose newest days had these accuracies, the first of them on `T0`."""
    return documents.Performance(
        baseline={"accuracy": baseline},
        drop=0.013,
        series=[
            {"pane_start_ms": T0 + day * DAY_MS, "n": 100, "accuracy": value} for day, value in enumerate(accuracy)
        ],
    )


def request(state: str = "raised", *, run_id: str | None = None) -> documents.RequestView:
    finding = {"subject": "performance", "statistic": "drop", "value": 0.09, "threshold": 0.02, "reference_value": 0.75}
    return documents.RequestView(
        request_id="rq-1",
        state=state,
        kind="performance",
        window_start_ms=T0 - 35 * DAY_MS,
        window_end_ms=T0,
        findings=[finding],
        run_id=run_id,
    )


def canary(step: int, status: str, *, state: str = "active", history: list[Any] | None = None) -> documents.CanaryView:
    verdict = documents.Verdict(
        status=status, step=step, delta=0.04, lower=0.01, upper=0.07, n_champion=900, n_challenger=100
    )
    return documents.CanaryView(
        rollout_id="canary-rq-1",
        request_id="rq-1",
        state=state,
        step=step,
        percent=5.0,
        steps=[5.0, 50.0, 100.0],
        verdict=verdict,
        history=history or [],
    )


def entry(at_ms: int, kind: str, text: str, *, event_ms: int = T0, **data: Any) -> documents.TimelineEntry:
    return documents.TimelineEntry(at_ms=at_ms, kind=kind, text=text, event_time_ms=event_ms, data=data)
