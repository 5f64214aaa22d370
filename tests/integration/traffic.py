"""A model with an answer to learn, its first training table, and traffic that is served by the split and labelled."""

from __future__ import annotations

import threading
import time

import numpy as np
import polars as pl

from streamer.events import Label, Prediction
from streamer.models import ModelConfig, parse_model
from streamer.sdk import Client
from streamer.settings import Settings

PANE_MS = 60_000
T0 = 1_700_000_040_000 // PANE_MS * PANE_MS
CITIES = np.array(["oslo", "rome", "lima"], dtype=object)
MODEL = parse_model(
    {
        "name": "toy",
        "task": "binary",
        "positive": True,
        "features": {"x": {"kind": "numeric"}, "noise": {"kind": "numeric"}, "city": {"kind": "categorical"}},
        "slices": ["city"],
        "time": {"pane": "1m", "lateness": "1s", "idle": "300ms", "retention": "10d"},
        "window": {"min_events": 500, "max_age": "1h", "min_new_events": 10},
        "labels": {"maturity": "10s", "min_labels": 10, "min_coverage": 0.2},
        "policy": {"triggers": ["performance"], "performance_drop": 0.2, "performance_window": "1h"},
        "retrain": {"window": "1d", "history": "append", "max_trials": 1, "min_rows": 500, "holdout_share": 0.2},
        "canary": {
            "steps": [20, 50, 100],
            "margin": 0.2,
            "control_percent": 5.0,
            "min_outcomes": 50,
            "min_buckets": 5,
            "max_latency_ratio": 50.0,
            "max_error_increase": 0.2,
        },
    },
    "test",
)


def table(rows: int, *, start_ms: int, seed: int = 0, flipped: bool = False, panes: int = 60) -> pl.DataFrame:
    """Labelled rows over some panes; `flipped` turns round what x says about the label."""
    rng = np.random.default_rng(seed)
    x, city = rng.normal(size=rows), CITIES[rng.integers(0, 3, rows)]
    logit = (-3 if flipped else 3) * x + np.where(city == "rome", 1.0, 0.0)
    label = rng.random(rows) < 1 / (1 + np.exp(-logit))
    ts = np.sort(rng.integers(start_ms, start_ms + panes * PANE_MS, rows))
    return pl.DataFrame(
        {
            "prediction_id": [f"{start_ms}-{seed}-{row}" for row in range(rows)],
            "entity_id": [f"user-{user}" for user in rng.integers(0, 900, rows)],
            "ts": ts,
            "x": x,
            "noise": rng.normal(size=rows),
            "city": city.tolist(),
            "label": label,
        }
    )


class Traffic:
    """Serves panes of events, one after another, by the split of the moment.

    Parameters
    ----------
    accuracy : version → how often its answers are right; 0.75 for one that is not named.
    """

    def __init__(self, settings: Settings, config: ModelConfig = MODEL, *, rows: int = 300) -> None:
        self.accuracy: dict[str, float] = {}
        self.pane = 0
        self.flipped = False
        self._config, self._rows = config, rows
        kafka = settings.kafka.properties()
        self._client = Client(
            kafka["bootstrap.servers"], redis_url=settings.redis.url, namespace=settings.namespace, kafka=kafka
        )
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def serve(self, panes: int) -> None:
        """Serve some panes at once."""
        for _ in range(panes):
            self._serve_pane()
        self._client.flush(30)

    def start(self, *, every_s: float = 0.25) -> None:
        """Go on serving, a pane every so often, until `stop`."""

        def run() -> None:
            while not self._ending.is_set():
                self._serve_pane()
                time.sleep(every_s)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop and send what is left."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
        self._client.close(30)

    def _serve_pane(self) -> None:
        start_ms = T0 + self.pane * PANE_MS
        rows = table(self._rows, start_ms=start_ms, seed=self.pane, flipped=self.flipped, panes=1)
        rng = np.random.default_rng(self.pane)
        predictions, labels = [], []
        for row in rows.iter_rows(named=True):
            choice = self._client.choose(self._config.name, row["entity_id"])
            right = rng.random() < self.accuracy.get(choice.version, 0.75)
            answer = row["label"] if right else not row["label"]
            predictions.append(
                Prediction(
                    prediction_id=row["prediction_id"],
                    model=self._config.name,
                    version=choice.version,
                    ts=row["ts"],
                    features={name: row[name] for name in self._config.features},
                    prediction=answer,
                    score=0.9 if answer else 0.1,
                    entity_id=row["entity_id"],
                    rollout_id=choice.rollout_id,
                    bucket=choice.bucket,
                    latency_ms=float(rng.uniform(5, 10)),
                )
            )
            labels.append(
                Label(
                    prediction_id=row["prediction_id"], model=self._config.name, ts=row["ts"] + 500, label=row["label"]
                )
            )
        self._client.log_predictions(predictions)
        self._client.log_labels(labels)
        self.pane += 1
