from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import structlog

from streamer import telemetry
from streamer.catalog import Catalog
from streamer.evaluation import roster
from streamer.events import Prediction
from streamer.models import ModelConfig
from streamer.stage import Batch, StepFailed
from tests.streamer.logs import (
    COMMANDS,
    PANE,
    SETTINGS,
    T0,
    Log,
    Player,
    catalog_of,
    config,
    contribution,
    predictions,
)


def drifting(model: ModelConfig, panes: int = 12, shift_from: int = 5) -> Log:
    log = Log(catalog_of(model))
    for pane in range(panes):
        log.flush(predictions(pane, 200, shift=30.0 if pane >= shift_from else 0.0))
    log.quiet(3)
    return log


def played(log: Log, monkeypatch: Any) -> Player:
    player = Player(log, monkeypatch)
    player.play()
    player.commit()
    return player


def test_drift_that_lasts_becomes_one_request_with_its_evidence_and_offsets(monkeypatch: Any) -> None:
    player = played(drifting(config()), monkeypatch)
    (request,) = player.values("retrain-requests.v1")
    assert request["kind"] == "drift"
    assert request["version"] == "1"
    assert request["findings"][0]["subject"] in ("age", "@score")
    assert request["findings"][0]["value"] > request["findings"][0]["floor"]
    (offsets,) = request["offsets"]
    assert offsets["topic"] == "predictions.v1"
    assert offsets["start"] == 0
    assert offsets["end"] <= 12 * 200


@pytest.mark.parametrize(("window", "reaches_back_ms"), [("2h", 7_200_000), ("400d", 10 * 86_400_000)])
def test_a_request_names_no_time_that_panes_are_not_kept_of(
    window: str, reaches_back_ms: int, monkeypatch: Any
) -> None:
    (request,) = played(drifting(config(retrain={"window": window})), monkeypatch).values("retrain-requests.v1")
    assert request["window_end_ms"] - request["window_start_ms"] == reaches_back_ms


def test_without_drift_there_is_no_request(monkeypatch: Any) -> None:
    player = played(drifting(config(), shift_from=99), monkeypatch)
    assert player.values("retrain-requests.v1") == []


def test_a_stream_that_stops_is_not_looked_at_again(monkeypatch: Any) -> None:
    log = drifting(config(), panes=6, shift_from=5)
    log.quiet(120)
    assert played(log, monkeypatch).values("retrain-requests.v1") == []


def test_every_transition_and_answer_stands_in_the_ledger(monkeypatch: Any) -> None:
    log = drifting(config())
    player = Player(log, monkeypatch)
    player.play()
    player.commit()
    (request,) = player.values("retrain-requests.v1")
    log.command("accept", request["request_id"], run_id="run-1")
    log.command("accept", request["request_id"], run_id="run-2")
    player.play()
    player.commit()
    ledger = player.values("ledger.v1")
    answers = [entry for entry in ledger if entry.get("outcome")]
    assert [entry["outcome"] for entry in answers] == ["accepted", "refused"]
    assert [entry["state"] for entry in ledger if entry["state"]] == ["raised", "accepted"]
    evidence = ledger[0]["detail"]["evidence"]
    assert evidence["findings"] == request["findings"][: len(evidence["findings"])]
    assert evidence["findings"][0]["n_current"] > 0
    assert evidence["n_findings"] == len(request["findings"])
    assert [evidence[name] for name in ("pane_end_ms", "window_end_ms")] == [request["pane_end_ms"]] * 2


def test_a_request_by_hand_says_in_the_ledger_which_window_it_is_trained_on(monkeypatch: Any) -> None:
    log = Log(catalog_of(config()))
    for pane in range(3):
        log.flush(predictions(pane, 50))
    log.command("request", "churn", reason="a new season")
    player = played(log, monkeypatch)
    (request,) = player.values("retrain-requests.v1")
    (raised,) = [entry for entry in player.values("ledger.v1") if entry["state"] == "raised"]
    told = {name: raised["detail"]["evidence"][name] for name in ("window_start_ms", "window_end_ms", "n_findings")}
    assert told == {name: request[name] for name in ("window_start_ms", "window_end_ms")} | {"n_findings": 0}


def test_a_command_for_an_unknown_model_is_refused(monkeypatch: Any) -> None:
    monkeypatch.setattr("streamer.evaluation.roster._CATALOG_S", 0.0)
    log = Log(catalog_of(config()))
    log.command("set_champion", "churn", version="1")
    log.records[0] = (COMMANDS, log.now_ms, log.records[0][2].replace(b'"model":"churn"', b'"model":"other"'))
    (answer,) = played(log, monkeypatch).values("ledger.v1")
    assert answer["outcome"] == "refused"
    assert answer["reason"] == "unknown model"


