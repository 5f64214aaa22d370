"""The demo's flights with a champion that needs no training: a table of how often flights were late in winter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from demo.flights import FEATURES, Slot, at, history, load, slots
from demo.serving import Serving
from streamer.durations import Duration
from streamer.models import ModelConfig, read_model
from streamer.reference_table import OutputColumns, build
from streamer.references import publish, publish_models
from streamer.scoring import Outputs
from streamer.sdk import Client
from streamer.settings import Settings

VERSION = "1"
BEGIN_MS = at(3, 1)
SLOT_MS = 6 * 3_600_000
_MODEL_FILE = Path(__file__).parents[2] / "config" / "models" / "flight_delay.toml"
# Workers forget panes older than this: here none, so that every flight of the year is compared.
_RETENTION = Duration.parse("400d")


@dataclass(frozen=True)
class Champion:
    """Says how late flights were in January and February at an airport and hour.

    Attributes
    ----------
    shares : (origin, hour) → share of late flights. overall : of all, which is also where "late" begins.
    """

    shares: Mapping[tuple[Any, Any], float]
    overall: float

    @classmethod
    def of(cls, table: pl.DataFrame) -> Champion:
        """Learn from flights that have landed."""
        found = table.group_by("origin", "hour").agg(pl.col("late").mean())
        shares = {(origin, hour): share for origin, hour, share in found.iter_rows()}
        return cls(shares, float(table["late"].mean()))  # type: ignore[arg-type]

    def predict(self, table: Mapping[str, list[Any]]) -> Outputs:
        """Score a batch."""
        scores = [self.shares.get(key, self.overall) for key in zip(table["origin"], table["hour"], strict=True)]
        return Outputs(["true" if score >= self.overall else "false" for score in scores], scores)


class Season:
    """Flights from March up to some day, slot by slot, served and labelled as the demo does."""

    def __init__(self, cache: Path, end_ms: int) -> None:
        flights = load(cache)
        self._winter = history(flights, BEGIN_MS)
        self.champion = Champion.of(self._winter)
        self.config = _config()
        self.slots: list[Slot] = list(slots(flights, BEGIN_MS, end_ms, SLOT_MS))

    def publish(self, settings: Settings) -> None:
        """Publish the model, and the reference of its first version."""
        said = self.champion.predict({name: self._winter[name].to_list() for name in FEATURES})
        table = self._winter.with_columns(
            pl.Series("prediction", said.prediction), pl.Series("score", said.score, dtype=pl.Float64)
        )
        columns = OutputColumns(prediction="prediction", score="score", label="late", ts="ts")
        profile = build(self.config, table, columns, version=VERSION, created_ms=BEGIN_MS)
        publish_models(settings, [self.config])
        publish(settings, profile)

    def serving(self, client: Client) -> Serving:
        """Return what serves the flights."""
        return Serving(client, self.config.name, load=lambda _version: self.champion.predict, sabotage=False)


def _config() -> ModelConfig:
    config = read_model(_MODEL_FILE)
    return config.model_copy(update={"time": config.time.model_copy(update={"retention": _RETENTION})})
