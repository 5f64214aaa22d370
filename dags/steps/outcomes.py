"""How a step can end other than well or by an accident: with nothing left to do, or with what no retry mends."""

from __future__ import annotations


class NothingToDo(Exception):  # noqa: N818 - it says what happened
    """The run ends here, and that is no failure: what follows is skipped."""


class Unmendable(Exception):  # noqa: N818 - it says what happened
    """Trying again cannot help: the task fails at once."""


class BadConfError(Unmendable):
    """The run was started with a `conf` that is not what the DAG takes; the message says what is."""
