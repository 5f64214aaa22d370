"""The live view: each model's documents, computed from evaluate's memory and written to Redis when they change."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

import msgspec
import numpy as np
import redis
import structlog

from monitors import lifecycle
from monitors.drift import FeatureDrift as Drift
from monitors.profile import ReferenceProfile
from streamer import documents, effects, looks, telemetry
from streamer.catalog import Catalog, Model
from streamer.model_record import FAULTS, Watched
from streamer.pane_store import Pane
from streamer.shard import Shard
from streamer.state import OLDER_SPLIT, Keys

log = structlog.get_logger(__name__)

_TIMELINE = 1_000
# A document may be written only by who has read further in the model's own partition, and the split only
# by a deployment that is not older: a replica that was thought dead must not paint over its successor.
# Neither holds against what was read from other topics: where Kafka was made anew, all begins at nothing. So the
# stamp is the offsets, the log they are offsets of, and the log the split was last taken from (the split is
# kept back for a while, and what an earlier release has stamped says no log).
_WRITE = (
    OLDER_SPLIT
    + """
local held = redis.call('GET', KEYS[1])
local read, log, split_log = string.match(held or '', '^(%d*) ?(%S*) ?(%S*)$')
if held and (log == '' or log == ARGV[2]) and tonumber(read) > tonumber(ARGV[1]) then return 0 end
if ARGV[3] ~= '' then
  local split = redis.call('GET', KEYS[2])
  local same = split_log == '' or split_log == ARGV[2]
  if not (split and same and older_split(ARGV[3], split)) then redis.call('SET', KEYS[2], ARGV[3]) end
  split_log = ARGV[2]
end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2] .. ' ' .. (split_log or ''))
for i = 3, #KEYS do
  if redis.call('TYPE', KEYS[i]).ok ~= 'string' then redis.call('DEL', KEYS[i]) end
  local fields = cjson.decode(ARGV[i + 1])
  if fields[1] == 'value' then redis.call('SET', KEYS[i], fields[2])
  else
    redis.call('DEL', KEYS[i])
    for j = 2, #fields, 2 do redis.call('HSET', KEYS[i], fields[j], fields[j + 1]) end
  end
