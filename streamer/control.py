"""Control tables: compacted topics any producer writes, live on every worker through Faust's global tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import faust
from faust.tables.globaltable import GlobalTable

Put = Callable[[str, bytes | None], None]


class ControlTable(GlobalTable):
    """A global table over a topic of our own that hands every record on as it is recovered or arrives."""

    put: Put
    topic_name: str

    def _changelog_topic_name(self) -> str:
        # `changelog_topic=` alone leaves the assignment waiting for a topic of the table's own name.
        return self.topic_name

    def apply_changelog_batch(self, batch: Iterable[Any]) -> None:
        """Hand the records on; the table itself keeps nothing."""
        for event in batch:
            key = event.message.key
            self.put(key.decode(errors="replace") if isinstance(key, bytes) else str(key), event.message.value)


def control_table(app: faust.App, topic: str, put: Put) -> ControlTable:
    """Keep `put` told of every record of a compacted topic: all of them before any service starts, then each new one.

    Parameters
    ----------
    put : called with (key, value) from the app's thread; value None is a deletion.
    """

    class Bound(ControlTable):
        topic_name = topic

    table = Bound(
        app,
        name=topic,
        key_type=bytes,
        value_type=bytes,
        partitions=1,
        # A larger buffer keeps updates invisible until it is full.
        recovery_buffer_size=1,
        is_global=True,
    )
    table.put = put
    app.tables.add(table)
    return table
