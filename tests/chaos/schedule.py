"""What is done to the workers, when: drawn from a seed."""

from __future__ import annotations

from random import Random
from typing import Literal, NamedTuple

# A worker's session at Kafka lasts six seconds: after a pause its partitions are another's.
_PAUSE_S = (7.0, 10.0)
_AT_WORK_SHARE = 0.75


class Blow(NamedTuple):
    """One disturbance.

    Attributes
    ----------
    slot : before which slot of the replay its turn comes.
    at_work : whether it waits until the worker is well; else it may strike one that is still starting.
    after_s : how long after that it strikes.
    seconds : how long a pause lasts; 0 for a kill.
    """

    slot: int
    kind: Literal["kill", "pause"]
    worker: int
    at_work: bool
    after_s: float
    seconds: float = 0.0


def blows(
    random: Random, *, slots: int, workers: int, kills: int, pauses: int, every_s: tuple[float, float]
) -> list[Blow]:
    """Return so many kills and pauses, in order, spread over the slots of a replay.

    Parameters
    ----------
    every_s : shortest and longest wait before one strikes.
    """
    kinds: list[Literal["kill", "pause"]] = [*["kill"] * kills, *["pause"] * pauses]  # type: ignore[list-item]
    random.shuffle(kinds)
    places = sorted(random.sample(range(slots), len(kinds)))
    return [
        Blow(
            slot,
            kind,
            random.randrange(workers),
            random.random() < _AT_WORK_SHARE,
            random.uniform(*every_s),
            random.uniform(*_PAUSE_S) if kind == "pause" else 0.0,
        )
        for slot, kind in zip(places, kinds, strict=True)
    ]
