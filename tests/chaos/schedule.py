"""What is done, to whom, when: drawn from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Literal, NamedTuple, get_args

Fault = Literal[
    "ingest killed",
    "evaluate killed",
    "all workers killed",
    "broker killed",
    "broker away",
    "Valkey killed, its last second lost",
    "worker paused past its session",
    "broker paused",
    "Valkey paused",
    "broker's clock set ahead",
    "Valkey's clock set wrong",
    "worker added",
    "worker removed",
    "live view emptied",
    "join store emptied",
]
FAULTS: tuple[Fault, ...] = get_args(Fault)
# Not on every machine.
OF_CLOCKS: frozenset[Fault] = frozenset({"broker's clock set ahead", "Valkey's clock set wrong"})
# Of the servers, one thing at a time happens; workers are struck meanwhile.
OF_SERVERS: frozenset[Fault] = frozenset(
    {
        "broker killed",
        "broker away",
        "Valkey killed, its last second lost",
        "broker paused",
        "Valkey paused",
        "broker's clock set ahead",
        "Valkey's clock set wrong",
        "live view emptied",
        "join store emptied",
    }
)
STORM: Mapping[Fault, int] = {
    "ingest killed": 6,
    "evaluate killed": 6,
    "all workers killed": 3,
    "broker killed": 4,
    "Valkey killed, its last second lost": 6,
    "worker paused past its session": 5,
    "broker paused": 2,
    "Valkey paused": 2,
    "broker's clock set ahead": 2,
    "Valkey's clock set wrong": 2,
    "worker added": 2,
    "worker removed": 2,
    "live view emptied": 2,
}
# While the join store is lost, predictions that come twice count twice: such a stream has none of those.
STORM_WITHOUT_STORE: Mapping[Fault, int] = {
    **STORM,
    "Valkey killed, its last second lost": 5,
    "join store emptied": 1,
}
SHORT: Mapping[Fault, int] = {
    "ingest killed": 1,
    "evaluate killed": 1,
    "worker added": 1,
    "worker paused past its session": 1,
    "broker away": 1,
    "Valkey killed, its last second lost": 2,
    "live view emptied": 1,
}
# A worker's session at Kafka lasts six seconds: after a pause its partitions are another's.
_PAST_SESSION_S = (7.0, 10.0)
_SERVER_PAUSE_S = (1.0, 5.0)
_AT_WORK_SHARE = 0.5


class Blow(NamedTuple):
    """One disturbance.

    Attributes
    ----------
    at_s : how long after the beginning, at the earliest: blows to the servers come one after the other, and so do those
        to workers.
    whom : draws which worker. at_work : whether it waits until that one is well; else it may still be starting.
    seconds : how long a pause lasts.
    """

    at_s: float
    fault: Fault
    whom: float
    at_work: bool
    seconds: float


def blows(random: Random, faults: Mapping[Fault, int], *, first_s: float, last_s: float, away_s: float) -> list[Blow]:
    """Return so many of each fault, in order, spread over a stretch of time.

    Parameters
    ----------
    away_s : how long a broker stays away.
    """
    kinds = [fault for fault, times in faults.items() for _ in range(times)]
    random.shuffle(kinds)
    found = []
    for fault in kinds:
        lasting = _PAST_SESSION_S if fault == "worker paused past its session" else _SERVER_PAUSE_S
        at_s, whom, at_work = random.uniform(first_s, last_s), random.random(), random.random() < _AT_WORK_SHARE
        seconds = random.uniform(*lasting)
        found.append(Blow(at_s, fault, whom, at_work, away_s if fault == "broker away" else seconds))
    return sorted(found)
