"""The doctor: each fault found is named with what to do, and none keeps the others from being looked for."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator

import pytest
import redis

from streamer.diagnosis import doctor, store_checks
from streamer.diagnosis.checks import Check
from streamer.diagnosis.doctor import examine
from streamer.diagnosis.log_checks import judge_room
from streamer.join.labels import JoinStore
from streamer.settings import Settings
from streamer.state import Keys
from tests.streamer.live_documents import NOW, fill

# Nothing listens on the discard port.
NOBODY = "127.0.0.1:9"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_TIMEOUT_S", 0.5)


def checks(now_ms: int = NOW, **sections: dict[str, str]) -> dict[str, Check]:
    defaults = {
        "kafka": {"bootstrap.servers": NOBODY},
        "redis": {"url": f"redis://:secret@{NOBODY}/0"},
        "mlflow": {"tracking_uri": f"http://{NOBODY}"},
        "airflow": {"url": f"http://{NOBODY}"},
    }
    found = list(examine(Settings.model_validate({**defaults, **sections}), now_ms=now_ms))
    assert len({check.name for check in found}) == len(found)
    return {check.name: check for check in found}


def test_with_nothing_there_the_causes_are_named_and_what_hangs_on_them_is_skipped() -> None:
    found = checks()
    assert {name: check.status for name, check in found.items() if name != "java"} == {
        "configuration": "ok",
        "environment": "ok",
        "kafka": "unreachable",
        "kafka disks": "skipped",
        "topics": "skipped",
        "offsets": "skipped",
        "transactions": "skipped",
        "dead letters": "skipped",
        "redis": "unreachable",
        "label store settings": "skipped",
        "label store records": "skipped",
        "models": "skipped",
        "workers": "skipped",
        "streams": "skipped",
        "mlflow": "warning",
        "airflow": "warning",
    }
    assert NOBODY in found["kafka"].found
    assert "DRIFTLOOP_KAFKA" in found["kafka"].remedy
    assert all(check.remedy for check in found.values() if check.status in ("unreachable", "warning", "failed"))
    assert "secret" not in str(found)


def test_a_misspelt_variable_is_told_with_the_one_that_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DRIFTLOOP_REDS__URL", "DRIFTLOOP_WORKER_REPLICA", "DRIFTLOOP_QQ", "DRIFTLOOP_SDK__SPOOL"):
        monkeypatch.setenv(name, "redis://:secret@x")
    check = checks()["environment"]
    assert (check.status, check.remedy) == ("warning", "correct the spelling, or unset it")
    assert check.found == (
        "nothing reads DRIFTLOOP_QQ, DRIFTLOOP_REDS__URL (DRIFTLOOP_REDIS__URL?), "
        "DRIFTLOOP_WORKER_REPLICA (DRIFTLOOP_WORKER__REPLICA?)"
    )


def test_a_store_that_may_forget_labels_is_a_failure(store: redis.Redis, store_url: str) -> None:
    store.config_set("appendonly", "no")
    store.config_set("maxmemory-policy", "allkeys-lru")
    check = checks(redis={"url": store_url})["label store settings"]
    assert check.status == "failed"
    assert "appendonly is no, wanted yes" in check.found
    assert "maxmemory-policy is allkeys-lru, wanted noeviction" in check.found
    store.config_set("appendonly", "yes")
    store.config_set("maxmemory-policy", "noeviction")
    assert checks(redis={"url": store_url})["label store settings"].status == "ok"


def test_a_label_store_of_its_own_is_looked_at_too(store: redis.Redis, store_url: str) -> None:
    found = checks(redis={"url": store_url, "join_url": f"redis://{NOBODY}/0"})
    assert found["redis"].status == "ok"
    assert found["label store"].status == "unreachable"
    assert found["label store settings"].status == "skipped"


def test_a_label_store_that_has_lost_records_is_a_failure_and_an_empty_one_none_if_nothing_was_joined(
    store: redis.Redis, store_url: str
) -> None:
    settings = Settings.model_validate({"redis": {"url": store_url}, "labels": {"join_buckets": 4}})
    assert store_checks.records(settings, joined=False).status == "ok"
    assert store_checks.records(settings, joined=None).status == "skipped"
    emptied = store_checks.records(settings, joined=True)
    assert (emptied.status, emptied.found[:42]) == ("failed", "4 of 4 buckets have lost their records: la")
    assert "driftloop replay --rebuild-join" in emptied.remedy
    JoinStore(store, Keys(), buckets=4, wait_aof=False, hold_ms=0).mark_whole()
    assert store_checks.records(settings, joined=True).status == "ok"
    store.delete(Keys().join(2))
    assert store_checks.records(settings, joined=None).found.startswith("1 of 4 buckets")
    assert checks(redis={"url": store_url})["label store records"].status == "failed"


def test_a_store_too_old_for_the_label_join_is_a_failure(
    store: redis.Redis, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_NEEDED_COMMAND", "hsetfuture")
    check = checks(redis={"url": store_url})["redis"]
    assert check.status == "failed"
    assert "knows no HSETFUTURE" in check.found
    assert check.remedy == "use Valkey 9 or newer, or Redis 8 or newer"


def test_workers_must_beat_and_between_them_run_both_stages(store: redis.Redis, store_url: str) -> None:
    def workers(now_ms: int = NOW) -> Check:
        return checks(now_ms, redis={"url": store_url})["workers"]

    assert (workers().status, workers().found) == ("failed", "none has ever run")
    fill(store, Keys())
    assert (workers().status, workers().found) == ("ok", "0 (all, lag 56)")
    assert (workers(NOW + 60_000).status, workers(NOW + 60_000).found) == ("failed", "silent: 0")
    store.hset(Keys().workers(), "1", json.dumps({"replica": "1", "role": "ingest", "as_of_ms": NOW - 60_000}))
    assert workers().status == "warning"
    store.hset(Keys().workers(), "0", json.dumps({"replica": "0", "role": "ingest", "as_of_ms": NOW}))
    assert (workers().found, workers().remedy) == ("none runs evaluate", "driftloop worker --role evaluate")


def test_a_view_that_cannot_be_read_is_a_finding(store: redis.Redis, store_url: str) -> None:
    store.hset(Keys().workers(), "0", "no JSON")
    check = checks(redis={"url": store_url})["workers"]
    assert check.status == "failed"
    assert "driftloop:workers 0" in check.found


def test_models_whose_events_have_stopped_coming_or_whose_looks_have_are_named(
    store: redis.Redis, store_url: str
) -> None:
    def streams(**fields: bool) -> tuple[str, str]:
        summary = {"model": "churn", "as_of_ms": NOW, **fields}
        store.hset(Keys().models(), "churn", json.dumps(summary))
        check = checks(redis={"url": store_url})["streams"]
        return check.status, check.found

    assert streams() == ("ok", "events of 1 model come")
    assert streams(stale=True) == ("warning", "no live events for long: churn")
    assert streams(stale=True, faulted=True) == ("failed", "looks stopped by a fault: churn")


@pytest.mark.parametrize(
    ("usable", "error", "status"),
    [(50, 0, "ok"), (9, 0, "warning"), (1, 0, "failed"), (50, 56, "failed"), (-1, 0, "skipped")],
)
def test_a_broker_s_disk_that_is_almost_full_is_found_before_it_is(usable: int, error: int, status: str) -> None:
    directory = {"error_code": error, "log_dir": "/data", "total_bytes": 100 * 2**30, "usable_bytes": usable * 2**30}
    check = judge_room([{"broker": 1, "log_dirs": [directory]}])
    assert check.status == status
    assert bool(check.remedy) == (status in ("warning", "failed"))


@pytest.mark.parametrize("ahead_s", [0, 10])
def test_clocks_that_differ_are_told(
    store: redis.Redis, store_url: str, ahead_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = doctor.time.time
    monkeypatch.setattr(doctor.time, "time", lambda: clock() - ahead_s)
    check = checks(redis={"url": store_url})["clock"]
    assert check.status == ("warning" if ahead_s else "ok")


class _Answers(http.server.BaseHTTPRequestHandler):
    health: dict[str, object]

    def do_GET(self) -> None:
        body = b"OK" if self.path == "/health" else json.dumps(self.health).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_mlflow_and_airflow_are_asked_for_their_health(web: str) -> None:
    parts = ("metadatabase", "scheduler", "triggerer", "dag_processor")
    _Answers.health = {name: {"status": "healthy"} for name in parts}
    found = checks(mlflow={"tracking_uri": web}, airflow={"url": web})
    assert (found["mlflow"].status, found["airflow"].status) == ("ok", "ok")
    _Answers.health = {**_Answers.health, "triggerer": {"status": None}}
    found = checks(mlflow={"tracking_uri": "sqlite:///x.db"}, airflow={"url": web})
    assert found["mlflow"].status == "skipped"
    assert found["airflow"].found == f"{web}: not healthy: triggerer"
