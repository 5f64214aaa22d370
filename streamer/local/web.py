"""Requests to servers on this machine."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

# An environment's proxy must not be asked for the loopback address.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def answers(url: str) -> bool:
    """Whether an address answers with a 2xx."""
    try:
        with _OPENER.open(url, timeout=2) as response:
            return bool(200 <= response.status < 300)
    except OSError:
        return False


def fetch_json(url: str) -> Any:
    """Return what an address answers, decoded; None while it does not answer with a 2xx."""
    try:
        with _OPENER.open(url, timeout=5) as response:
            return json.load(response)
    except OSError:
        return None
