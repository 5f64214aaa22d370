"""The compression of what evaluate keeps in the state topic."""

from __future__ import annotations

import threading

import zstandard

# Counts are all but incompressible beyond their entropy: higher levels only cost time (docs/performance.md).
_LEVEL = 1


class _Contexts(threading.local):
    """Made once a thread: for a record of some hundred bytes that takes longer than compressing it."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


_contexts = _Contexts()


def compress(raw: bytes) -> bytes:
    """Return the zstd form."""
    return _contexts.compressor.compress(raw)


def decompress(packed: bytes) -> bytes:
    """Read `compress`'s form back; zstandard.ZstdError where it is none."""
    return _contexts.decompressor.decompress(packed)
