"""The embedded stack: its parts started side by side, stopped in good order, found again by other terminals."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType

from pydantic import SecretStr

from streamer.durations import Duration
from streamer.kafka import topics
from streamer.local.airflow import Airflow
from streamer.local.kafka import Kafka
from streamer.local.mlflow import Mlflow
from streamer.local.ports import Ports
from streamer.local.postgres import Postgres
from streamer.local.processes import Launcher, StackError, end, identify
from streamer.local.record import Record
from streamer.local.site import Part, Site
from streamer.local.valkey import Valkey
from streamer.local.worker import DEFAULT_COMMAND, Workers
from streamer.settings import Section, Settings, config_path, load_settings

PARTS = ("kafka", "valkey", "postgres", "mlflow", "airflow", "worker")
Progress = Callable[[str, str], None]

# What must be ready before a step starts, where it is in the stack at all.
_NEEDS = {
    "kafka": (),
    "valkey": (),
    "postgres": (),
    "topics": ("kafka",),
    "mlflow": ("postgres",),
    "airflow database": ("postgres",),
    # The trigger's topics must exist before it starts.
    "airflow": ("airflow database", "topics"),
    "worker": ("topics", "valkey"),
}
_REQUIRES = {"mlflow": "postgres", "airflow": "postgres"}
# What is stopped first, and what side by side: readers and writers before what they read and write.
_STOP_ORDER = (("worker", "airflow"), ("mlflow",), ("kafka", "valkey", "postgres"))
# Directories under the root that belong to a stack, and go with `keep=False`.
_DIRECTORIES = (*PARTS, "logs")
_STALE_GRACE_S = 5.0
_LOOK_S = 1.0


def silent(part: str, message: str) -> None:
    """Report no progress."""


class Stack:
    """The real things as child processes of this one.

    Parameters
    ----------
    root : where all state and logs lie, e.g. `.driftloop`; one stack at a time.
    parts : which of `PARTS` to run. What is not among them is taken to run where the settings say.
    progress : called with a part and what it does, from several threads.
    keep : go on with the state and the addresses of the last run; else start clean.
    settings : the configuration that addresses are filled into; the one in force by default.
    worker_commands : a command a worker; each gets its own replica name and web port.

    Notes
    -----
    Children end within 10 s of this process, however it ends. See `streamer.local.guardian`.
    """

    def __init__(
        self,
        root: Path,
        *,
        parts: frozenset[str],
        progress: Progress = silent,
        keep: bool = False,
        settings: Settings | None = None,
        worker_commands: Sequence[Sequence[str]] = (DEFAULT_COMMAND,),
    ) -> None:
        for part in parts - set(PARTS):
            raise StackError(f"{part}: no such part; the parts are {', '.join(PARTS)}")
        for part, required in _REQUIRES.items():
            if part in parts and required not in parts:
                raise StackError(f"{part}: needs {required}; add it to the parts, which are {', '.join(sorted(parts))}")
        self.root = root.resolve()
        self.parts = parts
        self._progress = progress
        self._keep = keep
        self._base = settings or load_settings()
        self._worker_commands = worker_commands
        self._made: dict[str, Part] = {}
        self._lock = contextlib.ExitStack()
        self._record_lock = threading.Lock()
        self._record = Record()
        self._launcher = Launcher(str(self.root), self.root / "logs" / "guardian.log")
        self._site: Site | None = None

    def __enter__(self) -> Stack:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def settings(self) -> Settings:
        """The configuration with the addresses of the parts that have started."""
        settings = self._base
        for part in list(self._made.values()):
            settings = part.configure(settings)
        return settings

    def environment(self) -> dict[str, str]:
        """Return the whole of `settings` as environment variables: what a child needs to find everything."""
        path = config_path()
        named = {"DRIFTLOOP_CONFIG": str(path.resolve())} if path else {}
        return {**named, **environment_of(self.settings)}

    def part(self, name: str) -> Part:
        """Return a part that has started."""
        if name not in self._made:
            raise StackError(f"{name}: not started; this stack has {', '.join(sorted(self._made)) or 'nothing yet'}")
        return self._made[name]

    def kill(self, name: str) -> None:
        """End a part at once, as a crash would; `restart` brings it back on its own address with its data."""
        for child in self.part(name).children:
            child.kill()

    def restart(self, name: str) -> None:
        """Stop a part if it runs and start it again on its own address with its data."""
        self.part(name).stop()
        self.part(name).start()
        self._write()

    def ended(self) -> list[str]:
        """Tell of each server that has ended by itself, a line each; a worker that ends is started again."""
        servers = [self._made[name] for name in PARTS if name in self._made and name != "worker"]
        return [
            f"{child.identity.name} has ended by itself, with code {child.process.returncode}; its log is {child.log}"
            for server in servers
            for child in server.children
            if not child.running
        ]

    def wait(self, asked: threading.Event, tell: Callable[[str], None]) -> None:
        """Wait until asked to stop; meanwhile tell once of each server that ends by itself."""
        told: set[str] = set()
        while not asked.wait(_LOOK_S):
            for line in self.ended():
                if line not in told:
                    told.add(line)
                    tell(line)

    def start(self) -> None:
        """Start every part, those that do not depend on one another side by side, and wait until all are ready.

        Raises
        ------
        StackError
            When a part does not start (it is named, with the end of its log; the others are stopped again),
            or when another process runs a stack under the same root.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        self._lock.enter_context(self._sole_owner())
        last = Record.read(self.root)
        if last.processes:
            self._progress("stack", "ending what the last run left behind")
        end(last.processes, self._launcher.marker, grace_s=_STALE_GRACE_S)
        if not self._keep:
            self._wipe()
        ports = Ports(last.ports if self._keep else None)
        (self.root / "logs").mkdir(exist_ok=True)
        self._site = Site(self.root, self._launcher, ports, self._base)
        self._launcher.open()
        self._launcher.on_change = self._write
        self._write()
        try:
            self._start_all(self._steps(self._site))
        except BaseException:
            self._launcher.abort()
            self.stop()
            raise
        self._record.ready = True
        self._write()

    def stop(self) -> None:
        """Stop every part in good order; nothing of the stack runs afterwards. Safe to repeat."""
        self._launcher.on_change = lambda: None
        for group in _STOP_ORDER:
            present = [name for name in group if name in self._made]
            if present:
                with ThreadPoolExecutor(len(present)) as pool:
                    list(pool.map(self._stop_part, present))
        self._launcher.close()
        if self._site is not None:
            Record(ports=self._site.ports.all(), parts=sorted(self.parts)).write(self.root)
        self._made.clear()
        self._lock.close()

    def _steps(self, site: Site) -> dict[str, Callable[[], None]]:
        """Return what has to be done, by step, in an order in which every step comes after what it needs."""
        postgres = Postgres(site)
        airflow = Airflow(site, postgres, self.environment)
        made: dict[str, Part] = {
            "kafka": Kafka(site),
            "valkey": Valkey(site),
            "postgres": postgres,
            "mlflow": Mlflow(site, postgres),
            "airflow": airflow,
            "worker": Workers(site, self._worker_commands, self.environment),
        }
        steps: dict[str, Callable[[], None]] = {}
        for name in _NEEDS:
            if name in self.parts:
                steps[name] = self._starting(name, made[name])
            elif name == "topics" and self.parts & {"airflow", "worker"}:
                steps[name] = self._ensure_topics
            elif name == "airflow database" and "airflow" in self.parts:
                steps[name] = airflow.prepare
        return steps

    def _starting(self, name: str, part: Part) -> Callable[[], None]:
        def start() -> None:
            self._made[name] = part
            part.start()

        return start

    def _ensure_topics(self) -> None:
        topics.ensure(self.settings)

    def _start_all(self, steps: Mapping[str, Callable[[], None]]) -> None:
        with ThreadPoolExecutor(max(1, len(steps))) as pool:
            futures: dict[str, Future[None]] = {}
            for name, step in steps.items():
                before = [futures[other] for other in _NEEDS[name] if other in futures]
                futures[name] = pool.submit(self._run, name, step, before)
            try:
                wait(futures.values(), return_when=FIRST_EXCEPTION)
                # A step that failed for want of another comes after it, so the first failure is the cause.
                failed = [future for future in futures.values() if future.done() and future.exception()]
                for future in failed or futures.values():
                    future.result()
            except BaseException:
                # What still starts sees its process end, and gives up.
                self._launcher.abort()
                raise

    def _run(self, name: str, step: Callable[[], None], before: list[Future[None]]) -> None:
        for other in before:
            other.result()
        self._progress(name, "starting")
        started = time.monotonic()
        step()
        self._progress(name, f"ready in {time.monotonic() - started:.1f} s")

    def _stop_part(self, name: str) -> None:
        self._progress(name, "stopping")
        self._made[name].stop()

    def _wipe(self) -> None:
        for name in _DIRECTORIES:
            shutil.rmtree(self.root / name, ignore_errors=True)

    def _write(self) -> None:
        if self._site is None:
            return
        with self._record_lock:
            self._record.owner = identify("owner", os.getpid())
            self._record.processes = self._launcher.identities()
            self._record.parts = sorted(self.parts)
            self._record.ports = self._site.ports.all()
            self._record.environment = self.environment()
            self._record.write(self.root)

    @contextlib.contextmanager
    def _sole_owner(self) -> Iterator[None]:
        with (self.root / "stack.lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = Record.read(self.root).owner
                who = f"process {owner.pid}" if owner else "another process"
                raise StackError(f"{self.root}: {who} runs a stack here; stop it, or give another directory") from None
            yield


def environment_of(settings: Settings) -> dict[str, str]:
    """Return a configuration as the environment variables that make it again.

    Sections become DRIFTLOOP_<SECTION>__<KEY>; `kafka` and `topics`, whose keys are not known beforehand, JSON.
    """
    variables = {
        "DRIFTLOOP_KAFKA": json.dumps(settings.kafka.properties()),
        "DRIFTLOOP_TOPICS": json.dumps(settings.model_dump(mode="json", exclude_none=True)["topics"]),
    }
    for name, value in settings:
        prefix = f"DRIFTLOOP_{name.upper()}"
        if isinstance(value, Section):
            variables |= {f"{prefix}__{key.upper()}": _text(inner) for key, inner in value if inner is not None}
        elif prefix not in variables:
            variables[prefix] = _text(value)
    return variables


def _text(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Duration):
        return f"{int(value)}ms"
    return json.dumps(value) if isinstance(value, bool | tuple) else str(value)
