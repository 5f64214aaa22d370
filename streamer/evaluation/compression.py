"""The compression of what evaluate keeps in the state topic."""

from __future__ import annotations

import cramjam

# Counts are all but incompressible beyond their entropy: higher levels only cost time (docs/performance.md).
_LEVEL = 1


def compress(raw: bytes) -> bytes:
    """Return the zstd form."""
    return bytes(cramjam.zstd.compress(raw, level=_LEVEL))


def decompress(packed: bytes) -> bytes:
    """Read `compress`'s form back; cramjam.DecompressionError where it is none."""
    return bytes(cramjam.zstd.decompress(packed))
