"""Event time runs ahead of the worker's looks, and stands still while somebody else is at work."""

from __future__ import annotations

import pytest

from demo.flights import DAY_MS
from demo.pace import QUIET_LEAD_MS, WATCHFUL_LEAD_MS, pace
from streamer import documents
from tests.demo.views import T0, canary, request, view

SENT = T0 + 3 * DAY_MS


def allowed(found: documents.ModelView | None) -> tuple[int, str | None]:
    answer = pace(found, start_ms=T0, sent_ms=SENT)
    return answer.until_ms, answer.held


def test_before_the_worker_has_shown_anything_time_runs_a_lead_from_the_start() -> None:
    assert allowed(None) == (T0 + QUIET_LEAD_MS, None)


def test_the_lead_is_shorter_near_a_decision() -> None:
    assert allowed(view()) == (T0 + QUIET_LEAD_MS, None)
    assert allowed(view(alerts=documents.Alerts(phase="suspected"))) == (T0 + WATCHFUL_LEAD_MS, None)
    ramping = view(request=request("canary"), canary=canary(0, "running"))
    assert allowed(ramping) == (T0 + WATCHFUL_LEAD_MS, None)


@pytest.mark.parametrize("state", ["raised", "accepted", "training", "validated"])
def test_time_stands_still_while_airflow_works(state: str) -> None:
    until_ms, held = allowed(view(request=request(state)))
    assert until_ms == SENT
    assert held


def test_time_stands_still_until_the_canary_has_its_first_step() -> None:
    assert allowed(view(request=request("canary")))[1] == "the canary is being prepared"
    assert allowed(view(request=request("canary"), canary=canary(-1, "running")))[1] == "the canary is being prepared"


@pytest.mark.parametrize(
    ("step", "status", "words"),
    [
        (0, "pass", "5 %: pass; on to 50 %"),
        (2, "pass", "100 %: pass; on to the promotion"),
        (1, "fail", "50 %: fail; on to the rollback"),
    ],
)
def test_time_stands_still_between_a_verdict_and_what_follows_it(step: int, status: str, words: str) -> None:
    assert allowed(view(request=request("canary"), canary=canary(step, status)))[1] == words


@pytest.mark.parametrize("state", sorted(documents.FINAL_STATES))
def test_time_goes_on_once_the_request_has_ended(state: str) -> None:
    ended = view(request=request(state), canary=canary(2, "pass", state="promoted"))
    assert allowed(ended) == (T0 + QUIET_LEAD_MS, None)