end
return held and 1 or 2
"""
)
_REFUSED, _NEW = 0, 2


class LiveWriter:
    """Writes what changed since the last time; asked to `reconcile`, writes everything again.

    Redis being away stops nothing: the view is written again when it is back.
    """

    def __init__(self, client: redis.Redis, keys: Keys, catalog: Catalog) -> None:
        self._redis = client
        self._keys = keys
        self._catalog = catalog
        self._write = client.register_script(_WRITE)
        self._reachable = True
        self._everything = True
        self._log = "-"

    def reads(self, topic_ids: Mapping[str, str]) -> None:
        """Be told the ids of the topics evaluate reads: a topic made anew has another."""
        self._log = ",".join(topic_ids[name] for name in sorted(topic_ids))

    def reconcile(self) -> None:
        """Have the next `show` write every document, as after a flushed Redis."""
        self._everything = True

    def show(self, shards: Iterable[Shard]) -> list[tuple[Shard, Watched, Exception]]:
        """Write the documents of every model that has changed; return those that could not be computed, and why."""
        everything, self._everything = self._everything, False
        failed: list[tuple[Shard, Watched, Exception]] = []
        try:
            # A Redis that was flushed has not even the summaries.
            everything = everything or not self._redis.exists(self._keys.models())
            for shard in shards:
                for name, watched in shard.models.items():
                    model = self._catalog.model(name)
                    if model is not None and (everything or not watched.shown):
                        # What cannot be computed of a model is tried again when the model has changed.
                        error = self._show_model(shard, model, watched)
                        watched.shown = True
                        if error is not None:
                            failed.append((shard, watched, error))
            self._reachable = True
        except redis.RedisError as error:
            self._everything = True
            telemetry.VIEW_WRITES.labels("failed").inc()
            if self._reachable:
                log.error("view_unreachable", reason=str(error))
            self._reachable = False
        return failed

    def _show_model(self, shard: Shard, model: Model, watched: Watched) -> Exception | None:
        """Write what can be computed of a model; return the error of what cannot."""
        now_ms = int(time.time() * 1000)
        values, failure = self._documents(model, watched, now_ms)
        keys = [self._keys.stamp(model.name), self._keys.split(model.name), *values]
        # Before commands have been read to their end, a forced rollback may still stand unread.
        split = effects.deployment_of(watched.record)
        settled = shard.commands_read and bool(split.champion)
        stamp = sum(shard.position.applied.values())
        deployment = msgspec.json.encode(split) if settled else ""
        written = self._write(keys=keys, args=[stamp, self._log, deployment, *values.values()])
        telemetry.VIEW_WRITES.labels("refused" if written == _REFUSED else "written").inc()
        if written == _NEW:
            # Nothing of this model was there: what the timeline had is gone as well.
            watched.told = 0
        if written != _REFUSED:
            summary = self._summary(model, watched, now_ms)
            self._redis.hset(self._keys.models(), model.name, msgspec.json.encode(summary))
            self._tell(model.name, watched)
        return failure

    def _documents(self, model: Model, watched: Watched, now_ms: int) -> tuple[dict[str, bytes], Exception | None]:
        """Return a model's documents by key, and the last error of those that could not be computed.

        Each kind stands alone: whoever wonders about a model's numbers must still see its state, and routers its split.
        """
        name = model.name
        values: dict[str, bytes] = {}
        failure: Exception | None = None
        state: list[tuple[str, Callable[[], documents.Document | None]]] = [
            (self._keys.alerts(name), lambda: _alerts_document(watched, now_ms)),
            (self._keys.request(name), lambda: _request_document(watched, now_ms)),
            (self._keys.canary(name), lambda: _canary_document(model, watched, now_ms)),
        ]
        for key, build in state:
            try:
                document = build()
                if document is not None:
                    values[key] = _value(document)
            except FAULTS as error:
                failure = error
        for version in watched.versions() | ({looks.served(watched)} - {"_"}):
            for numbers in (self._drift, self._performance):
                try:
                    values |= numbers(model, watched, version, now_ms)
                except FAULTS as error:
                    failure = error
        return values, failure

    def _drift(self, model: Model, watched: Watched, version: str, now_ms: int) -> dict[str, bytes]:
        profile = self._catalog.reference(model.name, version)
        drift, quality = _drift_documents(model, profile, watched, version, now_ms)
        return {
            self._keys.drift(model.name, version): _hash(drift),
            self._keys.quality(model.name, version): _hash(quality),
        }

    def _performance(self, model: Model, watched: Watched, version: str, now_ms: int) -> dict[str, bytes]:
        profile = self._catalog.reference(model.name, version)
        whole, slices = _performance_documents(model, profile, watched, version, now_ms)
        return {
            self._keys.performance(model.name, version): _value(whole),
            self._keys.slices(model.name, version): _hash(slices),
        }

    def _summary(self, model: Model, watched: Watched, now_ms: int) -> documents.ModelSummary:
        record = watched.record
        deployment = record.life.deployment
        request = record.life.request
        return documents.ModelSummary(
            as_of_ms=now_ms,
            event_time_ms=record.clock.watermark_ms,
            n=sum(pane.events for key, pane in watched.panes.items() if key.origin == "live"),
            model=model.name,
            model_epoch=record.model_epoch,
            task=model.config.task,
            champion=deployment.champion or None,
            challenger=deployment.challenger,
            percent=deployment.percent,
            state=record.alert.phase,
            faulted=record.life.faulted is not None,
            open_request=request.request_id if request is not None and lifecycle.is_open(record.life) else None,
            watermark_ms=record.clock.watermark_ms,
            looked_ms=record.mature_looked_ms,
        )

    def _tell(self, name: str, watched: Watched) -> None:
        """Append to the timeline what has happened since it was last told; the stream's ids keep it single."""
        for at, entry in watched.record.timeline:
            if at <= watched.told:
                continue
            try:
                fields: dict[Any, Any] = dict(entry)
                self._redis.xadd(self._keys.timeline(name), fields, id=f"{at}-1", maxlen=_TIMELINE, approximate=True)
            except redis.ResponseError:
                # The stream already has this id or a newer one: it was told by whoever came before us.
                pass
            # Not when Redis went away over it: then the line is told again.
            watched.told = at


