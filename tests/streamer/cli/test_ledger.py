"""`driftloop ledger`: why each thing happened, in the words of whoever did it or of its detail."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from streamer.cli.ledger import why
from streamer.events import LedgerEntry, encode
from tests.streamer.cli.conftest import Run

FINDING = {
    "subject": "age", "statistic": "psi", "value": 0.31, "threshold": 0.05, "floor": 0.1,
    "n_reference": 4_000, "n_current": 300, "p_value": 1e-9,
}  # fmt: skip
RUN = "airflow:canary__retrain__rq-08c7de1c351d658910b6"


def entry(state: str, kind: Any = "request", **given: Any) -> LedgerEntry:
    return LedgerEntry(
        model="churn", model_epoch=1, at_ms=1_700_000_000_000, subject_kind=kind, subject="rq-1", state=state, **given
    )


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (entry("rejected", reason="the data: 3 rows"), "the data: 3 rows"),
        (entry("raised", detail={"kind": "drift", "version": "1"}), "drift of version 1"),
        (
            entry("raised", detail={"kind": "drift", "version": "1", "evidence": {"findings": [FINDING]}}),
            "drift of version 1, age: psi 0.310, limit 0.100 (p 1e-09, 300 events)",
        ),
        (
            entry(
                "validated",
                detail={"version": "2", "evidence": {"winner": "logistic", "rows": 5000, "gates": {"a": {}, "b": {}}}},
            ),
            "logistic is version 2, 5,000 rows, passed 2 gates",
        ),
        (entry("active", "rollout", detail={"step": 1, "percent": 10.0}), "step 2 of its ramp"),
        (entry("allowed", "model", detail={"until_ms": 1_700_000_000_000}), "until 2023-11-14 22:13:20 UTC"),
        (entry("accepted"), ""),
        (entry("", outcome="accepted", detail={"kind": "drift"}), ""),
    ],
)
def test_why_is_what_was_said_else_what_the_detail_holds(written: LedgerEntry, told: str) -> None:
    assert why(written) == told


ODD: list[Any] = [
    None, "seen by eye", 7, ["age"], {"findings": None}, {"findings": []}, {"findings": "age"}, {"findings": {"a": 1}},
    {"findings": [None]}, {"findings": [{"subject": "age"}]}, {"findings": [FINDING | {"value": None}]}, {"rows": None},
    {"rows": "many"}, {"gates": 3}, {"gates": [1]}, {"gates": {}},
]  # fmt: skip


@pytest.mark.parametrize("state", ["raised", "validated", "rejected"])
@pytest.mark.parametrize("evidence", ODD, ids=str)
def test_of_evidence_that_is_none_nothing_is_said(state: str, evidence: Any) -> None:
    assert why(entry(state, detail={"kind": "manual", "version": "1", "evidence": evidence})) == "manual of version 1"


def test_odd_evidence_does_not_hide_the_rest_of_it() -> None:
    detail = {"version": "2", "evidence": {"winner": "logistic", "rows": 12.0, "gates": "all"}}
    assert why(entry("validated", detail=detail)) == "logistic is version 2, 12 rows"
    raised = entry("raised", detail={"evidence": {"findings": [FINDING, "and more"]}})
    assert why(raised) == "age: psi 0.310, limit 0.100 (p 1e-09, 300 events)"


@pytest.mark.parametrize("width", [80, 200])
def test_ids_are_whole_at_any_width(run: Run, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    message = SimpleNamespace(value=lambda: encode(entry("canary", actor=RUN, previous="validated")))
    monkeypatch.setattr("streamer.cli.ledger.published_model", lambda *_: None)
    monkeypatch.setattr("streamer.kafka.reader.read_to_end", lambda *_: [message])
    output = run("ledger", "churn", COLUMNS=str(width)).output
    assert max(map(len, output.splitlines())) <= width
    assert "validated → canary" in output
    assert "rq-1" in output
    assert RUN in output
    assert ("WHEN (UTC)" in output) is (width == 200)
    assert "UTC" in output
    [told] = json.loads(run("ledger", "churn", "--json").output)
    assert told["actor"] == RUN
