"""The C library's memory: shared by the threads, and what was freed given back to the system."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

# From glibc's malloc.h.
_M_ARENA_MAX = -8
_ARENAS = 2


def share() -> None:
    """Let all threads take memory from the same two places, before there are other threads.

    glibc gives each of the client libraries' threads one of its own, up to eight a core, and each keeps what it has
    freed for itself. Nothing is done with another C library.
    """
    _call("mallopt", _M_ARENA_MAX, _ARENAS)


def give_back() -> None:
    """Give freed memory back to the system, page by page.

    glibc keeps it for what is asked for next; of a burst hundreds of megabytes would stay. Nothing is done with another
    C library.
    """
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    function = _functions().get(name)
    if function is not None:
        function(*arguments)


@cache
def _functions() -> dict[str, Any]:
    try:
        library = ctypes.CDLL(None)
    except OSError:
        return {}
    # Only glibc has this one; others' `mallopt` takes other numbers.
    if not hasattr(library, "gnu_get_libc_version"):
        return {}
    return {name: getattr(library, name) for name in ("mallopt", "malloc_trim")}
