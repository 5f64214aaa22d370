"""Commands that want something of a model: what they send, and how each answer is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from streamer import rollback
from streamer.commands import CommandTimeout
from streamer.events import Command, Deployment, LedgerEntry, encode
from streamer.models import ModelConfig, parse_model
from streamer.settings import ConfigError, Settings
from streamer.state import Keys
from tests.streamer.cli.conftest import Run
from tests.streamer.live_documents import SPLIT

CHURN = parse_model(
    {"name": "churn", "task": "regression", "features": {"age": {"kind": "numeric"}}, "model_epoch": 3}, "test"
)
PRESENT = {"request": "raised", "rollout": None, "deployment": {"champion": "1", "challenger": None, "epoch": 7}}


class Evaluate:
    """Notes what it is sent, and gives the answer it was told to."""

    def __init__(self) -> None:
        self.sent: list[Command] = []
        self.answer: dict[str, Any] | Exception = {"outcome": "accepted", "detail": {"present": PRESENT}}

    def send(self, settings: Settings, command: Command, **_: object) -> LedgerEntry:
        self.sent.append(command)
        if isinstance(self.answer, Exception):
            raise self.answer
        told = {"subject_kind": "model", "state": "", "command_id": command.command_id, **self.answer}
        return LedgerEntry(model=command.model, model_epoch=3, at_ms=1, subject=command.subject, **told)


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    found = Evaluate()
    monkeypatch.setattr("streamer.commands.send", found.send)

    def published(_: Settings, name: str) -> ModelConfig:
        return CHURN

    for module in ("models", "request"):
        monkeypatch.setattr(f"streamer.cli.{module}.published_model", published)
    monkeypatch.setattr("streamer.references.published_versions", lambda _: {"churn": ["1", "2"]})
    return found


@pytest.fixture
def split(store: redis.Redis, store_url: str, monkeypatch: pytest.MonkeyPatch) -> redis.Redis:
    monkeypatch.setenv("DRIFTLOOP_REDIS__URL", store_url)
    store.set(Keys().split("churn"), encode(SPLIT))
    return store


def test_a_request_carries_its_reason_and_who_asked(run: Run, evaluate: Evaluate) -> None:
    result = run("request", "churn", "--reason", "a new season")
    assert result.exit_code == 0
    assert result.output == "accepted: request churn (now: request raised; champion 1, epoch 7)\n"
    [command] = evaluate.sent
    assert (command.kind, command.model, command.model_epoch, command.subject) == ("request", "churn", 3, "churn")
    assert command.payload == {"reason": "a new season"}
    assert "@" in command.actor


def test_a_refusal_tells_the_present_state(run: Run, evaluate: Evaluate) -> None:
    evaluate.answer = {"outcome": "refused", "reason": "a request is open", "detail": {"present": PRESENT}}
    result = run("request", "churn", "--reason", "r")
    assert result.exit_code == 1
    assert result.stderr == "driftloop: refused: a request is open (now: request raised; champion 1, epoch 7)\n"
    as_json = run("request", "churn", "--reason", "r", "--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.output)["reason"] == "a request is open"


def test_without_an_answer_the_code_is_3(run: Run, evaluate: Evaluate) -> None:
    evaluate.answer = CommandTimeout("request of churn: no answer in 60 s")
    result = run("request", "churn", "--reason", "r")
    assert (result.exit_code, result.stderr) == (3, "driftloop: request of churn: no answer in 60 s\n")


def test_a_champion_is_named_and_a_model_let_go_on(run: Run, evaluate: Evaluate) -> None:
    run("split", "churn", "--champion", "2")
    run("models", "allow", "churn", "--for", "6h")
    run("models", "clear-fault", "churn")
    assert [command.kind for command in evaluate.sent] == ["set_champion", "allow", "clear_fault"]
    assert evaluate.sent[0].payload == {"version": "2"}
    wrong = run("models", "allow", "churn", "--for", "soon")
    assert (wrong.exit_code, "wanted a duration such as" in wrong.stderr) == (2, True)


def test_a_version_nobody_knows_is_not_named_by_a_slip(run: Run, evaluate: Evaluate) -> None:
    result = run("split", "churn", "--champion", "22")
    assert result.exit_code == 1
    assert "got '22', of which no reference is published; there are 1, 2." in result.stderr
    assert evaluate.sent == []
    run("split", "churn", "--champion", "22", "--unreferenced")
    assert [command.payload for command in evaluate.sent] == [{"version": "22"}]


def test_the_first_champion_may_come_before_its_reference(
    run: Run, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamer.references.published_versions", lambda _: {})
    assert run("split", "churn", "--champion", "1").exit_code == 0
    assert [command.payload for command in evaluate.sent] == [{"version": "1"}]


def test_the_split_is_shown(run: Run, evaluate: Evaluate, split: redis.Redis) -> None:
    output = run("split", "churn").output
    assert "champion    1  90 %" in output
    assert "challenger  2  10 %  step 2  canary-rq-1" in output
    assert json.loads(run("split", "churn", "--json").output)["epoch"] == 7
    split.set(Keys().split("churn"), encode(msgspec.structs.replace(SPLIT, step=-1, percent=0.0)))
    assert "challenger  2  0 %  ramp not begun  canary-rq-1" in run("split", "churn").output
    nobody = run("split", "other")
    assert (nobody.exit_code, "driftloop split other --champion VERSION" in nobody.stderr) == (1, True)


def test_a_rollback_names_the_running_rollout(run: Run, evaluate: Evaluate, split: redis.Redis) -> None:
    assert run("rollback", "churn", "--reason", "complaints").exit_code == 0
    [command] = evaluate.sent
    assert (command.kind, command.subject) == ("rollback", "canary-rq-1")
    assert command.payload == {"reason": "complaints"}


def test_without_a_rollout_there_is_nothing_to_roll_back(run: Run, evaluate: Evaluate, split: redis.Redis) -> None:
    split.set(Keys().split("churn"), encode(msgspec.structs.replace(SPLIT, rollout_id=None, challenger=None)))
    result = run("rollback", "churn")
    assert result.exit_code == 1
    assert "churn: no rollout is running, 1 serves everybody; nothing to roll back." in result.stderr
    assert "driftloop split churn --champion VERSION" in result.stderr
    assert evaluate.sent == []


def forced(split: redis.Redis) -> Deployment:
    stored = split.get(Keys().split("churn"))
    assert isinstance(stored, bytes)
    return msgspec.json.decode(stored, type=Deployment)


def test_a_forced_rollback_turns_routers_back_and_tells_evaluate(
    run: Run, evaluate: Evaluate, split: redis.Redis
) -> None:
    result = run("rollback", "churn", "--force", "--reason", "it burns")
    assert result.exit_code == 0
    assert "evaluate  command accepted" in result.output
    now = forced(split)
    assert (now.champion, now.challenger, now.percent, now.rollout_id) == ("1", None, 0.0, None)
    assert now.epoch == 7 + rollback.EPOCH_LEAP
    [command] = evaluate.sent
    assert (command.kind, command.subject, command.model_epoch) == ("force_rollback", "canary-rq-1", 1)
    assert command.payload == {"epoch": now.epoch, "reason": "it burns"}


def test_a_forced_rollback_works_with_evaluate_down(run: Run, evaluate: Evaluate, split: redis.Redis) -> None:
    evaluate.answer = CommandTimeout("no answer")
    result = run("rollback", "churn", "--force")
    assert result.exit_code == 0
    assert "evaluate has not answered and will follow when it is back" in result.output
    assert forced(split).challenger is None


def test_half_a_forced_rollback_is_told_and_is_code_3(run: Run, evaluate: Evaluate, split: redis.Redis) -> None:
    import confluent_kafka

    away = CommandTimeout("nothing was sent")
    away.__cause__ = confluent_kafka.KafkaException(confluent_kafka.KafkaError(confluent_kafka.KafkaError._TRANSPORT))
    evaluate.answer = away
    result = run("rollback", "churn", "--force", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["command"].startswith("not sent")
    assert "only in part rolled back; run it again" in result.stderr
    assert forced(split).challenger is None


def test_a_newer_deployment_is_not_painted_over(
    run: Run, evaluate: Evaluate, split: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollback, "EPOCH_LEAP", -1)
    result = run("rollback", "churn", "--force")
    assert result.exit_code == 3
    assert "a newer deployment stands there" in result.output
    assert forced(split) == SPLIT


def test_a_model_made_anew_is_newer_whatever_its_epoch(split: redis.Redis) -> None:
    anew = encode(msgspec.structs.replace(SPLIT, model_epoch=2, epoch=1))
    key = Keys().split("churn")
    assert rollback._turn_back(split, key, msgspec.structs.replace(SPLIT, model_epoch=2, epoch=1)) == "set"
    assert split.get(key) == anew
    assert rollback._turn_back(split, key, SPLIT) != "set"
    assert split.get(key) == anew


def test_with_redis_away_the_deployment_is_taken_from_kafka(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollback, "newest_by_key", lambda *_: {"churn": encode(SPLIT)})
    settings = Settings.model_validate({"redis": {"url": "redis://127.0.0.1:9/0"}})
    done = rollback.force(settings, "churn", reason="r", actor="me")
    assert (done.champion, done.command, done.complete) == ("1", "accepted", False)
    assert done.split.startswith("not set: ")
    with pytest.raises(rollback.RollbackError, match="other: no deployment is known"):
        rollback.force(settings, "other", reason="r", actor="me")


def test_a_configuration_is_shown_with_times_as_a_file_has_them(run: Run, evaluate: Evaluate) -> None:
    shown = json.loads(run("models", "show", "churn").output)
    machine = json.loads(run("models", "show", "churn", "--json").output)
    assert (shown["labels"]["horizon"], machine["labels"]["horizon"]) == (
        CHURN.labels.horizon.text,
        int(CHURN.labels.horizon),
    )
    assert parse_model(shown, "shown") == parse_model(machine, "machine") == CHURN


def test_models_are_checked_before_anything_is_published(run: Run, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text('name = "m"\ntask = "regression"\n[features]\nx = { kind = "numeric" }\n')
    bad.write_text('name = "M!"\ntask = "regression"\ncolour = 1\n[features]\nx = { kind = "odd" }\n')
    assert run("models", "apply", "--check", str(good)).output == "m: valid (regression, 1 features)\n"
    assert json.loads(run("models", "apply", "--check", "--json", str(good)).output)[0]["published"] is False
    result = run("models", "apply", str(good), str(bad))
    assert result.exit_code == 1
    for words in ("bad.toml: name: got 'M!'", "features.x.kind: got 'odd'", "colour: unknown key"):
        assert words in result.stderr
    assert "given twice" in run("models", "apply", "--check", str(good), str(good)).stderr


def test_an_unreadable_command_line_configuration_error_is_not_a_traceback(run: Run, tmp_path: Path) -> None:
    result = run("models", "list", DRIFTLOOP_CONFIG=str(tmp_path / "none.toml"))
    assert result.exit_code == 1
    assert "DRIFTLOOP_CONFIG names" in result.stderr
    assert issubclass(ConfigError, Exception)
