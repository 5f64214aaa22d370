"""Which way a batch of columns goes: as Arrow messages of many events, or one JSON event a message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from streamer.client.batches import LabelColumns, PredictionColumns

BatchFormat = Literal["arrow", "json"]

# Of fewer rows an Arrow message is larger than their JSON, and no cheaper to count.
_LEAST_ROWS = 64
# So much of the queue one message takes at most: it is queued whole or not at all.
_QUEUE_SHARE = 4


class BatchEncoding:
    """Columns as Arrow messages, where that is wanted and pyarrow is there; it is imported when it is first needed.

    Parameters
    ----------
    batch_format : as `Client` takes it.
    queue_size : how many events may be on their way.
    """

    def __init__(self, batch_format: BatchFormat | None, queue_size: int) -> None:
        if batch_format not in {None, "arrow", "json"}:
            raise ValueError(f"batch_format: got {batch_format!r}, wanted arrow, json or None")
        self._wanted = batch_format
        self._max_rows = max(queue_size // _QUEUE_SHARE, 1)
        self._encoder: Any = None
        if batch_format == "arrow" and self._loaded() is None:
            raise ValueError("batch_format: arrow needs pyarrow; pip install 'driftloop[arrow]'")

    def predictions(self, columns: PredictionColumns) -> tuple[list[str], Sequence[tuple[bytes, int]]] | None:
        """Return the ids and the messages; None where events go one by one."""
        encoder = self._for(columns.prediction)
        return None if encoder is None else encoder.encode_predictions(columns, self._max_rows)

    def labels(self, columns: LabelColumns) -> Sequence[tuple[bytes, int]] | None:
        """Return the messages; None where events go one by one."""
        encoder = self._for(columns.label)
        return None if encoder is None else encoder.encode_labels(columns, self._max_rows)

    def _for(self, column: Any) -> Any:
        few = not hasattr(column, "__len__") or len(column) < _LEAST_ROWS
        if self._wanted == "json" or (few and self._wanted is None):
            return None
        return self._loaded()

    def _loaded(self) -> Any:
        if self._encoder is None:
            try:
                from streamer.client import arrow_encoder
            except ImportError:
                self._wanted = "json"
            else:
                self._encoder = arrow_encoder
        return self._encoder
