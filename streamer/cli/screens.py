"""What `status` and `watch` show, as rich renderables made from the live view's documents; no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from streamer.cli.present import (
    NOTHING,
    ago,
    clock,
    count,
    length,
    moment,
    number,
    plain_table,
    share,
    signed,
    sparkline,
    state,
    why_missing,
)
from streamer.documents import (
    CanaryView,
    FeatureDrift,
    Heartbeat,
    ModelSummary,
    ModelView,
    Performance,
    RequestView,
    TimelineEntry,
)
from streamer.events import Deployment, Finding

NO_MODEL = """\
No events of any model have been counted yet. What it takes:
  driftloop models apply MODEL.toml
  driftloop reference build --model MODEL.toml --data TABLE.csv -o REFERENCE.json
  driftloop reference publish REFERENCE.json
  driftloop worker
and events: docs/how-to/watch-your-own-model.md"""
# Under features that drift while the model is quiet; the model's name follows.
QUIET_DRIFT = "What may raise a request: policy and alert in driftloop models show "
NO_WORKER = "No worker runs: nothing is being read. Start one: driftloop worker"
# A worker beats every second; one silent for longer than this is taken to be gone.
SILENT_MS = 15_000
# The metrics in the order in which a person wants them, where there is no room for all.
_RANK = {
    name: rank
    for rank, name in enumerate(
        ("accuracy", "mae", "auc", "log_loss", "rmse", "bias", "r2", "precision", "recall", "f1", "positive_share")
    )
}
# From this width on there is room for the shares and the course of each feature.
WIDE = 110


def models_table(models: Sequence[ModelSummary]) -> RenderableType:
    """Return a line a model: who serves it, how it stands, of what time its newest event is."""
    if not models:
        return Text(NO_MODEL)
    table = plain_table("MODEL", "CHAMPION", "STATE", "REQUEST", "CANARY", "NEWEST EVENT (UTC)")
    for model in models:
        canary = f"{escape(model.challenger)} at {model.percent:g} %" if model.challenger else NOTHING
        table.add_row(
            escape(model.model),
            escape(model.champion or NOTHING),
            state("faulted" if model.faulted else "stale" if model.stale else model.state or "quiet"),
            "open" if model.open_request else NOTHING,
            canary,
            moment(model.watermark_ms),
        )
    return table


def workers_table(workers: Sequence[Heartbeat], now: int) -> RenderableType:
    """Return a line a worker: its rate, its lag, and whether it still beats."""
    if not workers:
        return Text(NO_WORKER, style="yellow")
    table = plain_table("WORKER", "ROLE", "EVENTS/S", "LAG", "LAST BEAT", right=("EVENTS/S", "LAG"))
    for worker in workers:
        silent = not _beats(worker, now)
        beat = ago(worker.as_of_ms, now)
        table.add_row(
            escape(worker.replica),
            escape(worker.role),
            NOTHING if silent else count(worker.events_per_s),
            NOTHING if silent else count(worker.total_lag),
            f"[red]{beat}: silent[/]" if silent else beat,
        )
    told = Table.grid(padding=(0, 2))
    for worker in workers:
        if _beats(worker, now):
            for number_of_line, line in enumerate(_worker_lines(worker, now)):
                told.add_row("" if number_of_line else escape(worker.replica), line, style="dim")
    return Group(table, *([told] if told.rows else []))


def silence(workers: Sequence[Heartbeat], now: int) -> str:
    """Return what to know before any number where nobody keeps them up to date; nothing where a worker beats."""
    if any(_beats(worker, now) for worker in workers):
        return ""
    if not workers:
        return NO_WORKER
    newest = max(worker.as_of_ms for worker in workers)
    return f"The last worker beat {ago(newest, now)}: these numbers stand still. Read its log, start it again"


def _beats(worker: Heartbeat, now: int) -> bool:
    return now - worker.as_of_ms <= SILENT_MS


def _worker_lines(worker: Heartbeat, now: int) -> list[str]:
    """Return how long a worker's transactions take and what it has not counted as other events, if it says."""
    if worker.started_ms is None:
        return []
    took = ", ".join(f"{stage} {count(ms)} ms" for stage, ms in sorted(worker.transaction_ms.items()))
    told = {
        "late": worker.late,
        "too late": worker.too_late,
        "dead letters": worker.dead_letters,
        "labels ahead of their prediction": worker.parked_labels,
    }
    apart = ", ".join(f"{count(number)} {what}" for what, number in told.items())
    return [
        f"last transactions: {took or NOTHING}; {count(worker.evaluate_lag)} partials and commands unread",
        f"{count(worker.events)} events in {length(now - worker.started_ms)}; {apart}",
    ]


