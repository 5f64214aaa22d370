"""What the story comes to: whether the loop closed, both versions on the same flights, and where to look further."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import polars as pl

from dags.steps.registry import Registry
from dags.steps.retraining import REPORT
from dags.steps.serving import loader
from demo.bookmark import Bookmark
from demo.chronicle import Tale
from demo.flights import DAY_MS, FEATURES
from demo.report import Comparison, Links, Scores, Summary
from streamer.models import ModelConfig
from streamer.scoring import Outputs
from streamer.settings import Settings

AFTER_MS = 30 * DAY_MS
# MLflow's pages are those of language models until somebody has switched them.
_TRAINING_PAGES = "?workflowType=machine_learning"


def summarize(bookmark: Bookmark, reason: str | None, *, seconds: dict[str, float]) -> Summary:
    """Return what happened.

    Parameters
    ----------
    reason : why the story could not be told to its end; None when it could.
    """
    tale = bookmark.tale
    wanted = "rolled_back" if bookmark.sabotage else "promoted"
    promoted = tale.ended == "promoted" and tale.candidate is not None
    return Summary(
        closed=reason is None and tale.ended == wanted,
        reason=reason or _outcome(tale),
        sabotage=bookmark.sabotage,
        champion_before=bookmark.champion,
        champion_after=tale.candidate.version if promoted and tale.candidate else bookmark.champion,
        drifted=list(tale.drifted.values()),
        storms=tale.storms,
        request=tale.request,
        candidate=tale.candidate,
        canary=tale.steps,
        ended=tale.ended,
        ended_ms=tale.ended_ms,
        flights=bookmark.flights,
        labels=bookmark.labels,
        seconds=seconds,
    )


def _outcome(tale: Tale) -> str:
    if tale.ended == "promoted":
        return "The loop has closed: the new model serves."
    if tale.ended == "rolled_back":
        return f"Rolled back, the old champion serves everybody again: {tale.reason}"
    return f"the request ended: {tale.ended}: {tale.reason}"


def compare(
    settings: Settings, config: ModelConfig, flights: pl.DataFrame, *, champion: str, tale: Tale
) -> list[Comparison]:
    """Score both versions on the same flights, whichever of them served: while the canary ran, and the month after.

    Neither has seen these flights in training. What `--sabotage` damages is the serving, not the model:
    here both answer as they were trained to.
    """
    began = [step.began_ms for step in tale.steps if step.began_ms is not None]
    if tale.candidate is None or tale.ended_ms is None or not began:
        return []
    spans = {
        "while the canary ran": (min(began), tale.ended_ms),
        "in the 30 days after": (tale.ended_ms, tale.ended_ms + AFTER_MS),
    }
    load = loader(settings, config)
    versions = [(version, load(version)) for version in (champion, tale.candidate.version)]
    found = []
    for when, (start_ms, end_ms) in spans.items():
        rows = flights.filter(pl.col("ts") >= start_ms, pl.col("ts") < end_ms, pl.col("late").is_not_null())
        table = {name: rows[name].to_list() for name in FEATURES}
        late = rows["late"].to_list()
        if len(set(late)) < 2:
            continue
        old, new = (_scores(version, predict(table), late) for version, predict in versions)
        found.append(Comparison(when=when, start_ms=start_ms, end_ms=end_ms, flights=len(rows), old=old, new=new))
    return found


def links(settings: Settings, config: ModelConfig, tale: Tale, *, mlflow_url: str | None) -> Links:
    """Return where to look further.

    Parameters
    ----------
    mlflow_url : where MLflow's pages are, while the stack stays up; with None its pages and Airflow's are gone
        with the stack, and only what lies on disk is named.
    """
    candidate, request = tale.candidate, tale.request
    run = None if candidate is None else Registry(settings, config.name).run_of(candidate.version)
    if run is None:
        return Links()
    evidently = _on_disk(f"{run.info.artifact_uri}/{REPORT}")
    if mlflow_url is None or request is None or request.run_id is None:
        return Links(evidently=evidently)
    pages = f"{settings.airflow.url}/dags"
    return Links(
        airflow=f"{pages}/retrain/runs/{request.run_id}",
        canary=f"{pages}/canary/runs/canary__{request.run_id}",
        mlflow=f"{mlflow_url}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}{_TRAINING_PAGES}",
        evidently=evidently,
    )


def _on_disk(uri: str) -> str | None:
    path = Path(unquote(urlparse(uri).path))
    return path.as_uri() if path.is_file() else None


def _scores(version: str, outputs: Outputs, late: Sequence[Any]) -> Scores:
    from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

    said = [answer == "true" for answer in outputs.prediction]
    scores = list(outputs.score or [])
    return Scores(
        version=version,
        accuracy=float(accuracy_score(late, said)),
        auc=float(roc_auc_score(late, scores)),
        log_loss=float(log_loss(late, scores)),
    )