def unknown() -> float | None:
    return telemetry.REGISTRY.get_sample_value("driftloop_unknown_model_total", {"model": "churn"})


def test_a_model_without_a_configuration_holds_nothing_up(monkeypatch: Any) -> None:
    log = drifting(config())
    player = Player(log, monkeypatch)
    player.play(6)
    player.commit()
    # As when a newer release refuses the stored configuration.
    log.catalog = Catalog()
    player.restart()
    waited: list[str] = []
    missing = unknown() or 0
    monkeypatch.setattr(log.catalog, "await_model", lambda name, timeout_s: waited.append(name))
    for _ in range(3):
        log.command("set_champion", "churn", version="1")
    player.play()
    player.commit()
    assert waited == ["churn"]
    # What ingest counted of it meanwhile is missing, and somebody is paged.
    assert (unknown() or 0) > missing
    assert [entry["reason"] for entry in player.values("ledger.v1")] == ["unknown model"] * 3
    log.catalog.put_model("other", config(name="other").to_json())
    log.command("set_champion", "churn", version="1")
    player.play()
    assert waited == ["churn", "churn"]


def test_one_round_waits_no_longer_than_once_whatever_is_named(monkeypatch: Any) -> None:
    clock_s, waited_s = [0.0], []

    def await_model(_name: str, timeout_s: float) -> None:
        waited_s.append(timeout_s)
        clock_s[0] += timeout_s

    monkeypatch.setattr("streamer.evaluation.roster.time", SimpleNamespace(monotonic=lambda: clock_s[0]))
    log = Log(catalog_of(config()))
    monkeypatch.setattr(log.catalog, "await_model", await_model)
    for number in range(12):
        log.command("set_champion", "churn", version="1")
        partition, at_ms, value = log.records[-1]
        other = value.replace(b'"model":"churn"', b'"model":"other%d"' % number)
        log.records[-1] = (partition, at_ms, other)
    player = Player(log, monkeypatch)
    player.play()
    assert waited_s == [roster._CATALOG_S, *[0.0] * 11]


def test_a_model_shown_before_all_commands_were_read_is_shown_again_with_its_split(monkeypatch: Any) -> None:
    log = Log(catalog_of(config()))
    log.command("set_champion", "churn", version="1")
    player = Player(log, monkeypatch)
    _, at_ms, value = log.records[0]
    player.evaluate.fold(Batch(COMMANDS, 0, 1, False, at_ms, [0], [at_ms], [None], [value]))
    (shard,) = player.evaluate._shards.values()
    # What `streamer.evaluation.live` notes once it has written a model's documents.
    shard.models["churn"].shown = True
    player.evaluate.fold(Batch(COMMANDS, 1, 1, True, at_ms))
    assert shard.commands_read
    assert not shard.models["churn"].shown


def test_a_request_nobody_accepts_is_published_again_and_expires(monkeypatch: Any) -> None:
    log = drifting(config(deadlines={"republish": "1m", "accept": "3m"}))
    player = Player(log, monkeypatch)
    for _ in range(5):
        player.play()
        player.tick()
        player.commit()
        log.now_ms += 60_000
        log.flush()
    attempts = [request.get("attempt", 1) for request in player.values("retrain-requests.v1")]
    assert attempts == [1, 2, 3]
    assert [entry["state"] for entry in player.values("ledger.v1")] == ["raised", "expired"]


