"""Sends a table's rows past driftloop as a serving system would: what the model saw, what it said, what was true."""

from __future__ import annotations

import sys
import time

import polars as pl

from streamer.sdk import Client

MODEL, VERSION, EVERY_MS = "shuttle", "1", 250
rows = pl.read_csv(sys.argv[1]).to_dicts()
start_ms = int(time.time() * 1000) - EVERY_MS * len(rows)
with Client.from_environment() as client:
    for number, row in enumerate(rows):
        at_ms = start_ms + EVERY_MS * number
        label, score, prediction = row.pop("label"), row.pop("score"), row.pop("prediction")
        prediction_id = client.log_prediction(
            model=MODEL, version=VERSION, features=row, prediction=prediction, score=score, ts_ms=at_ms
        )
        client.log_label(prediction_id, model=MODEL, label=label, ts_ms=at_ms)
    unsent = client.flush(timeout_s=120)
print(f"{len(rows):,} readings, {unsent} events not taken; now: driftloop status {MODEL}")
