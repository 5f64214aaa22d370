"""What a person sees while the story runs: what has happened, line by line, and below it where everything stands."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from demo.flights import day_of
from streamer.documents import ModelView


class Screen:
    """The demo's progress on a terminal; on anything else, its lines alone.

    Parameters
    ----------
    console : where to. Safe to use from several threads.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._parts: dict[str, str] = {}
        self._standing = Text("")
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the screen was made."""
        return time.monotonic() - self._started

    def part(self, name: str, message: str) -> None:
        """Show what a part of the stack (or the preparation beside it) does; a finished one becomes a line."""
        done = message.startswith("ready")
        with self._lock:
            self._parts.pop(name, None)
            if not done:
                self._parts[name] = message
        if done:
            self.say(f"{name} {message}")
        self._refresh()

    def say(self, line: str, *, day_ms: int | None = None, style: str = "") -> None:
        """Write a line that stays: seconds since the start, the flights' day where there is one, what happened."""
        day = "" if day_ms is None else day_of(day_ms)
        text = Text.assemble((f"{self.elapsed_s:5.0f} s  {day:<13}", "dim"), (line, style))
        self.console.print(text, soft_wrap=not self.console.is_terminal)

    def stand(self, *, day_ms: int, flights: int, view: ModelView | None, held: str | None) -> None:
        """Show where the story stands: the flights' day, how many were served, how well, and who is waited for."""
        pieces: list[str | tuple[str, str]] = [(day_of(day_ms), "bold"), f"  {flights:,} flights served"]
        if view is not None:
            accuracy = None if view.performance is None else view.performance.metrics.get("accuracy")
            pieces.append("" if accuracy is None else f"  accuracy {accuracy:.3f}")
            pieces.append(f"  {view.alerts.phase}" if view.alerts else "")
            if view.canary is not None and view.canary.state == "active":
                pieces.append(f"  canary {view.canary.percent:g} %")
        if held is not None:
            pieces.append((f"  time stands still: {held}", "yellow"))
        self._standing = Text.assemble(*pieces)
        self._refresh()

    def rest(self) -> None:
        """Show no more of where the story stands: it is over."""
        self._standing = Text("")
        self._refresh()

    def _refresh(self) -> None:
        if self._live is None:
            return
        with self._lock:
            starting = Text("  ".join(f"{name}: {message}" for name, message in self._parts.items()), style="cyan")
        self._live.update(Group(*(line for line in (starting, self._standing) if line.plain)))
