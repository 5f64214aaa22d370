"""The live view read back: typed, complete, and never a zero for a number that is not there."""

from __future__ import annotations

import msgspec
import pytest
import redis

from streamer import documents
from streamer.state import Keys
from streamer.view import LiveView, ViewError
from tests.streamer.live_documents import CANARY, DRIFT, PERFORMANCE, REQUEST, SPLIT, SUMMARY, WORKER, fill

KEYS = Keys("test")


@pytest.fixture
def view(store: redis.Redis) -> LiveView:
    return LiveView(store, KEYS)


def test_a_model_comes_back_as_it_was_written(store: redis.Redis, view: LiveView) -> None:
    fill(store, KEYS)
    found = view.model("churn", timeline=2)
    assert found is not None
    assert (found.summary, found.version, found.drift) == (SUMMARY, "1", DRIFT)
    assert (found.performance, found.request, found.canary, found.split) == (PERFORMANCE, REQUEST, CANARY, SPLIT)
    assert found.slices["plan=a"].metrics == {"accuracy": 0.5}
    assert found.quality["plan"].fault == "all_unseen"
    assert [entry.text for entry in found.timeline] == ["look 1", "look 2"]
    assert found.timeline[0].data == {"pane": 1}
    assert view.models() == [SUMMARY]
    assert view.workers() == [WORKER]
    assert view.split("churn") == SPLIT


def test_an_empty_view_knows_nothing(view: LiveView) -> None:
    assert view.models() == []
    assert view.workers() == []
    assert view.model("churn") is None
    assert view.split("churn") is None


def test_a_client_that_decodes_answers_reads_the_same(store: redis.Redis, store_url: str, view: LiveView) -> None:
    fill(store, KEYS)
    texts = redis.Redis.from_url(store_url, decode_responses=True)
    assert LiveView(texts, KEYS).model("churn") == view.model("churn")


def test_without_a_champion_the_version_that_has_statistics_is_shown(store: redis.Redis, view: LiveView) -> None:
    summary = msgspec.structs.replace(SUMMARY, champion=None)
    store.hset(KEYS.models(), "churn", msgspec.json.encode(summary))
    found = view.model("churn")
    assert found is not None
    assert found.version == "_"
    store.hset(KEYS.drift("churn", "3"), "age", msgspec.json.encode(DRIFT["age"]))
    found = view.model("churn")
    assert found is not None
    assert found.version == "3"
    assert found.performance is None


def test_another_namespace_is_not_read(store: redis.Redis) -> None:
    fill(store, KEYS)
    assert LiveView(store, Keys("other")).models() == []


def test_a_document_of_another_kind_is_an_error_that_names_its_key(store: redis.Redis, view: LiveView) -> None:
    fill(store, KEYS)
    store.set(KEYS.request("churn"), '{"request_id": 7}')
    with pytest.raises(ViewError, match=r"test:driftloop:\{churn\}:request: Expected `str`, got `int`"):
        view.model("churn")


def test_fields_of_a_newer_release_are_let_be(store: redis.Redis, view: LiveView) -> None:
    store.hset(KEYS.workers(), "0", '{"replica": "0", "as_of_ms": 5, "mood": "good", "lag": {"a": 1, "b": 2}}')
    [worker] = view.workers()
    assert worker.total_lag == 3


def test_features_are_ordered_by_how_far_past_their_own_threshold_they_are() -> None:
    loud = documents.FeatureDrift(psi=0.5, threshold_psi=1.0)
    quiet = documents.FeatureDrift(psi=0.2, ks=0.3, threshold_psi=0.1, threshold_ks=0.1)
    unknown = documents.FeatureDrift(missing="warming_up")
    assert quiet.strain == pytest.approx(3.0)
    assert quiet.strain > loud.strain > unknown.strain
