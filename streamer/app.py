"""The worker: a Faust app that hosts both stages as services and keeps the control tables, timers and web pages."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import time
from collections.abc import Iterable
from typing import Any, Literal

import faust
import redis
import structlog
from confluent_kafka import Producer
from mode import Service
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from streamer import redis_clients, telemetry
from streamer.catalog import Catalog
from streamer.evaluate import Evaluate
from streamer.evaluation.counted import counted_up_to
from streamer.evaluation.live import LiveWriter
from streamer.events import Command, encode
from streamer.ingest import RAW, Ingest
from streamer.join.labels import JoinStore
from streamer.kafka import access as kafka_access
from streamer.kafka import clients as kafka_clients
from streamer.kafka import membership
from streamer.kafka.topics import check, topic_ids
from streamer.process import memory
from streamer.process.control import control_tables
from streamer.process.heartbeat import Pulse
from streamer.process.watchdog import Watchdog
from streamer.settings import Settings
from streamer.state import Keys
from streamer.transaction import TransactionalStep

log = structlog.get_logger(__name__)

Role = Literal["all", "ingest", "evaluate"]
_SILENT_S = 60.0
# The heartbeat itself may wait for Redis; what it can see, it ends before.
_STILL_S = 90.0
_RECONCILE_S = 60.0
_GIVE_BACK_S = 10.0
_STOP_S = 10.0
# In good order it takes no longer than `_STOP_S` and what the clients need to close.
_LEAVE_S = 20.0


class WorkerFailedError(RuntimeError):
    """A worker has ended by an error of its own; the message names that error."""


class Worker:
    """One worker process: which stages it runs, and how they stand."""

    def __init__(self, settings: Settings, role: Role) -> None:
        self.settings = settings
        self.role = role
        self.catalog = Catalog()
        self.keys = Keys(settings.namespace)
        self.redis = redis_clients.connect(settings, socket_timeout=5, socket_connect_timeout=5)
        budget_s = settings.worker.view_share * settings.worker.view_ms / 1000
        self.live = LiveWriter(self.redis, self.keys, self.catalog, budget_s=budget_s)
        self.stop = threading.Event()
        self.steps: dict[str, TransactionalStep] = {}
        self.failure: BaseException | None = None
        self.refused: str | None = None
        self.watchdog = Watchdog()
        self.pulse = Pulse(settings, role, self.redis, self.steps)
        self._ticker: Producer | None = None

    def build(self) -> None:
        """Make the stages this role runs: Kafka and the topics must be there by now."""
        if self.role in ("all", "evaluate"):
            ids = topic_ids(self.settings, [self.settings.topic("partials"), self.settings.topic("commands")])
            evaluate = Evaluate(
                self.settings,
                self.catalog,
                consumer_properties=kafka_clients.librdkafka(self.settings.kafka.properties(), scope="consumer"),
                show=self.live.show,
                alive=lambda: self.steps["evaluate"].beat(),
                topic_ids=ids,
            )
            self.live.reads(ids)
            self.steps["evaluate"] = self._step("evaluate", evaluate, evaluate.topics)
        if self.role in ("all", "ingest"):
            raw_ids = topic_ids(self.settings, [self.settings.topic(kind) for kind in RAW])
            ingest = self._ingest(raw_ids)
            self.steps["ingest"] = self._step(
                "ingest",
                ingest,
                ingest.topics,
                kept_offsets=lambda: counted_up_to(self.settings, raw_ids, alive=lambda: self.steps["ingest"].beat()),
            )
        _spare_the_collector()

    def run_stage(self, stage: str) -> None:
        """Run one stage in this thread until it is told to stop; its failure is the worker's."""
        try:
            self.steps[stage].run(self.stop)
        except BaseException as failure:
            # Found now: Faust raises a crash's reason anew as its own cause, and what it came from is lost with that.
            self.refused = self._refusal(failure)
            self.failure = failure
            log.error("stage_failed", stage=stage, reason=str(failure), kind=type(failure).__name__)
            self.watchdog.leave_within(_LEAVE_S)
            raise

    def silent(self) -> list[str]:
        """Return the stages whose loop has not gone round for too long."""
        now = time.monotonic()
        return [stage for stage, step in self.steps.items() if now - step.beat_s > _SILENT_S]

    def _refusal(self, failure: BaseException) -> str | None:
        """Return what Kafka or Redis refused this worker; None for a failure of another kind."""
        store = self.settings.redis.join_url or self.settings.redis.url
        return kafka_access.refusal(failure) or redis_clients.refusal(failure, store)

    def tick(self) -> None:
        """Append the time to every commands partition: deadlines pass without traffic too."""
        if self._ticker is None:
            self._ticker = Producer(kafka_clients.producer_config(self.settings))
        replica = self.settings.worker.replica
        for partition in range(self.settings.internal_partitions):
            command = Command(command_id=f"tick-{replica}-{time.time_ns()}-{partition}", kind="tick", actor=replica)
            self._ticker.produce(self.settings.topic("commands"), encode(command), partition=partition)
        self._ticker.poll(0)

    def _step(self, name: str, stage: Any, topics: Iterable[str], **options: Any) -> TransactionalStep:
        prefix = self.settings.namespace or "driftloop"
        properties = self.settings.kafka.properties()
        topics = list(topics)
        group, replica = f"{prefix}-{name}", f"{prefix}-{name}-{self.settings.worker.replica}"
        membership.leave_if_outdated(self.settings, group=group, member=replica, topics=topics)
        return TransactionalStep(
            stage,
            name=name,
            topics=topics,
            group=group,
            replica=replica,
            consumer_properties=kafka_clients.librdkafka(properties, scope="consumer"),
            producer_properties=kafka_clients.librdkafka(properties, scope="producer"),
            **options,
        )

    def _ingest(self, ids: dict[str, str]) -> Ingest:
        settings = self.settings
        store = JoinStore(
            redis_clients.connect_store(settings, socket_timeout=30),
            self.keys,
            buckets=settings.labels.join_buckets,
            wait_aof=settings.labels.wait_aof,
            hold_ms=settings.labels.hold,
        )
        return Ingest(
            settings,
            self.catalog,
            store,
            replica=settings.worker.replica,
            topic_ids=ids,
            partition_counts=lambda: self._partition_counts(list(ids)),
        )

    def _partition_counts(self, names: list[str]) -> dict[str, int]:
        producer = Producer(kafka_clients.producer_config(self.settings))
        return {name: len(producer.list_topics(name, 30).topics[name].partitions) for name in names}