def test_a_whole_rollout_ends_in_a_promotion(monkeypatch: Any) -> None:
    model = config(
        labels={"maturity": "1m", "min_labels": 5},
        canary={"steps": [50], "min_outcomes": 50, "margin": 0.2, "min_buckets": 10, "control_percent": 10},
    )
    log = drifting(model)
    log.catalog = catalog_of(model, "1", "2")
    player = Player(log, monkeypatch)
    log.command("set_champion", "churn", version="1")
    player.play()
    player.commit()
    (request,) = player.values("retrain-requests.v1")
    request_id = request["request_id"]
    rollout = f"canary-{request_id}"
    log.command("accept", request_id, run_id="r")
    log.command("train", request_id, run_id="r")
    log.command("validate", request_id, version="2", evidence={})
    log.command("start_rollout", rollout, request_id=request_id, challenger="2")
    log.command("set_step", rollout, step=0)
    rng = random.Random(1)
    for pane in range(13, 40):
        events, labels = [], []
        for bucket in range(1000):
            version = "2" if bucket < 500 else "1"
            (event,) = predictions(pane * 1000 + bucket, 1, version=version, rollout_id=rollout, bucket=bucket)
            event.ts = T0 + pane * PANE + bucket
            events.append(event)
            labels.append(contribution(event, rng.random() < 0.5))
        log.flush(events, labels)
    log.quiet(3)
    player.play()
    log.command("promote", rollout)
    player.play()
    player.commit()
    answers = [entry for entry in player.values("ledger.v1") if entry.get("outcome")]
    assert [(entry["command_kind"], entry["outcome"]) for entry in answers] == [
        ("set_champion", "accepted"),
        ("accept", "accepted"),
        ("train", "accepted"),
        ("validate", "accepted"),
        ("start_rollout", "accepted"),
        ("set_step", "accepted"),
        ("promote", "accepted"),
    ], answers[-1]["reason"]
    assert player.values("deployments.v1")[-1]["champion"] == "2"


def allow_changes(player: Player, commit_bytes: int) -> None:
    worker = SETTINGS.worker.model_copy(update={"commit_bytes": commit_bytes})
    player.evaluate._settings = SETTINGS.model_copy(update={"worker": worker})


def test_many_bytes_of_changes_are_committed_before_their_time(monkeypatch: Any) -> None:
    log = Log(catalog_of(config()))
    log.flush(predictions(0, 200))
    player = Player(log, monkeypatch)
    allow_changes(player, 1_000)
    assert not player.evaluate.due()
    player.play()
    assert player.evaluate.due()
    player.commit()
    assert not player.evaluate.due()
    # Little comes, but the pane it changes is stored whole again.
    log.flush(predictions(0, 1))
    allow_changes(player, len(log.records[-1][2]) + 500)
    player.play()
    assert player.evaluate.due()


@pytest.mark.parametrize("seed", range(12))
def test_kills_anywhere_change_nothing(monkeypatch: Any, seed: int) -> None:
    whole = played(drifting(config()), monkeypatch)
    rng = random.Random(seed)
    log = drifting(config())
    player = Player(log, monkeypatch)
    place = 0
    while place < len(log.records):
        place = min(place + rng.randint(1, 4), len(log.records))
        player.play(place)
        if rng.random() < 0.6:
            player.commit()
        if rng.random() < 0.5:
            player.restart()
            place = sum(player.next.values())
    player.play()
    player.commit()
    assert player.values("retrain-requests.v1") == whole.values("retrain-requests.v1")
    assert player.values("ledger.v1") == whole.values("ledger.v1")
    panes = {key: value for key, value in player.state.items() if key.startswith("pane|")}
    assert panes == {key: value for key, value in whole.state.items() if key.startswith("pane|")}


def test_late_events_are_kept_apart_from_what_was_looked_at(monkeypatch: Any) -> None:
    log = Log(catalog_of(config()))
    for pane in range(4):
        log.flush(predictions(pane, 100))
    late = predictions(0, 7)
    for row, event in enumerate(late):
        event.prediction_id = f"late-{row}"
    log.flush(late)
    player = played(log, monkeypatch)
    shard = player.evaluate._shards[0]
    (pane,) = [pane for key, pane in shard.models["churn"].panes.items() if key.start_ms == T0]
    assert (pane.on_time.events, pane.late.events) == (100, 7)
    assert shard.models["churn"].record.tallies["late"] == 7


@pytest.mark.parametrize("restarted", [False, True])
def test_a_changed_length_of_time_is_gone_by_from_the_next_record_on(monkeypatch: Any, restarted: bool) -> None:
    log = Log(catalog_of(config()))
    log.flush(predictions(0, 100))
    player = played(log, monkeypatch)
    changed = config(time={"lateness": "30s", "idle": "2s"}, labels={"maturity": "5m"})
    log.catalog.put_model("churn", changed.to_json())
    if restarted:
        player.restart()
    log.flush(predictions(1, 100))
    player.play()
    clock = player.evaluate._shards[0].models["churn"].record.clock
    assert (clock.pane_ms, clock.lateness_ms, clock.idle_ms, clock.maturity_ms) == (PANE, 30_000, 2_000, 300_000)
    assert clock.watermark_ms > T0 + PANE
    log.catalog.put_model("churn", config(model_epoch=1).to_json())
    log.quiet(1)
    player.play()
    player.commit()
    assert player.evaluate._shards[0].models["churn"].record.clock.idle_ms == 1_000


