"""The models of a stormy stream, one of every kind that is counted differently, and what they were trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitors.profile import PerformanceBaseline, ReferenceProfile, build_profile
from streamer.models import ModelConfig, parse_model
from streamer.references import publish, publish_models
from streamer.settings import Settings
from tests.chaos.faults import MODEL

PANE_MS = 60_000
T0 = 1_700_000_040_000 // PANE_MS * PANE_MS
VERSION = "1"
# Serves nobody and has no reference: its events are counted and not binned. CHALLENGER has one.
UNKNOWN, CHALLENGER = "0", "2"
# Not in the stream.
PROMOTED = "climber"
REGIONS = ("north", "south", "west")
CARRIERS = ("AA", "B6", "UA", "WN")
CLASSES = ("late", "on-time", "cancelled")
_ROWS = 4_000

_BINARY: dict[str, Any] = {
    "task": "binary",
    "positive": True,
    "features": {
        "hour": {"kind": "numeric"},
        "carrier": {"kind": "categorical"},
        "temp": {"kind": "numeric"},
    },
    "slices": ["carrier"],
}
_DOCUMENTS: dict[str, dict[str, Any]] = {
    # Garbage is garbage of this one.
    MODEL: _BINARY,
    # Logged through the SDK, as it comes.
    "churn": _BINARY,
    # A number is predicted, and two of its features are logged apart, one of which slices the traffic.
    "price": {
        "task": "regression",
        "features": {
            "size": {"kind": "numeric"},
            "stock": {"kind": "numeric", "source": "features"},
            "region": {"kind": "categorical", "source": "features"},
        },
        "slices": ["region"],
    },
    "delay-class": {**_BINARY, "task": "multiclass", "positive": None},
    # Labels that bring their prediction along are not joined.
    "fraud": {**_BINARY, "labels": {"mode": "context"}},
    # Labels that come after this are too late to be joined.
    "brief": {**_BINARY, "labels": {"horizon": "5s"}},
    # Its one rollout passes: traffic and labels are sent as its deployments say, apart from the stream.
    PROMOTED: {
        **{name: said for name, said in _BINARY.items() if name != "slices"},
        "canary": {"steps": [20, 100], "control_percent": 10, "margin": 0.3, "min_outcomes": 50, "max_panes": 10_000},
    },
    # Nobody takes its requests on in time.
    "hasty": {**_BINARY, "deadlines": {"republish": "4s", "accept": "10s"}},
}


def _config(name: str, document: dict[str, Any]) -> ModelConfig:
    common: dict[str, Any] = {
        "name": name,
        "time": {"pane": "1m", "lateness": "10s", "idle": "500ms", "retention": "400d"},
        "window": {"min_events": 100, "max_age": "1h"},
        "policy": {"consecutive": 2, "cooldown": "5m", "performance_window": "10m"},
        "canary": {"steps": [50], "control_percent": 10},
    }
    # Longer than a clock is set ahead by: when that passes a deadline is told by whoever reads, and not by the log.
    deadlines = {"republish": "1h", **document.get("deadlines", {})}
    labels = {"maturity": "2m", "min_labels": 10, "min_coverage": 0.3, **document.get("labels", {})}
    return parse_model({**common, **document, "labels": labels, "deadlines": deadlines}, "tests/chaos/models.py")


MODELS: dict[str, ModelConfig] = {name: _config(name, document) for name, document in _DOCUMENTS.items()}


def publish_all(settings: Settings) -> None:
    """Publish every model, and the references of the versions that have one."""
    publish_models(settings, list(MODELS.values()))
    for config in MODELS.values():
        for version in (VERSION, CHALLENGER):
            publish(settings, _reference(config, version))


def _reference(config: ModelConfig, version: str) -> ReferenceProfile:
    rng = np.random.default_rng(0)
    columns: dict[str, NDArray[Any]] = {
        "hour": rng.integers(0, 24, _ROWS).astype(float),
        "carrier": np.array(CARRIERS, dtype=object)[rng.integers(0, len(CARRIERS), _ROWS)],
        "temp": rng.normal(60.0, 10.0, _ROWS),
        "size": rng.normal(100.0, 20.0, _ROWS),
        "stock": rng.normal(5.0, 2.0, _ROWS),
        "region": np.array(REGIONS, dtype=object)[rng.integers(0, len(REGIONS), _ROWS)],
        "@score": rng.normal(300.0, 60.0, _ROWS) if config.task == "regression" else rng.uniform(0, 1, _ROWS),
        "@prediction": np.array(CLASSES, dtype=object)[rng.integers(0, len(CLASSES), _ROWS)],
    }
    said = "@prediction" if config.task == "multiclass" else "@score"
    kinds = {name: str(feature.kind) for name, feature in config.features.items()}
    kinds[said] = "categorical" if said == "@prediction" else "numeric"
    primary, value = ("mae", 10.0) if config.task == "regression" else ("accuracy", 0.75)
    return build_profile(
        model=config.name,
        version=version,
        columns={name: columns[name] for name in kinds},
        kinds=kinds,
        panes=np.arange(_ROWS) // 50,
        baseline=PerformanceBaseline({primary: value}, primary, value, 0.01, 1_000),
        created_ms=T0,
    )
