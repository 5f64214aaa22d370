"""The spool gives back what was written to it, in order, whatever became of the process, and never more than it may."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.client.entry import Entry
from streamer.client.spool import Frame, Spool, SpoolError, SpoolFullError

MAX = 1_000_000


def _entries(*names: str, events: int = 1) -> list[Entry]:
    return [Entry("labels.v1", name.encode(), b'{"label":1}', [("h", b"1")], events) for name in names]


def _names(found: tuple[Frame, list[Entry]] | None) -> list[str] | None:
    return None if found is None else [(entry.key or b"").decode() for entry in found[1]]


def _all(spool: Spool) -> list[str]:
    names: list[str] = []
    while (found := spool.read()) is not None:
        names += _names(found) or []
    return names


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def test_what_is_written_is_read_in_order_and_gone_once_done(path: Path) -> None:
    spool = Spool(path, max_bytes=MAX)
    spool.append(_entries("a", "b"))
    spool.append([Entry("t", None, b"\x00arrow", [("content-type", b"x")], 10_000)])
    assert (spool.unread, spool.left) == (10_002, 10_002)
    first = spool.read()
    assert first is not None
    assert first[1] == _entries("a", "b")
    assert (spool.unread, spool.left) == (10_000, 10_002)
    spool.done(first[0], 2)
    spool.forget()
    second = spool.read()
    assert second is not None
    assert second[1] == [Entry("t", None, b"\x00arrow", [("content-type", b"x")], 10_000)]
    spool.done(second[0], 10_000)
    spool.forget()
    assert spool.read() is None
    assert path.stat().st_size < 100
    spool.close()
    assert not path.exists()


def test_what_an_earlier_process_left_is_given_back(path: Path) -> None:
    spool = Spool(path, max_bytes=MAX)
    done = spool.append(_entries("a"))
    spool.append(_entries("b", "c"))
    spool.append(_entries("d"), read=True)
    assert _names(spool.read()) == ["a"]
    spool.done(done, 1)
    spool.forget()
    spool.abandon()  # as a crash would: nothing is written, the lock goes
    with_rest = Spool(path, max_bytes=MAX)
    assert (with_rest.left, with_rest.unread, with_rest.torn) == (3, 3, 0)
    assert _all(with_rest) == ["b", "c", "d"]
    with_rest.close()
    assert path.exists()


def test_entries_that_are_in_memory_too_are_not_read(path: Path) -> None:
    spool = Spool(path, max_bytes=MAX)
    spool.append(_entries("in flight"), read=True)
    spool.append(_entries("a"))
    assert _all(spool) == ["a"]
    assert (spool.left, spool.unread) == (2, 0)
    spool.close()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=4), max_size=6), st.data())
def test_a_file_cut_anywhere_gives_its_whole_frames_and_counts_the_rest(
    tmp_path_factory: pytest.TempPathFactory, frames: list[list[str]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / "spool"
    spool = Spool(path, max_bytes=MAX)
    ends = []
    for names in frames:
        frame = spool.append(_entries(*names))
        ends.append(frame.start + frame.length)
    spool.abandon()
    size = path.stat().st_size
    cut = data.draw(st.integers(0, size))
    os.truncate(path, cut)
    again = Spool(path, max_bytes=MAX)
    whole = [names for names, end in zip(frames, ends, strict=True) if end <= cut]
    assert _all(again) == [name for names in whole for name in names]
    torn = len(whole) < len(frames) and cut > (ends[len(whole) - 1] if whole else 24)
    assert (again.torn > 0) == torn
    assert again.torn <= (len(frames[len(whole)]) if torn else 0)
    again.append(_entries("after"))
    assert _all(again) == ["after"]
    again.close()


def test_a_frame_with_a_wrong_checksum_is_counted_and_passed_over(path: Path) -> None:
    spool = Spool(path, max_bytes=MAX)
    spool.append(_entries("a"))
    bad = spool.append(_entries("b", "c"))
    spool.append(_entries("d"))
    spool.abandon()
    with path.open("r+b") as file:
        file.seek(bad.start + bad.length - 1)
        file.write(b"\xff")
    again = Spool(path, max_bytes=MAX)
    assert (again.torn, again.left) == (2, 2)
    assert _all(again) == ["a", "d"]
    again.close()


def test_it_never_grows_beyond_its_bound_and_uses_again_what_is_done(path: Path) -> None:
    bound = 20_000
    spool = Spool(path, max_bytes=bound)
    waiting: list[tuple[Frame, str]] = []
    written = refused = 0
    for number in range(2_000):
        name = str(number)
        try:
            spool.append(_entries(name))
            written += 1
        except SpoolFullError:
            refused += 1
        assert path.stat().st_size <= bound
        if number % 3 == 0 and (found := spool.read()) is not None:
            waiting.append((found[0], (found[1][0].key or b"").decode()))
            spool.done(found[0], 1)
            spool.forget()
    assert refused > 0
    assert sum(frame.length for frame, _ in waiting) > bound
    read = [int(name) for _, name in waiting] + [int(name) for name in _all(spool)]
    assert read == sorted(read)
    assert len(read) == written
    spool.close()


def test_two_processes_cannot_share_it(path: Path) -> None:
    spool = Spool(path, max_bytes=MAX)
    with pytest.raises(SpoolError, match=r"spool: .* is in use by another process; give each process a path"):
        Spool(path, max_bytes=MAX)
    child = os.fork()
    if child == 0:
        spool.abandon()
        try:
            Spool(path, max_bytes=MAX)
        except SpoolError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with pytest.raises(SpoolError, match="in use"):
        Spool(path, max_bytes=MAX)
    spool.close()
    Spool(path, max_bytes=MAX).close()


def test_only_its_owner_may_read_it(path: Path) -> None:
    path.touch(mode=0o644)
    spool = Spool(path, max_bytes=MAX)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    spool.close()


def test_a_file_of_somebody_elses_is_left_alone(path: Path) -> None:
    for content in (b"precious", b"precious data of somebody else"):
        path.write_bytes(content)
        path.chmod(0o644)
        with pytest.raises(SpoolError, match="is not a spool of driftloop's"):
            Spool(path, max_bytes=MAX)
        assert path.read_bytes() == content
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
    with pytest.raises(SpoolError, match="cannot be opened: Not a directory; give a path"):
        Spool(path / "no" / "such", max_bytes=MAX)


@pytest.mark.parametrize(("call", "left_over"), [("pwrite", False), ("fchmod", False), ("ftruncate", True)])
def test_a_disk_that_refuses_at_the_start_is_an_error_that_names_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str, left_over: bool
) -> None:
    if left_over:
        spool = Spool(path, max_bytes=MAX)
        spool.append(_entries("a"))
        spool.abandon()

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(SpoolError, match=f"{path} cannot be used: No space left on device; make room, or give another"):
        Spool(path, max_bytes=MAX)
    monkeypatch.undo()
    # Let go of: it can be used once there is room, and what was in it is still there.
    spool = Spool(path, max_bytes=MAX)
    assert _all(spool) == (["a"] if left_over else [])
    spool.close()


def test_a_full_disk_refuses_and_leaves_the_file_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(path, max_bytes=MAX)
    spool.append(_entries("a"))
    size = path.stat().st_size
    write = os.pwrite

    def half(file: int, content: bytes, at: int) -> int:
        if len(content) < 30:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, bytes(content)[:20], at)

    monkeypatch.setattr(os, "pwrite", half)
    with pytest.raises(SpoolFullError, match="No space left on device"):
        spool.append(_entries("b"))
    assert path.stat().st_size == size
    monkeypatch.undo()
    spool.append(_entries("c"))
    assert _all(spool) == ["a", "c"]
    spool.close()
