"""A month of flights under kill -9 and garbage; `make chaos` plays all ten, and is what this is a small form of."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.flights import at
from streamer.settings import Settings
from tests.chaos.faults import FAULTS
from tests.chaos.run import Options, run

pytestmark = pytest.mark.integration


@pytest.mark.timeout(240)
def test_a_month_of_flights_is_counted_once_and_all_garbage_is_buried_while_workers_are_killed(
    settings: Settings, tmp_path: Path
) -> None:
    often = settings.worker.model_copy(update={"commit_ms": 500})
    options = Options(workers=2, kills=3, pauses=0, garbage=400, end_ms=at(4, 1), every_s=(0.3, 2.5), patience_s=60)
    outcome = run(settings.model_copy(update={"worker": often}), options, cache=tmp_path)
    assert outcome.amiss == []
    assert outcome.equal
    assert outcome.flights > 28_000
    assert outcome.garbage_found == 400
    assert outcome.garbage_kinds == len({fault.name for fault in FAULTS})
    assert outcome.drift_counts > 400
    assert outcome.performance_counts > 400
