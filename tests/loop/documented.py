"""What the README promises of Redis, read from its own table."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import redis

README = Path(__file__).parents[2] / "README.md"
_ROW = re.compile(r"^\| `(driftloop:[^`]*)` \| (\w+)[^|]*\| (.*) \|$", re.MULTILINE)
# Names of fields stand alone in backticks; prose and values do not.
_FIELD = re.compile(r"`([a-z_]+)`")


class Documented(NamedTuple):
    """One row: a key, with `{m}` and `<v>` still in it, its type, and the fields its documents are said to have."""

    key: str
    kind: str
    fields: list[str]


def documented() -> list[Documented]:
    """Return the rows of the README's table of keys."""
    text = README.read_text(encoding="utf-8")
    return [Documented(key, kind, _FIELD.findall(holds)) for key, kind, holds in _ROW.findall(text)]


def unlike(client: redis.Redis, model: str, version: str) -> list[str]:
    """Return where a Redis is not as the README says, a line each."""
    return [fault for row in documented() for fault in _unlike(client, row, model, version)]


def _unlike(client: redis.Redis, row: Documented, model: str, version: str) -> list[str]:
    if "<n>" in row.key:
        found = next(client.scan_iter(match=row.key.replace("<n>", "*")), None)
        return [] if found else [f"{row.key}: no such key"]
    key = row.key.replace("{m}", f"{{{model}}}").replace("<v>", version)
    kind = client.type(key).decode()  # type: ignore[union-attr]
    if kind != row.kind:
        return [f"{key}: is a {kind}, said to be a {row.kind}"]
    if kind == "stream" or key.endswith(":stamp"):
        return []
    values = list(client.hgetall(key).values()) if kind == "hash" else [client.get(key)]  # type: ignore[union-attr]
    faults = [] if values else [f"{key}: is empty"]
    for value in values:
        document = json.loads(value)
        faults += [f"{key}: lacks {name}" for name in row.fields if name not in document]
    return sorted(set(faults))
