"""One run: the replay played as fast as it goes while workers are killed, then everything counted again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import msgspec
from confluent_kafka import Consumer, TopicPartition

from dags.steps.bootstrap import set_champion
from demo.flights import at
from streamer import recount
from streamer.deadletters import list_letters
from streamer.evaluate_state import Committed, PaneCounts, read_committed
from streamer.kafka_clients import consumer_config, librdkafka
from streamer.partitioning import partition_of
from streamer.sdk import Client
from streamer.settings import Settings
from streamer.shard import restore_shard
from streamer.state_log import read_partitions
from tests.chaos.flights import VERSION, Season
from tests.chaos.garbage import MANY, Found, Garbage, hold_against
from tests.chaos.schedule import Blow, blows
from tests.chaos.workers import Crew

# As many events may be on their way before the replay waits; the client drops what comes beyond its queue.
_QUEUED = 50_000
_MOST_SHOWN = 20
_FLUSH_S = 60.0
_READY_S = 30.0
# A moment longer: what is counted twice may come after.
_QUIET_S = 3.0


@dataclass(frozen=True)
class Options:
    """What a run does.

    Attributes
    ----------
    every_s : shortest and longest time from one kill or pause, or the worker's being back at work, to the next.
    patience_s : how long the workers may take to count anything more once all is sent.
    """

    workers: int = 2
    kills: int = 20
    pauses: int = 3
    garbage: int = 10_000
    seed: int = 0
    end_ms: int = at(12, 31, 23)
    every_s: tuple[float, float] = (0.5, 7.0)
    patience_s: float = 120.0


class Outcome(msgspec.Struct, kw_only=True):
    """What a run found; `equal` when nothing is amiss.

    Attributes
    ----------
    ended : how often a worker ended by itself and was started again.
    garbage_kinds : whatever the topic. garbage_found : malformed messages that are dead letters once, with
        their reason, field, key and bytes.
    drift_counts, performance_counts : how many of the worker's counts were compared with the recount.
    differences : how many of them differ. amiss : the first things that are not as they should be, in words.
    """

    workers: int
    flights: int
    labels: int
    kills: int
    pauses: int
    ended: int
    garbage_kinds: int
    garbage_sent: int
    garbage_found: int
    drift_counts: int
    performance_counts: int
    differences: int
    amiss: list[str]
    replay_s: float
    seconds: float

    @property
    def equal(self) -> bool:
        """Whether everything was counted once and every malformed message is a dead letter."""
        return not self.amiss


class NotSettledError(Exception):
    """The workers have stopped counting before the end; the message says how much is left."""


def run(settings: Settings, options: Options, *, cache: Path, say: Callable[[str], object] = print) -> Outcome:
    """Play, disturb, wait, and count.

    Parameters
    ----------
    settings : a Kafka and a Valkey, in a namespace of which the topics are made and empty.
    cache : where the flights are kept prepared.
    """
    began = time.monotonic()
    season = Season(cache, options.end_ms)
    season.publish(settings)
    garbage = Garbage(settings, options.garbage, options.seed)
    with Crew(settings, options.workers) as crew:
        try:
            set_champion(settings, season.config, VERSION)
            started = time.monotonic()
            flights, labels = _play(settings, options, season, garbage, crew, say)
            replayed = time.monotonic()
            say(f"{flights:,} flights and {labels:,} labels sent in {replayed - started:.0f} s")
            _settle(settings, season.config.name, options.patience_s)
            say(f"all counted {time.monotonic() - replayed:.0f} s later")
            time.sleep(_QUIET_S)
        except BaseException:
            say(crew.logs())
            raise
    return _outcome(settings, options, garbage, crew, flights, labels, (began, started, replayed))


def _play(
    settings: Settings, options: Options, season: Season, garbage: Garbage, crew: Crew, say: Callable[[str], object]
) -> tuple[int, int]:
    """Send everything; return how many flights and labels."""
    slots = season.slots
    planned = blows(
        Random(options.seed),
        slots=len(slots),
        workers=options.workers,
        kills=options.kills,
        pauses=options.pauses,
        every_s=options.every_s,
    )
    flights = labels = 0
    striking: threading.Thread | None = None
    servers = settings.kafka.bootstrap_servers
    with Client(
        servers,
        redis_url=settings.redis.url,
        namespace=settings.namespace,
        transport="librdkafka",
        queue_size=4 * _QUEUED,
    ) as client:
        serving = season.serving(client)
        if not serving.ready(_READY_S):
            raise RuntimeError(f"champion: not in the split after {_READY_S:.0f} s")
        for number, slot in enumerate(slots):
            if planned and planned[0].slot <= number:
                # One blow after the other: the replay goes on while the next is on its way, and waits for it.
                if striking is not None:
                    striking.join()
                striking = _aim(crew, planned.pop(0), say)
            serving.play(slot)
            garbage.send_up_to((number + 1) / len(slots))
            flights += len(slot.departures)
            labels += len(slot.landings)
            while (stats := client.stats()).queued + stats.in_flight > _QUEUED:
                time.sleep(0.01)
        if striking is not None:
            striking.join()
        garbage.flush()
        left, stats = client.flush(_FLUSH_S), client.stats()
    if left or stats.dropped or stats.failed:
        raise RuntimeError(f"replay: {left} events not sent, {stats.dropped} dropped, {stats.failed} refused")
    return flights, labels


def _aim(crew: Crew, blow: Blow, say: Callable[[str], object]) -> threading.Thread:
    def strike() -> None:
        if blow.at_work:
            crew.await_well(blow.worker)
        time.sleep(blow.after_s)
        if blow.kind == "kill":
            crew.kill(blow.worker)
            say(f"killed worker {blow.worker}")
        else:
            crew.pause(blow.worker, blow.seconds)
            say(f"stopped worker {blow.worker} for {blow.seconds:.1f} s")

    thread = threading.Thread(target=strike, name="blow", daemon=True)
    thread.start()
    return thread


def _settle(settings: Settings, model: str, patience_s: float) -> None:
    """Wait until what evaluate has committed reaches the end of every raw topic."""
    catalog = recount.read_catalog(settings)
    ends = _raw_ends(settings)
    partition = partition_of(model, settings.internal_partitions)
    properties = librdkafka(settings.kafka.properties(), scope="consumer")
    left, progressed = sum(ends.values()), time.monotonic()
    while left:
        time.sleep(1.0)
        stored = read_partitions(properties, settings.topic("state"), [partition])
        shard = restore_shard(partition, stored[partition], catalog)
        reached = {place: end for place, (_id, end, _read) in shard.position.progress.items()}
        behind = sum(max(end - reached.get(place, 0), 0) for place, end in ends.items())
        if behind < left:
            left, progressed = behind, time.monotonic()
        if time.monotonic() > progressed + patience_s:
            raise NotSettledError(f"{left:,} messages not counted, and none more in {patience_s:.0f} s")


def _raw_ends(settings: Settings) -> dict[tuple[str, int], int]:
    consumer = Consumer(consumer_config(settings, group_id="chaos"))
    try:
        ends = {}
        for kind in recount.KINDS:
            topic = settings.topic(kind)
            for partition in consumer.list_topics(topic, timeout=10).topics[topic].partitions:
                _low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
                ends[topic, partition] = high
        return ends
    finally:
        consumer.close()


def _outcome(
    settings: Settings,
    options: Options,
    garbage: Garbage,
    crew: Crew,
    flights: int,
    labels: int,
    moments: tuple[float, float, float],
) -> Outcome:
    began, started, replayed = moments
    catalog = recount.read_catalog(settings)
    committed = read_committed(settings, catalog)
    # Of everything the log holds, not only of what the workers say they have read.
    counted = recount.recount(settings, catalog)
    differences = recount.compare(counted, committed.panes)
    found = hold_against(garbage.sent, list_letters(settings, MANY))
    keys = counted.panes.keys() | committed.panes.keys()
    performance = sum(key[4] in {"performance", "labelled"} for key in keys)
    amiss = [
        *_totals(counted, committed, flights, labels),
        *(
            f"{each.kind} {each.name} of pane {each.pane_start_ms}: workers {each.got}, log {each.wanted}"
            for each in differences[:_MOST_SHOWN]
        ),
        *_letters(found, len(garbage.sent), options.garbage),
    ]
    return Outcome(
        workers=options.workers,
        flights=flights,
        labels=labels,
        kills=options.kills,
        pauses=options.pauses,
        ended=crew.ended,
        garbage_kinds=garbage.kinds,
        garbage_sent=len(garbage.sent),
        garbage_found=found.found,
        drift_counts=len(keys) - performance,
        performance_counts=performance,
        differences=len(differences),
        amiss=amiss,
        replay_s=replayed - started,
        seconds=time.monotonic() - began,
    )


def _totals(counted: recount.Recount, committed: Committed, flights: int, labels: int) -> list[str]:
    """Hold both counts against what was sent: a recount of a log that lost something would agree with the workers."""
    panes: PaneCounts = committed.panes
    workers = {kind: sum(int(panes[key].sum()) for key in panes if key[4] == kind) for kind in ("events", "labelled")}
    totals = (
        ("flights in the log", counted.events, flights),
        ("labels in the log", counted.labels, labels),
        ("flights counted by the workers", workers["events"], flights),
        ("labelled flights counted by the workers", workers["labelled"], labels),
    )
    return [f"{what}: {got}, wanted {wanted}" for what, got, wanted in totals if got != wanted]


def _letters(found: Found, sent: int, wanted: int) -> list[str]:
    amiss = [] if sent == wanted else [f"garbage: {sent} sent, wanted {wanted}"]
    if found.strange:
        amiss.append(f"{found.strange} dead letters of messages that are no garbage")
    return [*amiss, *found.faults[:_MOST_SHOWN]]
