"""`stack.json`: what other terminals, and the next start, need to know of a stack."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from streamer.local.processes import Identity

FILE = "stack.json"


@dataclass
class Record:
    """A stack as its file tells it.

    Attributes
    ----------
    owner : the process that started it; None once it was stopped.
    processes : the guardian and the children.
    parts : names of its parts.
    ports : port by name.
    environment : what a process needs to find the stack (see `Stack.environment`).
    ready : whether every part has started.
    """

    owner: Identity | None = None
    processes: list[Identity] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    ports: dict[str, int] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    ready: bool = False

    def write(self, root: Path) -> None:
        """Replace the file at once: a reader sees the old one or the new one."""
        unfinished = root / f"{FILE}.new"
        # It holds what Kafka's clients are given, passwords among it.
        unfinished.touch(mode=0o600)
        unfinished.write_text(json.dumps(asdict(self), indent=1))
        os.replace(unfinished, root / FILE)

    @classmethod
    def read(cls, root: Path) -> Record:
        """Read the file under a root; an empty record when there is none that can be read."""
        try:
            stored = json.loads((root / FILE).read_text())
            owner = stored.pop("owner")
            processes = stored.pop("processes")
            return cls(
                owner=Identity(**owner) if owner else None,
                processes=[Identity(**process) for process in processes],
                **stored,
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            # Missing, half written by a crash, or of another version: as if there had been no stack.
            return cls()


def running_stack(root: Path) -> Record | None:
    """Return the stack that runs under a root now, None when none does."""
    record = Record.read(root)
    return record if record.owner is not None and record.owner.alive() else None
