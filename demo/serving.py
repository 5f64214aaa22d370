"""The demo's serving system: it answers for flights that leave, and logs, hours later, how they landed."""

from __future__ import annotations

import time
from collections.abc import Callable

from demo.flights import FEATURES, Slot
from streamer.client.batches import LabelColumns
from streamer.routing import UNKNOWN_VERSION
from streamer.scoring import Outputs, Predict, Scorer
from streamer.sdk import Client


def damaged(outputs: Outputs) -> Outputs:
    """Turn every answer into its opposite, as a broken deployment would."""
    flipped = ["false" if answer == "true" else "true" for answer in outputs.prediction]
    return Outputs(flipped, None if outputs.score is None else [1.0 - score for score in outputs.score])


class Serving:
    """Serves one model's flights through the SDK.

    Parameters
    ----------
    client : routes and logs.
    model : the model's name.
    load : version → what scores a batch.
    sabotage : damage what the challenger answers.
    """

    def __init__(self, client: Client, model: str, *, load: Callable[[str], Predict], sabotage: bool) -> None:
        self._client = client
        self._model = model
        self._scorer = Scorer(client, model, load=load, damage=damaged if sabotage else None)

    def ready(self, timeout_s: float) -> bool:
        """Wait until the client knows who serves; False when it still does not after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while self._client.choose(self._model, "anybody").version == UNKNOWN_VERSION:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def play(self, slot: Slot) -> None:
        """Answer for the slot's departures and log the labels of its landings."""
        departures, landings = slot.departures, slot.landings
        if len(departures):
            self._scorer.score(
                {name: departures[name].to_list() for name in FEATURES},
                entity_id=departures["entity_id"].to_list(),
                ts_ms=departures["ts"].to_list(),
                prediction_id=departures["prediction_id"].to_list(),
            )
        if len(landings):
            self._client.log_labels(
                LabelColumns(
                    model=self._model,
                    prediction_id=landings["prediction_id"].to_list(),
                    label=landings["late"].to_list(),
                    ts_ms=landings["label_ts"].to_list(),
                )
            )
