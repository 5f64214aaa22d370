"""A bounded file of events that wait for Kafka, which a crash of the process does not lose."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from streamer.client.entry import Entry

log = logging.getLogger(__name__)

# A file begins with its format and where its oldest frame begins that is still wanted.
_MAGIC = b"driftloop-spool1"
_START = struct.Struct(">16sQ")
# A frame begins with its length, its number of events, and the checksums of its content and of these three.
_FRAME = struct.Struct(">IIII")
_CHUNK = 1 << 20

_encode = msgspec.msgpack.Encoder().encode


_decode = msgspec.msgpack.Decoder(list[Entry]).decode


class SpoolError(ValueError):
    """A spool cannot be used; the message names the file and says what to do."""


class SpoolFullError(Exception):
    """The spool takes nothing now: its bound is reached, or its disk is full or broken."""


class Frame:
    """Entries that were written together, and how many events of theirs Kafka does not have yet."""

    __slots__ = ("left", "length", "start")

    def __init__(self, start: int, length: int, events: int) -> None:
        self.start = start
        self.length = length
        self.left = events


class Spool:
    """Frames of entries in a file, appended at its end and forgotten from its beginning.

    Parameters
    ----------
    path : the file; made where there is none, readable by its owner alone.
    max_bytes : how large it may become.

    Attributes
    ----------
    left : how many events the file holds that are not done. unread : those of them that `read` has yet to return.
    torn : events of frames that an earlier process did not write whole, or whose checksum is wrong.

    Raises
    ------
    SpoolError
        When another process uses the file, it cannot be opened or written, or it is none of driftloop's.

    Notes
    -----
    What `append` has returned from outlives the process, by kill -9 too; not a loss of power, since nothing waits for
    the disk. A frame that is done again after a crash had Kafka's answer in the moment of the crash.
    """

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._file = _locked(path)
        self._frames: deque[Frame] = deque()
        self._unread: deque[Frame] = deque()
        self.torn = self.left = self.unread = 0
        try:
            self._recover()
        except BaseException as error:
            os.close(self._file)
            if isinstance(error, OSError):
                raise SpoolError(
                    f"spool: {path} cannot be used: {error.strerror or error}; make room, or give another path"
                ) from error
            raise

    def append(self, entries: Sequence[Entry], *, read: bool = False) -> Frame:
        """Write entries at the end; `read` ones are in memory too, and not returned by `read`.

        Raises
        ------
        SpoolFullError
            When nothing was written.
        """
        content = _encode(entries)
        frame = Frame(self._end, _FRAME.size + len(content), sum(entry.events for entry in entries))
        self._make_room(frame.length)
        frame.start = self._end
        try:
            _write(self._file, _head(content, frame.left) + content, self._end)
        except OSError as error:
            # What is not cut off is written over, and after a crash has a wrong checksum.
            with contextlib.suppress(OSError):
                self._cut()
            raise SpoolFullError(f"{self._path}: {error.strerror or error}") from error
        self._end += frame.length
        self._keep(frame, unread=not read)
        return frame

    def read(self) -> tuple[Frame, list[Entry]] | None:
        """Return the oldest frame not returned yet, None when there is none."""
        while self._unread:
            frame = self._unread.popleft()
            self.unread -= frame.left
            try:
                return frame, _decode(os.pread(self._file, frame.length, frame.start)[_FRAME.size :])
            except (OSError, msgspec.MsgspecError) as error:
                log.error("driftloop: spool: %s: %d events cannot be read: %s", self._path, frame.left, error)
                self.torn += frame.left
                self.done(frame, frame.left)
        return None

    def done(self, frame: Frame, events: int) -> None:
        """Take note that Kafka has events of a frame, or never will."""
        frame.left -= events
        self.left -= events

    def forget(self) -> None:
        """Give up the frames at the beginning that are done, and the whole file's content when all are."""
        first = self._frames[0] if self._frames else None
        while self._frames and self._frames[0].left <= 0:
            self._frames.popleft()
        if first is None or (self._frames and self._frames[0] is first):
            return
        if self._frames:
            self._mark(self._frames[0].start)
        else:
            self._end = _START.size
            self._cut()
            self._mark(self._end)

    def close(self) -> None:
        """Let go of the file; remove it when nothing in it is wanted."""
        self.forget()
        if not self._frames:
            self._path.unlink(missing_ok=True)
        os.close(self._file)

    def abandon(self) -> None:
        """Let go of the file in a forked child: the parent goes on with it."""
        os.close(self._file)

    def _recover(self) -> None:
        size = os.fstat(self._file).st_size
        start = os.pread(self._file, _START.size, 0)
        if len(start) < _START.size and _MAGIC.startswith(start[: len(_MAGIC)]):
            self._end = _START.size
            os.fchmod(self._file, 0o600)
            _write(self._file, _START.pack(_MAGIC, self._end), 0)
            return
        magic, first = _START.unpack(start) if len(start) == _START.size else (b"", 0)
        if magic != _MAGIC:
            raise SpoolError(f"spool: {self._path} is not a spool of driftloop's; give another path, or remove it")
        os.fchmod(self._file, 0o600)
        self._end = max(first, _START.size)
        if self._end > size:
            self._end = _START.size
        for frame, good in self._found(self._end, size):
            self._end = frame.start + frame.length
            if good:
                self._keep(frame, unread=True)
            else:
                self.torn += frame.left
        if not self._frames:
            self._end = _START.size
            self._mark(self._end)
        self._cut()
        if self.torn:
            log.warning("driftloop: spool: %s: dropped at least %d events not written whole", self._path, self.torn)

    def _keep(self, frame: Frame, *, unread: bool) -> None:
        self._frames.append(frame)
        self.left += frame.left
        if unread:
            self._unread.append(frame)
            self.unread += frame.left

    def _found(self, start: int, size: int) -> Iterator[tuple[Frame, bool]]:
        """Yield the frames an earlier process left, and whether each is whole; count a torn one at the end."""
        at = start
        while at < size:
            head = os.pread(self._file, _FRAME.size, at)
            known = len(head) == _FRAME.size and zlib.crc32(head[:12]) == _FRAME.unpack(head)[3]
            length, events, checksum = _FRAME.unpack(head)[:3] if known else (0, 1, 0)
            if not known or at + _FRAME.size + length > size:
                self.torn += events
                return
            content = os.pread(self._file, length, at + _FRAME.size)
            yield Frame(at, _FRAME.size + length, events), zlib.crc32(content) == checksum
            at += _FRAME.size + length

    def _make_room(self, length: int) -> None:
        if self._end + length <= self._max_bytes:
            return
        dead = (self._frames[0].start if self._frames else self._end) - _START.size
        # What is done leaves a hole at the beginning. Moving the rest is worth it once the hole is the larger part.
        if dead < self._max_bytes // 2 or self._end + length - dead > self._max_bytes:
            raise SpoolFullError(f"{self._path} has its {self._max_bytes} bytes")
        try:
            self._compact(dead)
        except OSError as error:
            raise SpoolFullError(f"{self._path}: {error.strerror or error}") from error

    def _compact(self, dead: int) -> None:
        """Write what is wanted to a new file and put it in the old one's place."""
        temporary = self._path.with_name(self._path.name + ".new")
        new = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(new, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write(new, _START.pack(_MAGIC, _START.size), 0)
            at = _START.size + dead
            while at < self._end:
                chunk = os.pread(self._file, min(_CHUNK, self._end - at), at)
                _write(new, chunk, at - dead)
                at += len(chunk)
            temporary.replace(self._path)
        except OSError:
            os.close(new)
            temporary.unlink(missing_ok=True)
            raise
        os.close(self._file)
        self._file = new
        self._end -= dead
        for frame in self._frames:
            frame.start -= dead

    def _mark(self, start: int) -> None:
        """Keep where the oldest wanted frame begins; eight bytes, so a crash leaves the old or the new."""
        try:
            _write(self._file, _START.pack(_MAGIC, start), 0)
        except OSError as error:
            log.warning("driftloop: spool: %s: %s; after a crash some events are sent again", self._path, error)

    def _cut(self) -> None:
        os.ftruncate(self._file, self._end)


def _head(content: bytes, events: int) -> bytes:
    head = struct.pack(">III", len(content), events, zlib.crc32(content))
    return head + struct.pack(">I", zlib.crc32(head))


def _write(file: int, content: bytes, at: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(file, view, at)
        view, at = view[written:], at + written


def _locked(path: Path) -> int:
    """Open a file and lock it for this process."""
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise SpoolError(f"spool: {path} cannot be opened: {error.strerror}; give a path this may write") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last owner may have removed it between the two calls above.
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        except FileNotFoundError:
            pass
        except BlockingIOError as error:
            os.close(file)
            raise SpoolError(f"spool: {path} is in use by another process; give each process a path of its own") from (
                error
            )
        except OSError as error:
            os.close(file)
            raise SpoolError(f"spool: {path} cannot be locked: {error.strerror}; give a path on a local disk") from (
                error
            )
        os.close(file)
