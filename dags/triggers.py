"""What Airflow's triggerer runs: requests taken from Kafka one by one, and the wait for a canary's verdict."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

import msgspec
import redis.asyncio
from airflow.providers.apache.kafka.triggers.shared_stream import KafkaSharedStreamTrigger
from airflow.triggers.base import BaseTrigger, TriggerEvent
from airflow.triggers.shared_stream import reject_shared_stream_event
from redis.exceptions import RedisError

from dags.steps.verdicts import Awaited, read_verdict
from streamer.events import RetrainRequest
from streamer.redis_clients import view_options
from streamer.settings import load_settings
from streamer.state import Keys

POLL_S = 0.5

log = logging.getLogger(__name__)


class RetrainRequestTrigger(KafkaSharedStreamTrigger):
    """Fires an event a request; its offset is committed once the event is in Airflow's database.

    A message that is no request goes to the dead letters and the stream goes on.
    """

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return where this class is and how to make it again."""
        _, arguments = super().serialize()
        return f"{__name__}.{type(self).__qualname__}", arguments

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Any]) -> AsyncIterator[TriggerEvent]:
        """Turn messages into events; what cannot be decoded is rejected, for a raise would lose it."""
        async for value in shared_stream:
            try:
                request = msgspec.json.decode(value, type=RetrainRequest)
                event = TriggerEvent(msgspec.to_builtins(request))  # type: ignore[no-untyped-call]
            except Exception as error:  # noqa: BLE001 - whatever it is, the partition must go on
                log.warning("a message of %s is no retrain request: %s", self.topics, error)
                reject_shared_stream_event()
                continue
            yield event


class VerdictTrigger(BaseTrigger):
    """Waits for the verdict of one step of one rollout in the canary document; see `dags.steps.verdicts`."""

    def __init__(self, model: str, rollout_id: str, step: int, epoch: int, seen_ms: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.awaited = Awaited(model, rollout_id, step, epoch, seen_ms)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return where this class is and how to make it again."""
        return f"{__name__}.{type(self).__qualname__}", asdict(self.awaited)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Fire once, with the verdict."""
        settings = load_settings()
        key = Keys(settings.namespace).canary(self.awaited.model)
        client = redis.asyncio.Redis.from_url(settings.redis.url, **view_options(settings))
        try:
            while True:
                try:
                    found = read_verdict(await client.get(key), self.awaited)
                except RedisError as error:
                    # The view comes back by itself, and so does the wait.
                    log.warning("the verdict of %s cannot be read: %s", self.awaited.rollout_id, error)
                    found = None
                if found is not None:
                    yield TriggerEvent(found)  # type: ignore[no-untyped-call]
                    return
                await asyncio.sleep(POLL_S)
        finally:
            await client.aclose()
