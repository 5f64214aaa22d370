"""What an event costs ingest alone, from messages at hand to increments: no server, no network, one process."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Annotated, Literal

import typer

from benchmarks import batches, traffic
from streamer.catalog import Catalog
from streamer.ingest import RAW, Ingest
from streamer.join.labels import JoinStore
from streamer.join.script import RedisRecords
from streamer.settings import Settings
from streamer.stage import Batch, Partition, Standing
from streamer.state import Keys

# What a worker asks its client for at once.
_READ = 2_500
_ROUNDS = 5


class What(StrEnum):
    """What is folded: predictions of which label records are made, predictions counted alone, or labels."""

    JOIN = "join"
    CONTEXT = "context"
    LABELS = "labels"


def register(app: typer.Typer) -> None:
    """Add `folding` to the command line."""
    app.command("folding")(folding)


def folding(
    what: Annotated[What, typer.Argument(help="join: predictions with label records; context: counts alone.")],
    models: Annotated[int, typer.Option(help="How many models the events go round over.", min=1)] = 1,
    partitions: Annotated[int, typer.Option(help="Over how many partitions each read is spread.", min=1)] = 4,
    features: Annotated[int, typer.Option(help="Features of each model.", min=3)] = traffic.FEATURES,
    kinds: Annotated[int, typer.Option(help="Sets of features that the models go round over.", min=1, max=999)] = 1,
    events: Annotated[int, typer.Option(help="How many events.", min=1)] = 50_000,
    flush: Annotated[int, typer.Option(help="Rows a flush.", min=1)] = 50_000,
    span_s: Annotated[
        int, typer.Option(help="Seconds of event time that predictions in JSON are spread over.", min=1)
    ] = traffic.SPAN_MS // 1000,
    arrow: Annotated[bool, typer.Option("--arrow", help="Some thousand events a message, of twelve features.")] = False,
) -> None:
    """Measure what decoding, binning, the join's bytes and the flush cost: microseconds of CPU an event."""
    if arrow and kinds > 1:
        raise typer.BadParameter(f"{kinds} sets of features: --arrow's messages have one; leave one of the two out")
    start_ms = int(time.time() * 1000) - traffic.SPAN_MS
    ingest = _ingest(what, models, features, kinds, start_ms)
    if arrow:
        messages = (batches.labels if what is What.LABELS else batches.predictions)(events, models, start_ms=start_ms)
        values = [value for _key, value in messages]
    elif what is What.LABELS:
        values = [value for _key, value in traffic.labels(events, models, start_ms=start_ms)]
    else:
        predictions = traffic.predictions(
            events, models, start_ms=start_ms, features=features, kinds=kinds, span_ms=span_s * 1000
        )
        values = [value for _key, value in predictions]
    topic = "labels.v1" if what is What.LABELS else "predictions.v1"
    reads = list(_reads(topic, values, partitions))
    ingest.restore({Partition(topic, number): Standing(0, 0) for number in range(partitions)})
    gc.collect()
    gc.freeze()
    # As a worker's.
    gc.set_threshold(20_000, 20, 20)
    # The first round works out what a worker works out once.
    taken = [_round(ingest, reads, flush) for _ in range(_ROUNDS + 1)][1:]
    print(f"{statistics.median(taken) / events * 1e6:.2f} µs")


class _Unheard(RedisRecords):
    """A join store that is never there to be asked: every record is new to it."""

    def __init__(self) -> None:
        """Connect to nothing."""

    def begin(self) -> None:
        """Nothing is remembered."""

    def barrier(self) -> None:
        """Nothing is written."""

    def lost(self, buckets: Sequence[int]) -> list[int]:
        """Nothing is lost."""
        return []

    def append(self, calls: Sequence[tuple[int, bytes]], *, whole: bool) -> list[bytes]:
        """Answer that no record was there."""
        return [b""] * len(calls)


def _ingest(what: What, models: int, features: int, kinds: int, start_ms: int) -> Ingest:
    catalog = Catalog()
    mode: Literal["join", "context"] = "context" if what is What.CONTEXT else "join"
    # Models of the same features can have the same reference.
    examples = [traffic.model(0, labels="join", features=features, kind=kind) for kind in range(kinds)]
    parts = [traffic.reference(example, created_ms=start_ms).to_parts() for example in examples]
    for index in range(models):
        config = traffic.model(index, labels=mode, features=features, kind=index % kinds)
        catalog.put_model(config.name, config.to_json())
        for part, value in parts[index % kinds].items():
            catalog.put_reference(f"{config.name}/{traffic.VERSION}/{part}", value)
    store = JoinStore(None, Keys(), buckets=64, wait_aof=False, hold_ms=0)  # type: ignore[arg-type]
    store._records = _Unheard()
    ids = {f"{kind}.v1": kind for kind in RAW}
    return Ingest(Settings(), catalog, store, replica="0", topic_ids=ids, partition_counts=dict)


def _reads(topic: str, values: Sequence[bytes], partitions: int) -> Iterator[list[Batch]]:
    """Give the messages read by read, each spread over the partitions."""
    now_ms = int(time.time() * 1000)
    ends = [0] * partitions
    for start in range(0, len(values), _READ):
        read = []
        for number in range(partitions):
            here = values[start + number : start + _READ : partitions]
            first, end = ends[number], ends[number] + len(here)
            offsets = list(range(first, end))
            partition = Partition(topic, number)
            read.append(Batch(partition, first, end, False, now_ms, offsets, [now_ms] * len(here), (), list(here)))
            ends[number] = end
        yield read


def _round(ingest: Ingest, reads: Sequence[Sequence[Batch]], flush: int) -> float:
    """Fold everything once; return the CPU seconds it took."""
    began, rows, positions = time.process_time(), 0, dict[Partition, int]()
    for at, read in enumerate(reads):
        for batch in read:
            ingest.fold(batch)
            positions[batch.partition] = batch.end
            rows += len(batch.values)
        ingest.idle()
        if rows >= flush or at == len(reads) - 1:
            ingest.prepare()
            for _record in ingest.results(dict(positions)):
                pass
            ingest.committed()
            rows = 0
    return time.process_time() - began
