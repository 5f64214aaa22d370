from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import picture, report, suite
from benchmarks.figures import Curve, Figure, Findings, Machine, Results, figure, read_results, write_results

MACHINE = Machine(cpu="a processor", cores=2, memory_gib=8.0, system="Linux", python="3.11", versions={})


def results(*figures: Figure, curves: list[Curve] | None = None) -> Results:
    findings = Findings(measured="2026-01-02T03:04:05+00:00", seconds=1.0, quick=False, figures=list(figures))
    findings.curves = curves or []
    return Results(machine=MACHINE, subjects={"throughput": findings})


@pytest.mark.parametrize(
    ("value", "aims", "met"),
    [
        (10.0, {"at_least": 10.0}, True),
        (9.9, {"at_least": 10.0}, False),
        (10.0, {"at_most": 10.0}, True),
        (10.1, {"at_most": 10.0}, False),
        (10.0, {}, None),
    ],
)
def test_a_figure_is_held_against_its_aim(value: float, aims: dict[str, float], met: bool | None) -> None:
    assert figure("a", value, "s", command="c", **aims).met is met


def test_a_page_gets_the_table_between_its_marks_and_keeps_the_rest(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- figures: begin -->\nold\n<!-- figures: end -->\nafter\n")
    found = results(figure("speed", 123_456.7, "events/CPU s", at_least=100_000, command="c"))
    for _ in range(2):
        report.write_page(found, page)
    lines = page.read_text().splitlines()
    assert lines[0] == "before"
    assert lines[-1] == "after"
    assert "| speed | 123,457 events/CPU s | ≥ 100,000 events/CPU s | yes |" in lines
    assert "old" not in lines
    assert any("`--only soak`" in line and "not measured" in line for line in lines)
    assert any("2026-01-02" in line and "a processor" in line for line in lines)


def test_a_page_without_marks_is_refused_by_name(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing here")
    with pytest.raises(ValueError, match=r"page\.md"):
        report.write_page(results(), page)


def test_what_is_kept_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "results" / "latest.json"
    found = results(figure("speed", 1.5, "s", at_most=2.0, command="c", note="n"))
    write_results(found, path)
    assert read_results(path) == found


def test_results_of_another_release_are_none(tmp_path: Path) -> None:
    path = tmp_path / "latest.json"
    path.write_text('{"subjects": 3}')
    assert read_results(path) is None
    assert read_results(tmp_path / "absent.json") is None


def test_a_subject_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="speed: no such subject"):
        suite.chosen("throughput, speed")
    assert suite.chosen("latency,cost") == ["latency", "cost"]
    assert suite.chosen("") == [*suite.SUBJECTS]


@pytest.mark.parametrize("name", suite.SUBJECTS)
def test_every_subject_is_measured_by_a_function_that_is_there(name: str) -> None:
    assert callable(suite.measure_of(name))


def test_curves_and_bars_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "picture.png"
    curves = [
        Curve(picture="bars", name=name, over=picture.BARS, unit="events", x=[0], y=[value])
        for name, value in (("ours", 2.0), ("theirs", 1.0))
    ]
    curves.append(Curve(picture="a line", name="cost", over="models", unit="µs", x=[1, 100], y=[2, 3]))
    picture.draw(results(curves=curves), path)
    assert path.read_bytes().startswith(b"\x89PNG")