def _hash(fields: dict[str, documents.Document]) -> bytes:
    flat: list[str] = ["hash"]
    for name, document in fields.items():
        flat += [name, msgspec.json.encode(document).decode()]
    return msgspec.json.encode(flat)


def _value(document: documents.Document) -> bytes:
    return msgspec.json.encode(["value", msgspec.json.encode(document).decode()])


def _number(value: float | None) -> float | None:
    """Return a number JSON can carry; an absent one is null, never a zero."""
    return None if value is None or not math.isfinite(value) else float(value)


def _drift_documents(
    model: Model, profile: ReferenceProfile | None, watched: Watched, version: str, now_ms: int
) -> tuple[dict[str, documents.Document], dict[str, documents.Document]]:
    event_time_ms = watched.record.clock.watermark_ms
    if profile is None:
        events = sum(pane.events for _key, pane in watched.live(version, int(model.config.time.pane)))
        nothing = documents.FeatureDrift(as_of_ms=now_ms, event_time_ms=event_time_ms, n=events, missing="no_reference")
        return dict.fromkeys(model.config.features, nothing), {}
    pane_ms = int(model.config.time.pane)
    end_ms = event_time_ms - event_time_ms % pane_ms + pane_ms
    measured = looks.measure_window(model, profile, watched, version, end_ms=end_ms, late=True)
    drift: dict[str, documents.Document] = {
        name: _drift_document(found, measured, watched.record.psi_series.get(name, []), now_ms, event_time_ms)
        for name, found in measured.drift.items()
    }
    quality: dict[str, documents.Document] = {
        name: documents.FeatureQuality(
            as_of_ms=now_ms,
            event_time_ms=event_time_ms,
            n=measured.events,
            missing_share=_number(found.missing_share),
            reference_missing_share=_number(found.reference_missing_share),
            unseen_share=_number(found.unseen_share),
            fault=found.fault,
        )
        for name, found in measured.quality.items()
    }
    return drift, quality


def _drift_document(
    found: Drift, measured: looks.Measured, series: list[float | None], now_ms: int, event_time_ms: int
) -> documents.FeatureDrift:
    return documents.FeatureDrift(
        as_of_ms=now_ms,
        event_time_ms=event_time_ms,
        n=found.n,
        missing=found.missing,
        psi=_number(found.psi),
        ks=_number(found.ks),
        js=_number(found.jensen_shannon),
        wasserstein=_number(found.wasserstein),
        p_psi=_number(found.p_psi),
        p_ks=_number(found.p_ks),
        threshold_psi=_number(found.threshold_psi),
        threshold_ks=_number(found.threshold_ks),
        alarm=found.alarm,
        n_reference=found.n_reference,
        missing_share=_number(found.missing_share),
        unseen_share=_number(found.unseen_share),
        out_of_range_share=_number(found.out_of_range_share),
        window_start_ms=measured.start_ms,
        window_end_ms=measured.end_ms,
        series=series,
    )