def heading(view: ModelView, now: int) -> RenderableType:
    """Return the model's own lines: what it is, who serves it, how it stands."""
    summary, serving = view.summary, view.split
    phase = view.alerts.phase if view.alerts else summary.state or "quiet"
    faulted = summary.faulted or (view.alerts is not None and view.alerts.faulted)
    first = f"[bold]{escape(summary.model)}[/]  {escape(summary.task)}  {state('faulted' if faulted else phase)}"
    # Since when is told in event time, which may be another year's when the past is played again.
    if view.alerts and view.alerts.since_ms and view.alerts.event_time_ms:
        first += f" [dim]for {length(view.alerts.event_time_ms - view.alerts.since_ms)} of event time[/]"
    lines = [first, f"serving  {_serving(serving, summary, view.version)}"]
    # Not how long ago: events may be of any time, and come just now.
    newest = f"newest {moment(summary.watermark_ms)} UTC (event time)" if summary.watermark_ms else "none yet"
    lines.append(f"events   {newest}  [dim]numbers as of {ago(summary.as_of_ms, now)}[/]")
    if summary.tallies:
        told = ", ".join(f"{count(number)} {_words(what)}" for what, number in sorted(summary.tallies.items()))
        lines.append(f"apart    {escape(told)}")
    if view.alerts and view.alerts.fault:
        lines.append(f"[bold magenta]fault[/]    {escape(_words(view.alerts.fault))}")
    return Text.from_markup("\n".join(lines))


def drift_table(view: ModelView, width: int, most: int | None = None) -> RenderableType:
    """Return the features by how far each is past its threshold, the most drifted first; `most` of them at most."""
    if not view.drift:
        reason = why_missing(view.summary.missing) or "no events of this version yet"
        return Text(f"Drift of version {view.version}: {reason}.", style="yellow")
    wide = width >= WIDE
    numbers = ("PSI", "LIMIT", "KS", "LIMIT ", "EVENTS")
    columns = ["FEATURE", *numbers, *(("MISSING", "UNSEEN", "PSI OVER TIME") if wide else ()), ""]
    table = plain_table(*columns, right=(*numbers, "MISSING", "UNSEEN"))
    table.columns[0].overflow = "ellipsis"
    table.columns[0].no_wrap = True
    ordered = sorted(view.drift.items(), key=lambda item: (-item[1].strain, item[0]))
    for name, feature in ordered[:most]:
        wide_cells = (share(feature.missing_share), share(feature.unseen_share), _course(feature)) if wide else ()
        table.add_row(
            escape(name),
            number(feature.psi),
            number(feature.threshold_psi),
            number(feature.ks),
            number(feature.threshold_ks),
            count(feature.n),
            *wide_cells,
            _note(feature, view.quality[name].fault if name in view.quality else None),
        )
    window = _window(ordered[0][1].window_start_ms, ordered[0][1].window_end_ms)
    head = Text.from_markup(f"[bold]Drift[/] of version {escape(view.version)}{window}")
    below = []
    left = len(ordered) - len(ordered[:most])
    if left:
        below.append(Text(f"and {left} more, less drifted", style="dim"))
    if view.summary.state == "quiet" and any(feature.alarm for feature in view.drift.values()):
        below.append(Text(f"{QUIET_DRIFT}{view.summary.model}", style="dim"))
    return Group(head, table, *below)


