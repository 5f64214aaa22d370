"""The join store in Redis: the one script that appends to its records, and the barrier that makes them last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import redis
from redis.exceptions import NoScriptError

from streamer.join.records import EXPIRY_DIGITS, FIELD_BYTES, MAX_OF_A_KIND
from streamer.state import Keys

BARRIER_TIMEOUT_MS = 10_000
BARRIER_FIELD = "barrier"
# Stands in every bucket from the first start on, and for ever: a bucket without it has lost what it held.
WHOLE_FIELD = "whole"

_EMPTIED = "EMPTIED"
REBUILD = "stop every ingest and run `driftloop replay --rebuild-join`. Until then labels wait in their topic"

# Appends to each record the frames whose keys it does not hold yet, and answers with the records as
# they were before: what they are now follows from that, so the caller need not be sent it. Many
# records travel as one argument and as one answer, since clients are slow at long lists.
#
# A record is kept for some time beyond its horizon, and beyond the last write to it, by the store's own clock: which of
# its entries have met is told from the minutes they came in, so what expires early or late is memory and nothing else.
#
# A caller that takes the store for whole is refused by a bucket without its mark: what it appended to a store that
# was emptied a moment ago would be found there by those who know of it.
APPEND = f"""
if ARGV[2] == '1' and redis.call('HEXISTS', KEYS[1], '{WHOLE_FIELD}') == 0 then
  return redis.error_reply('{_EMPTIED} ' .. KEYS[1])
