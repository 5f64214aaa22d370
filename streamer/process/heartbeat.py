"""What a worker says of itself every second: that it is there, how fast it goes, what waits, and what did not count."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

import msgspec
import redis

from streamer import telemetry
from streamer.documents import Heartbeat
from streamer.settings import Settings
from streamer.state import Keys
from streamer.transaction import TransactionalStep

# A worker silent for a day has been taken away for good, or will say so itself when it is back.
_FORGOTTEN_MS = 24 * 3_600_000


class Pulse:
    """Tells the live view that this worker is there; one thread calls it.

    Parameters
    ----------
    client : of the view's server.
    steps : the stages that this worker runs, by name; they may come later.
    """

    def __init__(
        self, settings: Settings, role: str, client: redis.Redis, steps: Mapping[str, TransactionalStep]
    ) -> None:
        self._replica = settings.worker.replica
        self._role = role
        self._redis = client
        self._key = Keys(settings.namespace).workers()
        self._steps = steps
        self._started_ms = int(time.time() * 1000)
        self._counted = (time.monotonic(), 0.0)

    def beat(self) -> None:
        """Write this worker's document; RedisError when the view is away."""
        document = self.document(int(time.time() * 1000))
        self._redis.hsetex(self._key, self._replica, msgspec.json.encode(document), px=_FORGOTTEN_MS)

    def document(self, now_ms: int) -> Heartbeat:
        """Return what is true of this worker now."""
        now, total = time.monotonic(), telemetry.total(telemetry.EVENTS)
        then, before = self._counted
        self._counted = (now, total)
        lag = {stage: step.lag() for stage, step in list(self._steps.items())}
        return Heartbeat(
            replica=self._replica,
            role=self._role,
            pid=os.getpid(),
            as_of_ms=now_ms,
            started_ms=self._started_ms,
            events_per_s=round((total - before) / max(now - then, 1e-9), 1),
            lag=lag.get("ingest", 0),
            evaluate_lag=lag.get("evaluate", 0),
            transaction_ms={
                stage: round(step.transaction_s * 1000, 1)
                for stage, step in list(self._steps.items())
                if step.transaction_s is not None
            },
            events=int(total),
            late=int(telemetry.total(telemetry.LATE)),
            too_late=int(telemetry.total(telemetry.TOO_LATE)),
            dead_letters=int(telemetry.total(telemetry.DEAD_LETTERS)),
            parked_labels=int(telemetry.total(telemetry.PARKED_LABELS)),
        )
