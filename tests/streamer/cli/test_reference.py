"""`driftloop reference`: a table and a model's file are all it takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.streamer.cli.conftest import Run

MODEL = """
name = "churn"
task = "binary"
positive = true
[features]
age = { kind = "numeric" }
plan = { kind = "categorical" }
"""


@pytest.fixture
def table() -> Path:
    Path("model.toml").write_text(MODEL)
    rows = [f"{20 + n % 40},{'abc'[n % 3]},{n % 10 < 7},{n % 10 < 8}" for n in range(500)]
    path = Path("table.csv")
    path.write_text("age,plan,said,label\n" + "\n".join(rows))
    return path


def test_a_reference_is_built_and_shown(run: Run, table: Path) -> None:
    words = ["reference", "build", "--model", "model.toml", "--data", "table.csv", "--prediction-column", "said"]
    result = run(*words, "-o", "out", "--version", "7")
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "out/churn-7.json: churn version 7, 500 rows",
        "  prediction said",
        "  score      none: no AUC, no log loss (--score-column)",
        "  label      label",
        "  ts         none: rows count as independent (--ts-column)",
        "  baseline   accuracy 0.900 on 500",
        "next: driftloop reference publish out/churn-7.json",
    ]
    shown = run("reference", "show", "out/churn-7.json").output
    assert "plan      categorical       3   a, b, c" in shown
    assert "baseline on 500 rows: accuracy 0.900" in shown
    assert max(map(len, shown.splitlines())) <= 80
    found = json.loads(run("reference", "show", "out", "--json").output)
    assert (found["rows"], found["features"]["plan"]["cells"]) == (500, 3)


def test_without_labels_the_reference_says_what_that_costs(run: Run, table: Path) -> None:
    built = run("reference", "build", "--model", "model.toml", "--data", "table.csv", "-o", "r.json", "--json")
    assert json.loads(built.output)["baseline"] is None
    assert "no baseline" in run("reference", "show", "r.json").output


def test_errors_name_the_option_or_the_column(run: Run, table: Path) -> None:
    words = ["reference", "build", "--model", "model.toml", "-o", "r.json"]
    assert "--version: got 'V 1'" in run(*words, "--data", "table.csv", "--version", "V 1").stderr
    missing = run(*words, "--data", "none.csv")
    assert (missing.exit_code, missing.stderr.startswith("driftloop: none.csv: ")) == (1, True)
    table.write_text("age\n1\n")
    assert "columns: plan not in the table" in run(*words, "--data", "table.csv").stderr
    assert not Path("r.json").exists()
