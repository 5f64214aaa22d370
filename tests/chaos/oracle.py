"""What must become of one raw message, by the plain decoder alone: the event it is, or its dead letter's reason."""

from __future__ import annotations

import msgspec

from streamer.catalog import Catalog
from streamer.counting.labelling import unusable
from streamer.decode import Event, Kind, decode
from streamer.decoding.arrow_schema import BEGIN
from streamer.decoding.arrow_stream import Malformed, read_stream
from streamer.explain import explain_future, explain_invalid


def judge(
    catalog: Catalog, kind: Kind, raw: bytes, *, record_ms: int, max_future_ms: int
) -> tuple[Event | None, tuple[str, str] | None]:
    """Return the event a message is, if it is one, and the reason and field of its dead letter, if it must be one."""
    if raw.startswith(BEGIN):
        # Many events at once; what is sent here as such is none.
        try:
            read_stream(raw, kind)
        except Malformed as error:
            return None, error.fault
    try:
        event = decode(raw, kind)
    except (msgspec.DecodeError, ValueError):
        return None, explain_invalid(raw, kind)
    model = catalog.model(event.model)
    if model is None:
        return event, (
            f"model: got {event.model!r}, which is not configured; publish its file: driftloop models apply FILE",
            "model",
        )
    return event, unusable(model, event) or explain_future(event, record_ms, max_future_ms)
