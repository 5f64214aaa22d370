"""Workers that were away for longer than Kafka keeps a group's offsets go on where counting stood."""

from __future__ import annotations

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, Producer
from confluent_kafka.admin import AdminClient

from streamer.audit import recount
from streamer.diagnosis import log_checks
from streamer.settings import Settings
from tests.integration.events import MODEL, publish, send_events
from tests.integration.running import WorkerProcess, let_expire, wait_for

pytestmark = pytest.mark.integration


def committed(settings: Settings) -> int:
    """Return how many messages ingest has committed."""
    admin, group = AdminClient({**settings.kafka.properties()}), f"{settings.namespace}-ingest"
    found = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result()
    return sum(max(place.offset, 0) for place in found.topic_partitions)


def test_what_was_counted_before_the_offsets_expired_counts_once(settings: Settings) -> None:
    publish(settings, MODEL, "1")
    worker = WorkerProcess(settings, commit_ms=3_000)
    try:
        sent = send_events(settings, panes=2, per_pane=200, shift_from=99)
        wait_for(lambda: recount.run(settings).labels, lambda labels: labels == sent, 60)
        # What evaluate has not committed yet lies in the partials.
        sent += send_events(settings, panes=1, per_pane=200, shift_from=99, first=2)
        wait_for(lambda: committed(settings), lambda messages: messages == 2 * sent, 60)
    finally:
        worker.kill()
    assert log_checks.offsets(settings).status == "ok"
    let_expire(settings, "evaluate")
    check = log_checks.offsets(settings)
    evaluate = "Kafka has let evaluate's offsets expire: evaluate goes on at the offsets its own state names"
    assert (check.status, check.found) == ("warning", evaluate)
    let_expire(settings, "ingest")
    check = log_checks.offsets(settings)
    ingest, both = check.found.removesuffix(f"; {evaluate}"), check.found
    assert check.status == "warning"
    assert ingest.startswith("Kafka has let ingest's offsets expire: ingest goes on where evaluate's state")
    assert both == f"{ingest}; {evaluate}"
    assert log_checks.ingest_has_read(settings)
    worker = WorkerProcess(settings)
    try:
        sent += send_events(settings, panes=1, per_pane=200, shift_from=99, first=3)
        report = wait_for(lambda: recount.run(settings), lambda found: found.labels == sent, 60)
    finally:
        worker.kill()
    assert log_checks.offsets(settings).status == "ok"
    let_expire(settings, "ingest")
    assert (log_checks.offsets(settings).status, log_checks.offsets(settings).found) == ("warning", ingest)
    assert report.differences == []
    told = worker.text()
    assert "offset_expired" in told
    assert "overlap" not in told
    assert "lost_range" not in told


def test_an_ingest_that_never_ran_has_no_offsets_to_expire(settings: Settings) -> None:
    assert log_checks.offsets(settings).found == "no worker has read anything yet"
    producer = Producer({**settings.kafka.properties()})
    producer.produce(settings.topic("state"), b"{}", b"position")
    assert producer.flush(10) == 0
    assert "ingest" not in log_checks.offsets(settings).found
    assert not log_checks.ingest_has_read(settings)
