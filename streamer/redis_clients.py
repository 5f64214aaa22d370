"""How a client of Redis is made: an address, and beside it user, password and TLS's files by redis-py's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import redis

from streamer.addresses import without_password

if TYPE_CHECKING:
    from streamer.settings import Settings

# Of the `[redis]` table, what belongs to a connection.
NAMES = ("username", "password", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


class Unreachable(Exception):  # noqa: N818 - it says what is the matter
    """Redis does not let this client in; the message says which setting or which right is missing."""


def options(url: str, given: Mapping[str, object]) -> dict[str, Any]:
    """Return redis-py's keyword arguments beside an address; what stands in the address itself wins over them.

    Parameters
    ----------
    url : redis://, rediss:// or unix://.
    given : some of `NAMES`; None is not given, and TLS's names concern a rediss:// address alone.
    """
    tls = url.startswith("rediss://")
    return {
        name: value
        for name, value in given.items()
        if name in NAMES and value is not None and (tls or not name.startswith("ssl_"))
    }


def view_options(settings: Settings) -> dict[str, Any]:
    """Return the keyword arguments of a client of the view's server, beside `settings.redis.url`."""
    return options(settings.redis.url, _given(settings))


def connect(settings: Settings, **timeouts: float) -> redis.Redis:
    """Return a client of the view's server; it connects at its first command."""
    return redis.Redis.from_url(settings.redis.url, **{**view_options(settings), **timeouts})


def connect_store(settings: Settings, **timeouts: float) -> redis.Redis:
    """Return a client of the label join's server, which is the view's unless `redis.join_url` names another."""
    url = settings.redis.join_url or settings.redis.url
    return redis.Redis.from_url(url, **{**options(url, _given(settings)), **timeouts})


def refusal(error: BaseException | None, url: str) -> str | None:
    """Return what Redis misses in this client, by the setting that gives it; None for any other error."""
    if not isinstance(error, redis.RedisError):
        return None
    where, said = f"Redis at {without_password(url)}", _first_line(error)
    if isinstance(error, redis.exceptions.NoPermissionError):
        return f"{where} refused a command: {said}; give its user that right (docs/how-to/secure-it.md lists all)"
    # A server without users tells a missing password by NOAUTH, one with them a wrong one by WRONGPASS.
    if isinstance(error, redis.AuthenticationError):
        return f"{where} refused the user or the password: {said}; set redis.username and DRIFTLOOP_REDIS__PASSWORD"
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return f"{where} shows a certificate that redis.ssl_ca_certs does not vouch for: {said}"
    # A server that is quick to hang up takes its own alert with it.
    told = said.lower()
    if ("alert" in told and ("certificate" in told or "unknown" in told)) or "eof occurred in violation" in told:
        return f"{where} does not take this client's certificate: {said}; set redis.ssl_certfile and redis.ssl_keyfile"
    if "WRONG_VERSION_NUMBER" in said:
        return f"{where} speaks no TLS: {said}; write redis:// in the address"
    if isinstance(error.__cause__, FileNotFoundError) or "No such file" in said:
        return f"{where}: a file of redis.ssl_ca_certs, redis.ssl_certfile or redis.ssl_keyfile cannot be read: {said}"
    return None


def require_access(client: redis.Redis, url: str) -> None:
    """Return unless the server refuses this client; one that is away may come back.

    Raises
    ------
    Unreachable
        Naming the setting or the right that is missing.
    """
    try:
        client.ping()
    except redis.RedisError as error:
        told = refusal(error, url)
        if told is not None:
            raise Unreachable(told) from error


def _given(settings: Settings) -> dict[str, object]:
    secret = settings.redis.password
    return {**settings.redis.model_dump(include=set(NAMES)), "password": secret and secret.get_secret_value()}


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
