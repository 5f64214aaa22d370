"""Where a story stands, written down as it is told, so that `--keep` can go on from there."""

from __future__ import annotations

from pathlib import Path

import msgspec

from demo.chronicle import Tale


class Bookmark(msgspec.Struct, kw_only=True):
    """How far the flights have been played, to whom, and what was seen.

    Attributes
    ----------
    champion : the version that began. sent_ms : event time up to which flights and labels have been sent.
    """

    sabotage: bool
    champion: str
    sent_ms: int
    flights: int = 0
    labels: int = 0
    tale: Tale = msgspec.field(default_factory=Tale)


def path_under(directory: Path) -> Path:
    """Return where a stack's story is kept: with the worker's data, so that it goes when the stack's state goes."""
    return directory / "worker" / "demo.json"


def read(path: Path) -> Bookmark | None:
    """Return what an earlier run wrote down; None where there is nothing, or nothing this version understands."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Bookmark)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def write(bookmark: Bookmark, path: Path) -> None:
    """Write it down; whoever reads meanwhile sees the old one or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_bytes(msgspec.json.encode(bookmark))
    unfinished.replace(path)
