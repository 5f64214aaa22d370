"""Whether the label store keeps what it is given, and still holds it."""

from __future__ import annotations

from typing import Any

import redis

from streamer import redis_clients
from streamer.diagnosis.checks import Check
from streamer.join.script import RedisRecords
from streamer.settings import Settings
from streamer.state import Keys

_TIMEOUTS = {"socket_connect_timeout": 3.0, "socket_timeout": 5.0}


def durability(settings: Settings) -> Check:
    """Look whether the store writes to its disk and evicts nothing."""
    name = "label store settings"
    client = redis_clients.connect_store(settings, **_TIMEOUTS)
    try:
        found: Any = {**client.config_get("appendonly"), **client.config_get("maxmemory-policy")}
    except redis.RedisError as error:
        # Hosted servers often refuse CONFIG; then only their owner can tell.
        return Check(name, "warning", f"cannot be asked: {error}", "make sure appendonly is on, eviction off")
    finally:
        client.close()
    wrong = []
    if found.get("appendonly") != "yes":
        wrong.append(f"appendonly is {found.get('appendonly')}, wanted yes: a crash would lose labels")
    if found.get("maxmemory-policy") != "noeviction":
        wrong.append(f"maxmemory-policy is {found.get('maxmemory-policy')}, wanted noeviction: labels would vanish")
    if wrong:
        remedy = "CONFIG SET appendonly yes, CONFIG SET maxmemory-policy noeviction, and the same in its configuration"
        return Check(name, "failed", "; ".join(wrong), remedy)
    return Check(name, "ok", "append-only file on, nothing is evicted")


def records(settings: Settings, *, joined: bool | None) -> Check:
    """Look whether the store still holds the records it was given.

    Parameters
    ----------
    joined : whether an ingest has read anything in this namespace, so that there were records; None: not known.
    """
    name, buckets = "label store records", settings.labels.join_buckets
    client = redis_clients.connect_store(settings, **_TIMEOUTS)
    try:
        store = RedisRecords(client, Keys(settings.namespace), wait_aof=False, hold_ms=settings.labels.hold)
        lost = store.lost(range(buckets))
    except redis.RedisError as error:
        return Check(name, "skipped", f"cannot be asked: {error}")
    finally:
        client.close()
    if not lost:
        return Check(name, "ok", f"all {buckets} buckets hold what they were given")
    if len(lost) == buckets and joined is None:
        return Check(name, "skipped", "there are none; without Kafka it cannot be told whether there were any")
    if len(lost) == buckets and not joined:
        return Check(name, "ok", "there are none, and no ingest has read anything yet")
    found = f"{len(lost)} of {buckets} buckets have lost their records: labels wait in their topic, and cover nothing"
    return Check(name, "failed", found, "stop every ingest, driftloop replay --rebuild-join, start them again")
