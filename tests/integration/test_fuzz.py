"""Malformed messages by the thousand against a real worker; `python -m tests.chaos.fuzz` sends a million."""

from __future__ import annotations

import pytest

from streamer.settings import Settings
from tests.chaos.fuzz import run
from tests.chaos.post import KINDS

pytestmark = pytest.mark.integration


def test_every_malformed_message_is_a_dead_letter_with_its_reason_and_the_sound_ones_between_them_count(
    settings: Settings,
) -> None:
    often = settings.worker.model_copy(update={"commit_ms": 500})
    outcome = run(settings.model_copy(update={"worker": often}), 20_000, seed=1, say=print)
    assert outcome.amiss == []
    assert outcome.equal
    assert outcome.right == outcome.messages - outcome.sound > 15_000
    assert (outcome.sound > 500, outcome.neighbours, outcome.differences) == (True, 2_000, 0)
    assert outcome.compared > 100
    assert all(tally.sent for tally in outcome.tallies)
    assert len(outcome.tallies) == len(KINDS)
