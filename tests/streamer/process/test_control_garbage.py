"""Malformed commands, configurations, references and partials: what each does, and that none stops its reader."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from streamer import telemetry
from streamer.catalog import Catalog
from streamer.evaluate import MAX_COMMAND_BYTES
from streamer.evaluation.shard import restore_shard
from streamer.events import Command, CommandKind, Partial
from streamer.stage import StepFailed
from tests.chaos.mutations import DAMAGES, LITERALS
from tests.streamer.logs import COMMANDS, PARTIALS, Log, Player, catalog_of, config, predictions, reference

seeds = st.integers(0, 2**40)
CATALOG = catalog_of(config())
PAYLOAD = ("version", "run_id", "evidence", "challenger", "percent", "step", "steps", "reason", "epoch", "request_id")
LARGE = (
    "9" * 400,
    "1e999",
    "18446744073709551616",
    "[" * 90 + "]" * 90,
    "[" * 900 + "]" * 900,
    '"' + "x" * 90_000 + '"',
)


@pytest.fixture(scope="module", autouse=True)
def impatient() -> Iterator[None]:
    """Wait for no model that is on its way: here nobody sends one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streamer.evaluation.roster._CATALOG_S", 0.0)
        yield


def player(catalog: Catalog = CATALOG) -> tuple[Log, Player]:
    log = Log(catalog)
    log.flush(predictions(0, 50))
    log.command("set_champion", version="1")
    played = Player(log, pytest.MonkeyPatch())
    played.play()
    played.commit()
    return log, played


def written(document: dict[str, str]) -> bytes:
    """Write an object whose values are JSON text."""
    return f"{{{','.join(f'{json.dumps(name)}:{value}' for name, value in document.items())}}}".encode()


def odd_command(random: Random, number: int) -> bytes:
    payload = {name: random.choice(LITERALS) for name in random.sample(PAYLOAD, random.randrange(4))}
    if random.random() < 0.2:
        payload["evidence"] = random.choice(LARGE)
    document = {
        "command_id": f'"c-{number}"',
        "kind": json.dumps(random.choice(get_args(CommandKind))),
        "model": '"churn"',
        "model_epoch": "1",
        "payload": written(payload).decode(),
        "actor": '"somebody"',
    }
    if random.random() < 0.5:
        document[random.choice([*document, "subject", "expected_epoch"])] = random.choice(LITERALS)
    raw = written(document)
    return random.choice(list(DAMAGES.values()))(random, raw, raw) if random.random() < 0.3 else raw


@given(seed=seeds)
# Makes a champion of what is no version's name, then asks for a request about it.
@example(seed=449)
@settings(max_examples=40, deadline=None)
def test_no_command_ends_evaluate_or_faults_its_model_and_the_next_is_answered(seed: int) -> None:
    random = Random(seed)
    log, played = player()
    for number in range(5):
        log.records.append((COMMANDS, log.now_ms, odd_command(random, number)))
        played.play()
        # All of it must fit into what is stored and published, and be read back.
        played.commit()
        played.restart()
    log.command("allow", until_ms=log.now_ms + 1)
    played.play()
    played.commit()
    assert f"c{len(log.records) - 1}" in [entry.get("command_id") for entry in played.values("ledger.v1")]
    assert played.evaluate._shards[0].models["churn"].record.life.faulted is None


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"5", b'{"kind":"\xff"}', b'{"payload":' + b"[" * 20_000, b'{"command_id":"a","kind":"praise"}']
)
def test_what_is_no_command_is_a_line_that_says_where_and_no_answer(raw: bytes) -> None:
    log, played = player()
    answers = len(played.values("ledger.v1"))
    log.records.append((COMMANDS, log.now_ms, raw))
    with capture_logs() as lines:
        played.play()
    played.commit()
    assert [(line["event"], line["topic"], line["partition"], line["offset"]) for line in lines] == [
        ("command_refused", "commands.v1", 0, 1)
    ]
    assert len(played.values("ledger.v1")) == answers


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "nobody"}, "unknown model"),
        ({"model": ""}, "model: wanted a name"),
        ({"model": "x" * 5_000}, "model: wanted a name"),
        ({"model_epoch": 7}, "model_epoch is 1"),
        ({"kind": "set_champion", "payload": {"version": "Seven"}}, "payload.version: got 'Seven', wanted a name"),
        ({"kind": "start_rollout", "payload": {"challenger": "7\n"}}, "payload.challenger: got '7\\n', wanted a name"),
        ({"payload": {"evidence": "x" * MAX_COMMAND_BYTES}}, f"wanted at most {MAX_COMMAND_BYTES}"),
    ],
)
def test_a_command_that_cannot_be_carried_out_is_answered_with_the_reason(changes: dict[str, Any], reason: str) -> None:
    log, played = player()
    command = Command(command_id="mine", kind="request", model="churn", model_epoch=1)
    log.records.append((COMMANDS, log.now_ms, msgspec.json.encode(msgspec.structs.replace(command, **changes))))
    played.play()
    played.commit()
    answer = played.values("ledger.v1")[-1]
    assert (answer["command_id"], answer["outcome"]) == ("mine", "refused")
    assert reason in answer["reason"]


