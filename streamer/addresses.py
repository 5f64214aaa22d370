"""Addresses as a person or a log may see them, without their passwords; and whether Redis's can be one."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit


def without_password(url: str) -> str:
    """Return an address with its password, if it has one, as ***."""
    parts = urlsplit(url)
    if not parts.password:
        return url
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{parts.netloc.rpartition('@')[2]}"))


def checked_redis_url(url: str) -> str:
    """Return Redis's address, if its client would take it.

    Raises
    ------
    ValueError
        Saying what was wanted, and nothing of what came: it may hold a password.
    """
    wanted = "wanted redis://host:6379/0, rediss://… or unix://…"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        # Not what it says: where a password has a "/" in it, that would be half of it.
        raise ValueError(f"its port is no number (a / or # in a password is written %2F, %23); {wanted}") from None
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ValueError(wanted)
    return url
