"""Logs made by hand, and an evaluate that can be stopped and restored anywhere in them: no server, no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest

from monitors.profile import PerformanceBaseline, ReferenceProfile, build_profile
from streamer import evaluate as evaluate_module
from streamer.catalog import Catalog
from streamer.counting.columns import Coded
from streamer.counting.fleet import Fleet
from streamer.counting.fold import Folder
from streamer.counting.layouts import Layouts, layout_of
from streamer.counting.rows import EventRows, Places
from streamer.evaluate import Evaluate
from streamer.evaluation.state_log import replay
from streamer.events import Command, Label, ModelMark, Partial, Prediction, SourceProgress, encode
from streamer.join.changes import Contribution
from streamer.models import ModelConfig, parse_model
from streamer.settings import Settings
from streamer.stage import Batch, Partition, Record, Standing

PANE = 60_000
T0 = 1_700_000_040_000 // PANE * PANE
SETTINGS = Settings(internal_partitions=1)
PARTIALS, COMMANDS = Partition("partials.v1", 0), Partition("commands.v1", 0)


def config(**sections: Any) -> ModelConfig:
    """Return a small model's configuration, with these sections changed."""
    document: dict[str, Any] = {
        "name": "churn",
        "task": "binary",
        "positive": True,
        "features": {"age": {"kind": "numeric"}, "plan": {"kind": "categorical"}},
        "slices": ["plan"],
        "time": {"pane": "1m", "lateness": "10s", "idle": "1s", "retention": "10d"},
        "window": {"min_events": 100, "max_age": "1h"},
        "labels": {"maturity": "1m", "min_labels": 5},
        "policy": {"consecutive": 2, "cooldown": "10m", "triggers": ["drift"], "performance_window": "10m"},
    }
    for name, values in sections.items():
        document[name] = {**document.get(name, {}), **values} if isinstance(values, dict) else values
    return parse_model(document, "test")


def reference(model: ModelConfig, version: str = "1", *, plans: Sequence[str] = "abc") -> ReferenceProfile:
    rng = np.random.default_rng(0)
    rows = 4_000
    return build_profile(
        model=model.name,
        version=version,
        columns={
            "age": rng.normal(40, 10, rows),
            "plan": np.array(list(plans), dtype=object)[rng.integers(0, len(plans), rows)],
            "@score": rng.uniform(0, 1, rows),
        },
        kinds={"age": "numeric", "plan": "categorical", "@score": "numeric"},
        panes=None,
        baseline=PerformanceBaseline({"accuracy": 0.9}, "accuracy", 0.9, 0.01, 1_000),
        created_ms=T0,
    )


def catalog_of(model: ModelConfig, *versions: str) -> Catalog:
    catalog = Catalog()
    catalog.put_model(model.name, model.to_json())
    for version in versions or ("1",):
        for part, value in reference(model, version).to_parts().items():
            catalog.put_reference(f"{model.name}/{version}/{part}", value)
    return catalog


def predictions(pane: int, n: int, *, shift: float = 0.0, version: str = "1", **more: Any) -> list[Prediction]:
    rng = np.random.default_rng(pane)
    ages, scores, plans = rng.normal(40 + shift, 10, n), rng.uniform(0, 1, n), rng.integers(0, 3, n)
    return [
        Prediction(
            prediction_id=f"p{pane}-{row}-{version}",
            model="churn",
            version=version,
            ts=T0 + pane * PANE + row * PANE // n,
            features={"age": float(ages[row]), "plan": "abc"[plans[row]]},
            prediction=bool(scores[row] > 0.5),
            score=float(scores[row]),
            **more,
        )
        for row in range(n)
    ]


def contribution(event: Prediction, label: bool) -> Contribution:
    return Contribution(
        model="churn",
        model_epoch=1,
        version=event.version,
        origin="live",
        event_time_ms=event.ts,
        prediction="true" if event.prediction else "false",
        score=float(event.score or 0.0),  # type: ignore[arg-type]
        slices=[],
        rollout_id=event.rollout_id,
        bucket=-1 if event.bucket is None else event.bucket,
        label="true" if label else "false",
        sign=1,
        labelled=1,
    )


def rows_of(
    catalog: Catalog, events: Sequence[Any], topic: str, offsets: Sequence[int], *, record_ms: int = 0
) -> EventRows:
    """Put events that were made by hand into their models' layouts, as ingest does with those it reads."""
    names = Coded.of([event.model for event in events])
    models = [model for name in names.values if (model := catalog.model(name)) is not None]
    if isinstance(events[0], Label):
        layouts, put = Layouts(), list(events)
    else:
        layouts = Layouts(layout_of(model.config) for model in models)
        put = [
            layouts[code].of_prediction(event) if isinstance(event, Prediction) else layouts[code].of_feature_log(event)
            for code, event in zip(names.codes.tolist(), events, strict=True)
        ]
    nowhere = np.zeros(len(events), dtype=np.int64)
    places = Places([(topic, "id", 0)], nowhere, np.array(offsets, dtype=np.int64), nowhere + record_ms)
    return EventRows(Fleet(models), names.codes, layouts, put, places)


