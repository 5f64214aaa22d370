"""Clocks of the broker and of Valkey that are wrong, where a C compiler is at hand to make them so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SOURCE = Path(__file__).with_name("skew.c")
_PROGRAMS = {"kafka": "java", "valkey": "valkey-server"}
_PRELOAD = "LD_PRELOAD"


def can_be_wrong() -> bool:
    """Tell whether this machine can be made to lie to a program about the time."""
    return sys.platform == "linux" and shutil.which("cc") is not None


@contextmanager
def to_be_set(directory: Path) -> Iterator[None]:
    """Have every program that is started meanwhile ask `set_ahead` how wrong its clock is; nobody's is at first."""
    library = directory / "skew.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, _SOURCE, "-ldl"], check=True)
    before = os.environ.get(_PRELOAD)
    os.environ[_PRELOAD] = str(library.resolve())
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PRELOAD]
        else:
            os.environ[_PRELOAD] = before


def set_ahead(stack: Path, part: str, ahead_ms: int) -> None:
    """Set a server's clock to so much ahead of the right time (behind: negative), within a tenth of a second.

    Parameters
    ----------
    stack : the stack's directory.
    """
    clocks = stack / "clocks"
    clocks.mkdir(exist_ok=True)
    fresh = clocks / f"{part}.new"
    fresh.write_text(str(ahead_ms))
    fresh.replace(clocks / _PROGRAMS[part])
