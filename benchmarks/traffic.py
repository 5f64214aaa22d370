"""Models of twelve features and their events, the same for every run, made before anything is measured."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec
import numpy as np

from monitors.profile import PerformanceBaseline, ReferenceProfile, build_profile
from streamer.models import ModelConfig, parse_model

NUMERIC = tuple(f"num_{index}" for index in range(10))
CATEGORICAL = {"carrier": tuple("ABCDEFGH"), "city": ("lima", "oslo", "rome", "wien")}
VERSION = "1"
SPAN_MS = 3_600_000
_REFERENCE_ROWS = 20_000
# Drawing from a table of rows is far faster than drawing every row, and its cells are spread as widely.
_TABLE_ROWS = 50_000

Message = tuple[str, bytes]


def model(index: int, *, labels: Literal["join", "context"]) -> ModelConfig:
    """Return one of the models that are measured."""
    return parse_model(
        {
            "name": f"bench-{index}",
            "task": "binary",
            "positive": True,
            "features": {
                **{name: {"kind": "numeric"} for name in NUMERIC},
                **{name: {"kind": "categorical"} for name in CATEGORICAL},
            },
            "slices": ["carrier"],
            "labels": {"mode": labels},
        },
        "benchmarks",
    )


def reference(config: ModelConfig, *, created_ms: int) -> ReferenceProfile:
    """Return a reference the events do not drift from."""
    rng = np.random.default_rng(0)
    columns = {name: rng.normal(size=_REFERENCE_ROWS) for name in NUMERIC}
    texts = {
        name: np.array(values, dtype=object)[rng.integers(0, len(values), _REFERENCE_ROWS)]
        for name, values in CATEGORICAL.items()
    }
    return build_profile(
        model=config.name,
        version=VERSION,
        columns={**columns, **texts, "@score": rng.uniform(size=_REFERENCE_ROWS)},
        kinds={**dict.fromkeys([*NUMERIC, "@score"], "numeric"), **dict.fromkeys(CATEGORICAL, "categorical")},
        panes=None,
        baseline=PerformanceBaseline({"accuracy": 0.5}, "accuracy", 0.5, 0.01, _REFERENCE_ROWS),
        created_ms=created_ms,
    )


def predictions(events: int, models: int, *, start_ms: int) -> Iterator[Message]:
    """Yield predictions over an hour of event time, in its order: key and JSON of some 340 bytes."""
    rng = np.random.default_rng(1)
    numbers = rng.normal(size=(_TABLE_ROWS, len(NUMERIC))).round(4).tolist()
    texts = [rng.choice(values, _TABLE_ROWS).tolist() for values in CATEGORICAL.values()]
    scores = rng.uniform(size=_TABLE_ROWS).round(6).tolist()
    names = (*NUMERIC, *CATEGORICAL)
    for number, id_ in _ids(events):
        row = number % _TABLE_ROWS
        values = (*numbers[row], *(column[row] for column in texts))
        yield (
            id_,
            msgspec.json.encode(
                {
                    "prediction_id": id_,
                    "model": f"bench-{number % models}",
                    "version": VERSION,
                    "ts": start_ms + number * SPAN_MS // events,
                    "features": dict(zip(names, values, strict=True)),
                    "prediction": scores[row] > 0.5,
                    "score": scores[row],
                }
            ),
        )


def labels(events: int, models: int, *, start_ms: int) -> Iterator[Message]:
    """Yield a label a prediction, a minute after it."""
    for number, id_ in _ids(events):
        ts = start_ms + 60_000 + number * SPAN_MS // events
        label = {"prediction_id": id_, "model": f"bench-{number % models}", "ts": ts, "label": number % 3 == 0}
        yield id_, msgspec.json.encode(label)


def size(messages: Iterable[Message]) -> float:
    """Return the mean length of the values in bytes."""
    lengths = [len(value) for _, value in messages]
    return sum(lengths) / max(len(lengths), 1)


def _ids(events: int) -> Iterator[tuple[int, str]]:
    # As long as a UUID and as hard to compress.
    source = random.Random(2)
    for number in range(events):
        digits = f"{source.getrandbits(128):032x}"
        yield number, f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
