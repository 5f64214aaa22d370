"""The live view: each model's documents, computed from evaluate's memory and written to Redis when they change."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import redis
import structlog
from redis.exceptions import NoScriptError

from streamer import documents, telemetry
from streamer.catalog import Catalog, Model
from streamer.evaluation import effects, live_documents, looks
from streamer.evaluation.model_record import FAULTS, Watched
from streamer.evaluation.shard import Shard
from streamer.state import OLDER_SPLIT, Keys

log = structlog.get_logger(__name__)

_TIMELINE = 1_000
# Every document is written again each minute while its model and version are there; what nobody has written for so
# long is of a version whose panes are gone, or of a model taken away. Split and stamp stay: routers live on them.
KEPT_MS = 7 * 24 * 3_600_000
# A document may be written only by who has read further in the model's own partition, and the split only
# by a deployment that is not older: a replica that was thought dead must not paint over its successor.
# Neither holds against what was read from other topics: where Kafka was made anew, all begins at nothing. So the
# stamp is the offsets, the log they are offsets of, and the log the split was last taken from (the split is
# kept back for a while, and what an earlier release has stamped says no log).
_AHEAD = """
local function is_ahead(stamp, read, log)
  local held, of_log = string.match(stamp or '', '^(%d*) ?(%S*)')
  return stamp and (of_log == '' or of_log == log) and tonumber(held) > tonumber(read)
end
"""
_WRITE = (
    OLDER_SPLIT
    + _AHEAD
    + """
local held = redis.call('GET', KEYS[1])
if is_ahead(held, ARGV[1], ARGV[2]) then return 0 end
local split_log = string.match(held or '', '^%d* ?%S* ?(%S*)$')
if ARGV[3] ~= '' then
  local split = redis.call('GET', KEYS[2])
  local same = split_log == '' or split_log == ARGV[2]
  if not (split and same and older_split(ARGV[3], split)) then redis.call('SET', KEYS[2], ARGV[3]) end
  split_log = ARGV[2]
end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2] .. ' ' .. (split_log or ''))
redis.call('PEXPIRE', KEYS[3], ARGV[4])
for i = 4, #KEYS do
  if redis.call('TYPE', KEYS[i]).ok ~= 'string' then redis.call('DEL', KEYS[i]) end
  local fields = cjson.decode(ARGV[i + 1])
  if fields[1] == 'value' then redis.call('SET', KEYS[i], fields[2], 'PX', ARGV[4])
  else
    redis.call('DEL', KEYS[i])
    for j = 2, #fields, 2 do redis.call('HSET', KEYS[i], fields[j], fields[j + 1]) end
    redis.call('PEXPIRE', KEYS[i], ARGV[4])
  end
end
return held and 1 or 2
"""
)
# The models' lines in the list of all, each by the model's own stamp.
_WRITE_LINES = (
    _AHEAD
    + """
for i = 2, #KEYS do
  local at = 3 * i - 3
  if not is_ahead(redis.call('GET', KEYS[i]), ARGV[at], ARGV[2]) then
    redis.call('HSETEX', KEYS[1], 'PX', ARGV[1], 'FIELDS', 1, ARGV[at + 1], ARGV[at + 2])
  end
