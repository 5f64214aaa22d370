"""A run's files: tasks hand one another paths, every file appears whole or not at all, and a retry finds it again."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamer.events import RetrainRequest
from streamer.settings import Settings

if TYPE_CHECKING:
    import polars as pl

KEPT_DAYS = 30


@dataclass(frozen=True)
class Workspace:
    """The directory of one request's retraining."""

    root: Path

    def path(self, name: str) -> Path:
        """Return a file's path; its directory is there."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def has(self, name: str) -> bool:
        """Return whether a file (or directory) has been finished."""
        return (self.root / name).exists()

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a path to write a file or a directory to; it takes its name when the block ends without an error."""
        final = self.path(name)
        unfinished = final.with_name(f".{final.name}.{os.getpid()}")
        _remove(unfinished)
        try:
            yield unfinished
            if final.is_dir():
                _remove(final)
            unfinished.replace(final)
        finally:
            _remove(unfinished)

    def write_json(self, name: str, document: Any) -> None:
        """Write a JSON document."""
        with self.writing(name) as path:
            path.write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")

    def read_json(self, name: str) -> Any:
        """Read a JSON document."""
        return json.loads((self.root / name).read_text(encoding="utf-8"))

    def write_table(self, name: str, table: pl.DataFrame) -> None:
        """Write a table as Parquet."""
        with self.writing(name) as path:
            table.write_parquet(path)

    def read_table(self, name: str) -> pl.DataFrame:
        """Read a table written by `write_table`."""
        # polars is worth a quarter of a second: only the steps that hold tables pay for it.
        import polars as pl

        return pl.read_parquet(self.root / name)


def open_workspace(settings: Settings, request: RetrainRequest) -> Workspace:
    """Return the request's workspace, made if need be; those nobody has touched for 30 days are removed."""
    base = settings.airflow.work_dir.resolve()
    root = base / (settings.namespace or "driftloop") / request.model / request.request_id
    root.mkdir(parents=True, exist_ok=True)
    os.utime(root)
    _remove_old(root.parent, time.time() - KEPT_DAYS * 86_400)
    return Workspace(root)


def _remove_old(directory: Path, before_s: float) -> None:
    for path in directory.iterdir():
        if path.stat().st_mtime < before_s:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
