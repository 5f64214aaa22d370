"""How the story ended, as data for machines and as tables a person understands."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from demo.chronicle import Candidate, Drifted, Request, Step, Storm, describe_drift, describe_finding
from demo.flights import day_of


class Scores(msgspec.Struct, kw_only=True):
    """How well a version does on some flights; log loss in nats."""

    version: str
    accuracy: float
    auc: float
    log_loss: float


class Comparison(msgspec.Struct, kw_only=True):
    """Both versions on the same flights, of [start_ms, end_ms); `when` says which those are."""

    when: str
    start_ms: int
    end_ms: int
    flights: int
    old: Scores
    new: Scores


class Links(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """Where to look further; None where there is nothing, or nobody to show it."""

    airflow: str | None = None
    canary: str | None = None
    mlflow: str | None = None
    evidently: str | None = None


class Summary(msgspec.Struct, kw_only=True):
    """Everything `driftloop demo` found; times are event time in epoch ms UTC, lengths in seconds."""

    closed: bool
    reason: str
    sabotage: bool
    champion_before: str | None = None
    champion_after: str | None = None
    drifted: list[Drifted] = []
    storms: list[Storm] = []
    request: Request | None = None
    candidate: Candidate | None = None
    canary: list[Step] = []
    ended: str | None = None
    ended_ms: int | None = None
    comparisons: list[Comparison] = []
    links: Links = Links()
    flights: int = 0
    labels: int = 0
    seconds: dict[str, float] = {}


def render(summary: Summary) -> RenderableType:
    """Return the end of the demo: what happened, what it was good for, where to look.

    To be printed uncropped: an address stays on its line, however long, so that it can be clicked and copied.
    """
    parts: list[RenderableType] = [_happened(summary)]
    if summary.comparisons:
        parts += [Text(""), _comparisons(summary)]
        if summary.sabotage:
            parts.append(Text("The sabotage was of what was served, not of the model: here both answer as trained."))
    parts += [Text(""), *_links(summary.links)]
    style = "green" if summary.closed else "bold red"
    took = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in summary.seconds.items())
    verdict = Text(summary.reason, style=style)
    return Group(*parts, Panel(Group(verdict, Text(took, style="dim")), border_style=style))


def _happened(summary: Summary) -> Table:
    table = Table(
        title="What happened, in the flights' time",
        title_justify="left",
        header_style="bold",
        expand=False,
        caption=_caption(summary),
        caption_justify="left",
    )
    table.add_column("When", no_wrap=True)
    table.add_column("What")
    table.add_column("Evidence", overflow="fold")
    for when_ms, what, evidence in sorted(_rows(summary), key=lambda row: row[0]):
        table.add_row(day_of(when_ms), what, evidence)
    return table


def _rows(summary: Summary) -> Iterator[tuple[int, str, str]]:
    """Give (event time, what, evidence) of everything worth a line; of one time, in the order it happened."""
    for drift in summary.drifted:
        yield drift.since_ms, f"{drift.feature} drifts", f"{describe_drift(drift)}, by the request"
    request = summary.request
    for storm in summary.storms:
        drop = "" if storm.drop is None else f"; drop over the policy's whole window {storm.drop:+.3f}"
        back_to_ms = None if request is None else request.looked_back_to_ms
        counted = back_to_ms is not None and storm.end_ms > back_to_ms
        what = "a bad week, in the request" if counted else "a bad week, ridden out"
        if request is not None and storm.end_ms > request.at_ms:
            what = "a bad week, at the request"
        yield storm.end_ms, what, f"accuracy {storm.accuracy:.2f}{drop}"
    if request is None:
        return
    yield request.at_ms, "retraining is requested", describe_finding(request.finding)
    started = [step.began_ms for step in summary.canary if step.began_ms is not None]
    if summary.candidate is not None:
        at_ms = min(started, default=request.at_ms)
        yield at_ms, f"version {summary.candidate.version} is trained", _training(summary.candidate, request)
    for step in summary.canary:
        if step.began_ms is not None:
            yield step.began_ms, f"canary at {step.percent:g} %", _verdict(step)
    if summary.ended is not None and summary.ended_ms is not None:
        result = {"promoted": "promoted", "rolled_back": "rolled back"}.get(summary.ended, summary.ended)
        champion = summary.champion_after or "?"
        yield summary.ended_ms, f"[bold]{result}[/bold]", f"version {champion} serves everybody"


def _caption(summary: Summary) -> str:
    """Return what the table leaves a reader asking: why drift raised nothing, and where the last per cent went."""
    told = []
    if summary.drifted:
        told.append("Weather drifts with the seasons: this model's file lets lost accuracy alone raise a request.")
    last = max((step.percent for step in summary.canary), default=100.0)
    if 50 < last < 100:
        told.append(f"On the last step {100 - last:g} % stay with the champion, to be compared with.")
    return "\n".join(told)


def _training(candidate: Candidate, request: Request) -> str:
    evidence = candidate.evidence
    told = [f"{evidence['winner']} on {evidence.get('rows', 0):,} rows"] if "winner" in evidence else []
    if evidence.get("gates"):
        told.append(f"gates passed: {len(evidence['gates'])}")
    return "\n".join(part for part in (", ".join(told), request.run_id or "") if part)


def _verdict(step: Step) -> str:
    verdict = step.verdict
    if verdict is None:
        return "no verdict"
    until = f"to {day_of(step.ended_ms)}, " if step.ended_ms is not None else ""
    flights = f"{verdict.n_challenger or 0:,} flights against {verdict.n_champion or 0:,}"
    if verdict.delta is None:
        return f"{until}{flights}: {verdict.status}"
    bounds = "" if verdict.lower is None or verdict.upper is None else f" ({verdict.lower:+.3f} … {verdict.upper:+.3f})"
    return f"{until}{flights}: accuracy {verdict.delta:+.3f}{bounds}: [bold]{verdict.status}[/bold]"


def _comparisons(summary: Summary) -> Table:
    table = Table(
        title="Both versions on the same flights, whichever served them", title_justify="left", header_style="bold"
    )
    for column in ("Flights", "Version", "Accuracy", "AUC", "Log loss"):
        table.add_column(column, justify="left" if column in ("Flights", "Version") else "right")
    for found in summary.comparisons:
        span = (f"{found.flights:,} {found.when}", f"{day_of(found.start_ms)} to {day_of(found.end_ms)}")
        for words, who, scores in zip(span, ("first", "retrained"), (found.old, found.new), strict=True):
            figures = (f"{value:.3f}" for value in (scores.accuracy, scores.auc, scores.log_loss))
            table.add_row(words, f"{scores.version} ({who})", *figures, end_section=scores is found.new)
    return table


def _links(links: Links) -> Iterator[Text]:
    named = {
        "Retraining in Airflow": links.airflow,
        "Canary in Airflow": links.canary,
        "Run in MLflow": links.mlflow,
        "Evidently's report": links.evidently,
    }
    for name, link in named.items():
        if link is not None:
            style = f"link {link}" if "://" in link else ""
            yield Text.assemble((f"{name:<22}", "bold"), (link, style), no_wrap=True, overflow="ignore")