end
return 1
"""
)
_REFUSED, _NEW = 0, 2
# So many models' statistics are written in one go: what a round trip costs is more than what it carries.
_AT_ONCE = 10

Shown = tuple[Shard, Model, Watched]
Failed = tuple[Shard, Watched, Exception]


class LiveWriter:
    """Writes what changed since the last time; asked to `reconcile`, writes everything again.

    Redis being away stops nothing: the view is written again when it is back.
    """

    def __init__(self, client: redis.Redis, keys: Keys, catalog: Catalog, *, budget_s: float) -> None:
        self._redis = client
        self._keys = keys
        self._catalog = catalog
        self._budget_s = budget_s
        self._digests = {script: client.register_script(script).sha for script in (_WRITE, _WRITE_LINES)}
        self._reachable = True
        self._everything = True
        self._log = "-"

    def reads(self, topic_ids: Mapping[str, str]) -> None:
        """Be told the ids of the topics evaluate reads: a topic made anew has another."""
        self._log = ",".join(topic_ids[name] for name in sorted(topic_ids))

    def reconcile(self) -> None:
        """Have the next `show` write every document, as after a flushed Redis."""
        self._everything = True

    def show(self, shards: Iterable[Shard]) -> list[Failed]:
        """Write what has changed; return the models that could not be computed, and why.

        States and counts are written at once. Statistics are what costs: of those, as many models' are computed as
        `view_share` of the time allows, at least one, those that have waited longest first.
        """
        everything, self._everything = self._everything, False
        failed: list[Failed] = []
        try:
            # A Redis that was flushed has not even the summaries.
            everything = everything or not self._redis.exists(self._keys.models())
            changed = self._changed(shards, everything)
            # What cannot be computed of a model is tried again when the model has changed.
            failed += self._show_states([each for each in changed if not each[2].shown])
            self._show_summaries([each for each in changed if each[2].counted])
            failed += self._show_numbers(changed)
            self._reachable = True
        except redis.RedisError as error:
            self._everything = True
            telemetry.VIEW_WRITES.labels("failed").inc()
            if self._reachable:
                log.error("view_unreachable", reason=str(error))
            self._reachable = False
        return failed

    def _changed(self, shards: Iterable[Shard], everything: bool) -> list[Shown]:
        found = []
        for shard in shards:
            for name, watched in shard.models.items():
                if everything:
                    watched.shown = False
                if not (watched.shown and watched.numbers_shown) and (model := self._catalog.model(name)) is not None:
                    found.append((shard, model, watched))
        return found

    def _show_states(self, due: Sequence[Shown]) -> list[Failed]:
        """Write how models stand, whom they serve, and what has happened."""
        failed: list[Failed] = []
        for start in range(0, len(due), _AT_ONCE):
            taken = due[start : start + _AT_ONCE]
            given = []
            for shard, model, watched in taken:
                values, errors = self._state(model, watched, int(time.time() * 1000))
                # Before commands have been read to their end, a forced rollback may still stand unread.
                split = effects.deployment_of(watched.record)
                settled = shard.commands_read and bool(split.champion)
                given.append((shard, model, values, msgspec.json.encode(split) if settled else b""))
                failed += [(shard, watched, error) for error in errors]
            for (_shard, model, watched), written in zip(taken, self._put(given), strict=True):
                if written == _NEW:
                    # Nothing of this model was there: what the timeline had is gone as well.
                    watched.told = 0
                if written != _REFUSED:
                    self._tell(model.name, watched)
                watched.shown, watched.numbers_shown, watched.counted = True, False, True
        return failed

    def _show_summaries(self, counted: Sequence[Shown]) -> None:
        """Write the lines of these models in the list of all, but for those that another worker is ahead with."""
        if not counted:
            return
        now_ms = int(time.time() * 1000)
        lines: list[Any] = []
        for shard, model, watched in counted:
            lines += [_read(shard), model.name, msgspec.json.encode(live_documents.summary(model, watched, now_ms))]
            watched.counted = False
        keys = [self._keys.models(), *(self._keys.stamp(model.name) for _shard, model, _watched in counted)]
        self._run(_WRITE_LINES, [[len(keys), *keys, KEPT_MS, self._log, *lines]])

    def _show_numbers(self, due: Iterable[Shown]) -> list[Failed]:
        failed: list[Failed] = []
        began = time.thread_time()
        waiting = deque(sorted(due, key=lambda each: each[2].numbers_at_s))
        spent = False
        while waiting and not spent:
            taken: list[tuple[Shown, dict[str, bytes]]] = []
            while waiting and len(taken) < _AT_ONCE and not spent:
                shard, model, watched = each = waiting.popleft()
                values, errors = self._numbers(model, watched, int(time.time() * 1000))
                taken.append((each, values))
                failed += [(shard, watched, error) for error in errors]
                spent = time.thread_time() - began >= self._budget_s
            answers = self._put([(shard, model, values, b"") for (shard, model, _watched), values in taken])
            for ((_shard, _model, watched), _values), written in zip(taken, answers, strict=True):
                if written == _NEW:
                    watched.shown = False
                watched.numbers_shown, watched.numbers_at_s = True, time.monotonic()
            spent = time.thread_time() - began >= self._budget_s
        return failed

    def _put(self, documents: Iterable[tuple[Shard, Model, Mapping[str, bytes], bytes]]) -> list[int]:
        """Write models' documents, and their splits where they are given: of each model all or none of them."""
        calls = []
        for shard, model, values, split in documents:
            name = model.name
            keys = [self._keys.stamp(name), self._keys.split(name), self._keys.timeline(name), *values]
            calls.append([len(keys), *keys, _read(shard), self._log, split, KEPT_MS, *values.values()])
        answers = self._run(_WRITE, calls)
        for written in answers:
            telemetry.VIEW_WRITES.labels("refused" if written == _REFUSED else "written").inc()
        return answers

    def _run(self, script: str, calls: Sequence[Sequence[Any]]) -> list[int]:
        """Run a script with each of these arguments, loading it where the server has not got it."""
        try:
            return self._answers(script, calls)
        except NoScriptError:
            self._redis.script_load(script)
            return self._answers(script, calls)

    def _answers(self, script: str, calls: Sequence[Sequence[Any]]) -> list[int]:
        # By the script's digest: redis-py's own way asks in a pipeline which scripts there are, a right of its own.
        with self._redis.pipeline(transaction=False) as pipe:
            for call in calls:
                pipe.evalsha(self._digests[script], *call)
            return [int(answer) for answer in pipe.execute()]

    def _state(self, model: Model, watched: Watched, now_ms: int) -> tuple[dict[str, bytes], list[Exception]]:
        """Return the documents of how a model stands by key, and the errors of those that could not be computed.

        Each document stands alone: whoever wonders about one must still see the others, and routers their split.
        """
        name = model.name
        build: list[tuple[str, Callable[[], documents.Document | None]]] = [
            (self._keys.alerts(name), lambda: live_documents.alerts(watched, now_ms)),
            (self._keys.request(name), lambda: live_documents.request(watched, now_ms)),
            (self._keys.canary(name), lambda: live_documents.canary(model, watched, now_ms)),
        ]
        values: dict[str, bytes] = {}
        errors: list[Exception] = []
        for key, built in build:
            try:
                document = built()
                if document is not None:
                    values[key] = _value(document)
            except FAULTS as error:
                errors.append(error)
        return values, errors

    def _numbers(self, model: Model, watched: Watched, now_ms: int) -> tuple[dict[str, bytes], list[Exception]]:
        """Return the statistics of a model's versions, as `_state` does."""
        values: dict[str, bytes] = {}
        errors: list[Exception] = []
        for version in watched.versions() | ({looks.served(watched)} - {"_"}):
            for numbers in (self._drift, self._performance):
                try:
                    values |= numbers(model, watched, version, now_ms)
                except FAULTS as error:
                    errors.append(error)
        return values, errors

    def _drift(self, model: Model, watched: Watched, version: str, now_ms: int) -> dict[str, bytes]:
        profile = self._catalog.reference(model.name, version)
        drift, quality = live_documents.drift(model, profile, watched, version, now_ms)
        return {
            self._keys.drift(model.name, version): _hash(drift),
            self._keys.quality(model.name, version): _hash(quality),
        }

    def _performance(self, model: Model, watched: Watched, version: str, now_ms: int) -> dict[str, bytes]:
        profile = self._catalog.reference(model.name, version)
        whole, slices = live_documents.performance(model, profile, watched, version, now_ms)
        return {
            self._keys.performance(model.name, version): _value(whole),
            self._keys.slices(model.name, version): _hash(slices),
        }

    def _tell(self, name: str, watched: Watched) -> None:
        """Append to the timeline what has happened since it was last told; the stream's ids keep it single.

        In one go: whoever takes a thousand models over has all of their timelines to tell.
        """
        due = [(at, entry) for at, entry in watched.record.timeline if at > watched.told]
        if not due:
            return
        with self._redis.pipeline(transaction=False) as pipe:
            for at, entry in due:
                fields: dict[Any, Any] = dict(entry)
                pipe.xadd(self._keys.timeline(name), fields, id=f"{at}-1", maxlen=_TIMELINE, approximate=True)
            answers = pipe.execute(raise_on_error=False)
        for (at, _entry), answer in zip(due, answers, strict=True):
            # An id that the stream has already, or a newer one, was told by whoever came before us.
            if isinstance(answer, Exception) and not isinstance(answer, redis.ResponseError):
                raise answer
            # Not when Redis went away over it: then the line is told again.
            watched.told = at


def _read(shard: Shard) -> int:
    """Return how far the model's own partition has been read: what stamps are compared by."""
    return sum(shard.position.applied.values())


def _hash(fields: dict[str, documents.Document]) -> bytes:
    flat: list[str] = ["hash"]
    for name, document in fields.items():
        flat += [name, msgspec.json.encode(document).decode()]
    return msgspec.json.encode(flat)


def _value(document: documents.Document) -> bytes:
    return msgspec.json.encode(["value", msgspec.json.encode(document).decode()])
