"""Kafka with SASL_SSL and ACLs, Redis with TLS and users: what each part needs, and what is said when it lacks."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AclBinding, ResourceType
from pydantic import SecretStr
from typer.testing import CliRunner, Result

from streamer import commands
from streamer.cli.frame import build
from streamer.kafka import access as kafka_access
from streamer.kafka import topics
from streamer.local.airflow import Airflow
from streamer.local.ports import Ports
from streamer.local.postgres import Postgres
from streamer.local.processes import Launcher
from streamer.local.site import Site
from streamer.local.stack import environment_of
from streamer.sdk import Client, TransportName
from streamer.settings import KafkaSettings, Settings
from tests.integration.events import MODEL, T0, rows
from tests.integration.running import WorkerProcess, environment, running_worker, wait_for
from tests.integration.secured import PASSWORDS, Authority, Secured, documented_acls, grant, secured
from tests.integration.test_cli import write_model, write_table

pytestmark = pytest.mark.integration

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with secured(tmp_path_factory.mktemp("secured")) as running:
        grant(running.kafka("admin"), documented_acls())
        yield running


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """The command line as a user runs it; what it says holds no password."""
    monkeypatch.chdir(tmp_path)
    # A command sends all logs to its own standard error, which ends with it.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    def invoke(settings: Settings, *words: str, code: int = 0) -> Result:
        for name, value in environment(settings).items():
            if name.startswith("DRIFTLOOP_"):
                monkeypatch.setenv(name, value)
        result = CliRunner().invoke(build(), list(words))
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        refuse_secrets(result.output)
        return result

    return invoke


def refuse_secrets(text: str) -> None:
    assert not [word for word in (*PASSWORDS.values(), "not-the-word") if word in text]


def log_events(client: Client, first: int, count: int) -> None:
    columns = rows(np.random.default_rng(first), count, 0.0)
    for row in range(count):
        client.log_prediction(
            model=MODEL.name,
            version="1",
            prediction_id=f"p-{first + row}",
            ts_ms=T0 + row,
            features={"age": float(columns["age"][row]), "plan": str(columns["plan"][row])},
            prediction=True,
            score=0.9,
        )
        client.log_label(f"p-{first + row}", model=MODEL.name, label=True, ts_ms=T0 + row + 1)


def test_each_part_works_with_no_more_rights_than_the_page_gives(servers: Secured, run: Run) -> None:
    operator, worker, airflow = (servers.settings(user) for user in ("operator", "worker", "airflow"))
    write_model(Path("churn.toml"))
    write_table(Path("table.csv"))
    run(operator, "topics", "create")
    run(operator, "models", "apply", "churn.toml")
    run(operator, "reference", "build", "--model", "churn.toml", "--data", "table.csv", "-o", "churn.json")
    run(operator, "reference", "publish", "churn.json")
    with running_worker(worker) as process:
        serving = servers.settings("serving", "PLAIN")
        for first, transport in ((0, "kafka-python"), (1_000, "librdkafka")):
            properties = serving.kafka.properties()
            with Client(
                properties["bootstrap.servers"],
                redis_url=serving.redis.url,
                redis=servers.redis("serving"),
                kafka=properties,
                transport=transport,
            ) as client:
                log_events(client, first, 200)
                assert client.choose(MODEL.name, "someone").version == "_"
                assert client.flush(20) == 0
        counted = wait_for(
            lambda: (
                json.loads(run(operator, "status", "churn", "--json").stdout)["model"]
                if json.loads(run(operator, "status", "--json").stdout)["models"]
                else None
            ),
            lambda found: found is not None and (found["performance"] or {}).get("labelled") == 400,
        )
        assert counted["summary"]["n"] == 400
        run(operator, "split", "churn", "--champion", "1")
        checks = {check["name"]: check for check in json.loads(run(operator, "doctor", "--json").stdout)}
        wanted = ("kafka", "topics", "redis", "label store settings", "models", "workers")
        assert {name: checks[name]["status"] for name in wanted} == dict.fromkeys(wanted, "ok"), checks
        assert json.loads(run(operator, "recount", "--json").stdout)["equal"]
        run(operator, "ledger", "churn", "--json")
        answer = commands.send(
            airflow,
            commands.new_command("allow", model="churn", model_epoch=1, payload={"until_ms": T0}, actor="airflow"),
        )
        assert answer.outcome in ("accepted", "refused")
        log = process.text()
    assert "NOPERM" not in log
    assert "AUTHORIZATION_FAILED" not in log
    refuse_secrets(log)


def test_the_page_gives_a_worker_the_rights_it_is_asked_for_and_no_others() -> None:
    given: dict[str, set[str]] = {}
    for acl in documented_acls():
        if acl.principal == "User:worker" and acl.restype == ResourceType.TOPIC:
            given.setdefault(acl.name.removesuffix(".v1"), set()).add(acl.operation.name)
    # For `replay --rebuild-join`, as the page says.
    given["labels"].remove("WRITE")
    assert given == kafka_access.worker_rights("all")


def test_airflows_connection_carries_what_the_service_is_configured_with(servers: Secured, tmp_path: Path) -> None:
    topics.ensure(servers.settings("operator"))
    settings = servers.settings("airflow")
    site = Site(tmp_path, Launcher("none", tmp_path / "guardian.log"), Ports(), settings)
    variables = Airflow(site, Postgres(site), lambda: environment_of(settings)).variables()
    extra = json.loads(variables["AIRFLOW_CONN_KAFKA_DRIFT"])["extra"]
    producer = Producer(servers.kafka("admin"))
    producer.produce(settings.topic("retrain-requests"), b"{}")
    assert producer.flush(10) == 0
    consumer = Consumer({**extra, "log_level": 0})
    consumer.subscribe([settings.topic("retrain-requests")])
    try:
        message = wait_for(lambda: consumer.poll(0.5), lambda found: found is not None, 20)
        assert message.error() is None
        consumer.commit(message, asynchronous=False)
    finally:
        consumer.close()


def changed(
    settings: Settings, *, kafka: dict[str, str] | None = None, redis: dict[str, object] | None = None
) -> Settings:
    properties = {**settings.kafka.properties(), **(kafka or {})}
    return settings.model_copy(
        update={
            "kafka": KafkaSettings.model_validate(properties),
            "redis": settings.redis.model_copy(update=redis or {}),
        }
    )


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, tuple[Path, Path]]:
    authority = Authority(tmp_path_factory.mktemp("other"))
    return authority, authority.issue("client")


def test_a_worker_that_kafka_keeps_out_says_why(
    servers: Secured, other: tuple[Authority, tuple[Path, Path]], run: Run
) -> None:
    authority, (certificate, key) = other
    topics.ensure(servers.settings("operator"))
    for kafka, told in (
        ({"sasl.password": "not-the-word"}, 'refused User:worker: .*"sasl.password"'),
        ({"ssl.ca.location": str(authority.certificate)}, "do not trust each other: .*verify failed.*ssl.ca.location"),
        (
            {"ssl.certificate.location": str(certificate), "ssl.key.location": str(key)},
            "do not trust each other: .*ssl.certificate.location",
        ),
        ({"ssl.ca.location": "/nowhere.pem"}, "ssl.ca.location failed"),
    ):
        said = run(changed(servers.settings("worker"), kafka=kafka), "worker", code=3).stderr
        assert re.search(f"^driftloop: [Kk]afka.*{told}", said), said
    missing = run(servers.settings("stranger"), "worker", code=3).stderr
    assert "does not grant User:stranger: " in missing
    assert "Read, Write on topic partials.v1" in missing
    assert "Read on group driftloop-evaluate" in missing
    refused = run(servers.settings("serving"), "models", "apply", str(write_model(Path("m.toml")) or "m.toml"), code=3)
    assert "models.v1" in refused.stderr


def test_a_client_that_redis_keeps_out_says_why(
    servers: Secured, other: tuple[Authority, tuple[Path, Path]], run: Run
) -> None:
    worker = servers.settings("worker")
    for redis, told in (
        ({"password": SecretStr("not-the-word")}, "refused the user or the password"),
        ({"ssl_ca_certs": other[0].certificate}, "shows a certificate that redis.ssl_ca_certs does not vouch for"),
        ({"ssl_certfile": other[1][0], "ssl_keyfile": other[1][1]}, "does not take this client's certificate"),
        ({"ssl_ca_certs": Path("/nowhere.pem")}, "a file of redis.ssl_ca_certs, .* cannot be read"),
    ):
        for command in ("worker", "status"):
            said = run(changed(worker, redis=redis), command, code=3).stderr
            assert re.search(f"^driftloop: Redis at rediss://.*{told}", said), said
    assert "refused a command" in run(servers.settings("stranger"), "status", code=3).stderr


def test_a_stage_without_its_transactional_id_ends_with_a_line_that_names_it(servers: Secured) -> None:
    topics.ensure(servers.settings("operator"))
    lacking = [
        AclBinding(
            each.restype,
            each.name,
            each.resource_pattern_type,
            "User:halfway",
            "*",
            each.operation,
            each.permission_type,
        )
        for each in documented_acls()
        if each.principal == "User:worker" and each.restype != ResourceType.TRANSACTIONAL_ID
    ]
    grant(servers.kafka("admin"), lacking)
    settings = changed(servers.settings("halfway"), redis=dict(servers.settings("worker").redis))
    worker = WorkerProcess(settings, replica="7")
    try:
        assert worker.process.wait(60) == 3
    finally:
        worker.kill()
    said = worker.text()
    assert "lacks Write on its transactional id" in said.splitlines()[-1]
    assert "Traceback" not in said
    refuse_secrets(said)


@pytest.mark.parametrize("transport", ["kafka-python", "librdkafka"])
def test_the_sdk_says_why_it_cannot_send_and_holds_nobody_up(
    servers: Secured, transport: TransportName, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = {"sasl.username": "stranger", "sasl.password": PASSWORDS["stranger"]}
    for kafka, told in (
        ({"sasl.password": "not-the-word"}, r'sasl\.password" or the certificate is refused|uthentication failed'),
        (nobody, "uthorization ?[Ff]ailed"),
    ):
        properties = {**servers.kafka("serving"), **kafka}
        with caplog.at_level(logging.INFO):
            client = Client(properties["bootstrap.servers"], redis_url=None, kafka=properties, transport=transport)
            log_events(client, 0, 3)
            wait_for(lambda: caplog.text, re.compile(told).search, 10)
            report = client.close(1)
        assert report.unsent == 6, report
        refuse_secrets(caplog.text)
        caplog.clear()
