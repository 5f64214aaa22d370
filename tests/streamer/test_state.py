"""The Redis keys are public: dashboards and routers in other languages read them by name."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from streamer.state import Keys

GOLDEN = Path(__file__).parent / "golden" / "redis-keys.json"
ARGUMENTS: dict[str, Any] = {"model": "flight_delay", "version": "7", "bucket": 63}


def _built(keys: Keys) -> dict[str, str]:
    built = {"root": keys.root}
    for name, method in inspect.getmembers(keys, inspect.ismethod):
        if not name.startswith("_"):
            built[name] = method(*(ARGUMENTS[argument] for argument in inspect.signature(method).parameters))
    return built


def test_every_key_is_what_it_always_was() -> None:
    assert {"": _built(Keys()), "team-a": _built(Keys("team-a"))} == json.loads(GOLDEN.read_text())


def test_a_models_keys_share_a_cluster_slot() -> None:
    for key in _built(Keys("ns")).values():
        if "flight_delay" in key:
            assert key.count("{") == key.count("}") == 1
            assert "{flight_delay}" in key


def test_no_two_documents_share_a_key() -> None:
    built = _built(Keys())
    assert len(set(built.values())) == len(built)
