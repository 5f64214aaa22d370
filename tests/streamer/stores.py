"""A join store in memory that does what the real one's script does."""

from __future__ import annotations

from collections.abc import Mapping

from streamer.join_records import frame, frames


class MemoryRecords:
    """Appends the frames that a record does not have yet, and returns it as it was before."""

    def __init__(self) -> None:
        self.records: dict[tuple[int, bytes], bytes] = {}

    def begin(self) -> None:
        """Nothing to remember: this store never restarts."""

    def barrier(self) -> None:
        """Nothing to wait for."""

    def append(self, buckets: Mapping[int, Mapping[bytes, bytes]]) -> dict[bytes, bytes | None]:
        before: dict[bytes, bytes | None] = {}
        for bucket, fields in buckets.items():
            for digest, payload in fields.items():
                held = self.records.get((bucket, digest))
                before[digest] = held
                known = {key for key, _body in frames(held)} if held is not None else set()
                fresh = b"".join(frame(key, body) for key, body in frames(payload) if key not in known)
                self.records[bucket, digest] = (held if held is not None else payload[: _header(payload)]) + fresh
        return before


def _header(payload: bytes) -> int:
    return len(payload) - sum(len(frame(key, body)) for key, body in frames(payload))