def test_events_below_the_retention_floor_make_no_pane(monkeypatch: Any) -> None:
    log = Log(catalog_of(config(time={"retention": "2m"})))
    log.flush(predictions(100, 10))
    log.flush(predictions(0, 10))
    player = played(log, monkeypatch)
    shard = player.evaluate._shards[0]
    assert [key.start_ms for key in shard.models["churn"].panes] == [T0 + 100 * PANE]
    assert shard.models["churn"].record.tallies["too_late"] == 10


def test_events_of_a_lower_model_epoch_are_counted_apart_and_told_once(monkeypatch: Any) -> None:
    log = Log(catalog_of(config(model_epoch=2)))
    log.flush(predictions(0, 20))
    player = played(log, monkeypatch)
    log.catalog.put_model("churn", config(model_epoch=1).to_json())
    for pane in (1, 2):
        log.flush(predictions(pane, 30))
    with structlog.testing.capture_logs() as said:
        player.play()
    watched = player.evaluate._shards[0].models["churn"]
    assert sum(pane.events for pane in watched.panes.values()) == 20
    assert watched.record.tallies["other_epoch"] == 60
    (line,) = [line for line in said if line["event"] == "other_epoch"]
    assert (line["model"], line["model_epoch"], line["counted"]) == ("churn", 1, 2)


def test_a_fault_in_one_model_is_marked_and_does_not_stop_the_stage(monkeypatch: Any) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("out of cheese")

    monkeypatch.setattr("streamer.evaluation.author.looks.drift_look", broken)
    player = played(drifting(config()), monkeypatch)
    (entry,) = player.values("ledger.v1")
    assert entry["state"] == "faulted"
    assert "out of cheese" in entry["reason"]
    watched = player.evaluate._shards[0].models["churn"]
    assert sum(pane.events for pane in watched.panes.values()) == 12 * 200


def test_deadlines_that_cannot_be_told_fault_their_model_and_do_not_end_the_stage(monkeypatch: Any) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("out of cheese")

    log = drifting(config())
    player = Player(log, monkeypatch)
    player.play()
    monkeypatch.setattr("streamer.evaluation.author.effects.deadlines_of", broken)
    player.tick()
    player.commit()
    faulted = [entry for entry in player.values("ledger.v1") if entry["state"] == "faulted"]
    assert ["out of cheese" in entry["reason"] for entry in faulted] == [True]


def test_the_faulted_models_are_counted_as_they_stand(monkeypatch: Any) -> None:
    def faulted() -> float | None:
        return telemetry.REGISTRY.get_sample_value("driftloop_faulted_models")

    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("out of cheese")

    log = Log(catalog_of(config()))
    with monkeypatch.context() as patch:
        patch.setattr("streamer.evaluation.intake._observe", broken)
        for pane in range(3):
            log.flush(predictions(pane, 10))
        player = played(log, monkeypatch)
    assert faulted() == 1
    telemetry.FAULTED_MODELS.set(0)
    player.restart()
    assert faulted() == 1
    log.command("clear_fault", "churn")
    player.play()
    player.commit()
    assert faulted() == 0


def faulty(pane: int) -> list[Prediction]:
    return [
        msgspec.structs.replace(event, features={**event.features, "plan": None}) for event in predictions(pane, 200)
    ]


def test_a_data_fault_stands_until_a_person_allows_it(monkeypatch: Any) -> None:
    log = Log(catalog_of(config()))
    player = Player(log, monkeypatch)

    def fault() -> str | None:
        player.play()
        return player.evaluate._shards[0].models["churn"].record.alert.fault

    for pane in range(3):
        log.flush(faulty(pane))
    log.quiet(30)
    assert "plan" in (fault() or "")
    log.command("clear_fault", "churn")
    log.command("allow", "churn", until_ms=log.now_ms - 1)
    assert fault() is not None
    log.command("allow", "churn", until_ms=log.now_ms + 25_000)
    assert fault() is None, "before the next look"
    log.flush(faulty(3))
    log.quiet(15)
    assert fault() is None, "after it"
    log.quiet(15)
    fault()
    player.tick()
    assert "plan" in (fault() or ""), "once the time is over, before the next look"
    log.command("allow", "churn", until_ms=log.now_ms + 25_000)
    assert fault() is None
    log.command("allow", "churn", until_ms=log.now_ms - 1)
    assert fault() is not None, "taken back"
    log.flush(faulty(4))
    log.quiet(15)
    assert fault() is not None


