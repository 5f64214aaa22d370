"""A worker that is started while there is no broker: it says so in one line and ends, and does not hang."""

from __future__ import annotations

import subprocess
import sys
import time

from streamer.settings import Settings
from tests.integration.running import environment

_ENDS_WITHIN_S = 30.0
_UNREACHABLE = 3


def start_without_broker(settings: Settings) -> list[str]:
    """Start a worker while there is no broker; return what is amiss with how it ends."""
    began = time.monotonic()
    command = [sys.executable, "-m", "streamer.cli", "worker"]
    try:
        ended = subprocess.run(
            command, env=environment(settings), capture_output=True, text=True, timeout=_ENDS_WITHIN_S, check=False
        )
    except subprocess.TimeoutExpired:
        return [f"a worker that starts without a broker has not ended after {_ENDS_WITHIN_S:.0f} s"]
    said, took = (ended.stderr.strip().splitlines() or [""])[-1], time.monotonic() - began
    if ended.returncode != _UNREACHABLE or "does not answer" not in said:
        return [f"a worker that starts without a broker: code {ended.returncode} after {took:.0f} s, saying {said!r}"]
    return []
