"""Control tables: compacted topics any producer writes, live on every worker through Faust's global tables."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import faust
from faust.tables.globaltable import GlobalTable
from faust.types import TP

from streamer.kafka.reader import newest_records
from streamer.settings import Settings

Put = Callable[[str, bytes | None], None]


class ControlTable(GlobalTable):
    """A global table over a topic of our own that hands on what the topic says, and then every record as it arrives.

    Attributes
    ----------
    put : told of every key and value; value None is a deletion.
    known : what will have been read before Faust goes on from there.
    handed_on : partition → the offset of the last record that `put` was told of.
    """

    put: Put
    topic_name: str
    known: Future[dict[int, int]]
    handed_on: dict[int, int]

    async def on_start(self) -> None:
        """Wait until what the topic says is known: partitions are assigned after this."""
        await super().on_start()
        self.handed_on = await asyncio.wrap_future(self.known)

    def _changelog_topic_name(self) -> str:
        # `changelog_topic=` alone leaves the assignment waiting for a topic of the table's own name.
        return self.topic_name

    def persisted_offset(self, tp: TP) -> int | None:
        """Return the offset recovery goes on after."""
        return self.handed_on.get(tp.partition)

    def apply_changelog_batch(self, batch: Iterable[Any]) -> None:
        """Hand the records on; the table itself keeps nothing."""
        for event in batch:
            key = event.message.key
            self.put(key.decode(errors="replace") if isinstance(key, bytes) else str(key), event.message.value)
            self.handed_on[event.message.partition] = event.message.offset


def control_tables(app: faust.App, settings: Settings, puts: Mapping[str, Put]) -> None:
    """Keep each `put` told of a compacted topic: of all it says before any service starts, then of each new record.

    What is there is read in a thread, the newest value of each key alone, while Faust makes itself ready: Faust hands
    records from thread to thread one by one, which took seconds for ten thousand of them.

    Parameters
    ----------
    puts : the topic's full name → what is called with each key and value, in the order of the topics; first from that
        thread, then from the app's.
    """
    reader = ThreadPoolExecutor(1, thread_name_prefix="control")
    for topic, put in puts.items():
        table = _control_table(app, topic, put)
        table.known = reader.submit(_tell, settings, topic, put)
        app.tables.add(table)
    reader.shutdown(wait=False)


def _control_table(app: faust.App, topic: str, put: Put) -> ControlTable:
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
    return table


def _tell(settings: Settings, topic: str, put: Put) -> dict[int, int]:
    newest = newest_records(settings, topic)
    for key, value in newest.values.items():
        put(key, value)
    return newest.last
