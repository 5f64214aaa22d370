"""The same events as `benchmarks.traffic` makes, as columns in Arrow messages: the way the SDK sends a batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np

from benchmarks import traffic
from streamer.client.arrow_encoder import Piece, encode_labels, encode_predictions
from streamer.client.batches import LabelColumns, PredictionColumns

# Of one model at a time; the SDK's encoder cuts them into messages of some 6,000.
_ROWS = 30_000
_QUEUE = 100_000

IntArray = np.ndarray[Any, np.dtype[np.int64]]
Write = Callable[[str, IntArray, list[str]], list[Piece]]


def predictions(events: int, models: int, *, start_ms: int) -> Iterator[traffic.Batch]:
    """Yield `traffic.predictions` as Arrow messages, each of one model."""
    features, said, scores = _table()

    def write(model: str, numbers: IntArray, ids: list[str]) -> list[Piece]:
        rows = numbers % len(scores)
        encoded = encode_predictions(
            PredictionColumns(
                model=model,
                features={name: values[rows] for name, values in features.items()},
                prediction=said[rows],
                score=scores[rows],
                version=traffic.VERSION,
                prediction_id=ids,
                ts_ms=start_ms + numbers * traffic.SPAN_MS // events,
            ),
            _QUEUE,
        )
        if encoded is None:
            raise RuntimeError("predictions: not taken as Arrow")
        return encoded[1]

    return _messages(events, models, write)


def labels(events: int, models: int, *, start_ms: int) -> Iterator[traffic.Batch]:
    """Yield `traffic.labels` as Arrow messages, each of one model."""

    def write(model: str, numbers: IntArray, ids: list[str]) -> list[Piece]:
        pieces = encode_labels(
            LabelColumns(
                model=model,
                prediction_id=ids,
                label=numbers % 3 == 0,
                ts_ms=start_ms + 60_000 + numbers * traffic.SPAN_MS // events,
            ),
            _QUEUE,
        )
        if pieces is None:
            raise RuntimeError("labels: not taken as Arrow")
        return pieces

    return _messages(events, models, write)


def _messages(events: int, models: int, write: Write) -> Iterator[traffic.Batch]:
    source = random.Random(traffic.SEED)
    for start in range(0, events, _ROWS * models):
        end = min(start + _ROWS * models, events)
        ids = [traffic.new_id(source) for _ in range(start, end)]
        for index in range(min(models, end - start)):
            for body, _events in write(f"bench-{index}", np.arange(start + index, end, models), ids[index::models]):
                yield None, body


def _table() -> tuple[dict[str, Any], Any, Any]:
    """Return the features, predictions and scores that events are drawn from, as columns."""
    rows = [msgspec.json.decode(b"{" + tail) for tail in traffic.tails(traffic.FEATURES)]
    names = rows[0]["features"]
    features = {name: np.array([row["features"][name] for row in rows]) for name in names}
    texts = {name: values.astype(object) for name, values in features.items() if name in traffic.CATEGORICAL}
    said, scores = np.array([row["prediction"] for row in rows]), np.array([row["score"] for row in rows])
    return {**features, **texts}, said, scores
