"""The stages of a retraining: each reads what the one before left in the workspace and leaves its own result there."""

from __future__ import annotations

import html
import logging
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from dags.steps.outcomes import NothingToDo
from dags.steps.workspace import Workspace, open_workspace
from streamer.events import RetrainRequest
from streamer.models import ModelConfig, parse_model
from streamer.settings import Settings

if TYPE_CHECKING:
    import polars as pl

    from dags.steps.registry import Registry

log = logging.getLogger(__name__)

REQUEST, CONFIG, WINDOW, HISTORY, DATA = (
    "request.json",
    "model.json",
    "window.parquet",
    "history.parquet",
    "data.parquet",
)
EXTRACTION, CHECKS, REPORT, FEATURES = "extraction.json", "checks.json", "report.html", "features.json"
SELECTION, GATES, GOLDEN, REGISTERED, STAGED = (
    "selection.json",
    "gates.json",
    "golden.json",
    "registered.json",
    "staged.json",
)
CHAMPION = "champion/model"


class Rejected(NothingToDo):
    """The data or the candidate is not good enough: a decision, not a failure. `evidence` says on what grounds."""

    def __init__(self, reason: str, evidence: dict[str, Any]) -> None:
        super().__init__(reason)
        self.evidence = evidence


def begin(settings: Settings, request: RetrainRequest, config: ModelConfig, *, champion: str, run_id: str) -> Workspace:
    """Open the request's workspace and write down what every stage goes by, so that all go by the same."""
    workspace = open_workspace(settings, request)
    document = {"request": msgspec.to_builtins(request), "champion": champion, "run_id": run_id}
    workspace.write_json(REQUEST, document)
    workspace.write_json(CONFIG, msgspec.json.decode(config.to_json()))
    return workspace


def request_of(workspace: Workspace) -> RetrainRequest:
    """Return the request a workspace is for."""
    return msgspec.convert(workspace.read_json(REQUEST)["request"], RetrainRequest)


def config_of(workspace: Workspace) -> ModelConfig:
    """Return the model's configuration as it was when the request was accepted."""
    return parse_model(workspace.read_json(CONFIG), str(workspace.path(CONFIG)))


def champion_of(workspace: Workspace) -> str:
    """Return the version that served when the request was accepted, "" for none."""
    return str(workspace.read_json(REQUEST)["champion"])


def run_of(workspace: Workspace) -> str:
    """Return the Airflow run the request is bound to."""
    return str(workspace.read_json(REQUEST)["run_id"])


def extract(settings: Settings, workspace: Workspace) -> dict[str, Any]:
    """Bring the window's rows, the champion's own training rows and the champion itself into the workspace."""
    if workspace.has(EXTRACTION):
        return dict(workspace.read_json(EXTRACTION))
    from dags.steps import data
    from dags.steps.lineage import open_run
    from dags.steps.registry import Registry

    config, champion = config_of(workspace), champion_of(workspace)
    table, summary = data.extract(settings, config, request_of(workspace))
    workspace.write_table(WINDOW, table)
    registry = Registry(settings, config.name)
    # Opened here, and not by two tasks that run side by side.
    open_run(registry, request_of(workspace), champion)
    summary["champion"] = _fetch_champion(registry, workspace, champion) if champion else "none"
    if config.retrain.history == "append" and workspace.has(HISTORY):
        table = data.append_history(table, workspace.read_table(HISTORY), config)
    workspace.write_table(DATA, table)
    summary["rows"] = len(table)
    workspace.write_json(EXTRACTION, summary)
    return summary


def _fetch_champion(registry: Registry, workspace: Workspace, champion: str) -> str:
    from dags.steps.registry import TRAINING

    if not registry.has(champion):
        return f"{champion} is not in the registry: compared with a constant answer"
    with tempfile.TemporaryDirectory(dir=workspace.root) as directory:
        fetched = registry.fetch_model(champion, Path(directory))
        with workspace.writing(CHAMPION) as path:
            shutil.copytree(fetched, path)
        rows = registry.fetch(champion, TRAINING, Path(directory))
        if rows is None:
            return f"{champion}, without its training data"
        with workspace.writing(HISTORY) as path:
            shutil.copyfile(rows, path)
    return champion