def test_a_command_in_another_partition_than_its_model_s_is_refused_where_its_sender_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log, played = player()
    # As it would be with more partitions: whoever owns the wrong one must not begin a second life of the model.
    monkeypatch.setattr("streamer.evaluate.partition_of", lambda model, partitions: 3)
    log.command("request")
    played.play()
    played.commit()
    answer = [record for record in played.published if record.topic == "ledger.v1"][-1]
    assert answer.partition == 3
    assert b"commands of this model belong to 3" in (answer.value or b"")


@given(seed=seeds)
@settings(max_examples=150, deadline=None)
def test_a_broken_configuration_or_reference_is_refused_and_what_was_known_stays(seed: int) -> None:
    random = Random(seed)
    catalog = catalog_of(config())
    model, profile = catalog.model("churn"), catalog.reference("churn", "1")
    stored = {"model": config().to_json(), **reference(config()).to_parts()}
    part = random.choice(list(stored))
    raw = stored[part]
    if random.random() < 0.6:
        document = json.loads(raw)
        section = random.choice(list(document))
        inner = document[section]
        if isinstance(inner, dict) and inner:
            inner[random.choice(list(inner))] = "@"
        else:
            document[section] = "@"
        raw = json.dumps(document).replace('"@"', random.choice((*LITERALS, *LARGE))).encode()
    for _ in range(random.randrange(2)):
        raw = random.choice(list(DAMAGES.values()))(random, raw, stored["model"])
    if part == "model":
        catalog.put_model(random.choice(("churn", "churn", "other", "Ch urn", "", "\udcff")), raw)
    else:
        catalog.put_reference(random.choice((f"churn/1/{part}", f"churn/1/{part}", "churn/1", "", "a/b/c/d")), raw)
    known = catalog.model("churn")
    # What is sound after all takes the old one's place.
    assert known is model or (known is not None and known.name == "churn")
    assert catalog.reference("churn", "1") is not None
    assert profile is not None
    assert set(map(str, [name.name for name in catalog.models()])) <= {"churn", "other"}


def test_a_refused_configuration_is_a_line_that_says_what_stays() -> None:
    catalog = catalog_of(config())
    with capture_logs() as lines:
        catalog.put_model("churn", b'{"name":"churn"}')
        catalog.put_model("fares", config().to_json())
        catalog.put_reference("churn/1/manifest", b"{")
        catalog.put_reference("nonsense", b"{}")
    assert [line["event"] for line in lines] == ["model_refused"] * 2 + ["reference_refused"] * 2
    assert (lines[0]["stays"], lines[1]["stays"]) == ("model_epoch 1, as it was", "none")
    assert "models.v1 key churn: task: missing" in lines[0]["reason"]
    assert "name: got 'churn', wanted the key" in lines[1]["reason"]
    assert catalog.model("churn") is not None
    assert catalog.reference("churn", "1") is not None


@given(seed=seeds, foreign=st.binary(max_size=100))
@settings(max_examples=100, deadline=None)
def test_a_stranger_s_message_among_the_partials_is_passed_over_and_ours_around_it_count(
    seed: int, foreign: bytes
) -> None:
    random = Random(seed)
    event = random.choice((b'{"prediction_id":"p"}', msgspec.msgpack.encode({"a": 1}), foreign))
    log, played = player()
    before = telemetry.FOREIGN_MESSAGES._value.get()
    log.records.append((PARTIALS, log.now_ms, event))
    log.flush(predictions(1, 30))
    with capture_logs() as lines:
        played.play()
    played.commit()
    told = [line for line in lines if line["event"] == "foreign_message"]
    assert [line["place"] for line in told] == ["partials.v1[0] offset 1"]
    assert telemetry.FOREIGN_MESSAGES._value.get() == before + 1
    held = played.evaluate._shards[0].models["churn"]
    assert sum(pane.events for pane in held.panes.values()) == 80
    # Its progress goes on where the one before it stood: nothing is missing.
    assert not [line for line in lines if line["event"] == "lost_range"]


def test_a_partial_of_another_release_ends_the_process_since_its_counts_must_not_be_passed_over() -> None:
    log, played = player()
    newer = {**msgspec.to_builtins(Partial(ingest="7", progress=[], partition_counts={})), "increments": "packed"}
    log.records.append((PARTIALS, log.now_ms, msgspec.msgpack.encode(newer)))
    with pytest.raises(StepFailed, match=r"partials\.v1\[0\] offset 1: written by ingest '7'.*run the same release"):
        played.play()


@pytest.mark.parametrize("key", ["position", "model|churn", "pane|churn|1|1|live|60000|0|0", "pane|churn"])
def test_a_state_record_that_cannot_be_read_is_named_and_ends_the_process(key: str) -> None:
    _log, played = player()
    with pytest.raises(StepFailed, match=r"state partition 0, key .*: .*; "):
        restore_shard(0, {**played.state, key: b"\xc1"})


def test_a_stranger_s_record_in_the_state_is_passed_over() -> None:
    _log, played = player()
    assert restore_shard(0, {**played.state, "other\ufffd": b"{}"}).models.keys() == {"churn"}
