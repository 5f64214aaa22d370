"""Whether a model may be retrained now: its live view is fresh, and no data fault stands that nobody has allowed."""

from __future__ import annotations

from dags.steps.outcomes import Unmendable
from streamer import redis_clients
from streamer.models import ModelConfig
from streamer.settings import Settings
from streamer.state import Keys
from streamer.view import LiveView

# The view is rewritten as counts come, and wholly by a timer; older than this, nobody is writing it.
MAX_AGE_MS = 300_000
MAX_STEPS = 5


class NotReadyError(Exception):
    """What the monitor shows does not allow a retraining now, though it may soon."""


class BlockedError(Unmendable):
    """A retraining must not go on until a person has done something; the message says what."""


def check(settings: Settings, config: ModelConfig, *, allowed: bool, now_ms: int) -> dict[str, object]:
    """Check the live view and the configuration.

    Parameters
    ----------
    allowed : a person has allowed retraining despite a data fault.

    Raises
    ------
    NotReadyError
        When the view knows nothing of the model, or is old: evaluate is not running or has just begun.
    BlockedError
        When a data fault stands or the model is faulted, or its canary has too many steps.
    """
    if len(config.canary.steps) > MAX_STEPS:
        raise BlockedError(
            f"{config.name}: canary.steps: got {len(config.canary.steps)}, the canary DAG has {MAX_STEPS}; give fewer"
        )
    with redis_clients.connect(settings) as client:
        view = LiveView(client, Keys(settings.namespace)).model(config.name)
    if view is None:
        raise NotReadyError(f"{config.name}: the live view does not know it yet; is a worker with evaluate running?")
    age_ms = now_ms - (view.summary.as_of_ms or 0)
    if age_ms > MAX_AGE_MS:
        raise NotReadyError(f"{config.name}: its live view is {age_ms / 1000:.0f} s old; is a worker running?")
    if view.summary.faulted:
        raise BlockedError(
            f"{config.name}: faulted; see its timeline, mend what it names, then `driftloop models clear-fault "
            f"{config.name}`"
        )
    fault = None if view.alerts is None else view.alerts.fault
    if fault and not allowed:
        raise BlockedError(
            f"{config.name}: a data fault stands ({fault}): a model trained on it would learn it. Mend the data, or "
            f"allow it for a while: `driftloop models allow {config.name} --for 6h`"
        )
    return {"age_ms": age_ms, "fault": fault, "watermark_ms": view.summary.watermark_ms}
