"""The live view as it is written: what one model breaks stays its own, and what Redis loses comes back."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis

from streamer.evaluation import live, live_documents
from streamer.evaluation.live import LiveWriter
from streamer.evaluation.model_record import ModelRecord, Watched
from streamer.events import Deployment, encode
from streamer.state import Keys
from tests.streamer.logs import PANE, T0, Log, Player, catalog_of, config, contribution, predictions

KEYS = Keys("test")


@pytest.fixture
def log() -> Log:
    log = Log(catalog_of(config()))
    log.command("set_champion", "churn", version="1")
    log.flush(predictions(0, 200))
    return log


@pytest.fixture
def player(log: Log, monkeypatch: pytest.MonkeyPatch) -> Player:
    player = Player(log, monkeypatch)
    player.play()
    player.tick()
    player.commit()
    return player


@pytest.fixture
def writer(log: Log, store: redis.Redis) -> LiveWriter:
    return LiveWriter(store, KEYS, log.catalog, budget_s=10.0)


def show(player: Player, writer: LiveWriter) -> None:
    """Do what evaluate does between reads."""
    player.evaluate._show = writer.show
    player.evaluate._shown_at = player.evaluate._looked_at = 0.0
    player.evaluate.idle()


def test_a_model_that_cannot_be_shown_is_faulted_and_its_state_still_shown(
    player: Player, writer: LiveWriter, store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise OverflowError("out of numbers")

    monkeypatch.setattr(live_documents, "performance", broken)
    show(player, writer)
    show(player, writer)
    player.commit()
    (entry,) = [entry for entry in player.values("ledger.v1") if entry["state"] == "faulted"]
    assert "OverflowError: out of numbers" in entry["reason"]
    assert json.loads(store.get(KEYS.alerts("churn")) or "{}")["faulted"]
    assert json.loads(store.get(KEYS.split("churn")) or "{}")["champion"] == "1"
    assert store.hget(KEYS.drift("churn", "1"), "age") is not None


def test_a_model_made_anew_gets_its_split_and_an_older_one_does_not_replace_it(
    player: Player, writer: LiveWriter, store: redis.Redis
) -> None:
    for model_epoch, epoch, champion in ((2, 0, "9"), (0, 500, "1")):
        store.flushall()
        held = Deployment(model="churn", model_epoch=model_epoch, epoch=epoch, champion="9")
        store.set(KEYS.split("churn"), encode(held))
        show(player, writer)
        assert json.loads(store.get(KEYS.split("churn")) or "{}")["champion"] == champion


def told(store: redis.Redis) -> list[str]:
    return [fields[b"text"].decode() for _id, fields in store.xrange(KEYS.timeline("churn"))]


def test_a_server_that_was_started_anew_is_given_the_scripts_again(
    player: Player, writer: LiveWriter, store: redis.Redis
) -> None:
    show(player, writer)
    store.flushall()
    store.script_flush()
    writer.reconcile()
    show(player, writer)
    assert store.hget(KEYS.models(), "churn") is not None
    assert store.hget(KEYS.drift("churn", "1"), "age") is not None


def test_a_flushed_view_gets_its_timeline_back(player: Player, writer: LiveWriter, store: redis.Redis) -> None:
    show(player, writer)
    before = told(store)
    assert before
    store.flushall()
    # As when another worker has begun to fill the view again.
    store.hset(KEYS.models(), "other", "{}")
    writer.reconcile()
    show(player, writer)
    assert told(store) == before


def test_a_line_of_the_timeline_that_redis_went_away_over_is_told_again(
    player: Player, writer: LiveWriter, store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise redis.ConnectionError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(redis.client.Pipeline, "xadd", away)
        show(player, writer)
    assert told(store) == []
    show(player, writer)
    assert told(store) != []


def champion(store: redis.Redis) -> str:
    return str(json.loads(store.get(KEYS.split("churn")) or "{}")["champion"])


def test_a_kafka_made_anew_fills_the_view_a_kept_redis_holds_of_the_old_one(
    player: Player, writer: LiveWriter, store: redis.Redis
) -> None:
    (shard,) = player.evaluate._shards.values()
    watched = shard.models["churn"]
    writer.reads({"partials.v1": "old", "commands.v1": "old"})
    shard.position.applied = {"partials.v1": 5_000, "commands.v1": 5_000}
    show(player, writer)
    held = Deployment(model="churn", model_epoch=1, epoch=1_000_000, champion="9")
    store.set(KEYS.split("churn"), encode(held))
    # The same log, read less far: a replica that was thought dead.
    shard.position.applied = {"partials.v1": 1, "commands.v1": 1}
    store.delete(KEYS.alerts("churn"))
    watched.shown = False
    show(player, writer)
    assert (store.exists(KEYS.alerts("churn")), champion(store)) == (0, "9")
    # Another log, whose commands are not read to their end yet, and then are.
    writer.reads({"partials.v1": "new", "commands.v1": "new"})
    for commands_read, serves in ((False, "9"), (True, "1")):
        shard.commands_read, watched.shown = commands_read, False
        show(player, writer)
        assert (store.exists(KEYS.alerts("churn")), champion(store)) == (1, serves)
    # From then on a newer split stands again.
    store.set(KEYS.split("churn"), encode(held))
    watched.shown = False
    show(player, writer)
    assert champion(store) == "9"


def test_what_an_earlier_release_has_stamped_is_held_against_offsets_alone(
    player: Player, writer: LiveWriter, store: redis.Redis
) -> None:
    stamp = f"{KEYS.root}:{{churn}}:stamp"
    store.set(stamp, 10_000)
    show(player, writer)
    assert not store.exists(KEYS.alerts("churn"))
    store.set(stamp, 1)
    store.set(KEYS.split("churn"), encode(Deployment(model="churn", model_epoch=1, epoch=99, champion="9")))
    writer.reconcile()
    show(player, writer)
    assert store.exists(KEYS.alerts("churn"))
    assert champion(store) == "9"


def test_without_time_for_all_statistics_who_waits_longest_comes_first_and_counts_are_shown(
    log: Log, player: Player, store: redis.Redis
) -> None:
    other = config(name="other")
    log.catalog.put_model("other", other.to_json())
    (shard,) = player.evaluate._shards.values()
    shard.models["other"] = Watched(ModelRecord.new(other))
    writer = LiveWriter(store, KEYS, log.catalog, budget_s=0.0)
    computed = []
    for n in (200, 300, 400):
        show(player, writer)
        assert json.loads(store.hget(KEYS.models(), "churn") or "{}")["n"] == n
        assert store.exists(KEYS.alerts("other"))
        computed.append({name for name, watched in shard.models.items() if watched.numbers_shown})
        log.flush(predictions(1, 100))
        player.play()
        shard.models["other"].numbers_shown = False
    assert computed == [{"churn"}, {"other"}, {"churn"}]


def test_beside_performance_stands_how_far_its_labels_lie_behind(
    log: Log, player: Player, writer: LiveWriter, store: redis.Redis
) -> None:
    def lag_ms() -> int | None:
        show(player, writer)
        return json.loads(store.get(KEYS.performance("churn", "1")) or "{}")["label_lag_ms"]

    assert lag_ms() is None
    log.flush([], [contribution(event, True) for event in predictions(0, 200)])
    player.play()
    assert lag_ms() == 0
    late = predictions(5, 200)
    log.flush(late)
    player.play()
    assert lag_ms() == late[-1].ts - (T0 + PANE)


def test_the_counts_of_a_worker_that_is_ahead_are_not_painted_over(
    player: Player, writer: LiveWriter, store: redis.Redis
) -> None:
    show(player, writer)
    (shard,) = player.evaluate._shards.values()
    store.set(f"{KEYS.root}:{{churn}}:stamp", f"{sum(shard.position.applied.values()) + 1} - -")
    store.hset(KEYS.models(), "churn", "of another")
    shard.models["churn"].counted, shard.models["churn"].numbers_shown = True, False
    show(player, writer)
    assert store.hget(KEYS.models(), "churn") == b"of another"


def test_what_nobody_writes_any_more_goes_by_itself_and_what_routers_read_stays(
    player: Player, writer: LiveWriter, store: redis.Redis
) -> None:
    show(player, writer)
    writer.reconcile()
    show(player, writer)
    keys = {key.decode() for key in store.keys("*{churn}*")}
    assert {KEYS.drift("churn", "1"), KEYS.performance("churn", "1"), KEYS.timeline("churn")} < keys
    left = {key: store.pttl(key) for key in keys}
    assert [left.pop(key("churn")) for key in (KEYS.split, KEYS.stamp)] == [-1, -1]
    assert all(live.KEPT_MS - 60_000 < left_ms <= live.KEPT_MS for left_ms in left.values()), left
    assert store.hpttl(KEYS.models(), "churn")[0] > live.KEPT_MS - 60_000


def test_a_model_at_rest_keeps_its_documents(player: Player, writer: LiveWriter, store: redis.Redis) -> None:
    show(player, writer)
    store.pexpire(KEYS.drift("churn", "1"), 60_000)
    show(player, writer)
    assert store.pttl(KEYS.drift("churn", "1")) <= 60_000
    writer.reconcile()
    show(player, writer)
    assert store.pttl(KEYS.drift("churn", "1")) > live.KEPT_MS - 60_000