def test_an_allowed_fault_whose_time_is_over_blocks_looks_at_performance_before_the_next_at_drift(
    monkeypatch: Any,
) -> None:
    policy = {"mode": "fixed", "triggers": ["performance"], "performance_window": "2m"}
    model = config(policy=policy, window={"min_new_events": 1_600}, labels={"maturity": "1m"})
    log = Log(catalog_of(model))

    def flush(panes: range, *, right: bool) -> None:
        for pane in panes:
            events = faulty(pane)
            log.flush(events, [contribution(event, bool(event.prediction) is right) for event in events])

    flush(range(9), right=True)
    log.command("allow", "churn", until_ms=log.now_ms + 100)
    flush(range(9, 14), right=False)
    player = played(log, monkeypatch)
    record = player.evaluate._shards[0].models["churn"].record
    assert record.events_since_look == 5 * 200, "drift was not looked at again"
    assert record.performance is not None
    assert record.performance.alarm
    assert record.alert.fault is not None
    assert player.values("retrain-requests.v1") == []
    log.command("allow", "churn", until_ms=log.now_ms + 60_000)
    flush(range(14, 16), right=False)
    player.play()
    player.commit()
    assert [request["kind"] for request in player.values("retrain-requests.v1")] == ["performance"]


def test_a_permission_ends_once_commands_have_been_read_that_far(monkeypatch: Any) -> None:
    log = Log(catalog_of(config()))
    for pane in range(3):
        log.flush(faulty(pane))
    log.quiet(30)
    until_ms = log.now_ms + 25_000
    log.command("allow", "churn", until_ms=until_ms)
    player = played(log, monkeypatch)
    shard = player.evaluate._shards[0]
    record = shard.models["churn"].record

    def fault(read_up_to_ms: int) -> str | None:
        shard.expired_ms = 0
        player.evaluate._author.expire(shard, read_up_to_ms)
        return record.alert.fault

    shard.position.now_ms = until_ms + 10_000
    assert fault(until_ms - 1) is None, "a longer permission may be among the commands that were not read"
    assert "plan" in (fault(until_ms) or "")


def test_state_and_group_must_agree_on_what_is_applied(monkeypatch: Any) -> None:
    player = played(drifting(config()), monkeypatch)
    player.committed[COMMANDS] = 5
    with pytest.raises(StepFailed, match="Move the group's offset back"):
        player.restart()


def test_a_state_topic_that_is_gone_is_an_error_not_a_fresh_start(monkeypatch: Any) -> None:
    player = played(drifting(config()), monkeypatch)
    player.history.clear()
    with pytest.raises(StepFailed, match="Reset the group"):
        player.restart()


def keys_of_panes(player: Player) -> list[str]:
    return [key for key in player.state if key.startswith("pane|")]


def test_panes_past_their_retention_leave_nothing_in_the_state(monkeypatch: Any) -> None:
    monkeypatch.setattr("streamer.evaluation.pane_store._PART_BYTES", 100)
    log = Log(catalog_of(config(time={"retention": "3m"})))
    player = Player(log, monkeypatch)
    for pane in range(8):
        log.flush(predictions(pane, 200))
        player.play()
        player.commit()
        if pane == 4:
            # The tombstones reach the parts another process has stored, too.
            player.restart()
    starts = {int(key.split("|")[6]) for key in keys_of_panes(player)}
    assert starts == {T0 + pane * PANE for pane in (4, 5, 6, 7)}
    assert len(keys_of_panes(player)) > 2 * len(starts)


def test_a_deleted_model_leaves_nothing_in_the_state(monkeypatch: Any) -> None:
    monkeypatch.setattr("streamer.evaluation.pane_store._PART_BYTES", 100)
    log = drifting(config())
    player = played(log, monkeypatch)
    assert len(keys_of_panes(player)) > 12
    log.catalog.put_model("churn", None)
    player.restart()
    player.evaluate.idle()
    player.commit()
    assert player.state.keys() == {"position"}


def test_a_model_made_again_begins_empty_and_nothing_is_left_of_the_old_one(monkeypatch: Any) -> None:
    log = drifting(config())
    player = played(log, monkeypatch)
    log.catalog.put_model("churn", None)
    player.evaluate.idle()
    log.catalog.put_model("churn", config(model_epoch=2).to_json())
    log.flush(predictions(12, 50))
    player.play()
    player.commit()
    assert len(player.state) == 3
    assert all(key.startswith("pane|churn|2|") for key in keys_of_panes(player))
    player.restart()
    (shard,) = player.evaluate._shards.values()
    assert shard.models["churn"].record.model_epoch == 2
