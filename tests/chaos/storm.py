"""One run: a stream with a known answer played through a storm of faults, then everything counted again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random

import msgspec
from confluent_kafka import KafkaError, Message, Producer

from dags.steps.bootstrap import set_champion
from streamer.kafka.clients import producer_config
from streamer.local.stack import Stack
from streamer.sdk import Client
from streamer.settings import Settings
from tests.chaos.garbage import Garbage
from tests.chaos.messages import messages_of
from tests.chaos.models import MODELS, PROMOTED, VERSION, publish_all
from tests.chaos.progress import settle
from tests.chaos.promotion import Promotion
from tests.chaos.retraining import Retraining
from tests.chaos.schedule import STORM, Fault, blows
from tests.chaos.servers import Servers, resume_all
from tests.chaos.stream import SDK_MODEL, TICK_S, Sending, Stream
from tests.chaos.striking import Storm, Striking
from tests.chaos.verdict import Findings, await_view, examine
from tests.chaos.workers import Crew, Role

_FLUSH_S = 120.0
# What is sent while the broker is away waits.
_PATIENT = {
    "message.timeout.ms": 900_000,
    "linger.ms": 20,
    "log_level": 0,
    "queue.buffering.max.messages": 2_000_000,
    "queue.buffering.max.kbytes": 2_000_000,
}
# A moment longer: what is counted twice may come after.
_QUIET_S = 3.0
# A machine that is slow strikes late: the stream waits for it once it is so far ahead.
_AHEAD_SHARE = 0.2
_FIRST_S, _STRUCK_SHARE = 1.0, 0.85
# Workers show all of it again once a minute, and at once when they find it empty.
_VIEW_S = 75.0

SPLIT: tuple[Role, ...] = ("ingest", "ingest", "evaluate", "evaluate")
WHOLE: tuple[Role, ...] = ("all", "all")


@dataclass(frozen=True)
class Options:
    """What a run does.

    Attributes
    ----------
    roles : the workers it begins with. seconds : how long the stream lasts. rate : predictions a tick of it.
    clocks_s : the number of a worker, and by how much its clock is fast. away_s : how long the broker stays away.
    patience_s : how long the workers may take to count anything more once all is sent.
    """

    name: str = "storm"
    seed: int = 0
    roles: tuple[Role, ...] = SPLIT
    faults: Mapping[Fault, int] = field(default_factory=lambda: dict(STORM))
    garbage: int = 2_000
    seconds: float = 85.0
    rate: int = 25
    clocks_s: Mapping[int, int] = field(default_factory=dict)
    away_s: float = 10.0
    patience_s: float = 120.0


class Outcome(msgspec.Struct, kw_only=True):
    """What a run was, and what was found after it; `equal` when nothing is amiss.

    Attributes
    ----------
    faults : how often each was done. lost_bytes : of Valkey's file, by its crashes.
    ended : how often a worker ended by itself and was started again. replay_s : how long sending took.
    """

    name: str
    seed: int
    workers: str
    faults: dict[str, int]
    lost_bytes: int
    ended: int
    logs_by_fate: dict[str, int]
    labels_by_fate: dict[str, int]
    findings: Findings
    replay_s: float
    seconds: float

    @property
    def equal(self) -> bool:
        """Whether everything was counted once, and everything decided as the log says."""
        return not self.findings.amiss


def run(stack: Stack, settings: Settings, options: Options, say: Callable[[str], object] = print) -> Outcome:
    """Play, disturb, wait, and count.

    Parameters
    ----------
    settings : of the stack, in a namespace of which the topics are made and empty.
    """
    began = time.monotonic()
    random = Random(options.seed)
    publish_all(settings)
    garbage = Garbage(settings, options.garbage, options.seed)
    stream = Stream(
        options.seed,
        ticks=round(options.seconds / TICK_S),
        rate=options.rate,
        now_ms=int(time.time() * 1000),
        # While the store is lost, what is sent again counts again.
        repeating="join store emptied" not in options.faults,
    )
    crew = Crew(settings, list(options.roles), dict(options.clocks_s))
    with crew:
        storm = Storm(settings, crew, Servers(stack, settings, random), random, say)
        try:
            with ThreadPoolExecutor(len(MODELS)) as pool:
                list(pool.map(lambda config: set_champion(settings, config, VERSION), MODELS.values()))
            away_s = options.away_s if "broker away" in options.faults else 0.0
            last_s = max(_FIRST_S, _STRUCK_SHARE * options.seconds - away_s)
            planned = blows(random, options.faults, first_s=_FIRST_S, last_s=last_s, away_s=away_s)
            promotion = Promotion(settings, options.seed, say)
            with promotion:
                with storm.striking(planned) as striking, Retraining(settings, options.seed):
                    _play(settings, options, stream, garbage, striking)
                # A verdict is of what was counted: on a slow machine that is far behind when the last blow is struck.
                settle(settings, options.patience_s)
                promotion.wait(options.patience_s)
            stream.answer.add(promotion.answer)
            if not promotion.done:
                storm.amiss.append(f"the rollout of {PROMOTED} was not promoted: {promotion.stands}")
            replayed = time.monotonic()
            say(f"{stream.answer.sent:,} events sent in {replayed - began:.0f} s")
            settle(settings, options.patience_s)
            say(f"all counted {time.monotonic() - replayed:.0f} s later")
            time.sleep(_QUIET_S)
            storm.amiss += await_view(settings, _VIEW_S)
        except BaseException:
            resume_all(stack)
            say(crew.logs())
            raise
    findings = examine(settings, stream.answer, garbage)
    findings.amiss += storm.amiss
    return Outcome(
        name=options.name,
        seed=options.seed,
        workers=", ".join(f"{times} {role}" for role, times in Counter(options.roles).items()),
        faults=dict(storm.done),
        lost_bytes=storm.lost_bytes,
        ended=crew.ended,
        logs_by_fate=dict(stream.answer.logs),
        labels_by_fate=dict(stream.answer.labels),
        findings=findings,
        replay_s=replayed - began,
        seconds=time.monotonic() - began,
    )


def _play(settings: Settings, options: Options, stream: Stream, garbage: Garbage, striking: Striking) -> None:
    """Send everything at its time, or when the storm is as far; RuntimeError when any of it was not taken."""
    failed: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failed.append(error)

    producer = Producer(producer_config(settings, _PATIENT))
    servers = settings.kafka.bootstrap_servers
    ticks = round(options.seconds / TICK_S)
    with Client(servers, redis_url=None, namespace=settings.namespace) as client:
        began = time.monotonic()
        for tick, batch in enumerate(stream.play()):
            time.sleep(max(0.0, began + tick * TICK_S - time.monotonic()))
            while tick > ticks * (_AHEAD_SHARE + striking.share):
                time.sleep(TICK_S)
            for sending in batch:
                if sending.document["model"] == SDK_MODEL:
                    _log(client, sending)
            for message in messages_of(each for each in batch if each.document["model"] != SDK_MODEL):
                producer.produce(
                    settings.topic(message.kind),
                    message.value,
                    message.key,
                    message.partition,
                    on_delivery=delivered,
                    timestamp=message.clock_ms,
                )
            producer.poll(0)
            garbage.send_up_to((tick + 1) / ticks)
        garbage.flush()
        left = producer.flush(_FLUSH_S) + client.flush(_FLUSH_S)
        stats = client.stats()
    if left or failed or stats.dropped or stats.failed:
        raise RuntimeError(f"stream: {left} events not sent, {failed[:3]} refused; the SDK says {stats}")


def _log(client: Client, sending: Sending) -> None:
    said = sending.document
    if sending.kind == "predictions":
        client.log_prediction(
            model=said["model"],
            features=said["features"],
            prediction=said["prediction"],
            score=said["score"],
            version=said["version"],
            prediction_id=said["prediction_id"],
            ts_ms=said["ts"],
            origin=said.get("origin", "live"),
        )
    else:
        client.log_label(
            said["prediction_id"],
            model=said["model"],
            label=said["label"],
            ts_ms=said["ts"],
            revision=said["revision"],
            deleted=said.get("deleted", False),
        )
