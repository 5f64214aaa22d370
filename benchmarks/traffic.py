"""Models of some features and their events, the same for every run, made before anything is measured."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec
import numpy as np

from monitors.profile import PerformanceBaseline, ReferenceProfile, build_profile
from streamer.models import ModelConfig, parse_model

# Two of a model's features are categorical, the others are numbers.
FEATURES = 12
CATEGORICAL = {"carrier": tuple("ABCDEFGH"), "city": ("lima", "oslo", "rome", "wien")}
VERSION = "1"
SPAN_MS = 3_600_000
SEED = 2
_REFERENCE_ROWS = 20_000
# Drawing from a table of rows is far faster than drawing every row, and its cells are spread as widely.
_TABLE_VALUES = 600_000

Message = tuple[str, bytes]
# Some events in one message, which has no key.
Batch = tuple[None, bytes]


def numeric(features: int = FEATURES, *, kind: int = 0) -> tuple[str, ...]:
    """Return the names of a model's numeric features; models of another kind have others, as long."""
    prefix = f"{kind:03}" if kind else "num"
    return tuple(f"{prefix}_{index}" for index in range(features - len(CATEGORICAL)))


def model(
    index: int,
    *,
    labels: Literal["join", "context"],
    features: int = FEATURES,
    kind: int = 0,
    time: Mapping[str, str] | None = None,
    labels_of: Mapping[str, str] | None = None,
) -> ModelConfig:
    """Return one of the models that are measured; `time` and `labels_of` are added to those sections."""
    return parse_model(
        {
            "name": f"bench-{index}",
            "task": "binary",
            "positive": True,
            "features": {
                **{name: {"kind": "numeric"} for name in numeric(features, kind=kind)},
                **{name: {"kind": "categorical"} for name in CATEGORICAL},
            },
            "slices": ["carrier"],
            "time": dict(time or {}),
            "labels": {"mode": labels, **(labels_of or {})},
        },
        "benchmarks",
    )


def reference(config: ModelConfig, *, created_ms: int) -> ReferenceProfile:
    """Return a reference the events do not drift from."""
    rng = np.random.default_rng(0)
    names = [name for name, feature in config.features.items() if feature.kind == "numeric"]
    columns = {name: rng.normal(size=_REFERENCE_ROWS) for name in names}
    texts = {
        name: np.array(values, dtype=object)[rng.integers(0, len(values), _REFERENCE_ROWS)]
        for name, values in CATEGORICAL.items()
    }
    return build_profile(
        model=config.name,
        version=VERSION,
        columns={**columns, **texts, "@score": rng.uniform(size=_REFERENCE_ROWS)},
        kinds={**dict.fromkeys([*names, "@score"], "numeric"), **dict.fromkeys(CATEGORICAL, "categorical")},
        panes=None,
        baseline=PerformanceBaseline({"accuracy": 0.5}, "accuracy", 0.5, 0.01, _REFERENCE_ROWS),
        created_ms=created_ms,
    )


class Events:
    """Gives predictions as messages: what differs between two is written anew, the rest is drawn from a table.

    Parameters
    ----------
    models : the events go round over so many.
    features : of each model; twelve make some 340 bytes of JSON.
    kinds : so many sets of features there are, which the models go round over.
    seed : of the prediction ids.
    """

    def __init__(self, models: int, *, features: int = FEATURES, kinds: int = 1, seed: int = SEED) -> None:
        self._models = models
        self._ids = random.Random(seed)
        self._tails_of = [tails(features, kind=kind, share=kinds) for kind in range(kinds)]

    def message(self, number: int, ts_ms: int) -> Message:
        """Return the next prediction: its key and its JSON."""
        id_ = new_id(self._ids)
        model = number % self._models
        tails_of = self._tails_of[model % len(self._tails_of)]
        head = f'{{"prediction_id":"{id_}","model":"bench-{model}","version":"{VERSION}","ts":{ts_ms},'
        return id_, head.encode() + tails_of[number % len(tails_of)]


def predictions(
    events: int,
    models: int,
    *,
    start_ms: int,
    features: int = FEATURES,
    kinds: int = 1,
    span_ms: int = SPAN_MS,
    seed: int = SEED,
) -> Iterator[Message]:
    """Yield predictions over an hour of event time, in its order."""
    source = Events(models, features=features, kinds=kinds, seed=seed)
    for number in range(events):
        yield source.message(number, start_ms + number * span_ms // events)


def labels(events: int, models: int, *, start_ms: int, seed: int = SEED) -> Iterator[Message]:
    """Yield a label a prediction, a minute after it."""
    ids = random.Random(seed)
    for number in range(events):
        yield label(new_id(ids), number, models, start_ms + 60_000 + number * SPAN_MS // events)


def label(id_: str, number: int, models: int, ts_ms: int) -> Message:
    """Return the label of a prediction."""
    text = "true" if number % 3 == 0 else "false"
    return id_, f'{{"prediction_id":"{id_}","model":"bench-{number % models}","ts":{ts_ms},"label":{text}}}'.encode()


@functools.cache
def tails(features: int, *, kind: int = 0, share: int = 1) -> list[bytes]:
    """Return what of events' JSON comes after their time; `share` kinds of models share the table's size."""
    rng = np.random.default_rng(1)
    names = (*numeric(features, kind=kind), *CATEGORICAL)
    rows = max(1, _TABLE_VALUES // features // share)
    numbers = rng.normal(size=(rows, features - len(CATEGORICAL))).round(4).tolist()
    texts = [rng.choice(values, rows).tolist() for values in CATEGORICAL.values()]
    scores = rng.uniform(size=rows).round(6).tolist()
    bodies = (
        {"features": dict(zip(names, (*row, *words), strict=True)), "prediction": score > 0.5, "score": score}
        for row, *words, score in zip(numbers, *texts, scores, strict=True)
    )
    return [msgspec.json.encode(body)[1:] for body in bodies]


def new_id(source: random.Random) -> str:
    """Return a prediction's id."""
    # As long as a UUID and as hard to compress.
    digits = f"{source.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
