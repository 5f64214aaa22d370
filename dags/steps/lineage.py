"""Where a version comes from: the request's run in MLflow, opened before there is anything to keep in it."""

from __future__ import annotations

import datetime as dt

from dags.steps.registry import Registry, code_version
from streamer.events import RetrainRequest


def open_run(registry: Registry, request: RetrainRequest, parent: str) -> str:
    """Return the run of a request, made at its first use; a rejected request has one too, with its report."""
    return registry.open_run(request.request_id, f"{request.model} {request.request_id}", lineage(request, parent))


def lineage(request: RetrainRequest, parent: str) -> dict[str, str]:
    """Return where a version comes from, as tags."""
    ranges = ", ".join(f"{each.topic}[{each.partition}] {each.start}–{each.end}" for each in request.offsets)
    return {
        # What MLflow shows as the run's description.
        "mlflow.note.content": description(request, parent),
        "driftloop.parent_version": parent or "none",
        "driftloop.code_version": code_version(),
        "driftloop.namespace": request.namespace or "none",
        "driftloop.model_epoch": str(request.model_epoch),
        "driftloop.kind": request.kind,
        "driftloop.window_ms": f"{request.window_start_ms}–{request.window_end_ms}",
        "driftloop.offsets": ranges or "none",
    }


def description(request: RetrainRequest, parent: str) -> str:
    """Return what the request is about, in Markdown, for whoever opens its run."""
    findings = [
        f"- {each.subject}: {each.statistic} {each.value:.3f}, limit {each.limit:.3f}, on {each.n_current:,} events"
        for each in request.findings
    ]
    paragraphs = [
        f"Retraining of **{request.model}**, asked for by {request.request_id} ({request.kind}). "
        f"{f'Version {parent} served then' if parent else 'No version served then'}.",
        request.reason,
        "\n".join(findings),
        f"The request's window is {span(request.window_start_ms, request.window_end_ms)}.",
        f"`gates.json` holds the candidate against the champion, `report.html` the data against the champion's own; "
        f"`driftloop ledger {request.model}` tells what became of it.",
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def span(start_ms: int, end_ms: int) -> str:
    """Write a span of event time."""
    start, end = (dt.datetime.fromtimestamp(each / 1000, dt.UTC) for each in (start_ms, end_ms))
    return f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC"
