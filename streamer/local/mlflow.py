"""MLflow: its database used directly, an artifact directory, and its pages when somebody looks."""

from __future__ import annotations

import sys

from streamer.local.ports import HOST
from streamer.local.postgres import Postgres
from streamer.local.processes import Child
from streamer.local.site import Site, attempts, noticing_taken_ports
from streamer.local.web import answers
from streamer.settings import Settings

_READY_S = 120.0
_MIGRATION_S = 180.0
_STOP_S = 10.0


class Mlflow:
    """The model registry of a local stack."""

    def __init__(self, site: Site, postgres: Postgres) -> None:
        self._site = site
        self._postgres = postgres
        self._child: Child | None = None

    @property
    def children(self) -> list[Child]:
        """The web server's process, if it was asked for."""
        return [self._child] if self._child else []

    @property
    def tracking_uri(self) -> str:
        """The address that MLflow's own client takes: the database itself, ten times faster than its server."""
        return self._postgres.url("mlflow", "psycopg2")

    @property
    def artifact_root(self) -> str:
        """Where runs keep their files, as a URI."""
        return self._site.directory("mlflow/artifacts").as_uri()

    def start(self) -> None:
        """Bring the database to the installed version's schema."""
        self._postgres.migrate("mlflow", "mlflow", self._migrate)

    def stop(self) -> None:
        """Stop the web server, if it runs."""
        if self._child:
            self._child.stop(grace_s=_STOP_S)

    def configure(self, settings: Settings) -> Settings:
        """Return the settings with the database's address and the artifact directory."""
        update = {"tracking_uri": self.tracking_uri, "registry_uri": None, "artifact_root": self.artifact_root}
        return settings.model_copy(update={"mlflow": settings.mlflow.model_copy(update=update)})

    def serve(self) -> str:
        """Start MLflow's pages, which takes some 20 s and a gigabyte; return their address."""
        if not (self._child and self._child.running):
            for attempt in attempts(self._site, "mlflow"):
                with attempt:
                    self._serve()
        return self._url()

    def _serve(self) -> None:
        options = ["--host", HOST, "--port", str(self._site.ports.get("mlflow")), "--workers", "1"]
        options += ["--backend-store-uri", self.tracking_uri, "--artifacts-destination", self.artifact_root]
        self._child = child = self._site.launcher.spawn(
            "mlflow", [sys.executable, "-m", "mlflow", "server", *options], log=self._site.log("mlflow")
        )
        with noticing_taken_ports(child):
            child.wait_until(lambda: answers(f"{self._url()}/health"), within_s=_READY_S)

    def _url(self) -> str:
        return f"http://{HOST}:{self._site.ports.all()['mlflow']}"

    def _migrate(self) -> None:
        self._site.launcher.run(
            "mlflow",
            [sys.executable, "-m", "mlflow", "db", "upgrade", self.tracking_uri],
            log=self._site.log("mlflow"),
            within_s=_MIGRATION_S,
        )
