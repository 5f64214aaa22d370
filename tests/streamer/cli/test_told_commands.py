"""Every `driftloop …` that a message or a page tells people to run is there, with the options it is told with."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from streamer.cli.frame import build

ROOT = Path(__file__).parents[3]
ROOMS = ("streamer", "dags", "demo", "monitors", "examples")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
CONFIGURATION = sorted((ROOT / "config").rglob("*.toml"))

# Up to where a call ends: a closing quote or bracket, a comment, the end of a clause or of a line.
_CALL = re.compile(r"(?P<before>.?)(?<![\w./-])driftloop (?P<words>[a-z-][^`)\n;#,:→[]*)")
_OPTION = re.compile(r"(?<!\S)--?[a-z][a-z-]*")
# In front of these stands a command, whatever its name; elsewhere "driftloop" may be the subject of a sentence.
_TYPED = ("`", "$")


@functools.cache
def application() -> Any:
    return typer.main.get_command(build())


def texts(path: Path) -> Iterator[str]:
    """Give a file's texts: a page's own, or a module's strings, with what is filled in later as X."""
    if path.suffix != ".py":
        yield path.read_text().replace("$ driftloop", "$driftloop")
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def wrong(text: str) -> Iterator[str]:
    """Give what is wrong with each call of the command line that a text tells of."""
    top = application()
    context = typer.Context(top)
    for call in _CALL.finditer(text):
        words = call["words"].split()
        if words[0].startswith("-"):
            command: Any = top
        else:
            command = top.get_command(context, words[0])
        if command is None:
            if call["before"] in _TYPED:
                yield f"driftloop {words[0]}: no such command"
            continue
        if hasattr(command, "commands") and command is not top and len(words) > 1:
            command = command.get_command(context, words[1].rstrip("."))
            if command is None:
                yield f"driftloop {words[0]} {words[1]}: no such command"
                continue
        if command.context_settings.get("ignore_unknown_options"):
            continue
        known = {"--help", "-h"}.union(*(option.opts + option.secondary_opts for option in command.params))
        yield from (
            f"driftloop {call['words']}: no option {name}"
            for name in _OPTION.findall(call["words"])
            if name not in known
        )


def test_what_people_are_told_to_run_is_there() -> None:
    faults = [
        f"{path.relative_to(ROOT)}: {fault}"
        for path in (*SOURCES, *PAGES, *CONFIGURATION)
        for text in texts(path)
        for fault in wrong(text)
    ]
    assert faults == []


def test_calls_that_are_not_there_are_found() -> None:
    assert list(wrong("clear it (driftloop request --clear-fault)")) == [
        "driftloop request --clear-fault: no option --clear-fault"
    ]
    assert list(wrong("run `driftloop fix`")) == ["driftloop fix: no such command"]
    assert list(wrong("driftloop models mend m")) == ["driftloop models mend: no such command"]
    assert list(wrong("driftloop sees it; driftloop worker --role X, driftloop bench --quick")) == []
