"""Join stores in memory: one that does what the real one's script does, and a whole server that can crash."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from redis.exceptions import NoScriptError, ResponseError

from streamer.join.records import EXPIRY_DIGITS, MAX_OF_A_KIND
from streamer.join.script import WHOLE_FIELD

# A key, a field, and its value; None as a field deletes the key.
Write = tuple[str, bytes | None, bytes]


def frames(record: bytes) -> list[tuple[bytes, bytes]]:
    """Return each entry of a record as its key and all of its bytes."""
    found = []
    at = EXPIRY_DIGITS
    while at < len(record):
        body, key = struct.unpack_from(">IB", record, at)
        found.append((record[at + 5 : at + 5 + key], record[at : at + 5 + key + body]))
        at += 5 + key + body
    return found


def appended(old: bytes | None, new: bytes) -> bytes | None:
    """Return the record the script would write, None when it would write none."""
    if old is None:
        return new
    keys = [key for key, _ in frames(old)]
    added = b""
    for key, frame in frames(new):
        if key not in keys and sum(held[:1] == key[:1] for held in keys) < MAX_OF_A_KIND:
            keys.append(key)
            added += frame
    expiry = max(old[:EXPIRY_DIGITS], new[:EXPIRY_DIGITS])
    return expiry + old[EXPIRY_DIGITS:] + added if added else None


def sent(blob: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the fields and records of a script's argument."""
    at = 0
    while at < len(blob):
        name, size = struct.unpack_from(">16sI", blob, at)
        at += 20 + size
        yield name, blob[at - size : at]


class MemoryRecords:
    """In place of `streamer.join.script.RedisRecords`."""

    def __init__(self) -> None:
        self.records: dict[tuple[int, bytes], bytes] = {}

    def begin(self) -> None:
        """Nothing to remember: this store never restarts."""

    def barrier(self) -> None:
        """Nothing to wait for."""

    def lost(self, _buckets: Sequence[int]) -> list[int]:
        return []

    def append(self, calls: Sequence[tuple[int, bytes]], *, whole: bool) -> list[bytes]:
        answers = []
        for bucket, blob in calls:
            answer = b""
            for digest, payload in sent(blob):
                held = self.records.get((bucket, digest))
                record = appended(held, payload)
                if record is not None:
                    self.records[bucket, digest] = record
                answer += struct.pack(">I", len(held or b"")) + (held or b"")
            answers.append(answer)
        return answers


@dataclass
class MemoryServer:
    """A server with an append-only file: what is not on disk when it crashes may be lost, newest first."""

    log: list[Write] = field(default_factory=list)
    hashes: dict[tuple[str, bytes], bytes] = field(default_factory=dict)
    on_disk: int = 0
    run: int = 0
    scripts: set[str] = field(default_factory=set)

    def write(self, key: str, name: bytes, value: bytes) -> int:
        self.log.append((key, name, value))
        self.hashes[key, name] = value
        return len(self.log)

    def delete(self, key: str) -> None:
        self.log.append((key, None, b""))
        self._forget(key)

    def flush(self) -> None:
        """Be emptied, as by somebody's FLUSHALL."""
        for key in {key for key, _name in self.hashes}:
            self.delete(key)

    def _forget(self, key: str) -> None:
        self.hashes = {place: value for place, value in self.hashes.items() if place[0] != key}

    def crash(self, random: Random) -> None:
        """Start again with what is on disk and perhaps some of the writes after it."""
        self.crash_keeping(random.random())

    def crash_keeping(self, share: float) -> None:
        """Start again with what is on disk and this share of the writes after it, the oldest first."""
        del self.log[self.on_disk + round(share * (len(self.log) - self.on_disk)) :]
        self.hashes = {}
        for key, name, value in self.log:
            if name is None:
                self._forget(key)
            else:
                self.hashes[key, name] = value
        self.on_disk = len(self.log)
        self.run += 1
        self.scripts.clear()


@dataclass
class MemoryClient:
    """One connection to a `MemoryServer`, as far as the join uses it, batched commands included."""

    server: MemoryServer
    written_up_to: int = 0
    queued: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)

    def info(self, _section: str) -> dict[str, str]:
        return {"run_id": str(self.server.run)}

    def script_load(self, script: str) -> str:
        self.server.scripts.add(str(hash(script)))
        return str(hash(script))

    def pipeline(self, *, transaction: bool) -> MemoryClient:
        assert not transaction
        self.queued = []
        return self

    def evalsha(self, *arguments: Any) -> None:
        self.queued.append(("_append", arguments))

    def hset(self, key: str, name: str, value: str) -> None:
        self.queued.append(("_hset", (key, name.encode(), value.encode())))

    def hexists(self, key: str, name: str) -> None:
        self.queued.append(("_hexists", (key, name.encode())))

    def hscan_iter(self, key: str, count: int) -> Iterator[tuple[bytes, bytes]]:
        assert count
        return iter([(name, value) for (held, name), value in self.server.hashes.items() if held == key])

    def delete(self, key: str) -> None:
        self.server.delete(key)

    def waitaof(self, *arguments: int) -> None:
        self.queued.append(("_waitaof", arguments))

    def execute(self) -> list[Any]:
        queued, self.queued = self.queued, []
        return [getattr(self, name)(*arguments) for name, arguments in queued]

    def _hset(self, key: str, name: bytes, value: bytes) -> int:
        self.written_up_to = self.server.write(key, name, value)
        return 0

    def _hexists(self, key: str, name: bytes) -> bool:
        return (key, name) in self.server.hashes

    def _waitaof(self, _local: int, _replicas: int, _timeout_ms: int) -> list[int]:
        # As the real one: what this connection has not written itself is not waited for.
        self.server.on_disk = max(self.server.on_disk, min(self.written_up_to, len(self.server.log)))
        return [1, 0]

    def _append(self, script: str, _keys: int, key: str, blob: bytes, whole: int, _hold_ms: int) -> bytes:
        if script not in self.server.scripts:
            raise NoScriptError
        if whole and (key, WHOLE_FIELD.encode()) not in self.server.hashes:
            raise ResponseError(f"EMPTIED {key}")
        answer = b""
        for name, payload in sent(blob):
            old = self.server.hashes.get((key, name))
            record = appended(old, payload)
            answer += struct.pack(">I", len(old or b"")) + (old or b"")
            if record is not None:
                self.written_up_to = self.server.write(key, name, record)
        return answer
