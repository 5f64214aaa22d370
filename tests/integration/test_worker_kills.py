"""Kill -9 at any moment, of one worker or two: what is counted in the end is what the topics hold."""

from __future__ import annotations

import random
import signal
import time

import pytest

from streamer.catalog import Catalog
from streamer.evaluation.evaluate_state import PaneCounts, read_panes
from streamer.settings import Settings
from tests.integration.events import MODEL, profile_of, publish, send_events
from tests.integration.running import WorkerProcess, wait_for

pytestmark = pytest.mark.integration


def catalog_of(version: str) -> Catalog:
    catalog = Catalog()
    catalog.put_model(MODEL.name, MODEL.to_json())
    for part, value in profile_of(MODEL, version).to_parts().items():
        catalog.put_reference(f"{MODEL.name}/{version}/{part}", value)
    return catalog


def totals(panes: PaneCounts) -> dict[str, int]:
    """Return how often each kind of count has counted."""
    wanted = {"events": "", "labelled": "", "cells": "age", "performance": ""}
    found = dict.fromkeys(wanted, 0)
    for key, counts in panes.items():
        if key.version == "1" and wanted.get(key.kind) == key.name:
            found[key.kind] += int(counts[0] if key.kind == "performance" else counts.sum())
    return found


def settled(settings: Settings, sent: int) -> dict[str, int]:
    """Wait until everything is counted, and a moment longer: what is doubled may come after."""
    catalog = catalog_of("1")
    wait_for(lambda: totals(read_panes(settings, catalog)), lambda found: min(found.values()) >= sent, 60)
    time.sleep(2)
    return totals(read_panes(settings, catalog))


@pytest.mark.timeout(240)
def test_counts_survive_kills(settings: Settings) -> None:
    publish(settings, MODEL, "1")
    worker = WorkerProcess(settings)
    rng = random.Random(7)
    sent = 0
    try:
        for turn in range(6):
            sent += send_events(settings, panes=10, per_pane=300, shift_from=99, first=turn * 10)
            time.sleep(rng.uniform(0.0, 4.0))
            worker.kill()
            worker.start()
        found = settled(settings, sent)
    finally:
        worker.kill()
    assert found == dict.fromkeys(found, sent)


@pytest.mark.timeout(240)
def test_two_workers_share_the_work_and_a_resumed_zombie_changes_nothing(settings: Settings) -> None:
    publish(settings, MODEL, "1")
    workers = [WorkerProcess(settings, replica=str(ordinal)) for ordinal in range(2)]
    sent = 0
    try:
        sent += send_events(settings, panes=10, per_pane=300, shift_from=99)
        wait_for(lambda: totals(read_panes(settings, catalog_of("1")))["events"], lambda n: n >= sent, 60)
        workers[0].process.send_signal(signal.SIGSTOP)
        sent += send_events(settings, panes=10, per_pane=300, shift_from=99, first=10)
        # Longer than the session: its partitions are given to the other before it comes back.
        time.sleep(9)
        workers[0].process.send_signal(signal.SIGCONT)
        workers[1].kill()
        sent += send_events(settings, panes=10, per_pane=300, shift_from=99, first=20)
        workers[1].start()
        found: dict[str, int] = {}
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and min(found.values(), default=0) < sent:
            for worker in workers:
                if worker.process.poll() is not None:
                    worker.start()
            found = totals(read_panes(settings, catalog_of("1")))
            time.sleep(0.5)
        found = settled(settings, sent)
    finally:
        for worker in workers:
            worker.process.send_signal(signal.SIGCONT)
            worker.kill()
    assert found == dict.fromkeys(found, sent)
