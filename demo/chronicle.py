"""What the story has shown so far, gathered from the live view as it changes; pure, so that it can be told anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from demo.flights import DAY_MS, day_of
from streamer.documents import FeatureDrift, ModelView, Performance, RequestView, TimelineEntry, Verdict

# A week this far below the baseline is told of as a storm.
STORM_DROP = 0.1
WEEK = 7


class Drifted(msgspec.Struct, kw_only=True):
    """A feature whose drift passed its threshold: since when, and how far it has gone."""

    feature: str
    since_ms: int
    statistic: str
    value: float | None
    threshold: float | None


class Storm(msgspec.Struct, kw_only=True):
    """A spell of weeks far below the baseline: its worst week, and what the policy's whole window made of it then."""

    began_ms: int
    end_ms: int
    accuracy: float
    drop: float | None
    over: bool = False


class Step(msgspec.Struct, kw_only=True):
    """A step of the canary; the bounds are challenger minus champion, of all steps up to it."""

    percent: float
    began_ms: int | None
    ended_ms: int | None
    verdict: Verdict | None


class Request(msgspec.Struct, kw_only=True):
    """The request that was raised, how far back its figures reach, and on what."""

    request_id: str
    kind: str
    at_ms: int
    looked_back_to_ms: int | None
    finding: dict[str, Any]
    run_id: str | None


class Candidate(msgspec.Struct, kw_only=True):
    """What training handed over."""

    version: str
    evidence: dict[str, Any]


class Tale(msgspec.Struct, kw_only=True):
    """What has been seen so far; a run that is interrupted writes it down and goes on from it.

    Attributes
    ----------
    ended : how the newest request ended ("promoted", "rolled_back", "rejected" …), None while it is open or
        before there is one; `ended_ms` in event time, `reason` as the ledger has it.
    told : (time, text) of the timeline's lines that have been taken in.
    """

    drifted: dict[str, Drifted] = {}
    storms: list[Storm] = []
    request: Request | None = None
    candidate: Candidate | None = None
    steps: list[Step] = []
    ended: str | None = None
    ended_ms: int | None = None
    reason: str = ""
    told: set[tuple[int, str]] = set()


