"""A short storm; `make chaos` has five of a minute and a half, and is what this is a small form of."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamer.kafka import topics
from streamer.local.kafka import is_declared_dead
from streamer.local.stack import Stack
from streamer.settings import Settings
from tests.chaos.__main__ import settings_of
from tests.chaos.faults import FAULTS
from tests.chaos.schedule import SHORT
from tests.chaos.storm import WHOLE, Options, run

pytestmark = pytest.mark.integration


@pytest.mark.timeout(240)
def test_everything_is_counted_and_decided_once_in_a_storm_of_faults(tmp_path: Path) -> None:
    options = Options(seed=7, roles=WHOLE, faults=SHORT, garbage=400, seconds=15.0, rate=20, away_s=8.0)
    with Stack(tmp_path, parts=frozenset({"kafka", "valkey"}), settings=Settings()) as stack:
        settings = settings_of(stack, "short")
        topics.ensure(settings)
        outcome = run(stack, settings, options)
    # The broker was killed, and each time declared dead before it came back.
    assert is_declared_dead((tmp_path / "logs" / "kafka-controller.log").read_text())
    assert outcome.findings.amiss == []
    assert outcome.equal
    assert outcome.faults == SHORT
    assert outcome.findings.events > 5_000
    assert outcome.findings.garbage_found == 400
    assert outcome.findings.garbage_kinds == len({fault.name for fault in FAULTS})
    assert outcome.findings.drift_counts > 2_000
    assert outcome.findings.performance_counts > 1_000
    assert outcome.findings.decisions > 500
