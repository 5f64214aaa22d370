"""Kill -9 at any moment: what the worker has counted in the end is what the topics hold."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest

from streamer.catalog import Catalog
from streamer.evaluate_state import read_panes
from streamer.settings import Settings
from tests.integration.events import MODEL, publish, send_events
from tests.integration.running import WorkerProcess, wait_for

pytestmark = pytest.mark.integration


def catalog_of(version: str) -> Catalog:
    from tests.integration.events import profile_of

    catalog = Catalog()
    catalog.put_model(MODEL.name, MODEL.to_json())
    for part, value in profile_of(MODEL, version).to_parts().items():
        catalog.put_reference(f"{MODEL.name}/{version}/{part}", value)
    return catalog


def labelled(settings: Settings, catalog: Catalog) -> int:
    panes = read_panes(settings, catalog)
    return int(sum(counts[0] for key, counts in panes.items() if key[4] == "labelled"))


@pytest.mark.timeout(240)
def test_counts_survive_kills(settings: Settings) -> None:
    publish(settings, MODEL, "1")
    catalog = catalog_of("1")
    worker = WorkerProcess(settings)
    random.seed(7)
    sent = 0
    try:
        for round_ in range(6):
            sent += send_events(settings, panes=10, per_pane=500, shift_from=99, first=round_ * 10)
            time.sleep(random.uniform(0.0, 4.0))
            worker.kill()
            worker.start()
        wait_for(lambda: labelled(settings, catalog), lambda found: found >= sent, 60)
        time.sleep(2)
        panes = read_panes(settings, catalog)
    finally:
        worker.kill()
    events = sum(int(c[0]) for k, c in panes.items() if k[4] == "events" and k[1] == "1")
    assert events == sent
    assert labelled(settings, catalog) == sent
    ages = sum(int(c.sum()) for k, c in panes.items() if k[4] == "cells" and k[5] == "age")
    assert ages == sent
    whole = sum(c[0] for k, c in panes.items() if k[4] == "performance" and k[5] == "")
    assert int(np.asarray(whole)) == sent
