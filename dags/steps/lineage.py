"""Where a version comes from: the request's run in MLflow, opened before there is anything to keep in it."""

from __future__ import annotations

from dags.steps.registry import Registry, code_version
from streamer.events import RetrainRequest


def open_run(registry: Registry, request: RetrainRequest, parent: str) -> str:
    """Return the run of a request, made at its first use; a rejected request has one too, with its report."""
    return registry.open_run(request.request_id, f"{request.model} {request.request_id}", lineage(request, parent))


def lineage(request: RetrainRequest, parent: str) -> dict[str, str]:
    """Return where a version comes from, as tags."""
    ranges = ", ".join(f"{each.topic}[{each.partition}] {each.start}–{each.end}" for each in request.offsets)
    return {
        "driftloop.parent_version": parent or "none",
        "driftloop.code_version": code_version(),
        "driftloop.namespace": request.namespace or "none",
        "driftloop.model_epoch": str(request.model_epoch),
        "driftloop.kind": request.kind,
        "driftloop.window_ms": f"{request.window_start_ms}–{request.window_end_ms}",
        "driftloop.offsets": ranges or "none",
    }
