"""The whole loop on real parts and real flights, shortened: from events to a promoted model, through a full restart."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
import redis
from rich.console import Console

from dags.steps.registry import CHALLENGER, CHAMPION, PREVIOUS, STATUS_TAG, Registry, signature_inputs
from dags.steps.retraining import REPORT
from demo.flights import at
from demo.screen import Screen
from demo.story import MODEL_FILE, Plan, Story
from streamer.audit import recount
from streamer.durations import Duration
from streamer.events import LedgerEntry
from streamer.kafka.reader import read_to_end
from streamer.models import ModelConfig, read_model
from streamer.settings import Settings
from streamer.state import Keys
from streamer.view import LiveView
from tests.loop.documented import unlike

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

            report = recount.run(settings)
            assert report.equal, report.differences
            the_ledger_and_the_view_say_what_happened(settings, again.model)
            the_registry_has_both_versions_and_all_that_explains_them(settings, again.model, tmp_path)


def the_ledger_and_the_view_say_what_happened(settings: Settings, model: str) -> None:
    client = redis.Redis.from_url(settings.redis.url)
    view = LiveView(client, Keys(settings.namespace)).model(model)
    assert view is not None
    assert view.request is not None
    course = ["raised", "accepted", "training", "validated", "canary", "promoted"]
    assert [entry["state"] for entry in view.request.history] == course
    assert unlike(client, model, "2") == []
    entries = [
        msgspec.json.decode(message.value() or b"", type=LedgerEntry)
        for message in read_to_end(settings, settings.topic("ledger"))
    ]
    mine = [each for each in entries if each.subject == view.request.request_id and each.state and not each.command_id]
    assert [each.state for each in mine] == course
    assert all(each.at_ms and each.actor for each in mine)


def the_registry_has_both_versions_and_all_that_explains_them(settings: Settings, model: str, files: Path) -> None:
    registry = Registry(settings, model)
    assert (registry.alias(CHAMPION), registry.alias(PREVIOUS), registry.alias(CHALLENGER)) == ("2", "1", None)
    assert (registry.tags("1")[STATUS_TAG], registry.tags("2")[STATUS_TAG]) == ("retired", "champion")
    assert registry.tags("2")["driftloop.parent_version"] == "1"
    for version in ("1", "2"):
        assert registry.fetch(version, "reference", files / f"reference-{version}") is not None
        assert signature_inputs(registry.fetch_model(version, files / f"model-{version}"))
    page = registry.fetch("2", REPORT, files / "report")
    assert page is not None
    said = page.read_text(encoding="utf-8")
    assert "No report" not in said
    assert "Drifted Columns" in said
