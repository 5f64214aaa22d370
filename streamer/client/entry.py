"""A message on its way to Kafka, ready to be sent."""

from __future__ import annotations

import msgspec

from streamer.events import ARROW_STREAM, CONTENT_TYPE_HEADER, SCHEMA_HEADER, SCHEMA_VERSION

Headers = list[tuple[str, bytes]]

# What a message of one JSON event carries.
EVENT_HEADERS: Headers = [(SCHEMA_HEADER, SCHEMA_VERSION)]
# What one of many events as an Arrow stream carries.
BATCH_HEADERS: Headers = [*EVENT_HEADERS, (CONTENT_TYPE_HEADER, ARROW_STREAM)]


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where to, by which key, the bytes, their headers, and how many events they are.

    Python's collector does not look at it: with a hundred thousand of them waiting, a pass over tuples would hold
    every thread of the host up for a tenth of a second.
    """

    topic: str
    key: bytes | None
    body: bytes
    headers: Headers
    events: int = 1
