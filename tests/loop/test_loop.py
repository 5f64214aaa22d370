"""The whole loop on real parts and real flights, shortened: from events to a promoted model, through a full restart."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import redis
from rich.console import Console

from dags.steps.registry import CHAMPION, PREVIOUS, STATUS_TAG, Registry
from demo.flights import at
from demo.screen import Screen
from demo.story import MODEL_FILE, Plan, Story
from streamer import recount
from streamer.durations import Duration
from streamer.models import ModelConfig, read_model
from streamer.state import Keys
from streamer.view import LiveView

pytestmark = [pytest.mark.integration, pytest.mark.airflow, pytest.mark.loop]

# From June on, with the champion of January and February: its bad summer begins at once.
PLAN = Plan(train_until_ms=at(3, 1), begin_ms=at(6, 8))


def shortened() -> ModelConfig:
    """The demo's model, on a shorter ramp and a shorter memory."""
    config = read_model(MODEL_FILE)
    return config.model_copy(
        update={
            "policy": config.policy.model_copy(update={"performance_window": Duration.parse("14d")}),
            "canary": config.canary.model_copy(update={"steps": (25.0, 100.0)}),
        }
    )


@pytest.mark.timeout(600)
def test_events_become_a_promoted_model_though_everything_is_stopped_and_started_again(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=120)
    with Screen(console) as screen:
        first = Story(screen, tmp_path, plan=PLAN, config=shortened(), deadline_s=8)
        with first.stack:
            cut = first.run()
        assert not cut.closed
        assert cut.reason.startswith("not closed after 8 s")
        again = Story(screen, tmp_path, plan=PLAN, config=shortened(), keep=True)
        with again.stack:
            summary = again.run()
            settings = again.stack.settings
            assert summary.closed, console.file.getvalue()  # type: ignore[attr-defined]
            assert summary.ended == "promoted"
            assert (summary.champion_before, summary.champion_after) == ("1", "2")
            assert [step.percent for step in summary.canary] == [25.0, 98.0]
            assert all(step.verdict and step.verdict.status == "pass" for step in summary.canary)
            assert len(summary.comparisons) == 2
            assert summary.flights > cut.flights

            registry = Registry(settings, again.model)
            assert (registry.alias(CHAMPION), registry.alias(PREVIOUS)) == ("2", "1")
            assert registry.tags("2")[STATUS_TAG] == "champion"
            view = LiveView(redis.Redis.from_url(settings.redis.url), Keys(settings.namespace)).model(again.model)
            assert view is not None
            assert view.request is not None
            assert [entry["state"] for entry in view.request.history] == [
                "raised",
                "accepted",
                "training",
                "validated",
                "canary",
                "promoted",
            ]
            report = recount.run(settings)
            assert report.equal, report.differences
