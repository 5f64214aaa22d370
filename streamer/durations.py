"""Lengths of time as people write them ("90s", "6h", "30d"), kept as whole milliseconds."""

from __future__ import annotations

import re
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_PATTERN = re.compile(r"^\s*(\d+)\s*(ms|s|m|h|d|w)\s*$")


class Duration(int):
    """A length of time in milliseconds; in configuration a text such as "15m", or a whole number of ms."""

    @classmethod
    def parse(cls, value: object) -> Duration:
        """Read "15m", "6h", "30d" (units ms, s, m, h, d, w) or a whole number of milliseconds."""
        if isinstance(value, bool):
            raise ValueError(f"got {value!r}, wanted a duration such as '15m', '6h' or '30d'")
        # The environment has only text: there milliseconds are digits alone.
        if isinstance(value, int) or (isinstance(value, str) and value.isdecimal()):
            return cls(value)
        match = _PATTERN.match(value) if isinstance(value, str) else None
        if match is None:
            raise ValueError(f"got {value!r}, wanted a duration such as '500ms', '90s', '15m', '6h', '30d' or '4w'")
        return cls(int(match[1]) * _UNITS_MS[match[2]])

    @property
    def text(self) -> str:
        """The length as people write it, in the largest unit that leaves no rest: "7d", "90s"."""
        unit = next(unit for unit in ("d", "h", "m", "s", "ms") if self % _UNITS_MS[unit] == 0)
        return f"{self // _UNITS_MS[unit]}{unit}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate by `parse`; serialise as the number of milliseconds."""
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(int)
        )
