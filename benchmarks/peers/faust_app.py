"""A Faust application that keeps the counts in a table with its changelog, event by event or in batches.

`each`: one agent, one event at a time, the table written for every event.
`take`: the agent takes up to 1,000 events at once and writes each changed pane once a batch.

What is done in its favour: raw messages and msgspec's decoder instead of Records; a table in memory; no leader topic;
one write an event of all its pane's histograms as bytes (a counter a cell, twelve writes an event, is eight times as
dear); for `take`, a table that is partitioned by its key, since Faust knows no event's partition there.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import Any

import faust
import msgspec
import numpy as np

from benchmarks.peers.cells import Counter, Plan, Progress, read_plan

_BATCH = 1_000


def build(plan: Plan) -> faust.App:
    """Return the application for a plan."""
    app = faust.App(
        f"peer-faust-{plan.form}",
        broker=f"kafka://{plan.broker}",
        store="memory://",
        datadir=plan.data,
        topic_disable_leader=True,
        table_standby_replicas=0,
        web_enabled=False,
        producer_max_request_size=8_000_000,
    )
    topic = app.topic(plan.topic, value_type=bytes, value_serializer="raw", key_type=bytes, key_serializer="raw")
    counter, progress = Counter(plan), Progress(plan.progress)
    if plan.form == "each":
        _count_each(app, topic, plan, counter, progress)
    else:
        _count_batches(app, topic, plan, counter, progress)
    return app


def _table(app: faust.App, plan: Plan, *, by_key: bool) -> Any:
    return app.Table("panes", key_type=str, value_type=bytes, partitions=plan.partitions, use_partitioner=by_key)


def _count_each(app: faust.App, topic: Any, plan: Plan, counter: Counter, progress: Progress) -> None:
    panes = _table(app, plan, by_key=False)
    decode = msgspec.json.decode

    @app.agent(topic)
    async def count(stream: Any) -> None:
        async for value in stream:
            event = decode(value)
            key = str(counter.pane(event))
            held = panes.get(key)
            counts = np.zeros(plan.cells, dtype=np.uint32) if held is None else np.frombuffer(held, np.uint32).copy()
            counts[counter.cells(event)] += 1
            panes[key] = counts.tobytes()
            progress.add()


def _count_batches(app: faust.App, topic: Any, plan: Plan, counter: Counter, progress: Progress) -> None:
    panes = _table(app, plan, by_key=True)
    decode = msgspec.json.decode

    @app.agent(topic)
    async def count(stream: Any) -> None:
        async for values in stream.take(_BATCH, within=1.0):
            found: dict[int, list[int]] = defaultdict(list)
            for value in values:
                event = decode(value)
                found[counter.pane(event)] += counter.cells(event)
            for pane, cells in found.items():
                key = str(pane)
                held = panes.get(key)
                counts = np.bincount(cells, minlength=plan.cells).astype(np.uint32)
                panes[key] = (counts if held is None else counts + np.frombuffer(held, np.uint32)).tobytes()
            progress.add(len(values))


def main(path: str) -> None:
    """Count until told to stop."""
    sys.argv[1:] = []
    faust.Worker(build(read_plan(path)), loglevel="WARNING").execute_from_commandline()


if __name__ == "__main__":
    main(sys.argv[1])