def performance_lines(performance: Performance | None, version: str, width: int) -> RenderableType:
    """Return the metrics with their baseline, and the coverage without which they mean nothing."""
    if performance is None or not performance.predicted:
        return Text.from_markup(f"[bold]Performance[/] of version {escape(version)}: no predictions yet")
    window = _window(performance.window_start_ms, performance.window_end_ms)
    lines: list[RenderableType] = [Text.from_markup(f"[bold]Performance[/] of version {escape(version)}{window}")]
    if performance.metrics:
        lines.append(_metrics_table(performance, width))
    labels = f"labels for {count(performance.labelled)} of {count(performance.predicted)} predictions"
    coverage = f" ({share(performance.coverage)})" if performance.coverage is not None else ""
    maturity = f"; a pane is judged {length(performance.maturity_ms)} after it" if performance.maturity_ms else ""
    lines.append(Text(f"{labels}{coverage}{maturity}"))
    if performance.label_lag_ms:
        lines.append(Text(f"none yet for the last {length(performance.label_lag_ms)} of predictions"))
    if performance.drop is not None:
        bounds = f"{signed(performance.drop_lower)} to {signed(performance.drop_upper)}"
        lines.append(Text(f"drop against the reference {signed(performance.drop)} ({bounds})"))
    if performance.missing:
        lines.append(Text(f"not judged: {why_missing(performance.missing)}", style="yellow"))
    return Group(*lines)


def _metrics_table(performance: Performance, width: int) -> RenderableType:
    """Return a column a metric, the most telling first, as many as there is room for, with the first one's course."""
    names = sorted(performance.metrics.keys() - {"n"}, key=lambda name: (_RANK.get(name, len(_RANK)), name))
    shown: list[str] = []
    used = len("reference") + 3
    for name in names:
        used += max(len(name), 7) + 3
        if used > width:
            break
        shown.append(name)
    headings = [name.replace("_", " ").upper() for name in shown]
    table = plain_table("", *headings, right=headings)
    table.add_row("now", *(number(performance.metrics[name]) for name in shown))
    table.add_row("reference", *(number(performance.baseline.get(name)) for name in shown))
    course = [point.get(shown[0]) for point in performance.series] if shown else []
    known = [value for value in course if value is not None]
    if len(known) < 2:
        return table
    return Group(table, Text(f"{headings[0].lower()} by pane  {sparkline(course, top=max(*known, 1e-9), width=48)}"))


def request_lines(request: RequestView | None, now: int) -> RenderableType:
    """Return the newest request, why it was raised and how far it has come."""
    if request is None:
        return Text.from_markup("[bold]Request[/]  none")
    lines = [
        f"[bold]Request[/]  {state(request.state)}  {escape(request.kind)}  "
        f"[dim]raised {ago(request.raised_at_ms, now)}  {escape(request.request_id)}[/]"
    ]
    if request.reason:
        lines.append(f"  {escape(request.reason)}")
    lines += [_finding(finding) for finding in request.findings[:3]]
    if len(request.findings) > 3:
        lines.append(f"  and {len(request.findings) - 3} more")
    path = [str(entry.get("state", "")) for entry in request.history]
    if path:
        lines.append("  " + " → ".join(state(each) for each in path))
    return Text.from_markup("\n".join(lines))


def _finding(document: Mapping[str, Any]) -> str:
    finding = msgspec.convert(document, Finding)
    what = f"{finding.subject}: {finding.statistic}"
    return f"  {escape(what)} {number(finding.value)}, limit {number(finding.limit)}"


