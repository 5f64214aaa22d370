"""The command line on real servers: from an empty installation to drift seen, steered and rolled back by force."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import redis
from confluent_kafka.admin import AdminClient
from typer.testing import CliRunner, Result

from streamer import references
from streamer.audit import join_rebuild
from streamer.cli.frame import build
from streamer.diagnosis.doctor import missing_topics
from streamer.references import ProfileError
from streamer.settings import Settings
from streamer.state import Keys
from tests.integration.events import MODEL, T0, profile_of, rows, send_events, send_features
from tests.integration.running import environment, let_expire, running_worker, wait_for

pytestmark = pytest.mark.integration

Run = Callable[..., Result]


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    for name, value in environment(settings).items():
        if name.startswith("DRIFTLOOP_"):
            monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def invoke(*words: str, code: int = 0) -> Result:
        result = CliRunner().invoke(build(), list(words))
        assert result.exit_code == code, result.output
        return result

    return invoke


def write_model(path: Path, *, slices: str = '"plan"', features: str = "") -> None:
    path.write_text(
        f'name = "churn"\ntask = "binary"\npositive = true\nslices = [{slices}]\n'
        f'[features]\nage = {{ kind = "numeric" }}\nplan = {{ kind = "categorical" }}\n{features}'
        '[time]\npane = "1m"\nlateness = "10s"\nidle = "500ms"\nretention = "10d"\n'
        '[window]\nmin_events = 200\nmax_age = "1h"\n'
        '[labels]\nmaturity = "1m"\nmin_labels = 10\n'
        '[policy]\nconsecutive = 2\ncooldown = "10m"\ntriggers = ["drift"]\n'
    )


def write_table(path: Path) -> None:
    columns = rows(np.random.default_rng(0), 4_000, 0.0)
    scores = columns.pop("@score")
    table = pl.DataFrame({**columns, "score": scores, "prediction": scores > 0.5, "label": np.arange(4_000) % 2 == 0})
    table.write_csv(path)


def test_a_model_of_ones_own_is_watched_steered_and_rolled_back(run: Run, settings: Settings) -> None:
    write_model(Path("churn.toml"))
    write_table(Path("table.csv"))
    assert "No model yet" in run("models", "list").output
    run("models", "apply", "churn.toml")
    run("reference", "build", "--model", "churn.toml", "--data", "table.csv", "-o", "churn.json")
    assert run("reference", "publish", "churn.json").output == "churn version 1: published\n"
    assert run("reference", "publish", "churn.json").output == "churn version 1: is published already\n"
    [listed] = json.loads(run("models", "list", "--json").output)
    assert (listed["model"], listed["references"]) == ("churn", ["1"])
    assert json.loads(run("models", "show", "churn", "--json").output)["time"]["pane"] == 60_000
    assert json.loads(run("reference", "show", "churn", "--json").output)["rows"] == 4_000

    with running_worker(settings):
        sent = send_events(settings, panes=12, per_pane=300, shift_from=5)

        def requested() -> dict[str, object]:
            found = json.loads(run("status", "--json").output)["models"]
            return found[0] if found else {}

        wait_for(requested, lambda model: model.get("n") == sent and bool(model.get("open_request")))
        screen = run("status", "churn").output
        assert "drift" in screen
        assert "Request  raised  drift" in screen
        refused = run("request", "churn", "--reason", "another", code=1)
        assert "driftloop: refused: " in refused.stderr
        assert "request raised" in refused.stderr
        assert run("split", "churn", "--champion", "1").output.startswith("accepted: set champion churn")
        wait_for(lambda: CliRunner().invoke(build(), ["split", "churn"]).exit_code, lambda code: code == 0)
        assert "champion    1  100 %" in run("split", "churn").output
        entries = json.loads(run("ledger", "churn", "--json").output)
        assert [entry["subject_kind"] for entry in entries] == ["request", "deployment"]
        answers = [
            entry for entry in json.loads(run("ledger", "churn", "--all", "--json").output) if not entry["state"]
        ]
        assert [(each["command_kind"], each["outcome"]) for each in answers] == [
            ("request", "refused"),
            ("set_champion", "accepted"),
        ]
        assert "request: refused" in run("ledger", "churn", "--all").output
        checks = {check["name"]: check["status"] for check in json.loads(run("doctor", "--json").output)}
        assert [checks[name] for name in ("kafka", "topics", "redis", "models", "workers")] == ["ok"] * 5
        assert json.loads(run("recount", "--json").output)["equal"]

    done = json.loads(run("rollback", "churn", "--force", "--reason", "in the dark", "--json").output)
    assert (done["split"], done["command"]) == ("set", "sent")
    with running_worker(settings):

        def epoch() -> int:
            return int(json.loads(run("ledger", "churn", "--json").output)[-1]["epoch"])

        wait_for(epoch, lambda found: found >= done["epoch"])
        assert json.loads(run("split", "churn", "--json").output)["epoch"] >= done["epoch"]


def test_topics_are_checked_without_being_made(run: Run, settings: Settings) -> None:
    assert {each["outcome"] for each in json.loads(run("topics", "check", "--json").output)} == {"same"}
    name = settings.topic("features")
    admin = AdminClient({**settings.kafka.properties()})
    admin.delete_topics([name])[name].result()
    # The broker forgets a topic in its own time.
    wait_for(lambda: missing_topics(settings), bool)
    result = run("topics", "check", code=1)
    assert "1 of 12 topics are missing: driftloop topics create" in result.stderr
    assert "missing" in run("doctor", code=1).output
    made = json.loads(run("topics", "create", "--json").output)
    assert [each["name"] for each in made if each["outcome"] == "made"] == [name]


def test_a_published_reference_never_changes(run: Run, settings: Settings) -> None:
    profile = profile_of(MODEL, "1")
    assert references.publish(settings, profile)
    found = references.read(settings, "churn", "1")
    assert found is not None
    assert found.to_parts() == profile.to_parts()
    write_model(Path("churn.toml"))
    write_table(Path("table.csv"))
    run("reference", "build", "--model", "churn.toml", "--data", "table.csv", "-o", "other.json")
    assert (
        "another reference is published under this version" in run("reference", "publish", "other.json", code=1).stderr
    )
    with pytest.raises(ProfileError):
        references.publish(settings, references.load(Path("other.json")))
    assert references.read(settings, "churn", "2") is None
    assert references.published_versions(settings) == {"churn": ["1"]}


def test_what_no_model_takes_is_listed_and_sent_again_once_it_does(run: Run, settings: Settings) -> None:
    event = {
        "prediction_id": "p1",
        "model": "churn",
        "ts": T0,
        "features": {"age": 40, "plan": "a"},
        "prediction": True,
    }
    Path("p.jsonl").write_text(json.dumps(event) + "\n")
    with running_worker(settings):
        assert run("replay", "--predictions", "p.jsonl").output == "1 predictions sent\n"
        letters = wait_for(lambda: json.loads(run("dead-letters", "list", "--json").output), bool)
        assert "which is not configured" in letters[0]["reason"]
        assert '"prediction_id":"p1"' in run("dead-letters", "show", letters[0]["letter_id"]).output
        write_model(Path("churn.toml"))
        run("models", "apply", "churn.toml")
        run("dead-letters", "replay", letters[0]["letter_id"])
        models = wait_for(lambda: json.loads(run("status", "--json").output)["models"], bool)
        assert models[0]["n"] == 1


def test_a_lost_label_store_is_made_anew_and_labels_still_find_their_predictions(
    run: Run, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = 'region = { kind = "categorical", source = "features" }\n'
    write_model(Path("churn.toml"), slices='"plan", "region"', features=region)
    run("models", "apply", "churn.toml")
    references.publish(settings, profile_of(MODEL, "1"))
    store = redis.Redis.from_url(settings.redis.url)
    keys = Keys(settings.namespace)

    def performance() -> dict[str, int]:
        return json.loads(store.get(keys.performance("churn", "1")) or "{}")

    # Its reference knows no region.
    def sliced() -> dict[str, int]:
        return json.loads(store.hget(keys.slices("churn", "1"), "region (other)") or "{}").get("metrics", {})

    def label_records() -> str:
        # Its exit code hangs on how long the worker has been silent, too.
        checks = json.loads(CliRunner().invoke(build(), ["doctor", "--json"]).stdout)
        (found,) = [check["found"] for check in checks if check["name"] == "label store records"]
        return found

    one = "00000000-0000-0000-0000-000000000001"
    with running_worker(settings):
        sent = send_events(settings, panes=1, per_pane=50, shift_from=9)
        sent += send_events(settings, panes=1, per_pane=50, shift_from=9, first=1, as_batches=True)
        wait_for(performance, lambda found: found.get("labelled") == sent)
        send_features(settings, prediction_id=one, region="north")
        wait_for(sliced, lambda found: found.get("n") == 1)
        with monkeypatch.context() as hurried:
            hurried.setattr(join_rebuild, "SESSION_S", 0.0)
            refused = run("replay", "--rebuild-join", code=1)
        assert "stop every worker with the role all or ingest first" in refused.stderr
    for bucket in range(settings.labels.join_buckets):
        store.delete(keys.join(bucket))
    assert label_records().startswith(f"{settings.labels.join_buckets} of {settings.labels.join_buckets} buckets")
    done = json.loads(run("replay", "--rebuild-join", "--json").output)
    assert done == {"predictions": sent, "features": 1, "labels": sent, "read": 2 * sent + 1, "whole_since_ms": None}
    # What was read is known without the group, too.
    let_expire(settings, "ingest")
    assert json.loads(run("replay", "--rebuild-join", "--json").output) == done
    assert label_records().startswith("all ")

    correction = {"prediction_id": one, "model": "churn", "label": True, "revision": 1}
    Path("l.jsonl").write_text(json.dumps({**correction, "ts": T0 + 60_000}) + "\n")
    with running_worker(settings):
        before = wait_for(performance, lambda found: found.get("labelled") == sent)
        run("replay", "--labels", "l.jsonl")
        after = wait_for(performance, lambda found: found.get("metrics") != before["metrics"])
        assert after["labelled"] == sent
        assert sliced()["n"] == 1
        assert json.loads(run("recount", "--json").output)["equal"]


def test_dev_runs_until_it_is_told_to_stop_and_other_terminals_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("DRIFTLOOP_")]:
        monkeypatch.delenv(name)
    command = [sys.executable, "-m", "streamer.cli"]
    log = tmp_path / "dev.log"
    with log.open("wb") as out:
        dev = subprocess.Popen([*command, "dev", "--parts", "valkey"], stdout=out, stderr=out, start_new_session=True)
    try:
        wait_for(log.read_text, lambda text: "driftloop is running" in text)

        def other(*words: str) -> str:
            return subprocess.run([*command, *words], capture_output=True, text=True, check=True).stdout

        assert "export DRIFTLOOP_REDIS__URL=redis://127.0.0.1:" in other("dev", "--exports")
        assert "No events of any model" in other("status")
        second = subprocess.run([*command, "dev", "--parts", "valkey"], capture_output=True, text=True, check=False)
        assert (second.returncode, "runs a stack here" in second.stderr) == (1, True)
        dev.send_signal(signal.SIGINT)
        assert dev.wait(20) == 0
        gone = subprocess.run([*command, "dev", "--exports"], capture_output=True, text=True, check=False)
        assert (gone.returncode, "no local stack runs here" in gone.stderr) == (1, True)
    finally:
        if dev.poll() is None:
            dev.kill()
