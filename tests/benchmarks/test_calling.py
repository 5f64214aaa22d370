"""A benchmark of calls tells one that waited from one that took its time."""

from __future__ import annotations

import time

from benchmarks.calling import Case, paced

CASE = Case(what="200/s", rate=200, seconds=0.2)


def test_a_call_that_gives_the_processor_up_has_waited() -> None:
    window = paced(lambda **_: time.sleep(0.001), CASE, [{}])
    assert window.waited == len(window.taken_ns) > 0


def test_a_call_that_computes_has_not_waited() -> None:
    window = paced(lambda **_: sum(range(1_000)), CASE, [{}])
    # Another thread of this process may have the interpreter when a call wants it.
    assert window.waited < len(window.taken_ns) / 2
