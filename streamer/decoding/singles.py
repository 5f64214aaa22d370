"""The events of a raw message one by one, whether it is one or a batch: for whoever reads a log row by row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from streamer.decode import Kind
from streamer.decoding.arrow_batches import read
from streamer.decoding.arrow_schema import is_batch
from streamer.decoding.arrow_stream import Malformed


class Single(NamedTuple):
    """One event as a JSON message, and its row in the message it came in."""

    row: int
    value: bytes


def singles(value: bytes, kind: Kind) -> Iterator[Single]:
    """Give the events of a message, in order, each as the JSON message it could have come as.

    A message that is no batch, or a broken one, is given as it is: `streamer.decode.decode` takes or refuses it.
    """
    if not is_batch(value):
        yield Single(0, value)
        return
    try:
        batch = read(value, kind)
    except Malformed:
        yield Single(0, value)
        return
    for row, raw in batch.documents(range(len(batch))):
        yield Single(row, raw)
