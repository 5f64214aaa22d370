"""Free ports on the loopback address, remembered by name so that a resumed stack keeps its addresses."""

from __future__ import annotations

import random
import socket
import threading

HOST = "127.0.0.1"
# Below the ports that operating systems hand to outgoing connections, which would take one between look and use.
_RANGE = range(20_000, 32_000)


class Ports:
    """Ports by name, none given twice."""

    def __init__(self, remembered: dict[str, int] | None = None) -> None:
        self._ports = dict(remembered or {})
        self._lock = threading.Lock()

    def get(self, name: str) -> int:
        """Return the port of that name: the remembered one while it is free, else a new one."""
        with self._lock:
            port = self._ports.get(name)
            if port is None or not is_free(port):
                self._ports[name] = port = self._new()
            return port

    def same(self, name: str) -> int:
        """Return the port of that name without a look whether it is free: a process of ours may be on it by now."""
        with self._lock:
            if name not in self._ports:
                self._ports[name] = self._new()
            return self._ports[name]

    def forget(self, *names: str) -> None:
        """Take other ports of these names next time: somebody else was faster."""
        with self._lock:
            for name in names:
                self._ports.pop(name, None)

    def all(self) -> dict[str, int]:
        """Return every port by name."""
        with self._lock:
            return dict(self._ports)

    def _new(self) -> int:
        taken = set(self._ports.values())
        while True:
            port = random.choice(_RANGE)
            if port not in taken and is_free(port):
                return port


def is_free(port: int) -> bool:
    """Whether nothing listens on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def is_open(port: int) -> bool:
    """Whether something takes connections on the port."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((HOST, port)) == 0
