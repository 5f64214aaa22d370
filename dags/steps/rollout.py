"""A rollout's steps as commands to evaluate, and what promotion and rollback change beside it: numbered, repeatable."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from redis.exceptions import RedisError

from dags.steps.notify import insist, standing, tell
from dags.steps.outcomes import BadConfError, Unmendable
from streamer import redis_clients
from streamer.commands import CommandRefused, was_refused
from streamer.documents import CanaryView
from streamer.events import CommandKind, LedgerEntry
from streamer.settings import Settings
from streamer.state import Keys

# A reference just published takes a moment to reach every evaluate.
REFERENCE_S = 60.0


class Held(Exception):  # noqa: N818 - it says what happened
    """The step before no longer stands as passed: wait for its verdict again. `epoch` is the deployment's."""

    def __init__(self, reason: str, *, step: int, epoch: int) -> None:
        super().__init__(reason)
        self.step, self.epoch = step, epoch


class OutOfPlaceError(Unmendable):
    """A rollout's step cannot be taken from where the rollout stands; the message says where that is."""


@dataclass(frozen=True)
class Rollout:
    """One challenger's way up, as the run's `conf` has it."""

    model: str
    model_epoch: int
    request_id: str
    challenger: str
    run_id: str

    @property
    def rollout_id(self) -> str:
        """Return the rollout's id."""
        # As monitors.lifecycle.rollout_id_of, whose module a task that only sends commands need not import.
        return f"canary-{self.request_id}"

    @classmethod
    def from_conf(cls, conf: Mapping[str, Any], run_id: str) -> Rollout:
        """Read a run's `conf`; BadConfError names what it lacks."""
        missing = [name for name in ("model", "model_epoch", "request_id", "challenger") if not conf.get(name)]
        if missing:
            raise BadConfError(f"conf: lacks {missing}; the canary is started by the retrain DAG, with all of them")
        return cls(
            model=str(conf["model"]),
            model_epoch=int(conf["model_epoch"]),
            request_id=str(conf["request_id"]),
            challenger=str(conf["challenger"]),
            run_id=run_id,
        )

    def command(self, payload: Mapping[str, Any] | None = None, *, part: str = "") -> dict[str, Any]:
        """Return the arguments every command about this rollout shares."""
        return {
            "model": self.model,
            "model_epoch": self.model_epoch,
            "subject": self.rollout_id,
            "run_id": self.run_id,
            "payload": payload or {},
            "part": part,
        }


def start(settings: Settings, rollout: Rollout) -> dict[str, Any]:
    """Begin the rollout at 0 %; while evaluate does not know the challenger's reference yet, ask again.

    Raises
    ------
    streamer.commands.CommandRefused
        When evaluate refuses for good, or still after a minute.
    """
    payload = {"request_id": rollout.request_id, "challenger": rollout.challenger}
    deadline = time.monotonic() + REFERENCE_S
    while True:
        try:
            answer = insist(settings, "start_rollout", **rollout.command(payload))
            return standing(answer)
        except CommandRefused as refused:
            waiting = standing(refused.answer).get("request_state") == "validated"
            if not waiting or time.monotonic() > deadline:
                raise
            time.sleep(1.0)


def set_step(settings: Settings, rollout: Rollout, step: int) -> dict[str, Any]:
    """Take the rollout to a step; return where it then stands, its `epoch` above all.

    Raises
    ------
    Held
        When the step before has lost its pass: verdicts are given anew with every pane.
    OutOfPlaceError
        When the rollout is not at the step before, or not active.
    """
    return _advance(settings, rollout, "set_step", {"step": step}, before=step - 1)


