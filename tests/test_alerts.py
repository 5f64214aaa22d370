"""The alert rules people copy speak of metrics and labels that are there; the page tells of every metric and alert."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from streamer.telemetry import REGISTRY

ROOT = Path(__file__).parents[1]
RULES = ROOT / "examples/prometheus-alerts.yaml"
PAGE = (ROOT / "docs/how-to/metrics-and-alerts.md").read_text()
# What Prometheus itself adds to every target's samples.
OF_PROMETHEUS = {"job", "instance", "le"}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def samples() -> dict[str, set[str]]:
    """Return the name of every sample our metrics can give → its labels."""
    found = {}
    for collector in REGISTRY._collector_to_names:
        for name in REGISTRY._collector_to_names[collector]:
            found[name] = set(collector._labelnames)
    return found


def test_every_rule_asks_for_samples_and_labels_that_there_are() -> None:
    known = samples()
    assert rules()
    for rule in rules():
        names = set(re.findall(r"driftloop_\w+", rule["expr"]))
        assert names <= known.keys(), rule["alert"]
        labels = {each for name in names for each in known[name]} | OF_PROMETHEUS
        used = set(re.findall(r"[{,]\s*(\w+)\s*[=!]", rule["expr"]))
        for listed in re.findall(r"by \(([^)]*)\)", rule["expr"]):
            used |= {label.strip() for label in listed.split(",")}
        used |= set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        assert used <= labels, rule["alert"]
        assert rule["labels"]["severity"] in {"page", "ticket"}


def test_the_page_tells_of_every_metric_with_its_labels_and_of_every_page() -> None:
    told = dict(re.findall(r"^\| `(driftloop_\w+)` \| ([\w, ]*)\|", PAGE, re.MULTILINE))
    known = samples()
    shown = {name for name in known if not name.endswith(("_created", "_bucket", "_sum", "_count"))}
    counters = {name.removesuffix("_total") for name in shown if name.endswith("_total")}
    assert told.keys() == shown - counters
    for name, labels in told.items():
        assert {label.strip() for label in labels.split(",") if label.strip()} == known[name]
    for rule in rules():
        if rule["labels"]["severity"] == "page":
            assert f"| {rule['alert'].removeprefix('Driftloop')} |" in PAGE
