"""From a winner to a registered version: trained on all rows, with its lineage, its evidence and its reference."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
from threadpoolctl import threadpool_limits

from dags.steps import artefact, features, retraining, staging
from dags.steps.lineage import lineage, open_run
from dags.steps.measuring import answer
from dags.steps.outcomes import Unmendable
from dags.steps.reference import build_reference
from dags.steps.registry import CHALLENGER, MODEL, STATUS_TAG, Registry
from dags.steps.tables import split_by_time
from dags.steps.training import fit, threads
from dags.steps.workspace import Workspace
from streamer import references
from streamer.events import RetrainRequest
from streamer.models import ModelConfig
from streamer.settings import Settings

# The workspace's documents that are kept with the model.
EVIDENCE = (
    retraining.EXTRACTION,
    retraining.CHECKS,
    retraining.FEATURES,
    retraining.SELECTION,
    retraining.GATES,
)


def refit(config: ModelConfig, workspace: Workspace) -> Any:
    """Train the winner on all rows, the newest among them, and keep its answers to the golden rows."""
    winner = workspace.read_json(retraining.SELECTION)["table"][0]
    table = workspace.read_table(retraining.DATA)
    names = features.used(workspace.read_json(retraining.FEATURES))
    with threadpool_limits(threads()):
        model = fit(config, table, names, winner["family"], winner["parameters"])
    workspace.write_json(retraining.GOLDEN, staging.golden_answers(config, model, names, table))
    return model


def publish_version(
    settings: Settings, config: ModelConfig, workspace: Workspace, model: Any, request: RetrainRequest, parent: str
) -> str:
    """Register a trained pipeline and publish its reference; return its version (see `retraining.register`)."""
    registry = Registry(settings, config.name)
    run_id = open_run(registry, request, parent)
    _log_run(registry, run_id, config, workspace, model, request, parent)
    version = registry.create_version(
        run_id, request.request_id, {**lineage(request, parent), STATUS_TAG: "challenger"}
    )
    profile = _reference(config, workspace, version)
    registry.log_parts(run_id, profile.to_parts())
    try:
        references.publish(settings, profile)
    except references.ProfileError as error:
        raise Unmendable(str(error)) from error
    registry.set_alias(CHALLENGER, version)
    registry.finish(run_id)
    return version


def _log_run(
    registry: Registry,
    run_id: str,
    config: ModelConfig,
    workspace: Workspace,
    model: Any,
    request: RetrainRequest,
    parent: str,
) -> None:
    winner = workspace.read_json(retraining.SELECTION)["table"][0]
    table = workspace.read_table(retraining.DATA)
    names = features.used(workspace.read_json(retraining.FEATURES))
    gates = {each["name"]: each for each in workspace.read_json(retraining.GATES)["gates"]}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / MODEL
        artefact.save_mlflow(config, model, names, table, path)
        registry.log_files(run_id, path, MODEL)
    for name in EVIDENCE:
        if workspace.has(name):
            registry.log_files(run_id, workspace.path(name))
    registry.log_files(run_id, workspace.path(retraining.DATA), "training")
    registry.log_document(run_id, "lineage.json", {"request": msgspec.to_builtins(request), "parent": parent})
    registry.log_document(run_id, "model.json", msgspec.json.decode(config.to_json()))
    registry.log_run(
        run_id,
        metrics={
            **{f"held_out_{name}": value for name, value in gates["performance"]["detail"]["candidate"].items()},
            **{f"gate_{name}": gate["value"] for name, gate in gates.items() if gate["value"] is not None},
        },
        parameters={"family": winner["family"], "rows": len(table), **winner["parameters"]},
    )


def _reference(config: ModelConfig, workspace: Workspace, version: str) -> Any:
    table = workspace.read_table(retraining.DATA)
    winner = workspace.read_json(retraining.SELECTION)["winner"]
    names = features.used(workspace.read_json(retraining.FEATURES))
    _, newest = split_by_time(table, config.retrain.holdout_share)
    # Trained without the newest rows: what it answers to them is what a version does on rows it never saw.
    candidate = artefact.load(workspace.path(f"candidates/{winner}.skops"))
    return build_reference(
        config,
        version=version,
        trained_on=table,
        held_out=newest,
        answers=answer(config, candidate, names, newest),
        created_ms=retraining.now_ms(),
    )
