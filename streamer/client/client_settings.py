"""What a client of the SDK is configured by: the service's own file and variables, read without pydantic."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from streamer.redis_clients import NAMES as REDIS_NAMES

TransportName = Literal["kafka-python", "librdkafka"]

DEFAULT_SERVERS = "127.0.0.1:9092"
DEFAULT_REDIS = "redis://127.0.0.1:6379/0"
DEFAULT_QUEUE_SIZE = 100_000
DEFAULT_SPOOL_BYTES = 256_000_000

_PREFIX = "DRIFTLOOP_SDK__"
_OWN = ("queue_size", "transport", "spool", "spool_bytes")


class ClientSettings(msgspec.Struct, kw_only=True):
    """What `streamer.sdk.Client` takes."""

    servers: str
    redis_url: str
    namespace: str
    kafka: dict[str, object]
    redis: dict[str, object]
    queue_size: int
    transport: TransportName
    spool: str | os.PathLike[str] | None
    spool_bytes: int

    def __repr__(self) -> str:
        """Return what may be in a log: of Kafka and Redis the keys alone, since values and addresses hold passwords."""
        return (
            f"ClientSettings(servers={self.servers!r}, namespace={self.namespace!r}, kafka={sorted(self.kafka)},"
            f" redis={sorted(self.redis)}, queue_size={self.queue_size}, transport={self.transport!r},"
            f" spool={self.spool!r}, spool_bytes={self.spool_bytes})"
        )


def client_settings(given: Mapping[str, Any]) -> ClientSettings:
    """Return what the configuration in force says, under what is given.

    Parameters
    ----------
    given : keys of `[sdk]`; None where the configuration is to say.

    Raises
    ------
    ValueError
        When a file or a variable cannot be read, or says what cannot be; the message names it.
    """
    document = _document()
    kafka = {**document.get("kafka", {}), **_table("DRIFTLOOP_KAFKA")}
    redis = {**document.get("redis", {}), **_table("DRIFTLOOP_REDIS"), **_redis_variables()}
    own = {**document.get("sdk", {}), **_table("DRIFTLOOP_SDK"), **_own_variables()}
    for key in own:
        if key not in _OWN:
            raise ValueError(f"sdk.{key}: there is no such key; [sdk] and {_PREFIX}… have {', '.join(_OWN)}")
    own |= {name: value for name, value in given.items() if value is not None}
    return ClientSettings(
        servers=str(kafka.pop("bootstrap.servers", DEFAULT_SERVERS)),
        redis_url=str(redis.pop("url", DEFAULT_REDIS)),
        namespace=os.environ.get("DRIFTLOOP_NAMESPACE", document.get("namespace", "")),
        kafka=kafka,
        redis=redis,
        queue_size=_whole(own, "queue_size", DEFAULT_QUEUE_SIZE),
        transport=own.get("transport", "kafka-python"),
        # An empty one is none, as a variable of the environment says it.
        spool=own.get("spool") or None,
        spool_bytes=_whole(own, "spool_bytes", DEFAULT_SPOOL_BYTES),
    )


def _document() -> dict[str, Any]:
    """Read the file in force, as `streamer.settings` finds it, without what only a worker has installed."""
    named = os.environ.get("DRIFTLOOP_CONFIG")
    path = Path(named or "config/driftloop.toml")
    if not named and not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        variable = "DRIFTLOOP_CONFIG: " if named else ""
        raise ValueError(f"{variable}{path}: wanted a TOML file: {error}") from error


def _table(variable: str) -> dict[str, object]:
    """Read a variable that holds a whole table."""
    try:
        return msgspec.json.decode(os.environ.get(variable, "{}"), type=dict[str, object])
    except msgspec.MsgspecError as error:
        # The value is not repeated: it may hold a password.
        raise ValueError(f"{variable}: wanted a JSON object of the table's keys: {error}") from error


def _redis_variables() -> dict[str, object]:
    given = {name: os.environ.get(f"DRIFTLOOP_REDIS__{name.upper()}") for name in ("url", *REDIS_NAMES)}
    return {name: value for name, value in given.items() if value is not None}


def _own_variables() -> dict[str, str]:
    return {name.removeprefix(_PREFIX).lower(): value for name, value in os.environ.items() if name.startswith(_PREFIX)}


def _whole(values: Mapping[str, Any], name: str, default: int) -> int:
    value = values.get(name, default)
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"sdk.{name}: got {value!r}, wanted a whole number") from error
