"""The table of all figures beside their aims: for a terminal, and for README and docs between two marks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure, Results
from benchmarks.suite import SUBJECTS

PAGE = Path(__file__).parents[1] / "README.md"
_BEGIN, _END = "<!-- figures: begin -->", "<!-- figures: end -->"
_VERDICTS = {True: "yes", False: "no", None: ""}
_COLOURS = {True: "green", False: "red", None: "default"}


def show(results: Results, *, only: set[str] | None = None) -> None:
    """Print the figures of all subjects, or of some."""
    table = Table(title=f"driftloop on {_machine(results)}")
    for heading in ("figure", "measured", "aim", "met", "note"):
        table.add_column(heading, justify="right" if heading in ("measured", "aim") else "left", overflow="fold")
    for name, findings in results.subjects.items():
        if only is not None and name not in only:
            continue
        table.add_section()
        for each in findings.figures:
            colour = _COLOURS[each.met]
            row = (each.name, f"[bold {colour}]{measured(each)}[/]", aim(each), _VERDICTS[each.met], each.note)
            table.add_row(*row)
        if findings.fault:
            table.add_row(f"[red]{name}[/]", "[red]failed[/]", "", "no", findings.fault)
    Console(width=None if Console().is_terminal else 160).print(table)


def write_page(results: Results, path: Path = PAGE) -> None:
    """Put the table into a page, between its marks.

    Raises
    ------
    ValueError
        When the page has no marks.
    """
    text = path.read_text()
    before, found, rest = text.partition(_BEGIN)
    _, closed, after = rest.partition(_END)
    if not found or not closed:
        raise ValueError(f"{path}: no lines {_BEGIN} and {_END}; the table goes between them")
    path.write_text("\n".join([before + _BEGIN, *markdown(results), _END + after]))


def markdown(results: Results) -> Iterator[str]:
    """Yield the lines of the table, and of what was measured where and when."""
    yield "| figure | measured | aim | met |"
    yield "|---|---|---|---|"
    for name, entry in SUBJECTS.items():
        findings = results.subjects.get(name)
        if findings is None:
            # A table without the row would look as if there were nothing to measure.
            yield f"| {entry.about} (`--only {name}`) | not measured | | |"
            continue
        if findings.fault:
            yield f"| {name} | failed | | no |"
        for each in findings.figures:
            yield f"| {each.name} | {measured(each)} | {aim(each)} | {_VERDICTS[each.met]} |"
    days = sorted({findings.measured[:10] for findings in results.subjects.values()})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    yield ""
    yield f"Measured on {when}, {_machine(results)}, by `make bench`; every figure's own command and notes are in"
    yield "[`benchmarks/results/latest.json`](benchmarks/results/latest.json)."


def measured(figure: Figure) -> str:
    """Return a figure's value with its unit."""
    return f"{_number(figure.value)} {figure.unit}".strip()


def aim(figure: Figure) -> str:
    """Return what a figure should be."""
    if figure.aim is None:
        return ""
    return f"{'≥' if figure.wanted == 'at least' else '≤'} {_number(figure.aim)} {figure.unit}".strip()


def _number(value: float) -> str:
    if abs(value) >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _machine(results: Results) -> str:
    machine = results.machine
    return f"{machine.cores} cores of {machine.cpu}, {machine.memory_gib:.0f} GiB, Python {machine.python}"