def promote(settings: Settings, rollout: Rollout, last_step: int) -> dict[str, Any]:
    """Promote the challenger, in evaluate and in the registry.

    1. `promote`: evaluate moves all traffic, if the last step stands as passed. What follows only writes it down.
    2. The alias `previous` names the champion that was, while `champion` still does.
    3. The alias `champion` names the challenger.
    4. The alias `challenger` goes, and the version says what became of it.
    Killed anywhere, run again from the start: 1 is answered as repeated, 2 is passed over once 3 is done.

    Raises
    ------
    Held, OutOfPlaceError
        As `set_step`.
    """
    stands = _advance(settings, rollout, "promote", {}, before=last_step)
    from dags.steps.registry import CHALLENGER, CHAMPION, PREVIOUS, STATUS_TAG, Registry

    registry = Registry(settings, rollout.model)
    champion = registry.alias(CHAMPION)
    if champion is not None and champion != rollout.challenger:
        registry.set_alias(PREVIOUS, champion)
        registry.tag(champion, {STATUS_TAG: "retired"})
    registry.set_alias(CHAMPION, rollout.challenger)
    registry.drop_alias(CHALLENGER, rollout.challenger)
    registry.tag(rollout.challenger, {STATUS_TAG: "champion", "driftloop.rollout_id": rollout.rollout_id})
    return {"epoch": stands.get("epoch"), "champion": rollout.challenger, "previous": registry.alias(PREVIOUS)}


def held_against(settings: Settings, rollout: Rollout) -> str:
    """Return what the newest verdict holds against the challenger; "" for nothing, or where it cannot be read."""
    try:
        with redis_clients.connect(settings, socket_connect_timeout=3, socket_timeout=5) as client:
            document: Any = client.get(Keys(settings.namespace).canary(rollout.model))
        view = msgspec.json.decode(document or b"", type=CanaryView)
    except (RedisError, msgspec.DecodeError):
        # A rollback waits for nobody: it says less then.
        return ""
    verdict = view.verdict
    if view.rollout_id != rollout.rollout_id or verdict is None or verdict.status in ("pass", "running"):
        return ""
    return f"{verdict.status}: {verdict.reason}"


def roll_back(settings: Settings, rollout: Rollout, reason: str) -> dict[str, Any]:
    """Take the challenger off the traffic and mark it in the registry.

    1. `rollback`: evaluate gives all traffic back to the champion. A rollout that never began has a request that
       still waits for it: that one fails instead.
    2. The alias `challenger` goes, and the version says what became of it and why.

    Raises
    ------
    OutOfPlaceError
        When the rollout is promoted: there is nothing to roll back to, and `promote` has to be finished instead.
    """
    answer = tell(settings, "rollback", **rollout.command({"reason": reason}))
    if was_refused(answer):
        _without_rollout(settings, rollout, reason, answer)
    from dags.steps.registry import CHALLENGER, STATUS_TAG, Registry

    registry = Registry(settings, rollout.model)
    registry.drop_alias(CHALLENGER, rollout.challenger)
    registry.tag(rollout.challenger, {STATUS_TAG: "rolled_back", "driftloop.reason": reason})
    return {"reason": reason, **standing(answer)}


def _without_rollout(settings: Settings, rollout: Rollout, reason: str, refused: LedgerEntry) -> None:
    stands = standing(refused)
    if stands.get("rollout_id") == rollout.rollout_id and stands.get("rollout_state") == "promoted":
        raise OutOfPlaceError(
            f"{rollout.rollout_id}: is promoted; clear the task `promote` to finish writing it down, or roll back by "
            f"making {rollout.model}'s previous version champion"
        )
    if stands.get("request_id") == rollout.request_id:
        wish = {**rollout.command({"reason": reason}), "subject": rollout.request_id}
        tell(settings, "fail", **wish)


def _advance(
    settings: Settings, rollout: Rollout, kind: CommandKind, payload: Mapping[str, Any], *, before: int
) -> dict[str, Any]:
    """Send a command that needs the verdict of the step `before` to be a pass."""
    part = str(payload.get("step", ""))
    answer = tell(settings, kind, **rollout.command(payload, part=part))
    stands = standing(answer)
    if not was_refused(answer):
        return stands
    ours = stands.get("rollout_id") == rollout.rollout_id and stands.get("rollout_state") == "active"
    if ours and before >= 0 and stands.get("step") == before:
        raise Held(answer.reason, step=before, epoch=int(stands.get("epoch", 0)))
    raise OutOfPlaceError(
        f"{rollout.rollout_id}: {kind} {part} was refused: {answer.reason} (the newest rollout is "
        f"{stands.get('rollout_id')}, {stands.get('rollout_state')}, at step {stands.get('step')})"
    )
