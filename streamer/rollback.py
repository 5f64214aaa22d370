"""The rollback that works with evaluate down: routers are turned back through Redis, evaluate is told through Kafka."""

from __future__ import annotations

import time

import msgspec
import redis
from confluent_kafka import KafkaException

from streamer import commands, redis_clients
from streamer.events import Deployment, encode
from streamer.kafka.partitioning import partition_of
from streamer.kafka.reader import newest_by_key
from streamer.settings import Settings
from streamer.state import OLDER_SPLIT, Keys

# Above anything evaluate may have published unseen; it goes on from there when it has read the command.
EPOCH_LEAP = 1_000_000
# A worker that is up answers within a second.
_ANSWER_S = 5.0

_SET = (
    OLDER_SPLIT
    + """
local held = redis.call('GET', KEYS[1])
if held and older_split(ARGV[1], held) then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
return 1
"""
)


class RollbackError(Exception):
    """There is nothing to roll back to; the message says why and what to do."""


class ForcedRollback(msgspec.Struct, kw_only=True):
    """What a forced rollback has done: each of its two halves may have met a server that is down.

    Attributes
    ----------
    split : "set" when routers were turned back in Redis, else why not.
    command : "accepted" or "repeated" when evaluate has answered, "sent" when it will when it is back, else why not.
    """

    model: str
    champion: str
    epoch: int
    split: str
    command: str

    @property
    def complete(self) -> bool:
        """Whether both halves are done: nothing has to be run again."""
        return self.split == "set" and self.command in ("accepted", "repeated", "sent")


def force(settings: Settings, model: str, *, reason: str, actor: str) -> ForcedRollback:
    """Give all of a model's traffic to its champion now.

    Routers first, since they follow Redis; then the command, by which evaluate goes on above the
    epoch set here instead of painting over it. Safe to repeat.

    Raises
    ------
    RollbackError
        When neither Redis nor Kafka knows a deployment of the model.
    """
    client = redis_clients.connect(settings, socket_connect_timeout=3, socket_timeout=5)
    try:
        key = Keys(settings.namespace).split(model)
        held = _deployment(settings, client, key, model)
        forced = msgspec.structs.replace(
            held,
            epoch=held.epoch + EPOCH_LEAP,
            challenger=None,
            percent=0.0,
            step=-1,
            rollout_id=None,
            since_ms=time.time_ns() // 1_000_000,
        )
        split = _turn_back(client, key, forced)
    finally:
        client.close()
    command = _tell(settings, held, forced.epoch, reason, actor)
    return ForcedRollback(model=model, champion=held.champion, epoch=forced.epoch, split=split, command=command)


def _deployment(settings: Settings, client: redis.Redis, key: str, model: str) -> Deployment:
    """Return the deployment in force: as routers see it, else as Kafka has it."""
    try:
        stored = client.get(key)
    except redis.RedisError:
        stored = None
    if stored is None:
        place = partition_of(model, settings.internal_partitions)
        stored = newest_by_key(settings, settings.topic("deployments"), [place]).get(model)
    if stored is None:
        raise RollbackError(f"{model}: no deployment is known, so there is nothing to roll back to")
    found: Deployment = msgspec.json.decode(stored, type=Deployment)
    return found


def _turn_back(client: redis.Redis, key: str, forced: Deployment) -> str:
    try:
        written = client.eval(_SET, 1, key, encode(forced))
    except redis.RedisError as error:
        return f"not set: {error}"
    return "set" if written else "not set: a newer deployment stands there; run it again"


def _tell(settings: Settings, held: Deployment, epoch: int, reason: str, actor: str) -> str:
    command = commands.new_command(
        "force_rollback",
        model=held.model,
        model_epoch=held.model_epoch,
        subject=held.rollout_id or held.model,
        payload={"epoch": epoch, "reason": reason},
        actor=actor,
    )
    try:
        answer = commands.send(settings, command, timeout_s=_ANSWER_S)
    except commands.CommandTimeout as error:
        # With Kafka away nothing was sent; with evaluate away it was, and waits.
        return f"not sent: {error.__cause__}" if isinstance(error.__cause__, KafkaException) else "sent"
    except commands.CommandError as error:
        return f"not sent: {error}"
    return f"refused: {answer.reason}" if commands.was_refused(answer) else str(answer.outcome)
