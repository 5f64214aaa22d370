"""Which version serves an entity: stable buckets, and the split read from Redis without making the caller wait."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from streamer.addresses import checked_redis_url
from streamer.events import Deployment
from streamer.redis_clients import options as redis_options
from streamer.state import Keys, log_of_split

BUCKETS = 1000
UNKNOWN_VERSION = "_"

log = logging.getLogger(__name__)
_decode = msgspec.json.Decoder(Deployment).decode


@dataclass(frozen=True, slots=True)
class Choice:
    """Which version serves an entity, and what a prediction must carry for the rollout to count it.

    Attributes
    ----------
    version : the model's version, "_" when nobody has said which.
    rollout_id, bucket : of the rollout that is going on, in both its arms; None when there is none.
    arm : "champion" or "challenger".
    """

    version: str
    rollout_id: str | None = None
    bucket: int | None = None
    arm: Literal["champion", "challenger"] = "champion"


def bucket_of(entity_id: str, salt: str) -> int:
    """Return the bucket of an entity, 0 to 999, the same in every process and language.

    Parameters
    ----------
    entity_id : who or what is served: a user, a plane, a device.
    salt : the rollout's; another salt is another shuffle.

    Notes
    -----
    BLAKE2b (RFC 7693) with a digest of 8 bytes and no key, over the UTF-8 bytes of the salt, a zero
    byte, and the entity id; the digest as a big-endian unsigned integer, modulo 1000.
    `printf "canary-1\\0N14228" | b2sum -l 64` is the same digest; `bucket_of("N14228", "canary-1")` is 225.
    """
    text = f"{salt}\0{entity_id}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") % BUCKETS


def choose(deployment: Deployment | None, entity_id: str) -> Choice:
    """Return the version that serves an entity: the challenger where its bucket is below 10 · percent.

    Parameters
    ----------
    deployment : the split in force; None for a model nobody has deployed.
    entity_id : as in `bucket_of`.
    """
    if deployment is None:
        return Choice(UNKNOWN_VERSION)
    challenger, rollout_id = deployment.challenger, deployment.rollout_id
    if challenger is None or rollout_id is None:
        return Choice(deployment.champion)
    bucket = bucket_of(entity_id, deployment.salt)
    if bucket < 10 * deployment.percent:
        return Choice(challenger, rollout_id, bucket, "challenger")
    return Choice(deployment.champion, rollout_id, bucket, "champion")


class SplitReader:
    """Keeps the splits of the models that were asked for fresh, in the background.

    Only the first question about a model waits, for one read of Redis with a time-out; every later
    one is answered from memory. With Redis away, or its document lost, the last split known stays in
    force. A split older than the one known is not taken, so that a Redis that forgot its last second undoes no
    rollback; one of another log is, whatever its epoch: where Kafka was made anew, epochs begin again.

    Parameters
    ----------
    redis_url : where the live view is, e.g. "redis://127.0.0.1:6379/0".
    namespace : driftloop's, "" by default.
    options : redis-py's own beside the address: user, password, TLS's files.
    max_age_s : how old a split may become before it is read again.
    timeout_s : how long one step of talking to Redis may take: connecting, then reading.

    Raises
    ------
    ValueError
        When the address cannot be one; the message does not repeat it, for its password's sake.

    Notes
    -----
    Safe to share between threads. After a fork the child starts its own reading at its first question.
    """

    def __init__(
        self,
        redis_url: str,
        namespace: str = "",
        *,
        options: Mapping[str, object] | None = None,
        max_age_s: float = 1.0,
        timeout_s: float = 0.5,
    ) -> None:
        try:
            checked_redis_url(redis_url)
        except ValueError as error:
            raise ValueError(f"redis_url: {error}") from None
        self._keys = Keys(namespace)
        self._max_age_s = max_age_s
        self._redis = redis.Redis.from_url(
            redis_url,
            **{
                **redis_options(redis_url, options or {}),
                "socket_timeout": timeout_s,
                "socket_connect_timeout": timeout_s,
                "retry": Retry(NoBackoff(), 0),
            },
        )
        self._splits: dict[str, Deployment | None] = {}
        self._logs: dict[str, str] = {}
        self._down = False
        self._start_over()
        _readers.add(self)

    def deployment(self, model: str) -> Deployment | None:
        """Return the split in force, None when the model is unknown (or Redis has not answered yet)."""
        if self._thread is None:
            self._start()
        if model not in self._splits:
            self._load_first(model)
        return self._splits[model]

    def choose(self, model: str, entity_id: str) -> Choice:
        """Return which version serves this entity."""
        return choose(self.deployment(model), entity_id)

    def refresh(self) -> None:
        """Read the splits of all models asked for so far; a fault of Redis leaves them as they are."""
        models = list(self._splits)
        if models:
            self._read(models)

    def close(self) -> None:
        """Stop reading."""
        self._stopped.set()
        thread = self._thread
        if thread is not None:
            thread.join()
        self._redis.close()

    def _start_over(self) -> None:
        """Forget the thread and the locks of a parent process; what is known of the splits stays."""
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._stopped.is_set():
                self._thread = threading.Thread(target=self._run, name="driftloop-split", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(self._max_age_s):
            self.refresh()

    def _load_first(self, model: str) -> None:
        with self._lock:
            if model not in self._splits:
                # With Redis known to be away there is nothing to wait for: the background reads it later.
                if not self._down:
                    self._read([model])
                # Known from here on, and not before: others who ask meanwhile wait for the same answer.
                self._splits.setdefault(model, None)

    def _read(self, models: list[str]) -> None:
        started = time.monotonic()
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                for model in models:
                    # At once: between two questions evaluate might write.
                    pipe.mget(self._keys.split(model), self._keys.stamp(model))
                documents = pipe.execute()
        except redis.RedisError as error:
            if not self._down:
                log.warning("driftloop: splits stay as they are, Redis did not answer: %s", error)
            self._down = True
            return
        if self._down:
            log.info("driftloop: Redis answers again, splits are fresh (%.3f s)", time.monotonic() - started)
        self._down = False
        for model, (document, stamp) in zip(models, documents, strict=True):
            if document is not None:
                self._take(model, document, log_of_split((stamp or b"").decode(errors="replace")))

    def _take(self, model: str, document: bytes, source: str) -> None:
        try:
            found = _decode(document)
        except msgspec.MsgspecError as error:
            log.error("driftloop: the split of %s stays as it is, its document is not valid: %s", model, error)
            return
        known = self._splits.get(model)
        another = source != "" and self._logs.get(model, source) != source
        if another:
            log.warning("driftloop: the split of %s is of another Kafka than before: taken as it is", model)
        if known is None or another or (found.model_epoch, found.epoch) >= (known.model_epoch, known.epoch):
            self._splits[model] = found
        if source:
            self._logs[model] = source


_readers: weakref.WeakSet[SplitReader] = weakref.WeakSet()


def _after_fork() -> None:
    for reader in list(_readers):
        reader._start_over()


os.register_at_fork(after_in_child=_after_fork)
