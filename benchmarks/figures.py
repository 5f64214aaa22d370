"""What a subject gives back: figures beside their aims, and curves; and how they are kept between runs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

RESULTS = Path(__file__).parent / "results" / "latest.json"


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One number that was measured.

    Attributes
    ----------
    aim : what it should be at least, or at most as `wanted` says; None where it is told without one.
    met : whether it is; None without an aim.
    command : what measures it again.
    """

    name: str
    value: float
    unit: str
    aim: float | None = None
    wanted: Literal["at least", "at most"] = "at least"
    met: bool | None = None
    command: str
    note: str = ""


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """Points of one measure over another; `picture` names the drawing it belongs to."""

    picture: str
    name: str
    over: str
    unit: str
    x: list[float]
    y: list[float]


class Findings(msgspec.Struct, kw_only=True):
    """What one subject found, when, and how long it took; `fault` says why it found nothing."""

    measured: str
    seconds: float
    quick: bool
    figures: list[Figure] = []
    curves: list[Curve] = []
    fault: str = ""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where it was measured."""

    cpu: str
    cores: int
    memory_gib: float
    system: str
    python: str
    versions: dict[str, str]


class Results(msgspec.Struct, kw_only=True):
    """The newest findings of every subject on one machine."""

    machine: Machine
    subjects: dict[str, Findings]


def figure(
    name: str,
    value: float,
    unit: str,
    *,
    command: str,
    at_least: float | None = None,
    at_most: float | None = None,
    note: str = "",
) -> Figure:
    """Return a figure, held against its aim where it has one."""
    aim = at_least if at_most is None else at_most
    met = None if aim is None else (value <= aim if at_most is not None else value >= aim)
    return Figure(
        name=name,
        value=value,
        unit=unit,
        aim=aim,
        wanted="at most" if at_most is not None else "at least",
        met=met,
        command=command,
        note=note,
    )


def read_results(path: Path = RESULTS) -> Results | None:
    """Return what is kept, None where nothing is that this release can read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Results)
    except (OSError, msgspec.DecodeError):
        return None


def write_results(results: Results, path: Path = RESULTS) -> None:
    """Keep results, readable and in one order, so that two versions can be compared."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
