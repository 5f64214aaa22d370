"""From the requests that have arrived to the retrain runs that are still to be started: one a request id."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from dags.steps.outcomes import BadConfError
from streamer.events import RetrainRequest

log = logging.getLogger(__name__)


def run_id_of(request_id: str) -> str:
    """Return the id of the run that serves a request: another delivery of it names the same run."""
    return f"retrain__{request_id}"


def new_runs(extras: Iterable[Mapping[str, Any]], *, exists: Callable[[str], bool]) -> list[dict[str, Any]]:
    """Return what `TriggerDagRunOperator.expand_kwargs` takes, in the order the requests came.

    Parameters
    ----------
    extras : the asset events' extras: the request under `payload` (from the watcher), or itself (posted by a person).
    exists : whether there is a run of that id.

    Notes
    -----
    An event that is no request is logged and passed over: it must not hold up the others.
    """
    runs: dict[str, dict[str, Any]] = {}
    for extra in extras:
        try:
            request = msgspec.convert(extra.get("payload", extra), RetrainRequest)
        except (msgspec.ValidationError, TypeError, AttributeError) as error:
            log.warning("an event of retrain-requests is no request and is passed over: %s", error)
            continue
        run_id = run_id_of(request.request_id)
        # Sent again until it is accepted: the newest copy is as good as the first.
        if run_id not in runs and not exists(run_id):
            runs[run_id] = {"trigger_run_id": run_id, "conf": {"request": msgspec.to_builtins(request)}}
    return list(runs.values())


def request_of(conf: Mapping[str, Any] | None) -> RetrainRequest:
    """Return the request a run was started for; BadConfError when its `conf` holds none."""
    try:
        return msgspec.convert((conf or {})["request"], RetrainRequest)
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise BadConfError(
            f"conf.request: {error}; a retrain run is started by the intake DAG. To ask for one: driftloop request"
        ) from error
