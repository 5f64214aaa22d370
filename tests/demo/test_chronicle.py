"""What the demo gathers from the live view: each thing told once, and enough kept for the end."""

from __future__ import annotations

import msgspec

from demo.chronicle import Chronicle, Tale, describe_finding
from demo.flights import DAY_MS
from streamer import documents
from tests.demo.views import T0, canary, entry, request, view, weeks


def drifting(psi: float) -> dict[str, documents.FeatureDrift]:
    return {"temp": documents.FeatureDrift(psi=psi, threshold_psi=0.4, alarm=True, window_end_ms=T0)}


def test_a_feature_that_drifts_is_told_once_and_its_newest_value_kept() -> None:
    chronicle = Chronicle()
    assert chronicle.observe(view(drift=drifting(0.5))) == ["temp drifts: PSI 0.50, limit 0.40"]
    assert chronicle.observe(view(drift=drifting(0.9))) == []
    assert chronicle.tale.drifted["temp"].value == 0.9
    assert chronicle.tale.drifted["temp"].since_ms == T0


def test_drift_is_told_by_the_statistic_that_is_furthest_past_its_limit() -> None:
    by_ks = documents.FeatureDrift(psi=0.21, threshold_psi=0.22, ks=0.3, threshold_ks=0.2, alarm=True)
    assert Chronicle().observe(view(drift={"@score": by_ks})) == ["@score drifts: KS 0.30, limit 0.20"]
    unknown = documents.FeatureDrift(psi=0.21, alarm=True)
    assert Chronicle().observe(view(drift={"@score": unknown})) == ["@score drifts: past its limit"]


def test_drift_after_the_request_is_no_part_of_why_it_was_raised() -> None:
    chronicle = Chronicle()
    chronicle.observe(view(request=request()))
    assert chronicle.observe(view(drift=drifting(0.5), request=request())) == []
    assert chronicle.tale.drifted == {}


def test_a_spell_of_bad_weeks_is_told_when_it_begins_and_when_it_is_over_and_keeps_its_worst() -> None:
    chronicle = Chronicle()
    assert chronicle.observe(view(performance=weeks([0.75] * 7))) == []
    begins = chronicle.observe(view(performance=weeks([0.75] * 7 + [0.55] * 5)))
    assert [line.split(":")[0] for line in begins] == ["a bad week"]
    assert chronicle.observe(view(performance=weeks([0.75] * 7 + [0.55] * 7))) == []
    over = chronicle.observe(view(performance=weeks([0.75] * 7 + [0.55] * 7 + [0.75] * 7)))
    assert [line.split(":")[0] for line in over] == ["the bad weeks are over"]
    (storm,) = chronicle.tale.storms
    assert storm.over
    assert round(storm.accuracy, 3) == 0.55
    assert storm.end_ms == T0 + 14 * DAY_MS


def test_a_week_that_is_not_whole_says_nothing() -> None:
    chronicle = Chronicle()
    assert chronicle.observe(view(performance=weeks([0.1] * 6))) == []
    assert chronicle.tale.storms == []


def test_a_request_is_followed_from_its_evidence_to_its_end() -> None:
    chronicle = Chronicle()
    told = chronicle.observe(view(request=request()))
    assert told == [
        "a request for retraining (performance): accuracy 0.660 against 0.750 at training: lost 0.090, surely 0.020"
    ]
    course = [
        entry(1, "request", "request rq-1 accepted"),
        entry(2, "request", "request rq-1 training"),
        entry(3, "request", "request rq-1 validated", version="2", evidence={"auc": 0.7}),
    ]
    assert chronicle.observe(view(request=request("validated", run_id="retrain__rq-1"), timeline=course)) == [
        "Airflow has taken the request",
        "Airflow trains",
        "version 2 is trained, tested and registered",
    ]
    assert chronicle.tale.request is not None
    assert chronicle.tale.request.run_id == "retrain__rq-1"
    assert chronicle.tale.candidate is not None
    assert chronicle.tale.candidate.evidence == {"auc": 0.7}
    ended = [entry(9, "request", "request rq-1 rolled_back", event_ms=T0 + DAY_MS, reason="worse")]
    assert chronicle.observe(view(request=request("rolled_back"), timeline=ended)) == [
        "the request ends: rolled back: worse"
    ]
    assert (chronicle.tale.ended, chronicle.tale.ended_ms) == ("rolled_back", T0 + DAY_MS)


def test_another_requests_lines_are_not_taken_for_this_ones() -> None:
    chronicle = Chronicle()
    chronicle.observe(view(request=request()))
    assert chronicle.observe(view(request=request(), timeline=[entry(1, "request", "request rq-0 failed")])) == []
    assert chronicle.tale.ended is None


def test_each_step_keeps_its_own_newest_verdict_and_when_it_ran() -> None:
    chronicle = Chronicle()
    first = entry(1, "rollout", "step", event_ms=T0, step=0, percent=5.0)
    second = entry(2, "rollout", "step", event_ms=T0 + DAY_MS, step=1, percent=50.0)
    chronicle.observe(view(request=request("canary"), canary=canary(0, "running"), timeline=[first]))
    history = [{"status": "pass", "step": 0, "delta": 0.02}]
    shown = canary(1, "running", history=history)
    chronicle.observe(view(request=request("canary"), canary=shown, timeline=[first, second]))
    low, high = chronicle.tale.steps
    assert (low.percent, low.began_ms, low.ended_ms) == (5.0, T0, T0 + DAY_MS)
    assert low.verdict is not None
    assert low.verdict.status == "pass"
    assert high.verdict is not None
    assert high.verdict.status == "running"
    promoted = [first, second, entry(3, "request", "request rq-1 promoted", event_ms=T0 + 2 * DAY_MS)]
    chronicle.observe(view(request=request("promoted"), canary=shown, timeline=promoted))
    assert high.ended_ms == T0 + 2 * DAY_MS


def test_the_end_of_a_request_before_is_not_taken_for_the_end_of_the_next_ones_steps() -> None:
    chronicle = Chronicle(Tale(ended="rolled_back", ended_ms=T0 - DAY_MS))
    began = entry(1, "rollout", "step", event_ms=T0, step=0, percent=5.0)
    chronicle.observe(view(request=request("canary"), canary=canary(0, "running"), timeline=[began]))
    assert (chronicle.tale.ended, chronicle.tale.steps[0].ended_ms) == (None, None)


def test_a_tale_read_back_is_gone_on_with_and_nothing_is_told_twice() -> None:
    chronicle = Chronicle()
    seen = view(drift=drifting(0.5), timeline=[entry(1, "alert", "quiet → suspected")])
    assert len(chronicle.observe(seen)) == 2
    again = Chronicle(msgspec.json.decode(msgspec.json.encode(chronicle.tale), type=Tale))
    assert again.observe(seen) == []
    assert again.tale == chronicle.tale


def test_a_finding_of_drift_is_said_with_its_limit() -> None:
    finding = {"subject": "temp", "statistic": "psi", "value": 0.52, "threshold": 0.4}
    assert describe_finding(finding) == "temp: psi 0.52, limit 0.40"
    assert describe_finding({}) == "no finding was recorded"