def validate(workspace: Workspace) -> dict[str, Any]:
    """Check the rows; Rejected when they cannot be trained on."""
    from dags.steps import validation

    config = config_of(workspace)
    checks = validation.check(workspace.read_table(DATA), config)
    document = {"checks": [check.to_dict() for check in checks], "failed": validation.failed(checks)}
    workspace.write_json(CHECKS, document)
    if document["failed"]:
        raise Rejected("the data: " + "; ".join(validation.failed(checks)), document)
    return {"checks": len(checks)}


def report(settings: Settings, workspace: Workspace) -> dict[str, Any]:
    """Keep Evidently's page with the request's run: the window against the champion's training data, else its own past.

    Where it cannot be written the page says why: it is not worth a retraining.
    """
    from dags.steps.lineage import open_run
    from dags.steps.registry import Registry
    from dags.steps.report import write_report

    config, request, champion, summary = config_of(workspace), request_of(workspace), champion_of(workspace), {}
    if not workspace.has(REPORT):
        current = workspace.read_table(WINDOW)
        if workspace.has(HISTORY):
            reference, origin = workspace.read_table(HISTORY), f"what version {champion} was trained on"
        else:
            origin = "the older half of the same rows"
            reference, current = current.head(len(current) // 2), current.slice(len(current) // 2)
        with workspace.writing(REPORT) as path:
            try:
                title = f"{config.name}: the data of {request.request_id}"
                about = _about_the_page(config, current, f"{origin}, {len(reference):,} rows")
                summary = write_report(path, current, reference, config, title, about)
            except Exception as error:
                log.exception("no report")
                path.write_text(f"<h1>No report</h1><pre>{html.escape(repr(error))}</pre>", encoding="utf-8")
    registry = Registry(settings, config.name)
    run_id = open_run(registry, request, champion)
    registry.log_files(run_id, workspace.path(REPORT))
    return {"page": str(workspace.path(REPORT)), "run": run_id, **summary}


def _about_the_page(config: ModelConfig, current: pl.DataFrame, reference: str) -> list[str]:
    from dags.steps.lineage import span
    from dags.steps.report import MAX_ROWS

    return [
        f"Reference: {reference}. "
        f"Current: events of {span(current['ts'].min(), current['ts'].max())}, {len(current):,} rows.",
        f"A page for people, by Evidently's own tests on {MAX_ROWS:,} rows a side at most: they know neither the "
        "model's floors nor how alike the rows of one day are. Driftloop decides by its own: "
        f"driftloop status {config.name} shows those.",
    ]


def choose_features(workspace: Workspace) -> list[str]:
    """Choose the features, on the training part alone; return the families to train."""
    from dags.steps import features
    from dags.steps.tables import split_by_time

    config = config_of(workspace)
    older, _ = split_by_time(workspace.read_table(DATA), config.retrain.holdout_share)
    workspace.write_json(FEATURES, features.select(older, config))
    return list(config.retrain.families)


def train(workspace: Workspace, family: str) -> dict[str, Any]:
    """Search and train one family on the training part."""
    summary = f"candidates/{family}.json"
    if workspace.has(summary):
        return dict(workspace.read_json(summary))
    from dags.steps import artefact, features, training
    from dags.steps.tables import split_by_time

    config = config_of(workspace)
    older, _ = split_by_time(workspace.read_table(DATA), config.retrain.holdout_share)
    candidate = training.train_family(config, older, features.used(workspace.read_json(FEATURES)), family)
    with workspace.writing(f"candidates/{family}.skops") as path:
        artefact.dump(candidate.model, path)
    workspace.write_json(summary, candidate.summary())
    return candidate.summary()


def select(workspace: Workspace) -> dict[str, Any]:
    """Choose the winner among the families."""
    from dags.steps import selection

    config = config_of(workspace)
    candidates = [workspace.read_json(f"candidates/{family}.json") for family in config.retrain.families]
    chosen = selection.select(config, candidates)
    workspace.write_json(SELECTION, chosen)
    return {"winner": chosen["winner"], "scores": {row["family"]: row["score"] for row in chosen["table"]}}


def gate(workspace: Workspace) -> dict[str, Any]:
    """Run the gates on the newest rows; Rejected when one fails."""
    from dags.steps import artefact, features, gates
    from dags.steps.tables import split_by_time

    config = config_of(workspace)
    _, newest = split_by_time(workspace.read_table(DATA), config.retrain.holdout_share)
    candidate = gates.Contender(artefact.load(_candidate_file(workspace)), features.used(workspace.read_json(FEATURES)))
    results = gates.run_gates(config, candidate, _champion(workspace), newest)
    failed = gates.failed(results)
    document = {"gates": [each.to_dict() for each in results], "failed": failed}
    workspace.write_json(GATES, document)
    if failed:
        raise Rejected("the candidate: " + "; ".join(failed), document)
    return {each.name: each.value for each in results}


def _candidate_file(workspace: Workspace) -> Path:
    return workspace.path(f"candidates/{workspace.read_json(SELECTION)['winner']}.skops")


def _champion(workspace: Workspace) -> Any:
    if not workspace.has(CHAMPION):
        return None
    from dags.steps import artefact, gates
    from dags.steps.registry import pipeline_file, signature_inputs

    files = workspace.path(CHAMPION)
    return gates.Contender(artefact.load(pipeline_file(files)), list(signature_inputs(files)))


def register(settings: Settings, workspace: Workspace) -> str:
    """Train the winner on all rows, register it with everything that explains it, and publish its reference.

    1. The run is found by its request, or made; files are logged over those of an earlier try.
    2. The version is found by its request, or made: MLflow gives its number.
    3. The reference needs that number: it is built, kept with the run, and published.
    4. The alias `challenger` names the version.
    A version is known to the registry before anybody could deploy it, and its reference before it could serve.
    """
    if workspace.has(REGISTERED):
        return str(workspace.read_json(REGISTERED)["version"])
    from dags.steps.registering import publish_version, refit

    config = config_of(workspace)
    model = refit(config, workspace)
    version = publish_version(settings, config, workspace, model, request_of(workspace), champion_of(workspace))
    workspace.write_json(REGISTERED, {"version": version})
    return version


def stage(settings: Settings, workspace: Workspace) -> dict[str, Any]:
    """Check the registered version against the golden rows."""
    from dags.steps import staging
    from dags.steps.registry import Registry

    config, version = config_of(workspace), version_of(workspace)
    found = staging.stage(
        Registry(settings, config.name), version, config, workspace.read_table(DATA), workspace.read_json(GOLDEN)
    )
    workspace.write_json(STAGED, found)
    return found


def version_of(workspace: Workspace) -> str:
    """Return the version the request has brought forth."""
    return str(workspace.read_json(REGISTERED)["version"])


def evidence(workspace: Workspace) -> dict[str, Any]:
    """Return what a `validate` command carries: gates and staging in short, small enough for the ledger."""
    gates = workspace.read_json(GATES)["gates"]
    return {
        "gates": {each["name"]: {"value": each["value"], "threshold": each["threshold"]} for each in gates},
        "winner": workspace.read_json(SELECTION)["winner"],
        "rows": workspace.read_json(EXTRACTION)["rows"],
        "staging": workspace.read_json(STAGED),
    }


def now_ms() -> int:
    """Return the time a reference or version is made at."""
    return int(time.time() * 1_000)
