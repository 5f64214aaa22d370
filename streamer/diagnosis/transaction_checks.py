"""Whether a transaction hangs open in a topic of driftloop's: nothing behind it is readable until somebody ends it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from confluent_kafka import IsolationLevel, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]
from kafka import KafkaAdminClient
from kafka import TopicPartition as Place
from kafka.errors import KafkaError

from streamer.diagnosis.checks import Check
from streamer.kafka import clients as kafka_clients
from streamer.kafka.offsets import offsets_of
from streamer.kafka.topics import TOPICS
from streamer.settings import Settings

# The worker's own transactions last for milliseconds and are given up after ten seconds.
HANGS_AFTER_MS = 60_000
_TIMEOUT_S = 5.0


def transactions(settings: Settings, now_ms: int) -> Check:
    """Look for transactions that no one will end.

    Parameters
    ----------
    now_ms : this machine's time; a transaction that was last written to a minute before it hangs.
    """
    waiting = _unreadable(settings)
    if not waiting:
        return Check("transactions", "ok", "none is open in any topic of driftloop's")
    try:
        admin = KafkaAdminClient(**kafka_clients.kafka_python(settings.kafka.properties()))
        try:
            hanging = list(_hanging(admin, waiting, now_ms))
        finally:
            admin.close()
    except (KafkaError, OSError, ValueError) as error:
        return Check("transactions", "skipped", f"cannot be asked: {error}")
    if not hanging:
        return Check("transactions", "ok", "those that are open were written to in the last minute")
    remedy = (
        "a worker that goes on ends its own with its next flush; else, by Kafka's own tool: kafka-transactions.sh "
        "--bootstrap-server … abort --topic … --partition … --start-offset … (docs/how-to/when-things-go-wrong.md)"
    )
    return Check("transactions", "failed", "; ".join(hanging), remedy)


def _unreadable(settings: Settings) -> list[Place]:
    """Return the partitions whose readers of what is committed do not get to the end."""
    admin = AdminClient({**kafka_clients.admin_config(settings), "log_level": 0})
    existing = admin.list_topics(timeout=_TIMEOUT_S).topics
    names = [name for name in map(settings.topic, TOPICS) if name in existing]
    asked = [TopicPartition(name, number) for name in names for number in existing[name].partitions]
    latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
    committed = offsets_of(admin, asked, latest, timeout_s=_TIMEOUT_S, isolation=IsolationLevel.READ_COMMITTED)
    end = offsets_of(admin, asked, latest, timeout_s=_TIMEOUT_S)
    return [Place(*place) for place in end if committed[place] < end[place]]


def _hanging(admin: KafkaAdminClient, places: Iterable[Place], now_ms: int) -> Iterator[str]:
    for place, state in sorted(admin.describe_producers(places).items()):
        for producer in state.active_producers:
            age_ms = now_ms - producer.last_timestamp
            start = producer.current_transaction_start_offset
            if start >= 0 and age_ms >= HANGS_AFTER_MS:
                yield (
                    f"{place.topic}[{place.partition}]: open from offset {start}, of producer {producer.producer_id}, "
                    f"last written to {age_ms // 1000:,} s ago"
                )