def canary_lines(canary: CanaryView | None) -> RenderableType:
    """Return the newest rollout: its step on the ramp and the verdict on it."""
    if canary is None:
        return Text.from_markup("[bold]Canary[/]   none")
    ramp = " ".join(
        f"[reverse] {step:g} [/]"
        if index == canary.step
        else (f"[green]{step:g}[/]" if index < canary.step else f"{step:g}")
        for index, step in enumerate(canary.steps)
    )
    lines = [f"[bold]Canary[/]   {state(canary.state)}  {ramp} %  [dim]{escape(canary.rollout_id)}[/]"]
    verdict = canary.verdict
    if verdict is not None:
        lines.append(
            f"  {state(verdict.status)}: challenger − champion {signed(verdict.delta)} "
            f"({signed(verdict.lower)} to {signed(verdict.upper)})"
        )
        lines.append(f"  on {count(verdict.n_challenger)} and {count(verdict.n_champion)} outcomes")
        if verdict.reason:
            lines.append(f"  {escape(verdict.reason)}")
    return Text.from_markup("\n".join(lines))


def timeline_lines(entries: Iterable[TimelineEntry]) -> RenderableType:
    """Return the newest looks and transitions, oldest first."""
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    for entry in entries:
        table.add_row(clock(entry.at_ms), escape(entry.text))
    if not table.rows:
        return Text.from_markup("[bold]Timeline[/] nothing yet")
    return Group(Text.from_markup("[bold]Timeline[/] [dim](UTC)[/]"), Padding(table, (0, 0, 0, 2)))


def model_screen(
    view: ModelView,
    workers: Sequence[Heartbeat],
    now: int,
    width: int,
    most_features: int | None = None,
    *,
    short: bool = False,
) -> RenderableType:
    """Return everything about one model, top to bottom in the order a person asks.

    Parameters
    ----------
    short : for a screen too low for all of it: what is being done about the model comes first, timeline and workers go.
    """
    silent = silence(workers, now)
    head = Group(heading(view, now), *([Text(silent, style="bold red")] if silent else []))
    drift = drift_table(view, width, most_features)
    performance = performance_lines(view.performance, view.version, width)
    doing = Group(request_lines(view.request, now), canary_lines(view.canary))
    if short:
        return Group(head, doing, "", drift, "", performance)
    return Group(
        head,
        "",
        drift,
        "",
        performance,
        "",
        doing,
        "",
        timeline_lines(view.timeline),
        "",
        workers_table(workers, now),
    )


def _serving(split: Deployment | None, summary: ModelSummary, version: str) -> str:
    champion = split.champion if split else summary.champion
    if not champion:
        return f"no champion named: driftloop split {summary.model} --champion {version}"
    challenger, percent = (split.challenger, split.percent) if split else (summary.challenger, summary.percent)
    epoch = f"  [dim]epoch {split.epoch}, since {moment(split.since_ms)} UTC[/]" if split and split.since_ms else ""
    if challenger:
        return f"{escape(champion)} {100 - percent:g} %, {escape(challenger)} {percent:g} %{epoch}"
    return f"{escape(champion)} 100 %{epoch}"


def _note(feature: FeatureDrift, fault: str | None) -> str:
    said = []
    if feature.alarm:
        said.append("[bold red]drift[/]")
    if fault:
        said.append(f"[bold magenta]{escape(why_missing(fault))}[/]")
    if feature.missing:
        said.append(f"[yellow]{escape(why_missing(feature.missing))}[/]")
    return ", ".join(said) or "[green]ok[/]"


def _course(feature: FeatureDrift) -> str:
    known = [value for value in feature.series if value is not None]
    return sparkline(feature.series, top=max(2 * (feature.threshold_psi or 0.1), *known, 1e-9) if known else 1.0)


def _window(start_ms: int | None, end_ms: int | None) -> str:
    if start_ms is None or end_ms is None:
        return ""
    return f"  [dim]{moment(start_ms)} to {moment(end_ms)} UTC[/]"


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return "; ".join(_words(inner) for inner in value)
    return str(value).replace("_", " ")
