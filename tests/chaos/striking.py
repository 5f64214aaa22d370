"""Doing to servers and workers what is planned, each after the other, side by side."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from random import Random

from streamer.audit.join_rebuild import rebuild
from streamer.settings import Settings
from tests.chaos.outage import start_without_broker
from tests.chaos.progress import await_ingested
from tests.chaos.schedule import OF_SERVERS, Blow
from tests.chaos.servers import Servers
from tests.chaos.workers import Crew, Role, role_of

# So long a worker has to take over what others had under way and to commit it; so long the store stays lost.
_TAKEN_OVER_S = 120.0
_LOST_S = (4.0, 8.0)


class Storm:
    """Strikes the servers and the workers, each after the other, side by side.

    Attributes
    ----------
    done : how often each fault was done. lost_bytes : what Valkey's crashes have taken. amiss : what went wrong then.
    """

    def __init__(
        self, settings: Settings, crew: Crew, servers: Servers, random: Random, say: Callable[[str], object]
    ) -> None:
        self._settings = settings
        self._crew = crew
        self._servers = servers
        self._random = random
        self._say = say
        self._of_workers = threading.Lock()
        self.done: Counter[str] = Counter()
        self.amiss: list[str] = []
        self.lost_bytes = 0

    def striking(self, planned: list[Blow]) -> Striking:
        """Strike as planned, in the background; leaving waits until all is done."""
        return Striking(self, planned)

    def strike(self, blow: Blow) -> None:
        """Do one thing."""
        if blow.fault in OF_SERVERS:
            what = self._strike_servers(blow)
        else:
            with self._of_workers:
                what = self._strike_workers(blow)
        self.done[blow.fault] += 1
        self._say(f"{blow.fault}{what}")

    def _strike_servers(self, blow: Blow) -> str:
        if blow.fault == "broker killed":
            self._servers.kill_broker()
        elif blow.fault == "broker away":
            self._servers.kill_broker(blow.seconds, meanwhile=self._start_in_vain)
            return f": {blow.seconds:.0f} s"
        elif blow.fault == "Valkey killed, its last second lost":
            lost = self._servers.kill_valkey()
            self.lost_bytes += lost
            return f": {lost:,} bytes"
        elif blow.fault == "broker paused":
            self._servers.pause("kafka", blow.seconds)
        elif blow.fault == "Valkey paused":
            self._servers.pause("valkey", blow.seconds)
        elif blow.fault == "broker's clock set ahead":
            return f": now by {self._servers.set_broker_ahead():.0f} s"
        elif blow.fault == "Valkey's clock set wrong":
            return f": now {self._servers.set_valkey_wrong():+.0f} s"
        elif blow.fault == "live view emptied":
            self._servers.flush_view()
        else:
            return self._empty_join_store()
        return ""

    def _start_in_vain(self) -> None:
        self.amiss += start_without_broker(self._settings)

    def _empty_join_store(self) -> str:
        """Empty the store while one ingest has a flush under way, let labels wait, and make it anew.

        What several flushes had under way of one id at that very moment could not be put together again: so all that
        others have appended and not committed, or this one before it was last started, is first committed.
        """
        crew, settings = self._crew, self._settings
        with self._of_workers:
            first, *others = crew.names("ingest", "all")
            for name in others:
                crew.remove(name)
            crew.await_well(first)
            await_ingested(settings, _TAKEN_OVER_S)
            self._servers.flush_join()
            time.sleep(self._random.uniform(*_LOST_S))
            with crew.without("ingest", "all"):
                done = rebuild(settings, now_ms=int(time.time() * 1000))
            for name in others:
                crew.add(role_of(name))
        return f", made anew from {done.predictions:,} predictions and {done.labels:,} labels"

    def _strike_workers(self, blow: Blow) -> str:
        crew = self._crew
        if blow.fault == "worker added":
            roles: tuple[Role, ...] = ("ingest", "evaluate") if crew.names("ingest") else ("all",)
            return f": {crew.add(roles[int(blow.whom * len(roles))])}"
        if blow.fault == "ingest killed":
            names = crew.names("ingest", "all")
        elif blow.fault == "evaluate killed":
            names = crew.names("evaluate", "all")
        else:
            names = crew.names()
        name = names[int(blow.whom * len(names))]
        if blow.at_work:
            crew.await_well(name)
        if blow.fault == "worker removed":
            role = role_of(name)
            if len(crew.names(role)) < 2:
                # Somebody must go on.
                crew.add(role)
            crew.remove(name)
        elif blow.fault == "worker paused past its session":
            crew.pause(name, blow.seconds)
        elif blow.fault == "all workers killed":
            crew.kill(*names)
            return ""
        else:
            crew.kill(name)
        return f": {name}"


class Striking:
    """The threads of a storm: one for the servers, one for the workers."""

    def __init__(self, storm: Storm, planned: list[Blow]) -> None:
        self._storm = storm
        self._failures: list[BaseException] = []
        self._planned, self._begun = len(planned), list[Blow]()
        of_servers = [blow for blow in planned if blow.fault in OF_SERVERS]
        of_workers = [blow for blow in planned if blow.fault not in OF_SERVERS]
        self._threads = [threading.Thread(target=self._run, args=(each,)) for each in (of_servers, of_workers)]

    @property
    def share(self) -> float:
        """How much of it has begun, or is given up."""
        return 1.0 if self._failures or not self._planned else len(self._begun) / self._planned

    def __enter__(self) -> Striking:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.daemon = True
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join()
        if self._failures:
            raise self._failures[0]

    def _run(self, planned: list[Blow]) -> None:
        try:
            for blow in planned:
                time.sleep(max(0.0, self._began + blow.at_s - time.monotonic()))
                self._begun.append(blow)
                self._storm.strike(blow)
        except BaseException as failure:  # noqa: BLE001 - a thread's failure is the run's: it is raised there
            self._failures.append(failure)
