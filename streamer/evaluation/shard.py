"""One partition of the models: what evaluate holds of it, what of that has changed, and reading it back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from monitors.performance import PerformanceSchema
from streamer.catalog import Model
from streamer.evaluation.model_record import ModelRecord, Watched, decode_record, encode_record
from streamer.evaluation.pane_store import PaneKey, decode_pane, encode_pane
from streamer.evaluation.state_log import (
    POSITION,
    ShardPosition,
    decode_position,
    encode_position,
    model_key,
    pane_key,
    parse_pane_key,
)
from streamer.evaluation.waiting import Waiting
from streamer.stage import Record, StepFailed


class Known(NamedTuple):
    """What every increment of a model is added by, together: with a thousand, each further object is a cache miss."""

    watched: Watched
    retention_ms: int
    schema: PerformanceSchema


@dataclass
class Shard:
    """One partition of the models: its position and everything evaluate holds of its models.

    `stored_parts` counts the records each stored pane takes, by the key of its first; `configured_as_of` is the
    catalog's revision that completed panes were last looked for at, `expired_ms` the time deadlines were. `known` are
    models by name as they were configured at the catalog's revision `known_as_of`.
    """

    index: int
    position: ShardPosition = field(default_factory=ShardPosition)
    models: dict[str, Watched] = field(default_factory=dict)
    stored_parts: dict[str, int] = field(default_factory=dict)
    waiting: Waiting = field(default_factory=Waiting)
    commands_read: bool = False
    configured_as_of: int = -1
    expired_ms: int = -1_000
    known: dict[str, Known] = field(default_factory=dict)
    known_as_of: int = -1
    buried: list[tuple[str, Watched]] = field(default_factory=list)

    def watched(self, model: Model) -> Watched:
        """Return a model in memory, going by its present configuration; a new one, or a newer epoch, begins empty."""
        held = self.models.get(model.name)
        if held is not None and held.record.model_epoch >= model.epoch:
            if held.record.model_epoch == model.epoch:
                held.follow(model.config)
            return held
        if held is not None:
            self.bury(model.name)
        fresh = self.models[model.name] = Watched(ModelRecord.new(model.config), config=model.config)
        return fresh

    def bury(self, name: str) -> None:
        """Forget a model: what is stored of it goes with the next commit."""
        held = self.models.pop(name)
        self.known.pop(name, None)
        held.forget(list(held.panes))
        self.buried.append((name, held))

    def changes(self, topic: str) -> Iterator[Record]:
        """Give each changed pane once, each changed model's record, and the position they stand at."""
        for name, watched in self.buried:
            yield from self._tombstones(topic, name, watched)
            yield self._stored(topic, model_key(name), None)
        for name, watched in self.models.items():
            if watched.changed or watched.dirty or watched.gone:
                yield from self._model_changes(topic, name, watched)
        yield self._stored(topic, POSITION, encode_position(self.position))

    def settle(self) -> None:
        """Be told that the changes are committed."""
        self.buried.clear()
        for watched in self.models.values():
            watched.dirty.clear()
            watched.gone.clear()
            watched.changed = False

    def _model_changes(self, topic: str, name: str, watched: Watched) -> Iterator[Record]:
        yield from self._tombstones(topic, name, watched)
        epoch = watched.record.model_epoch
        for key in watched.dirty:
            parts = encode_pane(watched.panes[key])
            first = pane_key(name, epoch, key, 0)
            # Parts of a larger form are left as they are until the pane goes: the first says how many count.
            self.stored_parts[first] = max(len(parts), self.stored_parts.get(first, 0))
            for part, raw in enumerate(parts):
                yield self._stored(topic, pane_key(name, epoch, key, part), raw)
        yield self._stored(topic, model_key(name), encode_record(watched.record))

    def _tombstones(self, topic: str, name: str, watched: Watched) -> Iterator[Record]:
        """Give a tombstone for every part of every pane that is gone."""
        for key in watched.gone:
            first = pane_key(name, watched.record.model_epoch, key, 0)
            for part in range(self.stored_parts.pop(first, 0)):
                yield self._stored(topic, pane_key(name, watched.record.model_epoch, key, part), None)

    def _stored(self, topic: str, key: str, value: bytes | None) -> Record:
        return Record(topic, value, key=key.encode(), partition=self.index)


def restore_shard(index: int, stored: dict[str, bytes]) -> Shard:
    """Build a shard from the newest value of each of its keys in the state topic; keys of no kind are let be.

    Raises
    ------
    StepFailed
        A value cannot be read; the message names its key. What was counted under it must not be passed over.
    """
    shard = Shard(index)
    if POSITION in stored:
        with _naming(index, POSITION):
            shard.position = decode_position(stored[POSITION])
    for key, raw in stored.items():
        if key.startswith("model|"):
            with _naming(index, key):
                record = decode_record(raw)
                shard.models[record.name] = Watched(record, changed=False)
    panes: dict[tuple[str, int, PaneKey], dict[int, bytes]] = defaultdict(dict)
    for key, raw in stored.items():
        if key.startswith("pane|"):
            with _naming(index, key):
                name, epoch, pane, part = parse_pane_key(key)
                panes[name, epoch, pane][part] = raw
    for (name, epoch, pane), parts in panes.items():
        watched = shard.models.get(name)
        if watched is not None and watched.record.model_epoch == epoch:
            with _naming(index, pane_key(name, epoch, pane, 0)):
                watched.panes[pane] = decode_pane(parts)
            shard.stored_parts[pane_key(name, epoch, pane, 0)] = max(parts) + 1
            watched.live_events += watched.panes[pane].events if pane.origin == "live" else 0
    return shard


@contextmanager
def _naming(index: int, key: str) -> Iterator[None]:
    """Say of a stored value that cannot be read whose it is, and what can be done."""
    try:
        yield
    except Exception as error:
        raise StepFailed(
            f"state partition {index}, key {key}: {error}; another release or another program has written it: "
            "run the release that did, or delete the key to begin anew without what was counted under it"
        ) from error
