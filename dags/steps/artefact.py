"""A model as files: saved in a format that runs no code when it is read, and read back only if it holds none."""

from __future__ import annotations

import importlib
import logging
import tempfile
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl

from dags.steps.outcomes import Unmendable
from dags.steps.tables import inputs
from streamer.models import ModelConfig

# What our own pipelines hold beside the types skops trusts by itself; each is scikit-learn's or numpy's own.
TRUSTED = (
    "functools.partial",
    "numpy.dtype",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
    "sklearn.utils.validation.check_array",
)
# Given, for MLflow needs ten seconds to find out; these are what reading and running the pipeline takes.
PACKAGES = ("numpy", "pandas", "scikit-learn", "skops")
EXAMPLE_ROWS = 5


class ArtefactError(Unmendable):
    """A model's file holds what it must not; the message names it."""


def requirements() -> list[str]:
    """Return the packages a model needs to be read and run, at the versions it was made with."""
    return [f"{package}=={version(package)}" for package in PACKAGES]


def dump(model: Any, path: Path) -> None:
    """Write a pipeline to a file."""
    _skops().dump(model, path)


def load(path: Path) -> Any:
    """Read a pipeline that `dump` (or MLflow's skops format) wrote.

    Raises
    ------
    ArtefactError
        When the file holds a type that our pipelines do not.
    """
    skops = _skops()
    strange = sorted(set(skops.get_untrusted_types(file=path)) - set(TRUSTED))
    if strange:
        raise ArtefactError(f"{path.name}: holds {', '.join(strange)}, which no pipeline of driftloop does; not read")
    return skops.load(path, trusted=list(TRUSTED))


def _skops() -> ModuleType:
    # When first imported it asks every module there is for every function of scipy's, and Airflow's deprecated
    # modules warn a thousand times.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("skops.io")


def save_mlflow(config: ModelConfig, model: Any, features: Sequence[str], rows: pl.DataFrame, path: Path) -> None:
    """Write a pipeline as an MLflow model, with its signature and a small example."""
    import mlflow.sklearn
    from mlflow.models.signature import ModelSignature
    from mlflow.types.schema import ColSpec, Schema

    # It warns that there is no pip to name in conda.yaml; there need not be one.
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)
    kinds = {"numeric": "double", "categorical": "string"}
    answers = "double" if config.task == "regression" else "string"
    mlflow.sklearn.save_model(
        model,
        str(path),
        signature=ModelSignature(
            Schema([ColSpec(kinds[config.features[name].kind], name) for name in features]), Schema([ColSpec(answers)])
        ),
        input_example=inputs(rows.head(EXAMPLE_ROWS), features),
        pip_requirements=requirements(),
        serialization_format="skops",
        skops_trusted_types=list(TRUSTED),
    )


def round_trip(model: Any) -> tuple[Any, int]:
    """Return the model as it comes back from its file, and the file's size in bytes; ArtefactError as `load`."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.skops"
        dump(model, path)
        return load(path), path.stat().st_size