end
local given, fields, at = {{}}, {{}}, 1
while at <= #ARGV[1] do
  fields[#fields + 1], given[#given + 1], at = struct.unpack('>c{FIELD_BYTES}I4c0', ARGV[1], at)
end
local before = redis.call('HMGET', KEYS[1], unpack(fields))
local writes, answer = {{}}, {{}}
for i, old in ipairs(before) do
  local new = given[i]
  local expiry, record = string.sub(new, 1, {EXPIRY_DIGITS}), new
  if old then
    local present, count, added = {{}}, {{p = 0, f = 0, l = 0}}, {{}}
    at = {EXPIRY_DIGITS + 1}
    while at <= #old do
      local size, key, body = struct.unpack('>I4Bc0', old, at)
      local kind = string.sub(key, 1, 1)
      present[key], count[kind], at = true, count[kind] + 1, body + size
    end
    at = {EXPIRY_DIGITS + 1}
    while at <= #new do
      local size, key, body = struct.unpack('>I4Bc0', new, at)
      local kind = string.sub(key, 1, 1)
      if not present[key] and count[kind] < {MAX_OF_A_KIND} then
        count[kind] = count[kind] + 1
        added[#added + 1] = string.sub(new, at, body + size - 1)
      end
      at = body + size
    end
    record = nil
    if #added > 0 then
      local held = string.sub(old, 1, {EXPIRY_DIGITS})
      if held > expiry then expiry = held end
      record = expiry .. string.sub(old, {EXPIRY_DIGITS + 1}) .. table.concat(added)
    end
  end
  if record then
    local group = writes[expiry]
    if not group then group = {{}}; writes[expiry] = group end
    group[#group + 1] = fields[i]
    group[#group + 1] = record
  end
  answer[#answer + 1] = struct.pack('>I4', old and #old or 0)
  answer[#answer + 1] = old or ''
end
local now_ms = redis.call('TIME')[1] * 1000
for expiry, group in pairs(writes) do
  local until_ms = string.format('%.0f', math.max(tonumber(expiry), now_ms) + ARGV[3])
  redis.call('HSETEX', KEYS[1], 'PXAT', until_ms, 'FIELDS', #group / 2, unpack(group))
end
return table.concat(answer)
"""


class StoreRestarted(Exception):  # noqa: N818 - it says what happened
    """The join store is not the one the batch began with: what was appended may be gone; read the batch again."""


class StoreEmptied(Exception):  # noqa: N818 - it says what happened
    """The join store has lost its records since the batch began: what found nothing there may have been there."""


class StoreNotDurable(Exception):  # noqa: N818 - it says what happened
    """The join store did not confirm in time that its appends are on disk."""


class RedisRecords:
    """Records in Redis or Valkey, one hash a bucket.

    Parameters
    ----------
    client : the connection; answers must come as bytes (`decode_responses=False`).
    keys : the namespace's keys.
    wait_aof : whether `barrier` waits until the append-only file is on disk.
    hold_ms : how long a record is kept beyond its horizon.
    """

    def __init__(self, client: redis.Redis, keys: Keys, *, wait_aof: bool, hold_ms: int) -> None:
        self._client = client
        self._keys = keys
        self._wait_aof = wait_aof
        self._hold_ms = hold_ms
        self._script = ""
        # Which run of the store the batch began in, and a bucket of those it has touched.
        self._run: str | None = None
        self._touched: int | None = None

    def begin(self) -> None:
        """Begin a batch: forget what the last one touched."""
        self._run = self._touched = None

    def append(self, calls: Sequence[tuple[int, bytes]], *, whole: bool) -> list[bytes]:
        """Append to records: a bucket and the argument of the script a call; return each call's answer.

        Sending the same again appends nothing. The batch's first append remembers which run of the store it met.

        Parameters
        ----------
        whole : whether the caller takes it that no bucket has lost what it held.

        Raises
        ------
        StoreRestarted
            The store no longer knows the script because it has been restarted since the first append.
        StoreEmptied
            It is not whole.
        """
        if self._run is None:
            self._run = self._present_run()
            self._load()
        try:
            return self._append(calls, whole)
        except NoScriptError:
            # After a restart the script is gone, and nothing of this batch has been appended to the new run.
            self._load()
            return self._append(calls, whole)

    def barrier(self) -> None:
        """Wait until all that this batch has seen is on disk, in the store that its first append met.

        Raises
        ------
        StoreRestarted
            The store has been restarted since then.
        StoreNotDurable
            The disk did not confirm within ten seconds.
        """
        if self._touched is None:
            return
        if self._wait_aof:
            self._wait(self._touched)
        self._check_run()

    def lost(self, buckets: Sequence[int]) -> list[int]:
        """Return which of these buckets have lost what they held, or have never held anything."""
        pipeline = self._client.pipeline(transaction=False)
        for bucket in buckets:
            pipeline.hexists(self._keys.join(bucket), WHOLE_FIELD)
        return [bucket for bucket, whole in zip(buckets, pipeline.execute(), strict=True) if not whole]

    def mark_whole(self, buckets: Sequence[int]) -> None:
        """Say, for good, that these buckets hold all that they should."""
        self.begin()
        self._run = self._present_run()
        pipeline = self._client.pipeline(transaction=False)
        for bucket in buckets:
            pipeline.hset(self._keys.join(bucket), WHOLE_FIELD, "1")
            self._touched = bucket
        pipeline.execute()
        self.barrier()
        self.begin()

    def contents(self, bucket: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield the field and bytes of every record of a bucket."""
        for field, record in self._client.hscan_iter(self._keys.join(bucket), count=1_000):
            if len(field) == FIELD_BYTES:
                yield field, record

    def clear(self, bucket: int) -> None:
        """Forget all that a bucket holds."""
        self._client.delete(self._keys.join(bucket))

    def _wait(self, bucket: int) -> None:
        # WAITAOF covers the writes of its own connection. A batch read again writes nothing, and yet what it
        # was shown may not be on disk: a write after it, on the same connection, puts all of it before the wait.
        pipeline = self._client.pipeline(transaction=False)
        pipeline.hset(self._keys.join(bucket), BARRIER_FIELD, "1")
        pipeline.waitaof(1, 0, BARRIER_TIMEOUT_MS)
        _, (local, _) = pipeline.execute()
        if local < 1:
            raise StoreNotDurable(
                f"join store: not on disk after {BARRIER_TIMEOUT_MS} ms; look at its disk and its appendfsync setting"
            )

    def _append(self, calls: Sequence[tuple[int, bytes]], whole: bool) -> list[bytes]:
        pipeline = self._client.pipeline(transaction=False)
        for bucket, blob in calls:
            self._touched = bucket
            pipeline.evalsha(self._script, 1, self._keys.join(bucket), blob, int(whole), self._hold_ms)
        return _answers(pipeline)

    def _load(self) -> None:
        # A script of its own for each run: no other worker can have loaded it into a later one, where a
        # batch begun in this run would append its end without its lost beginning.
        self._script = str(self._client.script_load(f"-- run {self._run}\n{APPEND}"))
        self._check_run()

    def _check_run(self) -> None:
        run = self._present_run()
        if run != self._run:
            raise StoreRestarted(
                f"join store: the server is run {run}, the batch began with {self._run}; read the batch again from its "
                f"committed offsets"
            )

    def _present_run(self) -> str:
        return str(self._client.info("server")["run_id"])


def _answers(pipeline: Any) -> list[bytes]:
    try:
        answers: list[bytes] = pipeline.execute()
    except redis.ResponseError as error:
        if _EMPTIED in str(error):
            raise StoreEmptied(f"join store: a bucket has lost its records; {REBUILD}") from error
        raise
    return answers
