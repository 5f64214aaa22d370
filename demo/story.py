"""The demo's story: start everything, train a first champion, replay the flights, watch the loop close."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import polars as pl
import redis

from dags.steps.bootstrap import bootstrap, set_champion
from dags.steps.serving import loader
from demo.chronicle import Chronicle
from demo.flights import DAY_MS, FEATURES, HOUR_MS, Slot, at, history, load, slots
from demo.pace import pace
from demo.report import BeforeAfter, Links, Scores, Summary
from demo.screen import Screen
from streamer.batches import LabelColumns
from streamer.documents import ModelView
from streamer.local.stack import PARTS, Stack
from streamer.models import read_model
from streamer.references import publish_models
from streamer.scoring import Outputs, Scorer
from streamer.sdk import Client
from streamer.settings import Settings
from streamer.state import Keys
from streamer.view import LiveView

MODEL_FILE = Path("config/models/flight_delay.toml")
BEGIN_MS = at(3, 1)
AFTER_MS = 14 * DAY_MS
COMPARED_MS = 30 * DAY_MS
SLOT_MS = 6 * HOUR_MS
LOOK_S = 0.5


def damaged(outputs: Outputs) -> Outputs:
    """Turn every answer into its opposite, as a broken deployment would."""
    flipped = ["false" if answer == "true" else "true" for answer in outputs.prediction]
    return Outputs(flipped, None if outputs.score is None else [1.0 - score for score in outputs.score])


class Story:
    """One run of the demo; `stack` is started by whoever enters it, `run` plays the rest."""

    def __init__(self, screen: Screen, directory: Path, *, sabotage: bool, end_ms: int, deadline_s: float) -> None:
        self._screen = screen
        self._sabotage = sabotage
        self._end_ms = end_ms
        self._deadline_s = deadline_s
        self._config = read_model(MODEL_FILE)
        self._flights = load(directory / "cache")
        self._chronicle = Chronicle()
        self._client: Client | None = None
        self._counts = {"flights": 0, "labels": 0}
        self._stopped = threading.Event()
        self.stack = Stack(directory, parts=frozenset(PARTS), progress=screen.part)

    def run(self) -> Summary:
        """Train, replay and watch until the request has ended and two weeks more, or there is no more to come."""
        began = time.monotonic()
        settings = self.stack.settings
        os.environ.update(self.stack.environment())
        publish_models(settings, [self._config])
        champion = self._first_champion(settings)
        trained = time.monotonic()
        set_champion(settings, self._config, champion)
        with Client.from_environment(transport="librdkafka") as client:
            self._client = client
            reason = self._replay(settings, client)
        return self._summary(settings, champion, reason, {"champion": trained - began, "replay": self._since(trained)})

    def wait_for_interrupt(self) -> None:
        """Wait until Ctrl-C."""
        try:
            self._stopped.wait()
        except KeyboardInterrupt:
            return

    def _first_champion(self, settings: Settings) -> str:
        self._screen.part("champion", "training on January and February")
        rows = history(self._flights, BEGIN_MS).select(
            "prediction_id", "entity_id", "ts", *FEATURES, label=pl.col("late")
        )
        started = time.monotonic()
        version = bootstrap(self._config, rows, settings=settings)
        self._screen.part("champion", f"ready in {self._since(started):.1f} s: version {version}")
        return version

    def _replay(self, settings: Settings, client: Client) -> str | None:
        """Play the flights; return why the story could not be told to its end, None when it could."""
        view = LiveView(redis.Redis.from_url(settings.redis.url), Keys(settings.namespace))
        damage = damaged if self._sabotage else None
        scorer = Scorer(client, self._config.name, load=loader(settings, self._config), damage=damage)
        started = time.monotonic()
        looked, seen, sent_ms, held = 0.0, None, BEGIN_MS, None
        for slot in slots(self._flights, BEGIN_MS, self._end_ms, SLOT_MS):
            while True:
                if time.monotonic() - looked >= LOOK_S:
                    looked, seen = time.monotonic(), view.model(self._config.name, timeline=50)
                    self._tell(seen, sent_ms, held)
                if self._over(sent_ms):
                    client.flush(30)
                    return None
                if self._since(started) > self._deadline_s:
                    return f"not closed after {self._deadline_s:.0f} s: {held or 'still replaying'}"
                allowed = pace(seen, start_ms=BEGIN_MS, sent_ms=sent_ms)
                held = allowed.held
                if held is None and slot.end_ms <= allowed.until_ms:
                    break
                time.sleep(0.05)
            self._play(client, scorer, slot)
            sent_ms = slot.end_ms
        return "the flights ended before the loop closed"

    def _play(self, client: Client, scorer: Scorer, slot: Slot) -> None:
        departures, landings = slot.departures, slot.landings
        if len(departures):
            scorer.score(
                {name: departures[name].to_list() for name in FEATURES},
                entity_id=departures["entity_id"].to_list(),
                ts_ms=departures["ts"].to_list(),
                prediction_id=departures["prediction_id"].to_list(),
            )
        if len(landings):
            client.log_labels(
                LabelColumns(
                    model=self._config.name,
                    prediction_id=landings["prediction_id"].to_list(),
                    label=landings["late"].to_list(),
                    ts_ms=landings["label_ts"].to_list(),
                )
            )
        self._counts["flights"] += len(departures)
        self._counts["labels"] += len(landings)

    def _tell(self, seen: ModelView | None, sent_ms: int, held: str | None) -> None:
        if seen is not None:
            for line in self._chronicle.observe(seen):
                self._screen.say(line, day_ms=seen.summary.watermark_ms or sent_ms)
        self._screen.stand(day_ms=sent_ms, flights=self._counts["flights"], view=seen, held=held)

    def _over(self, sent_ms: int) -> bool:
        ended_ms = self._chronicle.ended_ms
        return self._chronicle.ended is not None and ended_ms is not None and sent_ms >= ended_ms + AFTER_MS

    def _summary(self, settings: Settings, champion: str, reason: str | None, seconds: dict[str, float]) -> Summary:
        told = self._chronicle
        wanted = "rolled_back" if self._sabotage else "promoted"
        closed = reason is None and told.ended == wanted
        after = told.candidate.version if told.candidate and told.ended == "promoted" else champion
        said = {"promoted": "The loop has closed: the new model serves.", "rolled_back": "The canary rolled it back."}
        because = reason or said.get(told.ended or "", f"the request ended: {told.ended}: {told.reason}")
        return Summary(
            closed=closed,
            reason=because,
            sabotage=self._sabotage,
            champion_before=champion,
            champion_after=after,
            drifted=list(told.drifted.values()),
            storm=told.storm,
            request=told.request,
            candidate=told.candidate,
            canary=told.steps,
            ended=told.ended,
            ended_ms=told.ended_ms,
            before_after=self._before_after(settings, champion, after) if after != champion else None,
            links=self._links(settings),
            flights=self._counts["flights"],
            labels=self._counts["labels"],
            seconds=seconds,
        )

    def _before_after(self, settings: Settings, old: str, new: str) -> BeforeAfter | None:
        """Score both versions on the flights after the promotion, whatever served them."""
        start_ms = self._chronicle.ended_ms
        if start_ms is None:
            return None
        rows = self._flights.filter(
            pl.col("ts") >= start_ms, pl.col("ts") < start_ms + COMPARED_MS, pl.col("late").is_not_null()
        )
        predict = loader(settings, self._config)
        table = {name: rows[name].to_list() for name in FEATURES}
        return BeforeAfter(
            start_ms=start_ms,
            end_ms=start_ms + COMPARED_MS,
            flights=len(rows),
            old=_scores(old, predict(old)(table), rows["late"].to_list()),
            new=_scores(new, predict(new)(table), rows["late"].to_list()),
        )

    def _links(self, settings: Settings) -> Links:
        request = self._chronicle.request
        if request is None or request.run_id is None:
            return Links()
        pages = f"{settings.airflow.url}/dags"
        return Links(
            airflow=f"{pages}/retrain/runs/{request.run_id}", canary=f"{pages}/canary/runs/canary__{request.run_id}"
        )

    @staticmethod
    def _since(moment_s: float) -> float:
        return time.monotonic() - moment_s


def _scores(version: str, outputs: Outputs, late: list[Any]) -> Scores:
    from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

    said = [answer == "true" for answer in outputs.prediction]
    scores = list(outputs.score or [])
    return Scores(
        version=version,
        accuracy=float(accuracy_score(late, said)),
        auc=float(roc_auc_score(late, scores)),
        log_loss=float(log_loss(late, scores)),
    )
