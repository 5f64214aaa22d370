"""The join store's records: their bytes, the one script that appends to them, and the barrier that makes it last."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any, cast

import redis
from redis.cluster import RedisCluster
from redis.exceptions import NoScriptError

from streamer.state import Keys

# A record keeps at most this many labels, and at most this many predictions (identities); see `APPEND`.
MAX_LABELS = 64
MAX_PREDICTIONS = 64
# Fields one script call may touch: Lua passes at most some 8,000 values to one command.
MAX_FIELDS = 2_000
BARRIER_TIMEOUT_MS = 10_000
BARRIER_FIELD = "barrier"
EXPIRY_DIGITS = 13
_EARLIEST_MS = 10 ** (EXPIRY_DIGITS - 1)
_LATEST_MS = 10**EXPIRY_DIGITS - 1
# Fields that expire within one grain are written by one command.
EXPIRY_GRAIN_MS = 60_000
_FRAME = struct.Struct(">IB")

# Appends to each record the frames whose keys it does not hold yet, and answers with the records as
# they were before: what they are now follows from that, so the caller need not be sent it.
APPEND = f"""
local fields = {{}}
for i = 1, #ARGV, 2 do fields[#fields + 1] = ARGV[i] end
local before = redis.call('HMGET', KEYS[1], unpack(fields))
local writes = {{}}
for i, old in ipairs(before) do
  local given = ARGV[2 * i]
  local record, expiry = given, string.sub(given, 1, {EXPIRY_DIGITS})
  if old then
    local present, count, added, at = {{}}, {{l = 0, p = 0}}, {{}}, {EXPIRY_DIGITS + 1}
    while at <= #old do
      local size, key, body = struct.unpack('>I4Bc0', old, at)
      local kind = string.sub(key, 1, 1)
      present[key], count[kind], at = true, count[kind] + 1, body + size
    end
    at = {EXPIRY_DIGITS + 1}
    while at <= #given do
      local size, key, body = struct.unpack('>I4Bc0', given, at)
      local kind = string.sub(key, 1, 1)
      if not present[key] and count[kind] < (kind == 'l' and {MAX_LABELS} or {MAX_PREDICTIONS}) then
        count[kind] = count[kind] + 1
        added[#added + 1] = string.sub(given, at, body + size - 1)
      end
      at = body + size
    end
    record = nil
    if #added > 0 then
      local until_now = string.sub(old, 1, {EXPIRY_DIGITS})
      if until_now > expiry then expiry = until_now end
      record = expiry .. string.sub(old, {EXPIRY_DIGITS + 1}) .. table.concat(added)
    end
  end
  if record then
    local group = writes[expiry]
    if not group then group = {{}}; writes[expiry] = group end
    group[#group + 1] = fields[i]
    group[#group + 1] = record
  end
end
for expiry, group in pairs(writes) do
  redis.call('HSETEX', KEYS[1], 'PXAT', expiry, 'FIELDS', #group / 2, unpack(group))
end
return before
"""


class StoreRestarted(Exception):  # noqa: N818 - it says what happened
    """The join store is not the one the batch began with: what was appended may be gone; read the batch again."""


class StoreNotDurable(Exception):  # noqa: N818 - it says what happened
    """The join store did not confirm in time that its appends are on disk."""


def frame(key: bytes, body: bytes) -> bytes:
    """Return one entry's bytes: the body's length, the key's length, the key, the body."""
    return _FRAME.pack(len(body), len(key)) + key + body


def frames(record: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield a record's (key, body) in the order they were appended."""
    at = EXPIRY_DIGITS
    while at < len(record):
        body_size, key_size = _FRAME.unpack_from(record, at)
        start = at + _FRAME.size
        at = start + key_size + body_size
        yield record[start : start + key_size], record[start + key_size : at]


def header(expires_at_ms: int) -> bytes:
    """Return what a record begins with: when it expires, epoch ms rounded up to the grain, as fixed-width digits."""
    rounded = -(-expires_at_ms // EXPIRY_GRAIN_MS) * EXPIRY_GRAIN_MS
    return b"%d" % min(max(rounded, _EARLIEST_MS), _LATEST_MS)


class RedisRecords:
    """Records in Redis or Valkey (a single server or a cluster), one hash a bucket.

    Parameters
    ----------
    client : the connection; answers must come as bytes (`decode_responses=False`).
    keys : the namespace's keys.
    wait_aof : whether `barrier` waits until the append-only file is on disk.
    """

    def __init__(self, client: redis.Redis | RedisCluster, keys: Keys, *, wait_aof: bool) -> None:
        self._client = client
        self._keys = keys
        self._wait_aof = wait_aof
        self._script = ""
        self._run_ids: dict[str, str] = {}
        self._touched: dict[str, int] = {}

    def begin(self) -> None:
        """Remember which run of the store this batch is for, and see that it knows the script."""
        self._touched = {}
        self._run_ids = {name: self._run_id(shard) for name, shard in self._shards().items()}
        self._load()

    def append(self, buckets: Mapping[int, Mapping[bytes, bytes]]) -> dict[bytes, bytes | None]:
        """Append to records by bucket and field; return each as it was before, None where there was none.

        Sending the same again appends nothing.

        Raises
        ------
        StoreRestarted
            The store no longer knows the script because it has been restarted since `begin`.
        """
        try:
            return self._append(buckets)
        except NoScriptError:
            self._check_run_ids()
            self._load()
            return self._append(buckets)

    def barrier(self) -> None:
        """Wait until all that was seen since `begin` is on disk in the store that was there at `begin`.

        Raises
        ------
        StoreRestarted
            The store has been restarted since `begin`.
        StoreNotDurable
            The disk did not confirm within ten seconds.
        """
        shards = self._shards()
        for name, bucket in self._touched.items():
            if name not in shards:
                raise StoreRestarted(f"join store: {name} has left the cluster since the batch began; read it again")
            if self._wait_aof:
                self._wait(shards[name], bucket)
        self._check_run_ids()

    def _wait(self, shard: redis.Redis, bucket: int) -> None:
        # WAITAOF covers the writes of its own connection. A batch read again writes nothing, and yet what it
        # was shown may not be on disk: a write after it, on the same connection, puts all of it before the wait.
        pipeline = shard.pipeline(transaction=False)
        pipeline.hset(self._keys.join(bucket), BARRIER_FIELD, "1")
        pipeline.waitaof(1, 0, BARRIER_TIMEOUT_MS)
        _, (local, _) = pipeline.execute()
        if local < 1:
            raise StoreNotDurable(
                f"join store: not on disk after {BARRIER_TIMEOUT_MS} ms; look at its disk and its appendfsync setting"
            )

    def _append(self, buckets: Mapping[int, Mapping[bytes, bytes]]) -> dict[bytes, bytes | None]:
        pipelines: dict[str, tuple[Any, list[bytes]]] = {}
        shards = self._shards()
        for bucket, records in buckets.items():
            name = self._shard_of(bucket)
            self._touched[name] = bucket
            pipeline, asked = pipelines.setdefault(name, (shards[name].pipeline(transaction=False), []))
            fields = list(records)
            for start in range(0, len(fields), MAX_FIELDS):
                chunk = fields[start : start + MAX_FIELDS]
                arguments = [argument for field in chunk for argument in (field, records[field])]
                pipeline.evalsha(self._script, 1, self._keys.join(bucket), *arguments)
                asked += chunk
        before: dict[bytes, bytes | None] = {}
        for pipeline, asked in pipelines.values():
            answers = [answer for answered in pipeline.execute() for answer in answered]
            before.update(zip(asked, answers, strict=True))
        return before

    def _load(self) -> None:
        for shard in self._shards().values():
            self._script = shard.script_load(APPEND)

    def _check_run_ids(self) -> None:
        for name, shard in self._shards().items():
            run_id = self._run_id(shard)
            if run_id != self._run_ids.get(name):
                raise StoreRestarted(
                    f"join store: {name or 'the server'} is run {run_id}, the batch began with "
                    f"{self._run_ids.get(name)}; read the batch again from its committed offsets"
                )

    @staticmethod
    def _run_id(shard: redis.Redis) -> str:
        return str(shard.info("server")["run_id"])

    def _shards(self) -> dict[str, redis.Redis]:
        if isinstance(self._client, RedisCluster):
            return {node.name: self._client.get_redis_connection(node) for node in self._client.get_primaries()}  # type: ignore[no-untyped-call]
        return {"": self._client}

    def _shard_of(self, bucket: int) -> str:
        if isinstance(self._client, RedisCluster):
            node = self._client.get_node_from_key(self._keys.join(bucket))  # type: ignore[no-untyped-call]
            return str(node.name)
        return ""