def _spare_the_collector() -> None:
    """Keep Python's collector from going through all that was imported again and again.

    A flush makes some hundred thousand objects that hold no cycles and are gone with it; without this a third of
    the time a label takes went into looking at them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def build_app(worker: Worker) -> faust.App:
    """Return the Faust app round a worker: control tables, stages, timers, pages."""
    settings = worker.settings
    data_dir = settings.worker.data_dir / f"replica-{settings.worker.replica}"
    data_dir.mkdir(parents=True, exist_ok=True)
    prefix = settings.namespace or "driftloop"
    app = faust.App(
        f"{prefix}-control-{settings.worker.replica}",
        **kafka_clients.faust(settings.kafka.properties()),
        store="memory://",
        datadir=str(data_dir),
        web_bind=settings.worker.web_host,
        web_host=settings.worker.web_host,
        web_port=settings.worker.web_port,
        # A killed worker's successor takes its place at once, instead of waiting until the session has run out. Two
        # workers of other roles may share a replica's name, and with it the group.
        # Faust holds the address it was assigned its tables at against its own, which may be another by then.
        canonical_url="http://control",
        consumer_group_instance_id=f"{prefix}-control-{worker.role}-{settings.worker.replica}",
        broker_session_timeout=6.0,
        broker_heartbeat_interval=1.5,
        table_standby_replicas=0,
        topic_allow_declare=False,
        topic_disable_leader=True,
    )
    catalog = worker.catalog
    puts = {settings.topic("models"): catalog.put_model, settings.topic("references"): catalog.put_reference}
    control_tables(app, settings, puts)
    _add_stages(app, worker)
    _add_timers(app, worker)
    _add_pages(app, worker)
    return app


def _add_stages(app: faust.App, worker: Worker) -> None:
    """Host the stages as one service: it starts once the control tables are recovered."""

    class Stages(Service):
        """The transactional stages, each in a thread of its own."""

        # Stopped before it has started, it has none.
        threads: tuple[threading.Thread, ...] = ()

        async def on_start(self) -> None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, worker.build)
            self.threads = tuple(
                threading.Thread(target=self._run, args=(stage,), name=stage, daemon=True) for stage in worker.steps
            )
            for thread in self.threads:
                thread.start()

        def _run(self, stage: str) -> None:
            try:
                worker.run_stage(stage)
            except BaseException as failure:  # noqa: BLE001 - a thread's failure is the worker's: it crashes
                asyncio.run_coroutine_threadsafe(app.crash(failure), self.loop)

        async def on_stop(self) -> None:
            worker.stop.set()
            worker.watchdog.leave_within(_LEAVE_S)
            deadline = time.monotonic() + _STOP_S
            for thread in self.threads:
                while thread.is_alive() and time.monotonic() < deadline:
                    await asyncio.sleep(0.05)

    app.service(Stages)


def _add_timers(app: faust.App, worker: Worker) -> None:
    @app.timer(interval=worker.settings.worker.tick_ms / 1000)  # type: ignore[untyped-decorator]
    async def tick() -> None:
        await asyncio.get_running_loop().run_in_executor(None, worker.tick)

    @app.timer(interval=1.0)  # type: ignore[untyped-decorator]
    async def heartbeat() -> None:
        worker.watchdog.put_off(_STILL_S)
        try:
            await asyncio.get_running_loop().run_in_executor(None, worker.pulse.beat)
        except (redis.RedisError, RuntimeError) as error:
            # RuntimeError: a consumer that has just been closed on the way out.
            log.warning("heartbeat_failed", reason=str(error))
        silent = worker.silent()
        if silent:
            log.error("stage_silent", stages=silent)
            # The thread is stuck and cannot be stopped; only the process can be.
            os._exit(1)

    @app.timer(interval=_GIVE_BACK_S)  # type: ignore[untyped-decorator]
    async def give_back() -> None:
        await asyncio.get_running_loop().run_in_executor(None, memory.give_back)

    @app.timer(interval=_RECONCILE_S)  # type: ignore[untyped-decorator]
    async def reconcile() -> None:
        worker.live.reconcile()


def _add_pages(app: faust.App, worker: Worker) -> None:
    @app.page("/health")
    async def health(web: Any, request: Any) -> Any:
        ready = bool(worker.steps) and worker.failure is None and not worker.silent()
        body = {
            "status": "ok" if ready else "unavailable",
            "role": worker.role,
            "stages": {stage: round(time.monotonic() - step.beat_s, 1) for stage, step in worker.steps.items()},
            "models": [model.name for model in worker.catalog.models()],
        }
        return web.json(body, status=200 if ready else 503)

    @app.page("/metrics")
    async def metrics(web: Any, request: Any) -> Any:
        return web.bytes(generate_latest(telemetry.REGISTRY), content_type=CONTENT_TYPE_LATEST.split(";")[0])


def run(settings: Settings, role: Role = "all") -> int:
    """Run a worker until SIGTERM or a failure; return the process's exit code.

    Raises
    ------
    TopicError
        Before anything runs, when a topic is missing or cannot be used.
    WorkerFailedError
        When a stage failed.
    """
    telemetry.configure_logging()
    for chatty in ("faust", "mode", "aiokafka", "streamer.process.control"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    for report in check(settings):
        if report.outcome == "differs":
            log.warning("topic_differs", topic=report.name, told=report.told, used="as it is")
    worker = Worker(settings, role)
    app = build_app(worker)
    faust_worker = faust.Worker(app, loglevel="WARNING", override_logging=False, redirect_stdouts=False, quiet=True)
    try:
        faust_worker.execute_from_commandline()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        if worker.refused is not None:
            raise kafka_access.Unreachable(f"the worker has ended: {worker.refused}") from worker.failure
        if worker.failure is not None:
            failure = f"{type(worker.failure).__name__}: {worker.failure}".rstrip(".")
            raise WorkerFailedError(
                f"the worker has ended by {failure}; DRIFTLOOP_TRACEBACK=1 shows where"
            ) from worker.failure
        return code
    return 0
