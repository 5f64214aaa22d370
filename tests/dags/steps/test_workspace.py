from __future__ import annotations

import os
import time
from pathlib import Path

import polars as pl
import pytest

from dags.steps.workspace import KEPT_DAYS, Workspace, open_workspace
from streamer.events import RetrainRequest
from streamer.settings import Settings


def request(request_id: str = "rq-1") -> RetrainRequest:
    return RetrainRequest(
        request_id=request_id,
        namespace="",
        model="toy",
        model_epoch=1,
        version="1",
        kind="drift",
        pane_end_ms=0,
        window_start_ms=0,
        window_end_ms=0,
        raised_at_ms=0,
    )


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    work = Workspace(tmp_path)
    work.write_json("a.json", {"n": 1})

    def die() -> None:
        with work.writing("a.json") as path:
            path.write_text('{"n":')
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        die()
    assert work.read_json("a.json") == {"n": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_directory_replaces_the_one_before(tmp_path: Path) -> None:
    work = Workspace(tmp_path)
    for text in ("first", "second"):
        with work.writing("deep/folder") as path:
            path.mkdir()
            (path / text).touch()
    assert [path.name for path in work.path("deep/folder").iterdir()] == ["second"]


def test_tables_come_back_as_they_were(tmp_path: Path) -> None:
    work = Workspace(tmp_path)
    table = pl.DataFrame({"a": [1.5, None], "b": ["x", None]})
    work.write_table("t.parquet", table)
    assert work.read_table("t.parquet").equals(table)


def test_a_request_finds_its_workspace_again_and_old_ones_go(settings: Settings) -> None:
    first = open_workspace(settings, request())
    first.write_json("a.json", 1)
    old = open_workspace(settings, request("rq-old"))
    long_ago = time.time() - (KEPT_DAYS + 1) * 86_400
    os.utime(old.root, (long_ago, long_ago))
    again = open_workspace(settings, request())
    assert again.has("a.json")
    assert not old.root.exists()
