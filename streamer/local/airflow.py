"""Airflow's four processes, with the settings that make it quick and safe on one machine."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import sys
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from streamer.local.ports import HOST
from streamer.local.postgres import Postgres
from streamer.local.processes import Child, StackError
from streamer.local.site import Site, attempts, noticing_taken_ports
from streamer.local.web import fetch_json
from streamer.settings import Settings

CONNECTION = "kafka_drift"

_READY_S = 150.0
_MIGRATION_S = 240.0
# A scheduler with running tasks needs the API to end them, so it goes first and the API last.
_STOP_ORDER = ("scheduler", "triggerer", "dag-processor", "api-server")
_STOP_S = 12.0
_PORTS = ("airflow", "airflow-task-logs", "airflow-trigger-logs")
_HEALTHY = ("metadatabase", "scheduler", "triggerer", "dag_processor")


# How Airflow differs from its defaults; docker-compose.yaml has the same.
AIRFLOW_SETTINGS = {
    # Its workers have scikit-learn and MLflow imported before a task is forked from them.
    "CORE__EXECUTOR": "dags.executor.WarmLocalExecutor",
    "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
    "CORE__LOAD_EXAMPLES": "False",
    "CORE__PARALLELISM": "2",
    "DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
    "API__WORKERS": "1",
    "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.1",
    "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
    # At its default of 5 s a slot can stay held after its task.
    "WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
    "DAG_PROCESSOR__REFRESH_INTERVAL": "5",
    "LOGGING__LOGGING_LEVEL": "WARNING",
    "USAGE_DATA_COLLECTION__ENABLED": "False",
}


class Airflow:
    """The orchestrator of a local stack."""

    def __init__(self, site: Site, postgres: Postgres, surroundings: Callable[[], Mapping[str, str]]) -> None:
        self._site = site
        self._postgres = postgres
        self._surroundings = surroundings
        self._running: dict[str, Child] = {}

    @property
    def children(self) -> list[Child]:
        """The processes, those that are stopped last first."""
        return [self._running[name] for name in reversed(_STOP_ORDER) if name in self._running]

    @property
    def url(self) -> str:
        """Where its pages and its REST interface are."""
        return f"http://{HOST}:{self._site.ports.all().get('airflow', 0)}"

    def process(self, name: str) -> Child:
        """Return one of the processes: api-server, scheduler, triggerer or dag-processor."""
        if name not in self._running:
            raise StackError(f"airflow: no process {name!r} was started; there are {', '.join(_STOP_ORDER)}")
        return self._running[name]

    def token(self) -> str:
        """Return a token for its REST interface, to be sent as `Authorization: Bearer …`."""
        answer = fetch_json(f"{self.url}/auth/token")
        if not isinstance(answer, dict) or "access_token" not in answer:
            raise StackError(
                f"airflow: {self.url}/auth/token gave no token; see {self._site.log('airflow-api-server')}"
            )
        return str(answer["access_token"])

    def prepare(self) -> None:
        """Bring the database to the installed version's schema and start the API server.

        Needs PostgreSQL only. The API server takes longest of all and has nothing to do with Kafka,
        so it starts before the broker is ready; `start` waits for it.
        """
        for name in _PORTS:
            self._site.ports.get(name)
        self._postgres.migrate("airflow", "apache-airflow", self._migrate)
        self.spawn("api-server")

    def start(self) -> None:
        """Start what does not run yet of the four processes and wait until Airflow calls itself healthy."""
        for attempt in attempts(self._site, *_PORTS):
            with attempt:
                self._start()

    def _start(self) -> None:
        if "airflow" not in self._site.ports.all():
            # Another process was faster to the first port.
            self.stop()
            self._site.ports.same("airflow")
        for name in reversed(_STOP_ORDER):
            if name not in self._running or not self._running[name].running:
                self.spawn(name)
        server = self._running["api-server"]
        with noticing_taken_ports(server):
            server.wait_until(self._healthy, within_s=_READY_S)

    def spawn(self, name: str) -> Child:
        """Start one of the processes; in place of the one before it, if that has ended."""
        options = {"api-server": ["--host", HOST, "--port", str(self._site.ports.all()["airflow"])]}
        child = self._site.launcher.spawn(
            f"airflow {name}",
            [sys.executable, "-m", "airflow", name, *options.get(name, [])],
            log=self._site.log(f"airflow-{name}"),
            env=self._environment(),
        )
        self._running[name] = child
        return child

    def stop(self) -> None:
        """Stop the scheduler and those beside it, then the API server."""
        for group in (_STOP_ORDER[:-1], _STOP_ORDER[-1:]):
            children = [self._running[name] for name in group if name in self._running]
            if children:
                with ThreadPoolExecutor(len(children)) as pool:
                    list(pool.map(lambda child: child.stop(grace_s=_STOP_S), children))
        self._running.clear()

    def configure(self, settings: Settings) -> Settings:
        """Return the settings with the address of the pages and a place for the files of a retraining."""
        update = {"url": self.url, "work_dir": self._site.directory("airflow/work")}
        return settings.model_copy(update={"airflow": settings.airflow.model_copy(update=update)})

    def variables(self) -> dict[str, str]:
        """Return the environment of Airflow's own processes: driftloop's variables and Airflow's."""
        home = self._site.directory("airflow")
        surroundings = dict(self._surroundings())
        settings = {
            **AIRFLOW_SETTINGS,
            "CORE__DAGS_FOLDER": str(dags_folder()),
            "CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            # Else each of the processes that start together makes a key, and one cannot read the other's triggers.
            "CORE__FERNET_KEY": self._secret(home / "fernet-key"),
            "DATABASE__SQL_ALCHEMY_CONN": self._postgres.url("airflow", "psycopg2"),
            "DATABASE__SQL_ALCHEMY_CONN_ASYNC": self._postgres.url("airflow", "asyncpg"),
            "API__BASE_URL": self.url,
            "API_AUTH__JWT_SECRET": self._secret(home / "jwt-secret"),
            "API__SECRET_KEY": self._secret(home / "session-secret"),
            "LOGGING__BASE_LOG_FOLDER": str(home / "logs"),
            "LOGGING__DAG_PROCESSOR_CHILD_PROCESS_LOG_DIRECTORY": str(home / "logs" / "dag_processor"),
            # Two stacks on one machine must not meet on Airflow's fixed ports.
            "LOGGING__WORKER_LOG_SERVER_PORT": str(self._site.ports.same("airflow-task-logs")),
            "LOGGING__TRIGGER_LOG_SERVER_PORT": str(self._site.ports.same("airflow-trigger-logs")),
        }
        own = {f"AIRFLOW__{name}": value for name, value in settings.items()}
        connection = {f"AIRFLOW_CONN_{CONNECTION.upper()}": self._connection(surroundings)}
        # Forked tasks on macOS must not be asked about its frameworks, nor its proxy settings.
        macos = {"OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES"} if sys.platform == "darwin" else {}
        loopback = {"NO_PROXY": f"{HOST},localhost", "no_proxy": f"{HOST},localhost"}
        return {**surroundings, **own, **connection, **macos, **loopback, "AIRFLOW_HOME": str(home)}

    def _environment(self) -> dict[str, str | None]:
        """Return `variables`, and None for those of another Airflow that this process may have been started for."""
        others: dict[str, str | None] = {name: None for name in os.environ if name.startswith("AIRFLOW_")}
        return {**others, **self.variables()}

    def _connection(self, surroundings: Mapping[str, str]) -> str:
        namespace = self._site.settings.namespace
        extra = {
            **json.loads(surroundings["DRIFTLOOP_KAFKA"]),
            "group.id": f"{namespace}.driftloop-airflow" if namespace else "driftloop-airflow",
            # The trigger commits an event once it is in Airflow's database.
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            # A triggerer that died is replaced after 8–9 s instead of 46.
            "session.timeout.ms": 6000,
            "heartbeat.interval.ms": 2000,
        }
        return json.dumps({"conn_type": "kafka", "extra": extra})

    def _migrate(self) -> None:
        self._site.launcher.run(
            "airflow db migrate",
            [sys.executable, "-m", "airflow", "db", "migrate"],
            log=self._site.log("airflow-migrate"),
            within_s=_MIGRATION_S,
            env=self._environment(),
        )

    def _healthy(self) -> bool:
        for name, child in self._running.items():
            if not child.running:
                raise StackError(f"airflow {name}: ended with code {child.process.returncode}; {child.tail()}")
        health = fetch_json(f"{self.url}/api/v2/monitor/health")
        return isinstance(health, dict) and all(
            health.get(component, {}).get("status") == "healthy" for component in _HEALTHY
        )

    @staticmethod
    def _secret(path: Path) -> str:
        """Return the secret in a file that only this user can read, 32 bytes in base64; made at the first start."""
        if not path.is_file():
            path.touch(mode=0o600)
            path.write_text(urlsafe_b64encode(secrets.token_bytes(32)).decode())
        return path.read_text()


def dags_folder() -> Path:
    """Return the folder of the installed `dags` package."""
    found = importlib.util.find_spec("dags")
    if found is None or not found.submodule_search_locations:
        raise StackError("airflow: the package `dags` is not installed; install driftloop with its airflow extra")
    return Path(next(iter(found.submodule_search_locations))).resolve()
