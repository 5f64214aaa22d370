"""The model registry: MLflow, used through its client and nothing else; every step here may be repeated."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow.artifacts
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ErrorCode

from dags.steps.outcomes import Unmendable
from streamer.settings import Settings

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
MODEL, TRAINING, REFERENCE = "model", "training/data.parquet", "reference"
REQUEST_TAG, STATUS_TAG = "driftloop.request_id", "driftloop.status"
# MLflow refuses longer tags.
_TAG_LENGTH = 4_000
_FINISHED = "FINISHED"
# Else MLflow's pages guess what an experiment is about, and ask whoever comes first.
_TRAINING_EXPERIMENT = {"mlflow.experimentKind": "custom_model_development"}

log = logging.getLogger(__name__)


class RegistryError(Unmendable):
    """The registry does not hold what is wanted; the message names the model, the version and what to do."""


class Registry:
    """One model's versions, runs and aliases.

    Parameters
    ----------
    settings : where MLflow is; its database may be named directly.
    model : the registered model's name, which is the model's name.
    """

    def __init__(self, settings: Settings, model: str) -> None:
        self._settings = settings.mlflow
        self._client = MlflowClient(self._settings.tracking_uri, self._settings.registry_uri)
        self.model = model
        # Bars fill a task's log and a terminal alike.
        MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)  # type: ignore[no-untyped-call]

    def alias(self, alias: str) -> str | None:
        """Return the version an alias names, None where it names none."""
        try:
            return str(self._client.get_model_version_by_alias(self.model, alias).version)
        except MlflowException as error:
            if error.error_code in _codes("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
                return None
            raise

    def set_alias(self, alias: str, version: str) -> None:
        """Make an alias name a version."""
        if self.alias(alias) != version:
            self._client.set_registered_model_alias(self.model, alias, version)

    def drop_alias(self, alias: str, version: str) -> None:
        """Take an alias away if it names this version; another's is left alone."""
        if self.alias(alias) == version:
            self._client.delete_registered_model_alias(self.model, alias)

    def tag(self, version: str, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        for name, value in tags.items():
            self._client.set_model_version_tag(self.model, version, name, value[:_TAG_LENGTH])

    def has(self, version: str) -> bool:
        """Return whether a version is registered."""
        return self._version(version) is not None

    def tags(self, version: str) -> dict[str, str]:
        """Return a version's tags."""
        return dict(self._wanted(version).tags)

    def version_of(self, request_id: str) -> str | None:
        """Return the version a request has brought forth, None while there is none."""
        found = self._client.search_model_versions(f"name='{self.model}'")
        versions = [each.version for each in found if each.tags.get(REQUEST_TAG) == request_id]
        return str(max(versions, key=int)) if versions else None

    def fetch(self, version: str, artefact: str, target: Path) -> Path | None:
        """Copy a version's artefact (relative to its run) into a directory; None where the run has none such."""
        uri = f"{self.run_of(version).info.artifact_uri}/{artefact}"
        try:
            local = mlflow.artifacts.download_artifacts(
                artifact_uri=uri, dst_path=str(target), tracking_uri=self._settings.tracking_uri
            )
        except (MlflowException, OSError) as error:
            log.info("version %s of %s has no artefact %s: %s", version, self.model, artefact, error)
            return None
        return Path(local)

    def fetch_model(self, version: str, target: Path) -> Path:
        """Copy a version's model, MLmodel file and all, into a directory.

        Raises
        ------
        RegistryError
            When the version is not registered or has no model.
        """
        source = self._client.get_model_version_download_uri(self.model, self._wanted(version).version)
        try:
            return Path(
                mlflow.artifacts.download_artifacts(
                    artifact_uri=source, dst_path=str(target), tracking_uri=self._settings.tracking_uri
                )
            )
        except (MlflowException, OSError) as error:
            raise RegistryError(f"{self.model} {version}: its model at {source} cannot be read: {error}") from error

    def open_run(self, request_id: str, name: str, tags: Mapping[str, str]) -> str:
        """Return the run of a request, made if there is none yet."""
        experiment = self._experiment()
        found = self._client.search_runs(
            [experiment], f"tags.`{REQUEST_TAG}` = '{request_id}' and tags.`driftloop.model` = '{self.model}'"
        )
        if found:
            return str(found[0].info.run_id)
        own = {REQUEST_TAG: request_id, "driftloop.model": self.model, **tags}
        short = {key: value[:_TAG_LENGTH] for key, value in own.items()}
        return str(self._client.create_run(experiment, run_name=name, tags=short).info.run_id)

    def log_run(self, run_id: str, *, metrics: Mapping[str, float], parameters: Mapping[str, Any]) -> None:
        """Log a run's metrics and parameters; parameters logged before are left as they are."""
        known = self._client.get_run(run_id).data.params
        for name, value in parameters.items():
            if name not in known:
                self._client.log_param(run_id, name, value)
        for name, number in metrics.items():
            self._client.log_metric(run_id, name, number)

    def log_files(self, run_id: str, source: Path, artefact: str | None = None) -> None:
        """Log a file, or all that a directory holds, under an artefact path."""
        if source.is_dir():
            self._client.log_artifacts(run_id, str(source), artefact)
        else:
            self._client.log_artifact(run_id, str(source), artefact)

    def log_parts(self, run_id: str, parts: Mapping[str, bytes]) -> None:
        """Log a reference's parts as files under `reference/`; a part's name becomes its path."""
        with tempfile.TemporaryDirectory() as directory:
            for name, value in parts.items():
                path = Path(directory) / f"{name}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(value)
            self._client.log_artifacts(run_id, directory, REFERENCE)

    def log_document(self, run_id: str, name: str, document: Any) -> None:
        """Log a JSON document."""
        self._client.log_text(run_id, json.dumps(document, indent=1), name)

    def create_version(self, run_id: str, request_id: str, tags: Mapping[str, str]) -> str:
        """Return the request's version, registered if it is not yet."""
        self._registered()
        existing = self.version_of(request_id)
        if existing is not None:
            return existing
        uri = self._client.get_run(run_id).info.artifact_uri
        made = self._client.create_model_version(
            self.model,
            f"{uri}/{MODEL}",
            run_id=run_id,
            tags={REQUEST_TAG: request_id, **{name: value[:_TAG_LENGTH] for name, value in tags.items()}},
        )
        return str(made.version)

    def finish(self, run_id: str) -> None:
        """Mark a run finished."""
        self._client.set_terminated(run_id, _FINISHED)

    def _experiment(self) -> str:
        name = self._settings.experiment
        existing = self._client.get_experiment_by_name(name)
        if existing is None:
            try:
                return str(
                    self._client.create_experiment(
                        name, artifact_location=self._settings.artifact_root, tags=_TRAINING_EXPERIMENT
                    )
                )
            except MlflowException as error:
                # Another model's run may have made it in between.
                if error.error_code not in _codes("RESOURCE_ALREADY_EXISTS"):
                    raise
                existing = self._client.get_experiment_by_name(name)
        if existing is None or existing.lifecycle_stage != "active":
            raise RegistryError(f"mlflow.experiment: {name!r} is deleted; restore it or name another")
        return str(existing.experiment_id)

    def _registered(self) -> None:
        try:
            self._client.create_registered_model(self.model)
        except MlflowException as error:
            if error.error_code not in _codes("RESOURCE_ALREADY_EXISTS"):
                raise

    def _version(self, version: str) -> ModelVersion | None:
        # Versions that are no numbers are another registry's.
        if not version.isdigit():
            return None
        try:
            return self._client.get_model_version(self.model, version)
        except MlflowException as error:
            if error.error_code in _codes("RESOURCE_DOES_NOT_EXIST"):
                return None
            raise

    def _wanted(self, version: str) -> ModelVersion:
        found = self._version(version)
        if found is None:
            raise RegistryError(f"{self.model} {version}: not registered in MLflow; wanted one of its version numbers")
        return found

    def run_of(self, version: str) -> Run:
        """Return the run a version was registered from; RegistryError when there is none."""
        found = self._wanted(version)
        if not found.run_id:
            raise RegistryError(f"{self.model} {version}: was registered without a run")
        return self._client.get_run(found.run_id)


def pipeline_file(directory: Path) -> Path:
    """Return the pipeline's file of an MLflow model.

    Raises
    ------
    RegistryError
        When it is saved in a format that runs code when it is read.
    """
    flavours = _mlmodel(directory)["flavors"]
    sklearn = flavours.get("sklearn", {})
    if sklearn.get("serialization_format") != "skops":
        raise RegistryError(
            f"{directory.name}: saved as {sklearn.get('serialization_format') or ', '.join(flavours)}; driftloop reads "
            f"scikit-learn models in the skops format only: save it again with serialization_format='skops'"
        )
    return directory / str(sklearn["pickled_model"])


def signature_inputs(directory: Path) -> dict[str, str]:
    """Return the inputs of an MLflow model: column → MLflow's type."""
    signature = _mlmodel(directory).get("signature")
    if not signature:
        raise RegistryError(f"{directory.name}: has no signature; save it again with one")
    return {column["name"]: column["type"] for column in json.loads(signature["inputs"])}


def _mlmodel(directory: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((directory / "MLmodel").read_text(encoding="utf-8"))
    return document


def code_version() -> str:
    """Return the installed version of driftloop."""
    return metadata.version("driftloop")


def _codes(*names: str) -> set[str]:
    return {ErrorCode.Name(ErrorCode.Value(name)) for name in names}
