"""What a doctor's check says: how one thing stands, what was found, and what to do about it."""

from __future__ import annotations

from typing import Literal

import msgspec

Status = Literal["ok", "warning", "failed", "unreachable", "skipped"]


class Check(msgspec.Struct, frozen=True):
    """One thing looked at: how it stands, what was found, and what to do about it ("" when nothing)."""

    name: str
    status: Status
    found: str
    remedy: str = ""
