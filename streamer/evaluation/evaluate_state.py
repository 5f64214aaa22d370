"""What evaluate has committed, read back from the state topic by anyone: every pane of every model."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitors.profile import ReferenceProfile
from streamer.catalog import Catalog
from streamer.evaluation.pane_store import Pane
from streamer.evaluation.shard import restore_shard
from streamer.evaluation.state_log import read_partitions
from streamer.kafka import clients as kafka_clients
from streamer.settings import Settings


class CountKey(NamedTuple):
    """What a count is of: a pane, which another width of the same start is not, and something counted in it."""

    model: str
    version: str
    origin: str
    pane_ms: int
    pane_start_ms: int
    kind: str
    name: str


PaneCounts = dict[CountKey, NDArray[np.generic]]
Ends = dict[tuple[str, int], int]


class Committed(NamedTuple):
    """Counts, and what they are of: for each of evaluate's partitions, the next offset of every raw partition."""

    panes: PaneCounts
    ends: dict[int, Ends]


def read_panes(settings: Settings, catalog: Catalog) -> PaneCounts:
    """Return the committed counts, late ones included.

    Parameters
    ----------
    catalog : knows the models and their references; cells are those of a version's present reference.

    Returns
    -------
    Kinds: "events", "sampled" and "labelled" (one number, name ""), "cells" (a feature's counts by cell, as far
    as the last cell that is not empty) and "performance" (a slice's vector; "" is the whole).
    """
    return read_committed(settings, catalog).panes


def read_committed(settings: Settings, catalog: Catalog) -> Committed:
    """Return the committed counts, as `read_panes` does, with the raw offsets they reach up to."""
    properties = kafka_clients.librdkafka(settings.kafka.properties(), scope="consumer")
    found = Committed({}, {})
    stored = read_partitions(properties, settings.topic("state"), range(settings.internal_partitions))
    for index in range(settings.internal_partitions):
        shard = restore_shard(index, stored.pop(index))
        found.ends[index] = {source: end for source, (_id, end, _read) in shard.position.progress.items()}
        for model, watched in shard.models.items():
            for key, pane in watched.panes.items():
                profile = catalog.reference(model, key.version)
                for (kind, name), counts in _counts(pane, profile).items():
                    place = CountKey(model, key.version, key.origin, key.pane_ms, key.start_ms, kind, name)
                    found.panes[place] = counts
    return found


def _counts(pane: Pane, profile: ReferenceProfile | None) -> dict[tuple[str, str], NDArray[np.generic]]:
    counts: dict[tuple[str, str], NDArray[np.generic]] = {
        ("events", ""): np.array([pane.events]),
        ("sampled", ""): np.array([pane.sampled]),
        ("labelled", ""): np.array([pane.labelled]),
    }
    for slice_key, vector in pane.performance.items():
        counts["performance", slice_key] = vector
    if profile is not None:
        whole = pane.counts(profile, late=True)
        for name, place in profile.layout.places.items():
            if whole[place].any():
                counts["cells", name] = np.trim_zeros(whole[place], "b")
    return counts
