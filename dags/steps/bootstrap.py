"""The first champion: trained and registered from a user's own table by the very steps that will replace it."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

import polars as pl

from dags.steps import retraining
from dags.steps.registry import CHALLENGER, CHAMPION, STATUS_TAG, Registry
from dags.steps.tables import TIME, typed
from dags.steps.workspace import Workspace
from streamer.events import RetrainRequest
from streamer.models import ModelConfig
from streamer.settings import Settings


def bootstrap(
    config: ModelConfig,
    frame: pl.DataFrame | Path,
    *,
    settings: Settings,
    announce: bool = False,
    report: bool = False,
) -> str:
    """Train, register and make champion the first version of a model; repeated with the same rows, find it again.

    Parameters
    ----------
    config : the model.
    frame : its training rows, a DataFrame or a Parquet file: `ts` (epoch ms), every feature, `label`, and
        perhaps `entity_id` and `prediction_id`.
    settings : where MLflow, Kafka and the work directory are.
    announce : also tell evaluate that it serves (`set_champion`), which must then be running.
    report : also write Evidently's page of the older against the newer half, which takes some seconds.

    Returns
    -------
    The version: MLflow's number as text, as `Prediction.version` has it.

    Raises
    ------
    dags.steps.tables.TableError
        When the table lacks a column.
    dags.steps.retraining.Rejected
        When the rows cannot be trained on, or the model is no better than a constant answer.
    streamer.commands.CommandRefused
        With `announce`, when evaluate refuses.
    """
    table = typed(pl.read_parquet(frame) if isinstance(frame, Path) else frame, config)
    request = _request(config, table, settings)
    workspace = retraining.begin(settings, request, config, champion="", run_id="bootstrap")
    _put(workspace, table)
    retraining.validate(workspace)
    if report:
        retraining.report(settings, workspace)
    for family in retraining.choose_features(workspace):
        retraining.train(workspace, family)
    retraining.select(workspace)
    retraining.gate(workspace)
    version = retraining.register(settings, workspace)
    retraining.stage(settings, workspace)
    registry = Registry(settings, config.name)
    registry.set_alias(CHAMPION, version)
    registry.drop_alias(CHALLENGER, version)
    registry.tag(version, {STATUS_TAG: "champion"})
    if announce:
        set_champion(settings, config, version)
    return version


def set_champion(settings: Settings, config: ModelConfig, version: str) -> None:
    """Tell evaluate which version serves; CommandRefused when it refuses."""
    from dags.steps.notify import insist

    insist(
        settings,
        "set_champion",
        model=config.name,
        model_epoch=config.model_epoch,
        subject="",
        run_id=f"bootstrap-{version}",
        payload={"version": version},
    )


def _request(config: ModelConfig, table: pl.DataFrame, settings: Settings) -> RetrainRequest:
    """Return the request a bootstrap stands for: the same rows and configuration make the same one."""
    digest = blake2b(config.to_json(), digest_size=10)
    digest.update(str(table.hash_rows(seed=0).sum()).encode())
    first, last = (table[TIME][0], table[TIME][-1]) if len(table) else (0, 0)
    return RetrainRequest(
        request_id=f"bootstrap-{digest.hexdigest()}",
        namespace=settings.namespace,
        model=config.name,
        model_epoch=config.model_epoch,
        version="_",
        kind="manual",
        pane_end_ms=last,
        window_start_ms=first,
        window_end_ms=last + 1,
        raised_at_ms=retraining.now_ms(),
        reason="the first version",
    )


def _put(workspace: Workspace, table: pl.DataFrame) -> None:
    if not workspace.has(retraining.EXTRACTION):
        workspace.write_table(retraining.WINDOW, table)
        workspace.write_table(retraining.DATA, table)
        summary = {"source": "bootstrap", "rows": len(table), "champion": "none"}
        workspace.write_json(retraining.EXTRACTION, summary)