@dataclass
class Log:
    """Two input partitions, filled as ingest and senders would, each record with its append time."""

    catalog: Catalog
    records: list[tuple[Partition, int, bytes]] = field(default_factory=list)
    now_ms: int = T0
    read: int = 0

    def flush(self, events: Iterable[Prediction] = (), labels: Iterable[Contribution] = ()) -> None:
        """Append one ingest flush of these events and labels, a second after the last record."""
        self.now_ms += 1_000
        events = list(events)
        folder = Folder(self.catalog)
        if events:
            offsets = range(self.read, self.read + len(events))
            folder.predictions(rows_of(self.catalog, events, "predictions.v1", offsets, record_ms=self.now_ms))
        folder.contributions(labels)
        counted = folder.counted()
        start, self.read = self.read, self.read + len(events)
        flush = Partial(
            ingest="0",
            progress=[
                SourceProgress("predictions.v1", "id", 0, start, self.read, self.now_ms),
                SourceProgress("labels.v1", "id2", 0, 0, 0, self.now_ms),
            ],
            partition_counts={"predictions.v1": 1, "labels.v1": 1},
            increments=counted.increments,
            marks=[ModelMark("churn", [0, max(e.ts for e in events), self.now_ms])] if events else [],
            sources=counted.sources,
        )
        self.records.append((PARTIALS, self.now_ms, msgspec.msgpack.encode(flush)))

    def command(self, kind: str, subject: str = "", **payload: Any) -> None:
        """Append a command; its id is its place in the log."""
        self.now_ms += 10
        command = Command(
            command_id=f"c{len(self.records)}",
            kind=kind,  # type: ignore[arg-type]
            model="churn",
            model_epoch=1,
            subject=subject,
            payload=payload,
            actor="test",
        )
        self.records.append((COMMANDS, self.now_ms, encode(command)))

    def quiet(self, seconds: int) -> None:
        """Let time pass with empty flushes."""
        for _ in range(seconds):
            self.flush()


class Player:
    """Plays a log to an evaluate, committing what it publishes as a broker would.

    `history` is the state topic as the broker has it; `state` the newest value of each of its keys.
    """

    def __init__(self, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log = log
        self.history: list[tuple[str, bytes | None]] = []
        self.published: list[Record] = []
        self.committed: dict[Partition, int] = {}
        self._monkeypatch = monkeypatch
        self.restart()

    @property
    def state(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for key, value in self.history:
            replay(found, key, value)
        return found

    def compact(self, drops: Callable[[], bool]) -> None:
        """Drop superseded records of the state, each if `drops` says so, and tombstones that supersede none."""
        last = {key: at for at, (key, _value) in enumerate(self.history)}
        kept = [(key, value) for at, (key, value) in enumerate(self.history) if at == last[key] or not drops()]
        number = Counter(key for key, _value in kept)
        self.history = [(key, value) for key, value in kept if value is not None or number[key] > 1 or not drops()]

    def restart(self) -> None:
        """Begin again from what is committed, as after a kill."""
        self._monkeypatch.setattr(evaluate_module, "read_partitions", lambda *_, **__: {0: self.state})
        self.evaluate = Evaluate(SETTINGS, self.log.catalog, consumer_properties={}, show=lambda shards: [])
        standing = {p: Standing(self.committed.get(p), 0) for p in (PARTIALS, COMMANDS)}
        self.next = self.evaluate.restore(standing)

    def play(self, upto: int | None = None) -> None:
        """Feed the records up to a place in the log, one batch a record, without committing."""
        seen = {PARTIALS: 0, COMMANDS: 0}
        for partition, at_ms, value in self.log.records[:upto]:
            offset = seen[partition]
            seen[partition] += 1
            if offset < self.next[partition]:
                continue
            batch = Batch(partition, offset, offset + 1, True, at_ms, [offset], [at_ms], [None], [value])
            self.evaluate.fold(batch)
            self.next[partition] = offset + 1

    def tick(self) -> None:
        """Stand at the end of the commands, as of the log's time."""
        end = self.next[COMMANDS]
        self.evaluate.fold(Batch(COMMANDS, end, end, True, self.log.now_ms))

    def commit(self) -> None:
        """Do what one transaction does."""
        for record in self.evaluate.results(dict(self.next)):
            if record.topic == "state.v1":
                self.history.append(((record.key or b"").decode(), record.value))
            else:
                self.published.append(record)
        self.committed = dict(self.next)
        self.evaluate.committed()

    def values(self, topic: str) -> list[dict[str, Any]]:
        """Return what was published to a topic, as plain objects."""
        return [
            msgspec.json.decode(record.value) for record in self.published if record.topic == topic and record.value
        ]
