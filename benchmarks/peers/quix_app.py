"""A Quix Streams application that keeps the counts in its keyed state: RocksDB, with its changelog topic.

What is done in its favour: one state key a pane that holds the histograms of all features as bytes, read and written
once an event (a key a cell is many times as dear); all events of a partition under one key, given by the key's
deserializer, so that nothing has to be written again to be grouped; its own JSON decoder (orjson); commits every 5 s,
its default, at which each changed pane goes to the changelog once.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from quixstreams import Application, State
from quixstreams.models import Deserializer

from benchmarks.peers.cells import Counter, Progress, read_plan


class OneKey(Deserializer):  # type: ignore[misc]
    """Gives every message of a partition the same key."""

    def __call__(self, *_: Any, **__: Any) -> str:
        """Return it, whatever came."""
        return "all"


def main(path: str) -> None:
    """Count until told to stop."""
    plan = read_plan(path)
    counter, progress = Counter(plan), Progress(plan.progress)
    application = Application(
        broker_address=plan.broker,
        consumer_group="peer-quix",
        auto_offset_reset="earliest",
        state_dir=plan.data,
        loglevel="WARNING",
    )
    topic = application.topic(plan.topic, key_deserializer=OneKey(), value_deserializer="json")

    def count(event: dict[str, Any], state: State) -> None:
        key = str(counter.pane(event))
        held = state.get_bytes(key)
        counts = np.zeros(plan.cells, dtype=np.uint32) if held is None else np.frombuffer(held, dtype=np.uint32).copy()
        counts[counter.cells(event)] += 1
        state.set_bytes(key, counts.tobytes())
        progress.add()

    application.dataframe(topic).update(count, stateful=True)
    application.run()


if __name__ == "__main__":
    main(sys.argv[1])
