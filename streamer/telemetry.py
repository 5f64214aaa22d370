"""What driftloop says of itself: structured logs with secrets left out, and the Prometheus metrics."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry(auto_describe=True)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

EVENTS = Counter("driftloop_events", "Events read from a raw topic", ["source"], registry=REGISTRY)
DEAD_LETTERS = Counter("driftloop_dead_letters", "Messages refused, by reason", ["source", "reason"], registry=REGISTRY)
LATE = Counter("driftloop_late", "Events that came after their pane completed", ["model"], registry=REGISTRY)
TOO_LATE = Counter("driftloop_too_late", "Events below their model's retention floor", ["model"], registry=REGISTRY)
OTHER_EPOCH = Counter(
    "driftloop_other_epoch", "Events of another model_epoch than the model's", ["model"], registry=REGISTRY
)
UNKNOWN_MODEL = Counter(
    "driftloop_unknown_model",
    "Events that ingest counted of a model evaluate does not know: not counted",
    ["model"],
    registry=REGISTRY,
)
FLUSH_SECONDS = Histogram(
    "driftloop_flush_seconds", "Make durable what one flush relies on", ["stage"], buckets=_SECONDS, registry=REGISTRY
)
TRANSACTION_SECONDS = Histogram(
    "driftloop_transaction_seconds", "Publish and commit one flush", ["stage"], buckets=_SECONDS, registry=REGISTRY
)
LAG = Gauge("driftloop_lag", "Records appended and not yet read", ["topic", "partition"], registry=REGISTRY)
VIEW_WRITES = Counter("driftloop_view_writes", "Documents offered to the live view", ["outcome"], registry=REGISTRY)
PARKED_LABELS = Counter("driftloop_parked_labels", "Labels that came before their prediction", registry=REGISTRY)
LABELS_HELD_BACK = Gauge(
    "driftloop_labels_held_back",
    "Partitions of labels and joined feature logs that wait for a lost join store",
    registry=REGISTRY,
)
FAULTED_MODELS = Gauge("driftloop_faulted_models", "Models whose looks are stopped by a fault", registry=REGISTRY)
STALE_MODELS = Gauge("driftloop_stale_models", "Models whose live events have stopped coming", registry=REGISTRY)
FOREIGN_MESSAGES = Counter(
    "driftloop_foreign_messages", "Messages in partials.v1 that no ingest has written", registry=REGISTRY
)
LOST_RANGE = Counter("driftloop_lost_range", "Offsets lost before they were read", ["topic"], registry=REGISTRY)

_SECRET_NAME = re.compile(r"pass(word|wd)?$|secret|token|credential|jaas|api_?key|private", re.IGNORECASE)
_URL_USERINFO = re.compile(r"(?<=://)[^/@\s]*:[^/@\s]*(?=@)")
_HIDDEN = "***"


def total(counter: Counter) -> float:
    """Return what a counter has counted since the process began, over all its labels."""
    return sum(
        sample.value for metric in counter.collect() for sample in metric.samples if sample.name.endswith("_total")
    )


def redact(value: Any, name: str = "") -> Any:
    """Return `value` without its secrets, through mappings and lists.

    A value is hidden when its name speaks of a password, secret, token, credential or key; in text,
    the `user:password` of an address is hidden whatever the name.
    """
    if name and _SECRET_NAME.search(name) and value is not None:
        return _HIDDEN
    if isinstance(value, str):
        return _URL_USERINFO.sub(_HIDDEN, value)
    if isinstance(value, Mapping):
        return {key: redact(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(inner) for inner in value]
    return value


def _redact_event(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {name: redact(value, name) for name, value in event.items()}


def configure_logging(*, level: str = "INFO", as_json: bool | None = None, stream: TextIO | None = None) -> None:
    """Send every log, structlog's and the standard library's, to `stream` as one line an event.

    Parameters
    ----------
    level : the lowest level written: DEBUG, INFO, WARNING, ERROR.
    as_json : one JSON object a line; by default when `stream` is not a terminal.
    stream : standard error by default.

    Raises
    ------
    ValueError
        When `level` is not a level's name.
    """
    out = stream if stream is not None else sys.stderr
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"level: got {level!r}, wanted one of DEBUG, INFO, WARNING, ERROR, CRITICAL")
    plain = as_json if as_json is not None else not out.isatty()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if plain:
        # A terminal's renderer draws the traceback itself; JSON needs it as text.
        shared.append(structlog.processors.format_exc_info)
    shared.append(_redact_event)
    renderer = structlog.processors.JSONRenderer() if plain else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
