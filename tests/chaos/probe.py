"""How far Valkey can have told anyone that what they wrote is on disk."""

from __future__ import annotations

import uuid
from types import TracebackType
from typing import Self

import redis

from streamer.settings import Settings

_KEY = "chaos:probe"
_TIMEOUT_S = 10.0
_DISK_MS = 10_000


class Probe:
    """Asks Valkey to write a number and to say when it is on disk: until it does, nobody was told more.

    The server tells all who wait for the disk in one go, whoever has waited longest first. So while the number is not
    answered, nothing that was written after it has been confirmed to anyone, and a crash of the machine may lose it;
    everything before it may have been confirmed.
    """

    def __init__(self, settings: Settings) -> None:
        # What is pushed to a client would not be an answer.
        pool = redis.ConnectionPool.from_url(settings.redis.url, protocol=2, socket_timeout=_TIMEOUT_S)
        self._connection = pool.make_connection()
        self._asked: bytes | None = None
        self._answers_due = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.disconnect()

    def ask(self) -> None:
        """Ask for a new number, once the last is answered."""
        self._asked = uuid.uuid4().hex.encode()
        commands = [("SET", _KEY, self._asked), ("WAITAOF", 1, 0, _DISK_MS)]
        self._connection.connect()
        self._connection.send_packed_command(self._connection.pack_commands(commands))
        self._answers_due = len(commands)

    def unanswered(self) -> bytes | None:
        """Return the number if the server has not answered for it: of one that is stopped, all answers lie here."""
        while self._answers_due and self._connection.can_read(timeout=0):
            self._connection.read_response()
            self._answers_due -= 1
        return self._asked if self._answers_due else None
