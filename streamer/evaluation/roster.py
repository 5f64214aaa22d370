"""The models by name, and what is done to one of them: an error marks that model, and holds up no other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TypeAlias

import structlog

from monitors import lifecycle
from streamer import telemetry
from streamer.catalog import Catalog, Model
from streamer.evaluation.author import Author
from streamer.evaluation.model_record import FAULTS, Watched
from streamer.evaluation.shard import Shard

log = structlog.get_logger(__name__)

Act: TypeAlias = Callable[[Model, Watched], None]

_CATALOG_S = 5.0


class Roster:
    """Finds models, waiting for those whose configuration may be on its way, and guards what is done to them."""

    def __init__(self, catalog: Catalog, author: Author) -> None:
        self._catalog = catalog
        self._author = author
        self._absent: set[str] = set()
        self._absent_as_of = catalog.revision
        self._patience_s = _CATALOG_S

    def begin_round(self) -> None:
        """Allow a whole wait again."""
        self._patience_s = _CATALOG_S

    def model(self, name: str) -> Model | None:
        """Return a model; one this worker has not heard of yet is waited for, as its configuration may be on its way.

        A stage that waits is silent, so whatever the log names, one round waits `_CATALOG_S` in all (what
        was in the log before the wait has had it too), and a name waited for in vain is not waited for
        again until the catalog changes.
        """
        model = self._catalog.model(name)
        if model is not None:
            return model
        if self._absent_as_of != self._catalog.revision:
            self._absent_as_of = self._catalog.revision
            self._absent.clear()
        if name in self._absent:
            return None
        began = time.monotonic()
        model = self._catalog.await_model(name, max(self._patience_s, 0.0))
        self._patience_s -= time.monotonic() - began
        if model is None:
            self._absent.add(name)
            log.warning("model_unknown", model=name)
        return model

    def guarded(self, shard: Shard, name: str, act: Act, *, even_if_faulted: bool = False) -> None:
        """Do something to a model, if there is such a one; a faulted model is counted on, but its looks stop."""
        model = self.model(name)
        if model is None:
            return
        watched = shard.watched(model)
        if watched.record.life.faulted is not None and not even_if_faulted:
            return
        try:
            act(model, watched)
        except FAULTS as error:
            self.fault(shard, watched, error)

    def fault(self, shard: Shard, watched: Watched, error: Exception) -> None:
        """Mark a model faulted; the first error stays its reason."""
        log.error("model_faulted", model=watched.record.name, reason=str(error), exc_info=error)
        reason = f"{type(error).__name__}: {error}"
        watched.record.life, transitions = lifecycle.fault(watched.record.life, reason=reason)
        if transitions:
            self._author.note(shard, watched, transitions)

    def count_faulted(self, shards: Iterable[Shard]) -> None:
        """Say how many models are faulted or stale; one that is configured no more could not be mended, and is none."""
        records = [watched.record for shard in shards for watched in shard.models.values()]
        known = [record for record in records if self._catalog.model(record.name) is not None]
        telemetry.FAULTED_MODELS.set(sum(record.life.faulted is not None for record in known))
        telemetry.STALE_MODELS.set(sum(record.stale for record in known))
