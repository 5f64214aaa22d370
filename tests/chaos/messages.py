"""What of a stream goes into which message: an event each, or, of some models, a tick's events as one Arrow stream."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from streamer.decode import Kind
from tests.chaos.stream import Sending

# One whose labels are joined and one whose labels bring their prediction along.
IN_ARROW = frozenset({"price", "fraud"})


class Message(NamedTuple):
    """A message to send; `events` is how many it holds."""

    kind: Kind
    value: bytes
    key: str | None
    partition: int
    clock_ms: int
    events: int


def messages_of(tick: Iterable[Sending]) -> Iterator[Message]:
    """Give a tick's messages; the events of a model, topic and partition that go as one keep their order."""
    together: dict[tuple[Kind, str, int], list[Sending]] = defaultdict(list)
    for sending in tick:
        document = sending.document
        if document["model"] in IN_ARROW:
            together[sending.kind, document["model"], sending.partition].append(sending)
        else:
            value = json.dumps(document).encode()
            yield Message(sending.kind, value, document["prediction_id"], sending.partition, sending.clock_ms, 1)
    for (kind, _model, partition), sendings in together.items():
        value = arrow_stream([sending.document for sending in sendings])
        yield Message(kind, value, None, partition, sendings[0].clock_ms, len(sendings))


def arrow_stream(documents: list[dict[str, Any]]) -> bytes:
    """Return events as any Arrow library would write them."""
    names = dict.fromkeys(name for document in documents for name in document)
    batch = pa.record_batch({name: pa.array([document.get(name) for document in documents]) for name in names})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    body: bytes = sink.getvalue().to_pybytes()
    return body