def _performance_documents(
    model: Model, profile: ReferenceProfile | None, watched: Watched, version: str, now_ms: int
) -> tuple[documents.Document, dict[str, documents.Document]]:
    """Live performance of the performance window: every label that has come, mature or not."""
    record = watched.record
    pane_ms = int(model.config.time.pane)
    event_time_ms = record.clock.watermark_ms
    oldest = event_time_ms - int(model.config.policy.performance_window)
    panes = sorted(
        (key.start_ms, pane) for key, pane in watched.live(version, pane_ms) if key.start_ms + pane_ms > oldest
    )
    totals: dict[str, np.ndarray[Any, Any]] = {}
    for _start, pane in panes:
        for key, vector in pane.performance.items():
            totals[key] = totals[key] + vector if key in totals else vector
    labelled, predicted = sum(pane.labelled for _s, pane in panes), sum(pane.sampled for _s, pane in panes)
    look = record.performance if version == looks.served(watched) else None
    baseline = None if profile is None else profile.baseline
    whole = documents.Performance(
        as_of_ms=now_ms,
        event_time_ms=event_time_ms,
        n=labelled,
        missing=None if labelled else "no_labels_yet",
        metrics=_metrics(model, totals.get("")),
        baseline={} if baseline is None else {name: _number(value) for name, value in baseline.metrics.items()},
        drop=None if look is None else _number(look.drop),
        drop_lower=None if look is None else _number(look.lower),
        drop_upper=None if look is None else _number(look.upper),
        labelled=labelled,
        predicted=predicted,
        coverage=labelled / predicted if predicted else None,
        maturity_ms=int(model.config.labels.maturity),
        window_start_ms=panes[0][0] if panes else None,
        window_end_ms=panes[-1][0] + pane_ms if panes else None,
        series=[_point(model, start, pane) for start, pane in panes[-60:] if pane.labelled],
    )
    slices: dict[str, documents.Document] = {
        key: documents.SlicePerformance(
            as_of_ms=now_ms, event_time_ms=event_time_ms, n=int(vector[0]), metrics=_metrics(model, vector)
        )
        for key, vector in totals.items()
        if key
    }
    return whole, slices


def _metrics(model: Model, vector: np.ndarray[Any, Any] | None) -> dict[str, float | None]:
    if vector is None:
        return {}
    return {name: _number(value) for name, value in model.schema.metrics(vector).items()}


def _point(model: Model, start_ms: int, pane: Pane) -> dict[str, Any]:
    metrics = _metrics(model, pane.performance.get(""))
    return {"pane_start_ms": start_ms, "n": pane.labelled, model.schema.primary: metrics.get(model.schema.primary)}


def _alerts_document(watched: Watched, now_ms: int) -> documents.Alerts:
    alert = watched.record.alert
    return documents.Alerts(
        as_of_ms=now_ms,
        event_time_ms=watched.record.clock.watermark_ms,
        phase=alert.phase,
        streaks={"drift": alert.drift_streak, "performance": alert.performance_streak},
        since_ms=alert.since_ms,
        cooling_until_ms=alert.cooling_until_ms,
        fault=alert.fault,
        faulted=watched.record.life.faulted is not None,
    )


def _request_document(watched: Watched, now_ms: int) -> documents.RequestView | None:
    record = watched.record
    state, event = record.life.request, record.request
    if state is None:
        return None
    return documents.RequestView(
        as_of_ms=now_ms,
        event_time_ms=record.clock.watermark_ms,
        request_id=state.request_id,
        state=state.state,
        kind=state.kind,
        version=state.version,
        raised_at_ms=state.raised_at_ms,
        window_start_ms=None if event is None else event.window_start_ms,
        window_end_ms=None if event is None else event.window_end_ms,
        findings=[] if event is None else msgspec.to_builtins(event.findings),
        run_id=state.run_id,
        reason="" if event is None else event.reason,
        history=[asdict(step) for step in state.history],
    )


def _canary_document(model: Model, watched: Watched, now_ms: int) -> documents.CanaryView | None:
    record = watched.record
    rollout = record.life.rollout
    if rollout is None:
        return None
    verdict = record.verdict
    return documents.CanaryView(
        as_of_ms=now_ms,
        event_time_ms=record.clock.watermark_ms,
        n=0 if verdict is None else verdict.n_challenger,
        rollout_id=rollout.rollout_id,
        state=rollout.state,
        request_id=rollout.request_id,
        step=rollout.step,
        percent=rollout.percent,
        epoch=record.life.deployment.epoch,
        steps=list(model.config.canary.steps),
        verdict=None if verdict is None else msgspec.convert(asdict(verdict), documents.Verdict),
        history=[asdict(entry) for entry in record.verdicts],
    )
