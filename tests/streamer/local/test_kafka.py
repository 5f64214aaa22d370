"""When a broker that crashed counts as dead, by what its controller's log says."""

from __future__ import annotations

import pytest

from streamer.local.kafka import is_declared_dead

ACTIVE = "INFO [QuorumController id=1] Activated periodic tasks: electPreferred, maybeFenceStaleBroker"
NEW = (
    "INFO Replayed initial RegisterBrokerRecord for broker 1: RegisterBrokerRecord(brokerId=1, fenced=true, rack=null)"
)
FENCED = (
    "INFO Replayed BrokerRegistrationChangeRecord modifying the registration for broker 1: "
    "BrokerRegistrationChangeRecord(brokerId=1, fenced={}, logDirs=[])"
)


@pytest.mark.parametrize(
    ("lines", "dead"),
    [
        ([], False),
        ([NEW], False),
        ([ACTIVE], True),
        ([NEW, ACTIVE], True),
        ([NEW, FENCED.format(-1), ACTIVE], False),
        ([NEW, FENCED.format(-1), FENCED.format(0), ACTIVE], False),
        ([NEW, FENCED.format(-1), ACTIVE, FENCED.format(1)], True),
        ([NEW, FENCED.format(-1), FENCED.format(1), NEW.replace("true", "false"), ACTIVE], False),
    ],
)
def test_a_broker_is_dead_once_the_controller_is_at_work_and_has_fenced_it(lines: list[str], dead: bool) -> None:
    assert is_declared_dead("\n".join(lines)) is dead
