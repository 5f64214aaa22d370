"""Everything evaluate keeps of one model besides its panes, and how that is kept in the state topic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from monitors.canary import CanaryVerdict
from monitors.comparison import Comparison
from monitors.lifecycle import ModelState
from monitors.panes import ModelClock
from monitors.performance import PerformanceSchema
from monitors.policy import AlertState, PerformanceLook
from monitors.sketch import Pairs
from streamer.evaluation.compression import compress, decompress
from streamer.evaluation.pane_store import Pane, PaneKey, Source
from streamer.events import Increment, RetrainRequest
from streamer.models import ModelConfig

SERIES = 60
# Errors that are one model's own: they mark that model, and must not follow its partition from worker to worker.
FAULTS = (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, msgspec.MsgspecError)
_TIMELINE = 100


@dataclass(slots=True)
class ModelRecord:
    """One model's clocks, alert, request, rollout and recent looks.

    `drift_looked_ms` and `mature_looked_ms` are the ends of the newest panes looked at; `events_since_look`
    the on-time events of the served version since drift was last looked at. `newest_record_ms` is when the last live
    event came, `stale` whether that is too long ago.
    """

    name: str
    model_epoch: int
    clock: ModelClock
    alert: AlertState = field(default_factory=AlertState)
    life: ModelState = field(default_factory=ModelState)
    drift_looked_ms: int = 0
    mature_looked_ms: int = 0
    events_since_look: int = 0
    comparison: dict[str, Any] | None = None
    verdict: CanaryVerdict | None = None
    verdicts: list[CanaryVerdict] = field(default_factory=list)
    request: RetrainRequest | None = None
    performance: PerformanceLook | None = None
    psi_series: dict[str, list[float | None]] = field(default_factory=dict)
    tallies: dict[str, int] = field(default_factory=dict)
    timeline: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    newest_record_ms: int = 0
    stale: bool = False

    @classmethod
    def new(cls, config: ModelConfig) -> ModelRecord:
        """Begin a model that nothing is known of yet."""
        return cls(config.name, config.model_epoch, clock_of(config))

    def restored_comparison(self) -> Comparison | None:
        """Return the rollout's comparison, None when no rollout has begun."""
        return None if self.comparison is None else Comparison.from_state(self.comparison)

    def tell(self, at_ms: int, kind: str, text: str, event_time_ms: int, data: dict[str, Any]) -> None:
        """Add a line to the timeline; times rise strictly, so that each line has an id of its own."""
        at = max(at_ms, self.timeline[-1][0] + 1 if self.timeline else 0)
        entry = {"at_ms": str(at_ms), "event_time_ms": str(event_time_ms), "kind": kind, "text": text}
        self.timeline.append((at, {**entry, "data": msgspec.json.encode(data).decode()}))
        del self.timeline[:-_TIMELINE]

    def note_psi(self, feature: str, value: float | None) -> None:
        """Add a look's PSI to the feature's recent course."""
        series = self.psi_series.setdefault(feature, [])
        series.append(value)
        del series[:-SERIES]


def clock_of(config: ModelConfig) -> ModelClock:
    """Return a clock with the configuration's lengths of time."""
    time = config.time
    return ModelClock(int(time.pane), int(time.lateness), int(config.labels.maturity), int(time.idle))


@dataclass(slots=True)
class Watched:
    """One model in evaluate's memory: its record, its panes, and what has changed since the last commit.

    `config` is the configuration its clock goes by, None before the first since it was restored. `live_events` are
    those of its live panes. Of the live view, `shown` says whether all but counts is as it stands, `counted` whether
    there are new counts for the list of models, `numbers_shown` and `numbers_at_s` whether and when its statistics
    were written.
    """

    record: ModelRecord
    panes: dict[PaneKey, Pane] = field(default_factory=dict)
    dirty: set[PaneKey] = field(default_factory=set)
    gone: set[PaneKey] = field(default_factory=set)
    changed: bool = True
    live_events: int = 0
    shown: bool = False
    counted: bool = True
    numbers_shown: bool = False
    numbers_at_s: float = 0.0
    told: int = 0
    config: ModelConfig | None = None

    def follow(self, config: ModelConfig) -> None:
        """Go by a configuration's lengths of time from here on; what has completed stays so."""
        if self.config is config:
            return
        self.config = config
        lengths, held = clock_of(config), self.record.clock
        clock = replace(lengths, watermarks=held.watermarks, complete=held.complete, mature=held.mature)
        if clock != held:
            self.record.clock = clock
            self.changed, self.shown = True, False

    def pane(self, key: PaneKey) -> Pane:
        """Return a pane, made if it is new, and mark it as changed."""
        self.dirty.add(key)
        self.gone.discard(key)
        self.changed = True
        self.counted, self.numbers_shown = True, False
        found = self.panes.get(key)
        if found is None:
            found = self.panes[key] = Pane()
        return found

    def add(
        self,
        key: PaneKey,
        increment: Increment,
        sources: Sequence[Source],
        *,
        late: bool,
        schema: PerformanceSchema,
        pairs: Pairs | None = None,
    ) -> None:
        """Add an increment to its pane (see `Pane.add`)."""
        # First, as a pane counts events first: what is wrong with the rest does not undo them.
        if increment.source == "predictions" and key.origin == "live":
            self.live_events += increment.events
        self.pane(key).add(increment, sources, late=late, schema=schema, pairs=pairs)

    def live(self, version: str, pane_ms: int) -> Iterator[tuple[PaneKey, Pane]]:
        """Give the live panes of a version at the present pane width, in no order."""
        for key, pane in self.panes.items():
            if key.version == version and key.origin == "live" and key.pane_ms == pane_ms:
                yield key, pane

    def versions(self) -> set[str]:
        """Return every version that has live panes with events."""
        return {key.version for key, pane in self.panes.items() if key.origin == "live" and pane.events}

    def forget(self, keys: Iterable[PaneKey]) -> None:
        """Drop panes past their retention."""
        for key in keys:
            self.live_events -= self.panes[key].events if key.origin == "live" else 0
            del self.panes[key]
            self.dirty.discard(key)
            self.gone.add(key)
            self.changed = True


_ENCODE = msgspec.msgpack.Encoder()
_DECODE = msgspec.msgpack.Decoder(ModelRecord)


def encode_record(record: ModelRecord) -> bytes:
    """Return a record's stored form."""
    return compress(_ENCODE.encode(record))


def decode_record(raw: bytes) -> ModelRecord:
    """Read a stored record back."""
    return _DECODE.decode(decompress(raw))
