"""The demo's story: start everything, train a first champion, replay the flights, watch the loop close."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from dags.steps.bootstrap import bootstrap, set_champion
from dags.steps.serving import loader
from demo import bookmark as bookmarks
from demo.bookmark import Bookmark
from demo.chronicle import Chronicle
from demo.ending import compare, links, summarize
from demo.flights import DAY_MS, FEATURES, HOUR_MS, at, history, load, slots
from demo.pace import pace
from demo.report import Summary
from demo.screen import Screen
from demo.serving import Serving
from streamer import redis_clients
from streamer.documents import ModelView
from streamer.local.mlflow import Mlflow
from streamer.local.stack import PARTS, Stack
from streamer.models import ModelConfig, read_model
from streamer.references import publish_models
from streamer.sdk import Client
from streamer.settings import Settings
from streamer.state import Keys
from streamer.view import LiveView

MODEL_FILE = Path("config/models/flight_delay.toml")
SLOT_MS = 6 * HOUR_MS
LOOK_S = 0.25
# A worker that has just started recovers first.
_SPLIT_S = 60.0


@dataclass(frozen=True)
class Plan:
    """Which part of the year is played, in event time (epoch ms).

    Attributes
    ----------
    train_until_ms : the first champion is trained on what had landed by then.
    begin_ms, end_ms : the flights that are played.
    after_ms : how much longer the flights go on once the request has ended.
    """

    train_until_ms: int = at(3, 1)
    begin_ms: int = at(3, 1)
    end_ms: int = at(12, 1)
    after_ms: int = 7 * DAY_MS


class OtherStoryError(Exception):
    """What is to be gone on with was begun otherwise; the message says how."""


class Story:
    """One run of the demo; `stack` is started by whoever enters it, `run` plays the rest.

    Parameters
    ----------
    screen : where the story is told.
    directory : where the stack's state lies.
    keep : go on with the story that an earlier run left there, if it left one; the pages stay up at the end.
    sabotage : damage what the challenger answers, for a story that has to end in a rollback.
    deadline_s : how long the replay may take.
    plan : which flights. config : the model; the demo's own by default.

    Raises
    ------
    OtherStoryError
        With `keep`, when the story that was left has the other `sabotage`.
    """

    def __init__(
        self,
        screen: Screen,
        directory: Path,
        *,
        keep: bool = False,
        sabotage: bool = False,
        deadline_s: float = 900.0,
        plan: Plan | None = None,
        config: ModelConfig | None = None,
    ) -> None:
        self._path = bookmarks.path_under(directory)
        left = bookmarks.read(self._path) if keep else None
        if left is not None and left.sabotage != sabotage:
            began = "with" if left.sabotage else "without"
            raise OtherStoryError(
                f"the story kept in {directory} was begun {began} --sabotage: go on with it {began} "
                "--sabotage, or begin anew without --keep"
            )
        self._screen = screen
        self._left = left
        self._keep = keep
        self._sabotage = sabotage
        self._deadline_s = deadline_s
        self._plan = plan or Plan()
        self._config = config or read_model(MODEL_FILE)
        self._flights = load(directory / "cache")
        self.stack = Stack(directory, parts=frozenset(PARTS), progress=screen.part, keep=left is not None)

    @property
    def model(self) -> str:
        """The name of the model the story is about."""
        return self._config.name

    def run(self) -> Summary:
        """Train, replay and watch until the request has ended and a week more, or there is no more to come."""
        began = time.monotonic()
        settings = self.stack.settings
        os.environ.update(self.stack.environment())
        place = self._left or self._begin(settings)
        if self._left is not None:
            self._screen.say("the story goes on where it was left", day_ms=place.sent_ms)
        trained = time.monotonic()
        with Client.from_environment(transport="librdkafka") as client:
            reason = self._replay(settings, client, place)
        replayed = time.monotonic()
        seconds = {"start": self._screen.elapsed_s - (replayed - began), "champion": trained - began}
        summary = summarize(place, reason, seconds=seconds | {"replay": replayed - trained})
        summary.comparisons = compare(settings, self._config, self._flights, champion=place.champion, tale=place.tale)
        summary.links = links(settings, self._config, place.tale, mlflow_url=self._pages() if self._keep else None)
        return summary

    def _begin(self, settings: Settings) -> Bookmark:
        """Train, register and deploy the first champion."""
        publish_models(settings, [self._config])
        self._screen.part("champion", "training on January and February")
        started = time.monotonic()
        rows = history(self._flights, self._plan.train_until_ms).select(
            "prediction_id", "entity_id", "ts", *FEATURES, label=pl.col("late")
        )
        version = bootstrap(self._config, rows, settings=settings)
        set_champion(settings, self._config, version)
        self._screen.part("champion", f"ready in {time.monotonic() - started:.1f} s: version {version}")
        place = Bookmark(sabotage=self._sabotage, champion=version, sent_ms=self._plan.begin_ms)
        bookmarks.write(place, self._path)
        return place

    def _replay(self, settings: Settings, client: Client, place: Bookmark) -> str | None:
        """Play the flights; return why the story could not be told to its end, None when it could."""
        name, plan = self._config.name, self._plan
        view = LiveView(redis_clients.connect(settings), Keys(settings.namespace))
        serving = Serving(client, name, load=loader(settings, self._config), sabotage=self._sabotage)
        chronicle = Chronicle(place.tale)
        started, looked, seen = time.monotonic(), 0.0, None
        if not serving.ready(_SPLIT_S):
            return f"{name}: the split did not show in Redis within {_SPLIT_S:.0f} s; see the worker's log"
        for slot in slots(self._flights, plan.begin_ms, plan.end_ms, SLOT_MS):
            if slot.end_ms <= place.sent_ms:
                continue
            while True:
                if time.monotonic() - looked >= LOOK_S:
                    looked, seen = time.monotonic(), view.model(name, timeline=50)
                allowed = pace(seen, start_ms=plan.begin_ms, sent_ms=place.sent_ms)
                self._tell(chronicle, seen, place, allowed.held)
                if _over(place, plan.after_ms):
                    client.flush(30)
                    return None
                if time.monotonic() - started > self._deadline_s:
                    return f"not closed after {self._deadline_s:.0f} s: {allowed.held or 'still replaying'}"
                if allowed.held is None and slot.end_ms <= allowed.until_ms:
                    break
                time.sleep(0.05)
            serving.play(slot)
            place.sent_ms = slot.end_ms
            place.flights += len(slot.departures)
            place.labels += len(slot.landings)
            bookmarks.write(place, self._path)
        return "the flights ended before the loop closed"

    def _tell(self, chronicle: Chronicle, seen: ModelView | None, place: Bookmark, held: str | None) -> None:
        if seen is not None:
            for line in chronicle.observe(seen):
                self._screen.say(line, day_ms=seen.summary.watermark_ms or place.sent_ms)
        self._screen.stand(day_ms=place.sent_ms, flights=place.flights, view=seen, held=held)

    def _pages(self) -> str | None:
        """Start MLflow's pages; return their address."""
        mlflow = self.stack.part("mlflow")
        self._screen.part("mlflow", "its pages are starting")
        url = mlflow.serve() if isinstance(mlflow, Mlflow) else None
        self._screen.part("mlflow", f"ready: {url}")
        return url


def _over(place: Bookmark, after_ms: int) -> bool:
    ended_ms = place.tale.ended_ms
    return place.tale.ended is not None and ended_ms is not None and place.sent_ms >= ended_ms + after_ms
