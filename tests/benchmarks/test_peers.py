from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import traffic
from benchmarks.peers.cells import Counter, Feature, Plan, Progress, Step
from benchmarks.peers.subject import plan_features, steps_in

CONFIG = traffic.model(0, labels="context", features=4)
PROFILE = traffic.reference(CONFIG, created_ms=0)
NUMBERS = st.one_of(st.none(), st.floats(-6, 6), st.sampled_from(PROFILE.features["num_0"].binning.edges))
TEXTS = st.one_of(st.none(), st.sampled_from(["A", "H", "lima", "nowhere"]))
EVENTS = st.lists(
    st.fixed_dictionaries({"num_0": NUMBERS, "num_1": NUMBERS, "carrier": TEXTS, "city": TEXTS}),
    min_size=1,
    max_size=20,
)


def plan(features: list[Feature], cells: int) -> Plan:
    return Plan(broker="", topic="", partitions=1, pane_ms=1000, features=features, cells=cells, progress="", data="")


@settings(deadline=None)
@given(EVENTS)
def test_a_peer_counts_into_the_same_cells(rows: list[dict[str, object]]) -> None:
    features, cells = plan_features(PROFILE)
    counter = Counter(plan(features, cells))
    theirs = np.zeros(cells, dtype=np.int64)
    for row in rows:
        theirs[counter.cells({"features": row, "ts": 1500})] += 1
    ours = np.zeros(cells, dtype=np.int64)
    for feature in features:
        values = np.array([row[feature.name] for row in rows], dtype=np.float64 if feature.edges else object)
        np.add.at(ours, feature.at + PROFILE.features[feature.name].binning.assign(values), 1)
    np.testing.assert_array_equal(theirs, ours)


def test_a_peer_s_pane_begins_where_ours_does() -> None:
    assert Counter(plan([], 0)).pane({"ts": 61_999}) == 61_000


def test_a_half_written_step_is_not_read(tmp_path) -> None:
    path = tmp_path / "progress"
    progress = Progress(str(path), every=10)
    for _ in range(25):
        progress.add()
    assert [step.events for step in steps_in(path)] == [10, 20]
    with path.open("ab") as file:
        file.write(b'{"events": 3')
    assert [step.events for step in steps_in(path)] == [10, 20]
    assert all(isinstance(step, Step) and step.cpu_s > 0 for step in steps_in(path))
