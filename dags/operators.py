"""The canary's operators: take a step, wait for its verdict, promote; they wait in the triggerer, not in a slot."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from dags.running import ending_well
from dags.steps import rollout
from dags.steps.configuration import read_config
from dags.steps.verdicts import Awaited, read_verdict
from dags.triggers import VerdictTrigger
from streamer import redis_clients
from streamer.models import ModelConfig
from streamer.settings import Settings, load_settings
from streamer.state import Keys

PASS, INCONCLUSIVE = "pass", "inconclusive"
# An inconclusive step keeps its share and is looked at again this often, a pane each, before it is given up.
MAX_HOLDS = 3


class _Waiting(BaseOperator):
    """An operator about one rollout that may have to wait for a verdict."""

    def rollout(self, context: Any) -> rollout.Rollout:
        """Return the rollout of the run."""
        run = context["dag_run"]
        return rollout.Rollout.from_conf(run.conf or {}, run.run_id)

    def wait(self, config: ModelConfig, awaited: Awaited, *, holds: int = 0) -> None:
        """Leave the slot until the verdict is there; `resume` goes on."""
        self.defer(
            trigger=VerdictTrigger(awaited.model, awaited.rollout_id, awaited.step, awaited.epoch, awaited.seen_ms),
            method_name="resume",
            kwargs={"step": awaited.step, "epoch": awaited.epoch, "holds": holds},
            timeout=timedelta(milliseconds=int(config.deadlines.canary)),
        )


class AwaitVerdict(_Waiting):
    """Waits until the step that `set` took has its verdict; anything but a pass fails the task.

    Parameters
    ----------
    set_task : the task whose XCom says at which deployment epoch the step stands.
    """

    def __init__(self, *, step: int, set_task: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.step = step
        self.set_task = set_task

    def execute(self, context: Any) -> dict[str, Any]:
        """Look once, for a deferral takes seconds; then wait."""
        stands = context["ti"].xcom_pull(task_ids=self.set_task)
        mine = self.rollout(context)
        settings = load_settings()
        awaited = Awaited(mine.model, mine.rollout_id, self.step, int(stands["epoch"]))
        return self._judge(context, settings, awaited, _look(settings, awaited), holds=0)

    def resume(self, context: Any, event: dict[str, Any], step: int, epoch: int, holds: int) -> dict[str, Any]:
        """Go on with the verdict the trigger brought."""
        mine = self.rollout(context)
        return self._judge(
            context, load_settings(), Awaited(mine.model, mine.rollout_id, step, epoch), event, holds=holds
        )

    def _judge(
        self, context: Any, settings: Settings, awaited: Awaited, verdict: dict[str, Any] | None, *, holds: int
    ) -> dict[str, Any]:
        with ending_well():
            config = read_config(settings, awaited.model)
        if verdict is None:
            self.wait(config, awaited, holds=holds)
        elif verdict["status"] == PASS:
            return verdict
        elif verdict["status"] == INCONCLUSIVE and holds < MAX_HOLDS:
            self.log.info("inconclusive (%s): held at this share, %d of %d", verdict["reason"], holds + 1, MAX_HOLDS)
            seen = Awaited(awaited.model, awaited.rollout_id, awaited.step, awaited.epoch, verdict["at_ms"])
            self.wait(config, seen, holds=holds + 1)
        raise AirflowFailException(f"step {awaited.step}: {_words(verdict)}")


class _Advancing(_Waiting):
    """Sends a command that needs the pass of the step before; where that was lost, waits for it again."""

    def execute(self, context: Any) -> dict[str, Any]:
        """Try."""
        mine, settings = self.rollout(context), load_settings()
        with ending_well():
            config = read_config(settings, mine.model)
        try:
            with ending_well():
                return self.advance(settings, mine, config)
        except rollout.Held as held:
            self.log.info("not yet: %s", held)
            self.wait(config, Awaited(mine.model, mine.rollout_id, held.step, held.epoch))
        raise AirflowFailException("deferred without leaving")

    def resume(self, context: Any, event: dict[str, Any], step: int, epoch: int, holds: int) -> dict[str, Any]:
        """Try again once the step before has passed again."""
        if event["status"] != PASS:
            raise AirflowFailException(f"step {step}: {_words(event)}")
        return self.execute(context)

    def advance(self, settings: Settings, mine: rollout.Rollout, config: ModelConfig) -> dict[str, Any]:
        """Send the command."""
        raise NotImplementedError


class SetStep(_Advancing):
    """Takes the rollout to one step of its model's ramp; a position the ramp does not have is skipped."""

    def __init__(self, *, step: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.step = step

    def advance(self, settings: Settings, mine: rollout.Rollout, config: ModelConfig) -> dict[str, Any]:
        """Send `set_step`."""
        if self.step >= len(config.canary.steps):
            raise AirflowSkipException(f"the ramp of {mine.model} has {len(config.canary.steps)} steps")
        stands = rollout.set_step(settings, mine, self.step)
        return {name: stands.get(name) for name in ("step", "epoch", "percent")}


class Promote(_Advancing):
    """Promotes the challenger, if the last step still stands as passed."""

    def advance(self, settings: Settings, mine: rollout.Rollout, config: ModelConfig) -> dict[str, Any]:
        """Send `promote` and write it down in the registry."""
        return rollout.promote(settings, mine, len(config.canary.steps) - 1)


def _look(settings: Settings, awaited: Awaited) -> dict[str, Any] | None:
    with redis_clients.connect(settings) as client:
        document: Any = client.get(Keys(settings.namespace).canary(awaited.model))
    return read_verdict(document, awaited)


def _words(verdict: dict[str, Any] | None) -> str:
    return "no verdict" if verdict is None else f"{verdict['status']}: {verdict['reason']}"
