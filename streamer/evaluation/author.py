"""The one author of each model: looks at what time has completed, decides, answers, and ends what is overdue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

import msgspec
import structlog

from monitors import lifecycle
from monitors.panes import Source
from monitors.policy import Look, ended, under_permission
from streamer.catalog import Catalog, Model
from streamer.evaluation import effects, looks
from streamer.evaluation.model_record import FAULTS, ModelRecord, Watched
from streamer.evaluation.pane_store import PaneKey
from streamer.evaluation.shard import Shard
from streamer.events import Command, RetrainRequest
from streamer.settings import Settings
from streamer.stage import Record

log = structlog.get_logger(__name__)

# Deadlines are minutes and more: looking for one that has passed goes through all models.
_EXPIRE_MS = 1_000


class Author:
    """Changes models and gathers what that puts into the log, until the stage publishes it.

    Attributes
    ----------
    effects : requests, ledger entries, deployments and answers not yet published.
    """

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self._settings = settings
        self._catalog = catalog
        self._predictions = settings.topic("predictions")
        self._features = settings.topic("features")
        self._labels = settings.topic("labels")
        self.effects: list[Record] = []

    def advance(self, shard: Shard, read_up_to: Mapping[Source, int], model: Model, watched: Watched) -> None:
        """Complete and mature panes as far as partitions have been read up to, and look at each once, in order."""
        clock = watched.record.clock
        before = (clock.complete.done_ms, clock.mature.done_ms)
        counts = shard.position.counts
        drift = [self._predictions, self._features] if model.uses_features else [self._predictions]
        clock.advance(read_up_to, drift=_partitions(counts, drift), labels=_partitions(counts, [self._labels]))
        if before == (clock.complete.done_ms, clock.mature.done_ms):
            return
        watched.changed, watched.shown = True, False
        self._look_at_drift(shard, model, watched)
        self._look_at_performance(shard, model, watched)
        self._retain(model, watched)

    def _look_at_drift(self, shard: Shard, model: Model, watched: Watched) -> None:
        record = watched.record
        done = record.clock.complete.done_ms
        version = looks.served(watched)
        pane_ms = int(model.config.time.pane)
        ends = sorted(
            (key.start_ms + pane_ms, pane.on_time.events)
            for key, pane in watched.live(version, pane_ms)
            if record.drift_looked_ms < key.start_ms + pane_ms <= done
        )
        profile = self._catalog.reference(model.name, version)
        for end_ms, events in ends:
            record.drift_looked_ms = end_ms
            record.events_since_look += events
            if profile is None or record.events_since_look < model.config.window.min_new_events:
                continue
            record.events_since_look = 0
            look = looks.drift_look(model, profile, watched, version, end_ms)
            self._decide(shard, model, watched, version, look)
        record.drift_looked_ms = max(record.drift_looked_ms, done)

    def _look_at_performance(self, shard: Shard, model: Model, watched: Watched) -> None:
        record = watched.record
        done = record.clock.mature.done_ms
        version = looks.served(watched)
        pane_ms = int(model.config.time.pane)
        profile = self._catalog.reference(model.name, version)
        ripe = sorted(
            (key for key in watched.panes if key.origin == "live" and key.pane_ms == pane_ms),
            key=lambda key: (key.start_ms, key.version),
        )
        for start_ms in dict.fromkeys(key.start_ms for key in ripe):
            end_ms = start_ms + pane_ms
            if not record.mature_looked_ms < end_ms <= done:
                continue
            record.mature_looked_ms = end_ms
            for key in (key for key in ripe if key.start_ms == start_ms and watched.panes[key].sampled):
                looks.mature(model, watched, key, watched.panes[key])
            looks.compare_arms(model, watched, start_ms, shard.position.now_ms)
            pane = watched.panes.get(PaneKey(version, "live", pane_ms, start_ms))
            if profile is None or pane is None or pane.looked != "yes":
                continue
            record.performance = looks.performance_look(model, profile, watched, version, end_ms)
            look = Look(end_ms, None, record.performance, None)
            self._decide(shard, model, watched, version, look)
        record.mature_looked_ms = max(record.mature_looked_ms, done)

    def _decide(self, shard: Shard, model: Model, watched: Watched, version: str, look: Look) -> None:
        record = watched.record
        before = record.alert.phase
        decision = looks.take(model, record, look, fault_allowed=_is_allowed(record, shard.position.now_ms))
        if record.alert.phase != before:
            record.tell(shard.position.now_ms, "alert", f"{before} → {record.alert.phase}", look.pane_end_ms, {})
            log.info("alert", model=model.name, phase=record.alert.phase, was=before, pane_end_ms=look.pane_end_ms)
        if decision is not None:
            request = effects.build_request(
                self._settings, model, watched, version, decision.kind, look, now_ms=shard.position.now_ms
            )
            self._raise(shard, model, watched, request)

    def _raise(self, shard: Shard, model: Model, watched: Watched, request: RetrainRequest) -> None:
        record = watched.record
        record.life, transitions = lifecycle.raise_request(
            record.life,
            request_id=request.request_id,
            kind=request.kind,
            version=request.version,
            now_ms=shard.position.now_ms,
        )
        if not transitions:
            return
        record.request = request
        log.info("request_raised", model=model.name, request_id=request.request_id, kind=request.kind)
        self.effects.append(effects.request_record(self._settings, request))
        self.note(shard, watched, effects.evidenced(transitions, request))

    def _publish_again(self, shard: Shard, watched: Watched) -> None:
        record = watched.record
        if record.request is None or record.life.request is None:
            return
        record.life = lifecycle.published(record.life, shard.position.now_ms)
        record.request = msgspec.structs.replace(record.request, attempt=record.request.attempt + 1)
        self.effects.append(effects.request_record(self._settings, record.request))
        watched.changed, watched.shown = True, False

    def note(self, shard: Shard, watched: Watched, transitions: Iterable[lifecycle.Transition]) -> None:
        """Write transitions to the ledger, publish the deployment if it moved, and end the alert with its request."""
        transitions = list(transitions)
        record = watched.record
        watched.changed, watched.shown = True, False
        now_ms = shard.position.now_ms
        self.effects += effects.transition_records(self._settings, shard.index, record, transitions, now_ms)
        for moved in transitions:
            text = effects.words(moved)
            data = {"actor": moved.actor, "reason": moved.reason, **moved.detail}
            record.tell(now_ms, moved.subject_kind, text, record.clock.watermark_ms, data)
        if any(transition.subject_kind == "deployment" for transition in transitions):
            self.effects.append(effects.deployment_record(self._settings, shard.index, record))
        if any(t.subject_kind == "request" and t.state in lifecycle.FINAL for t in transitions):
            model = self._catalog.model(record.name)
            if model is not None:
                at_ms = record.clock.complete.done_ms
                record.alert = ended(looks.policy_of(model.config), record.alert, at_ms=at_ms)

    def answer(self, shard: Shard, command: Command, model: Model, watched: Watched) -> None:
        """Answer one command by the model's state machines, and put what follows into the log."""
        record = watched.record
        now_ms = shard.position.now_ms
        challenger = str(command.payload.get("challenger", ""))
        was_open = lifecycle.is_open(record.life)
        had_rollout = record.life.rollout
        record.life, answered, transitions = lifecycle.answer(
            record.life,
            effects.wish(command),
            now_ms=now_ms,
            plan=looks.plan_of(model.config),
            verdict=record.verdict,
            has_reference=self._catalog.reference(model.name, challenger) is not None,
            salt=command.subject,
        )
        if command.kind == "allow" and answered.outcome == "accepted":
            # At once: the retraining that was blocked goes by the fault kept here.
            record.alert = under_permission(record.alert, fault_allowed=_is_allowed(record, now_ms))
        self.effects.append(effects.answer_record(self._settings, shard.index, record, command, answered, now_ms))
        log.info("answered", model=model.name, kind=command.kind, outcome=answered.outcome, reason=answered.reason)
        if record.life.rollout is not had_rollout:
            self._follow_rollout(model, record, had_rollout, now_ms)
        if command.kind == "request" and not was_open and lifecycle.is_open(record.life):
            record.request = effects.manual_request(self._settings, model, watched, command, now_ms)
            self.effects.append(effects.request_record(self._settings, record.request))
            transitions = tuple(effects.evidenced(transitions, record.request))
        self.note(shard, watched, transitions)

    def expire(self, shard: Shard, now_ms: int) -> list[tuple[Watched, Exception]]:
        """Fail what has stood too long, publish again what nobody has accepted, end permissions, page silent streams.

        Returns
        -------
        The models of which that failed, and why: they hold nobody else up.
        """
        if now_ms < shard.expired_ms + _EXPIRE_MS:
            return []
        shard.expired_ms = now_ms
        heard_ms = self._heard_up_to(shard, now_ms)
        failed: list[tuple[Watched, Exception]] = []
        for name, watched in shard.models.items():
            model = self._catalog.model(name)
            if model is None:
                continue
            try:
                if heard_ms is not None:
                    self._watch_silence(model, watched, heard_ms)
                self._end_permission(watched, now_ms)
                self._hold_to_deadlines(shard, model, watched, now_ms)
            except FAULTS as error:
                failed.append((watched, error))
        return failed

    @staticmethod
    def _end_permission(watched: Watched, now_ms: int) -> None:
        """Let a data fault block again once the time a person allowed it for is over."""
        record = watched.record
        if record.alert.allowed_fault is not None and not _is_allowed(record, now_ms):
            log.warning("fault_allowed_no_more", model=record.name, fault=record.alert.allowed_fault)
            record.alert = under_permission(record.alert, fault_allowed=False)
            watched.changed, watched.shown = True, False

    def _hold_to_deadlines(self, shard: Shard, model: Model, watched: Watched, now_ms: int) -> None:
        if not lifecycle.is_open(watched.record.life):
            return
        deadlines = effects.deadlines_of(model.config)
        watched.record.life, transitions = lifecycle.expire(watched.record.life, now_ms=now_ms, deadlines=deadlines)
        if transitions:
            log.warning("expired", model=model.name, states=[transition.state for transition in transitions])
            self.note(shard, watched, transitions)
        elif lifecycle.republish_due(watched.record.life, now_ms=now_ms, deadlines=deadlines):
            self._publish_again(shard, watched)

    def _heard_up_to(self, shard: Shard, now_ms: int) -> int | None:
        """Return the record time up to which all that models' events come in has been read; None where some has not.

        What waits to be read or applied may well hold events: its model is not silent.
        """
        counts, progress = shard.position.counts, shard.position.progress
        places = _partitions(counts, [topic for topic in (self._predictions, self._features) if topic in counts])
        if not places or not all(place in progress for place in places):
            return None
        return min(now_ms, *(progress[place][2] for place in places))

    @staticmethod
    def _watch_silence(model: Model, watched: Watched, heard_ms: int) -> None:
        """Page a model whose events have stopped coming: time completes nothing of a stream at rest."""
        record = watched.record
        if not record.newest_record_ms:
            return
        silent_ms = heard_ms - record.newest_record_ms
        stale = silent_ms > model.config.time.stale
        if stale == record.stale:
            return
        record.stale = stale
        watched.changed, watched.shown = True, False
        what = f"no live events for {silent_ms / 3_600_000:.1f} h" if stale else "live events come again"
        record.tell(heard_ms, "stream", what, record.clock.watermark_ms, {})
        tell = log.warning if stale else log.info
        tell("stream_stale" if stale else "stream_flows", model=model.name, silent_ms=silent_ms)

    @staticmethod
    def _follow_rollout(model: Model, record: ModelRecord, before: lifecycle.RolloutState | None, now_ms: int) -> None:
        """Begin a new rollout's comparison afresh; at a new step, keep the last one's verdict and judge anew."""
        rollout = record.life.rollout
        if rollout is None:
            return
        if before is None or before.rollout_id != rollout.rollout_id:
            record.comparison, record.verdict, record.verdicts = None, None, []
        elif rollout.step != before.step:
            if record.verdict is not None:
                record.verdicts.append(record.verdict)
            record.verdict = None
            comparison = record.restored_comparison()
            if comparison is not None:
                looks.judge(model, record, comparison, now_ms)

    @staticmethod
    def _retain(model: Model, watched: Watched) -> None:
        """Drop panes past their retention, as the state topic will."""
        floor_ms = watched.record.clock.watermark_ms - int(model.config.time.retention)
        watched.forget([key for key in watched.panes if key.start_ms + key.pane_ms <= floor_ms])


def _is_allowed(record: ModelRecord, now_ms: int) -> bool:
    """Tell whether a person lets the model be retrained although its data has a fault."""
    return record.life.allow_until_ms is not None and now_ms < record.life.allow_until_ms


def _partitions(counts: Mapping[str, int], topics: Iterable[str]) -> tuple[Source, ...]:
    return _numbered(tuple([(topic, counts.get(topic, 1)) for topic in topics]))


@lru_cache(maxsize=100)
def _numbered(counts: tuple[tuple[str, int], ...]) -> tuple[Source, ...]:
    return tuple((topic, index) for topic, count in counts for index in range(count))
