"""What is worked out for a stream is worked out once, and let go once it is of the past."""

from __future__ import annotations

import numpy as np
import pytest

from monitors.profile import ReferenceProfile
from streamer.catalog import Model, describe
from streamer.counting import streams
from streamer.counting.fleet import Fleet
from streamer.counting.streams import Streams
from tests.streamer.logs import config, reference


class World:
    """A model whose references are published again and again."""

    def __init__(self) -> None:
        self.model: Model = describe(config())
        self.references = {version: reference(self.model.config, version) for version in "12"}
        self.streams = Streams(self.find, lambda: list(map(id, self.references.values())))

    def find(self, _model: str, version: str) -> ReferenceProfile:
        return self.references[version]

    def flush(self) -> list[int]:
        found = [self.streams.number(self.model, version, "live", "predictions") for version in "12"]
        self.streams.next_flush()
        return found


def test_a_stream_keeps_its_number_as_long_as_its_reference_is_the_same() -> None:
    world = World()
    first = world.flush()
    assert world.flush() == first
    world.references["2"] = reference(world.model.config, "2")
    assert world.flush() == [first[0], 2]


def test_references_that_were_replaced_are_let_go_before_they_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_MAX_REPLACED", 9)
    world = World()
    sizes = []
    for _ in range(40):
        world.references["1"] = reference(world.model.config)
        world.flush()
        sizes.append(world.streams.table.size)
    # Two versions of three features each, two of them numeric; with 9 features of the past, 6 numeric ones.
    assert max(sizes) <= 1 + 4 + 8
    assert len(world.streams.known) <= 2 + 4
    # What is in use counts as it did.
    assert [world.streams.known[number].profile for number in world.flush()] == list(world.references.values())


def test_as_many_as_are_in_use_may_be_of_the_past(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_MAX_REPLACED", 0)
    world = World()
    first = world.flush()
    for _ in range(2):
        world.references["1"] = reference(world.model.config)
        world.flush()
    assert len(world.streams.known) == len(first) + 2
    world.references["1"] = reference(world.model.config)
    world.flush()
    assert world.streams.known == []


def test_models_keep_their_numbers_from_flush_to_flush_but_for_those_whose_reference_is_another() -> None:
    models = Fleet([describe(config(name=name)) for name in ("churn", "fares", "tier")])
    references = {model.name: reference(model.config) for model in models}
    known = Streams(lambda name, _version: references.get(name), lambda: list(map(id, references.values())))

    def flush(fleet: Fleet, *rows: int) -> list[int]:
        found = known.of_models(fleet, np.array(rows), "1", "live", "predictions")
        known.next_flush()
        return found.tolist()

    assert flush(models, 0, 1, 0) == [0, 1, 0]
    references["churn"] = reference(models[0].config)
    assert flush(models, 1) == [1]
    assert flush(models, 0, 1, 2) == [2, 1, 3]
    assert known.known[2].profile is references["churn"]
    del references["fares"]
    assert flush(models, 2, 1) == [3, 4]
    assert known.known[4].profile is None
    # A model that has changed makes another fleet, and where it lies in it says nothing.
    assert flush(Fleet([models[2], models[0]]), 0, 1) == [3, 2]


def test_references_are_looked_at_again_only_where_some_have_changed() -> None:
    models = Fleet([describe(config(name=name)) for name in ("churn", "fares")])
    profiles, asked, as_of = {model.name: reference(model.config) for model in models}, list[str](), [0]

    def find(name: str, _version: str) -> ReferenceProfile:
        asked.append(name)
        return profiles[name]

    known = Streams(find, lambda: as_of[0])

    def flush() -> list[int]:
        found = known.of_models(models, np.array([0, 1]), "1", "live", "predictions")
        known.next_flush()
        return found.tolist()

    assert [flush(), flush(), flush()] == [[0, 1]] * 3
    assert asked == ["churn", "fares"]
    profiles["fares"] = reference(models[1].config)
    as_of[0] += 1
    assert [flush(), flush()] == [[0, 2]] * 2
    assert asked == ["churn", "fares", "churn", "fares", "fares"]