class Chronicle:
    """Gathers what a reader will want to know at the end, and tells what is new at each look.

    Parameters
    ----------
    tale : what an earlier run had seen.
    """

    def __init__(self, tale: Tale | None = None) -> None:
        self.tale = tale or Tale()

    def observe(self, view: ModelView) -> list[str]:
        """Take in the model's documents; return what is new, a line each."""
        lines = [*self._drift(view), *self._storm(view)]
        if view.request is not None:
            lines += self._request(view.request, view.performance)
        for entry in view.timeline:
            if (entry.at_ms, entry.text) not in self.tale.told:
                self.tale.told.add((entry.at_ms, entry.text))
                lines += self._happened(entry)
        self._steps(view)
        return lines

    def _drift(self, view: ModelView) -> Iterator[str]:
        """Note features whose drift is past chance and floor, the first time with a line."""
        for name, drift in view.drift.items():
            if not drift.alarm or self.tale.request is not None:
                continue
            known = self.tale.drifted.get(name)
            since_ms = known.since_ms if known else (drift.window_end_ms or drift.event_time_ms or 0)
            statistic, value, threshold = _furthest_past(drift)
            found = Drifted(feature=name, since_ms=since_ms, statistic=statistic, value=value, threshold=threshold)
            self.tale.drifted[name] = found
            if known is None:
                yield f"{name} drifts: {describe_drift(found)}"

    def _storm(self, view: ModelView) -> Iterator[str]:
        """Note the spells of weeks far below the baseline, and tell when one begins and when it is over."""
        performance = view.performance
        baseline = performance.baseline.get("accuracy") if performance else None
        if performance is None or baseline is None or self.tale.request is not None:
            return
        week = [point for point in performance.series[-WEEK:] if point.get("accuracy") is not None]
        n = sum(point["n"] for point in week)
        if len(week) < WEEK or not n:
            return
        accuracy = sum(point["n"] * point["accuracy"] for point in week) / n
        end_ms = week[-1]["pane_start_ms"] + DAY_MS
        storm = self.tale.storms[-1] if self.tale.storms and not self.tale.storms[-1].over else None
        if accuracy >= baseline - STORM_DROP:
            if storm is not None:
                storm.over = True
                yield f"the bad weeks are over: accuracy {accuracy:.2f} in the 7 days to {day_of(end_ms)}"
        elif storm is None:
            self.tale.storms.append(Storm(began_ms=end_ms, end_ms=end_ms, accuracy=accuracy, drop=performance.drop))
            yield f"a bad week: accuracy {accuracy:.2f} in the 7 days to {day_of(end_ms)}, {baseline:.2f} at training"
        elif accuracy < storm.accuracy:
            storm.end_ms, storm.accuracy, storm.drop = end_ms, accuracy, performance.drop

    def _request(self, request: RequestView, performance: Performance | None) -> Iterator[str]:
        if self.tale.request is None or self.tale.request.request_id != request.request_id:
            finding = request.findings[0] if request.findings else {}
            self.tale.request = Request(
                request_id=request.request_id,
                kind=request.kind,
                at_ms=request.window_end_ms or 0,
                looked_back_to_ms=performance.window_start_ms if performance else None,
                finding=finding,
                run_id=request.run_id,
            )
            self.tale.candidate, self.tale.steps, self.tale.ended, self.tale.ended_ms = None, [], None, None
            yield f"a request for retraining ({request.kind}): {describe_finding(finding)}"
        self.tale.request.run_id = request.run_id

    def _happened(self, entry: TimelineEntry) -> Iterator[str]:
        """Turn a line of the timeline into one of the story, and keep what the report needs of it."""
        data = entry.data or {}
        state = entry.text.rsplit(" ", 1)[-1]
        if entry.kind == "alert" and "suspected" in entry.text:
            yield f"alert: {entry.text}"
        elif entry.kind == "request":
            yield from self._request_moved(state, data, entry)
        elif entry.kind == "rollout" and "step" in data:
            self._step_began(data, entry)
            yield f"canary: {data['percent']:g} % of the planes fly with the challenger"

    def _request_moved(self, state: str, data: dict[str, Any], entry: TimelineEntry) -> Iterator[str]:
        if self.tale.request is None or self.tale.request.request_id not in entry.text:
            return
        if state == "validated":
            self.tale.candidate = Candidate(version=str(data.get("version", "")), evidence=data.get("evidence") or {})
            yield f"version {self.tale.candidate.version} is trained, tested and registered"
        elif state in ("accepted", "training"):
            yield {"accepted": "Airflow has taken the request", "training": "Airflow trains"}[state]
        elif state in ("promoted", "rolled_back", "rejected", "failed", "expired"):
            self.tale.ended, self.tale.ended_ms, self.tale.reason = (
                state,
                entry.event_time_ms,
                str(data.get("reason", "")),
            )
            yield f"the request ends: {state.replace('_', ' ')}{': ' + self.tale.reason if self.tale.reason else ''}"

    def _step_began(self, data: dict[str, Any], entry: TimelineEntry) -> None:
        if self.tale.steps:
            self.tale.steps[-1].ended_ms = entry.event_time_ms
        self.tale.steps.append(
            Step(percent=float(data["percent"]), began_ms=entry.event_time_ms, ended_ms=None, verdict=None)
        )

    def _steps(self, view: ModelView) -> None:
        """Keep each step's newest verdict: those of the steps before, and the present one's."""
        canary = view.canary
        if canary is None or self.tale.request is None or canary.request_id != self.tale.request.request_id:
            return
        verdicts = [msgspec.convert(each, Verdict) for each in canary.history]
        for verdict in (*verdicts, *((canary.verdict,) if canary.verdict else ())):
            if verdict.step is not None and 0 <= verdict.step < len(self.tale.steps):
                self.tale.steps[verdict.step].verdict = verdict
        if self.tale.ended_ms is not None and self.tale.steps and self.tale.steps[-1].ended_ms is None:
            self.tale.steps[-1].ended_ms = self.tale.ended_ms


def describe_finding(finding: dict[str, Any]) -> str:
    """Say what a request rests on, as a person would."""
    if not finding:
        return "no finding was recorded"
    if finding["subject"] == "performance":
        baseline = finding.get("reference_value")
        before = f" against {baseline:.3f} at training" if baseline is not None else ""
        now = f"accuracy {baseline - finding['value']:.3f}" if baseline is not None else "accuracy"
        return f"{now}{before}: lost {finding['value']:.3f}, surely {max(finding['threshold'], 0):.3f}"
    return f"{finding['subject']}: {finding['statistic']} {finding['value']:.2f}, limit {finding['threshold']:.2f}"


def describe_drift(drifted: Drifted) -> str:
    """Say how far a feature has drifted, and past what: its limit, the larger of its floor and what chance explains."""
    if drifted.value is None or drifted.threshold is None:
        return "past its limit"
    return f"{drifted.statistic} {drifted.value:.2f}, limit {drifted.threshold:.2f}"


def _furthest_past(drift: FeatureDrift) -> tuple[str, float | None, float | None]:
    """Return the statistic that lies furthest past its limit, its value and the limit: either may raise the alarm."""
    both = [("PSI", drift.psi, drift.threshold_psi), ("KS", drift.ks, drift.threshold_ks)]
    known = [(value / limit, name, value, limit) for name, value, limit in both if value is not None and limit]
    return max(known)[1:] if known else both[0]
