"""Where a command finds its configuration and its servers: what is configured, else the local stack that runs here."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from streamer import redis_clients
from streamer.settings import Settings, config_path, load_settings
from streamer.state import Keys
from streamer.view import LiveView

STACK_DIRECTORY = Path(".driftloop")
# How long Kafka may take to answer before it is called unreachable.
PATIENCE_S = 5.0
# How long Redis may take to connect and to answer before it is called unreachable.
_SHORT = {"socket_connect_timeout": 3.0, "socket_timeout": 10.0}
_ADDRESSES = ("DRIFTLOOP_KAFKA", "DRIFTLOOP_REDIS__URL")


def exports_command(directory: Path) -> str:
    """Return what a shell runs, wherever it is, to reach the stack under a directory."""
    return f'eval "$(driftloop dev --directory {shlex.quote(str(directory.resolve()))} --exports)"'


def commands_here(directory: Path, commands: Mapping[str, str]) -> str:
    """Return commands with what each is for, a line each, after what a stack in an unusual place wants first."""
    found = [] if directory == STACK_DIRECTORY else [f"  {exports_command(directory)}"]
    width = max(map(len, commands))
    return "\n".join([*found, *(f"  {command:<{width}}   {purpose}" for command, purpose in commands.items())])


def settings() -> Settings:
    """Return the configuration in force; where it gives no addresses, that of the local stack running here.

    Raises
    ------
    ConfigError
        Naming the file, the key, the value and what is allowed.
    """
    for name, value in stack_environment(STACK_DIRECTORY).items():
        os.environ.setdefault(name, value)
    return load_settings()


def stack_environment(directory: Path) -> dict[str, str]:
    """Return what finds the local stack that runs under a directory; nothing where addresses are given otherwise.

    Addresses in the environment are the user's word. Those in the configuration file are too, unless the
    stack was started with that very file: it has then found ports of its own and knows better.
    """
    if not gives_no_address() or not (directory / "stack.json").is_file():
        return {}
    # The local stack's own package; a machine without it runs none.
    if importlib.util.find_spec("psutil") is None:
        return {}
    from streamer.local.record import running_stack

    record = running_stack(directory)
    if record is None:
        return {}
    path = config_path()
    same = path is not None and record.environment.get("DRIFTLOOP_CONFIG") == str(path.resolve())
    return {} if path is not None and not same and _gives_addresses(path) else record.environment


def gives_no_address() -> bool:
    """Whether the environment leaves it to the configuration, or to a local stack, where Kafka and Redis are."""
    return not any(os.environ.get(name) for name in _ADDRESSES)


def _gives_addresses(path: Path) -> bool:
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        # `load_settings` says what is wrong with it.
        return True
    kafka, store = document.get("kafka", {}), document.get("redis", {})
    return "bootstrap.servers" in json.dumps(kafka) or "url" in store


@contextmanager
def redis_client(configured: Settings) -> Iterator[redis.Redis]:
    """Open a client of the view's server that gives up after a few seconds instead of hanging."""
    client = redis_clients.connect(configured, **_SHORT)
    try:
        yield client
    finally:
        client.close()


@contextmanager
def live_view(configured: Settings) -> Iterator[LiveView]:
    """Open the live view of the configured namespace."""
    with redis_client(configured) as client:
        yield LiveView(client, Keys(configured.namespace))


def require_kafka(configured: Settings) -> None:
    """Return when Kafka answers; `Unreachable` within seconds when it does not, or lets this client not in."""
    from streamer.kafka import access as kafka_access

    kafka_access.require(configured, timeout_s=PATIENCE_S)


def require_redis_access(configured: Settings) -> None:
    """Return unless a Redis refuses this client's user, password or certificate; one that is away may come back."""
    for url, client in (
        (configured.redis.url, redis_clients.connect(configured, **_SHORT)),
        (configured.redis.join_url or configured.redis.url, redis_clients.connect_store(configured, **_SHORT)),
    ):
        with client:
            redis_clients.require_access(client, url)
