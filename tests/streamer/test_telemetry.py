"""Logs carry no secret and are one line an event; metrics have a registry of their own."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from prometheus_client import generate_latest

from streamer import telemetry


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def _lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_line_when_the_stream_is_no_terminal() -> None:
    stream = io.StringIO()
    telemetry.configure_logging(stream=stream)
    structlog.get_logger("driftloop.test").info("pane_completed", model="m", pane_end_ms=5)
    (line,) = _lines(stream)
    assert line["event"] == "pane_completed"
    assert line["model"] == "m"
    assert line["level"] == "info"
    assert line["logger"] == "driftloop.test"


def test_the_standard_librarys_logs_take_the_same_shape() -> None:
    stream = io.StringIO()
    telemetry.configure_logging(stream=stream)
    logging.getLogger("a.library").warning("connect to %s", "redis://u:pw@h:1/0", extra={"password": "x"})
    (line,) = _lines(stream)
    assert line["event"] == "connect to redis://***@h:1/0"
    assert line["password"] == "***"


def test_an_exception_stays_on_its_line() -> None:
    stream = io.StringIO()
    telemetry.configure_logging(stream=stream)
    try:
        raise RuntimeError("broken at kafka://me:pw@host")
    except RuntimeError:
        structlog.get_logger().exception("failed")
    (line,) = _lines(stream)
    assert "RuntimeError" in str(line["exception"])
    assert "pw@" not in str(line["exception"])


def test_a_lower_level_is_not_written() -> None:
    stream = io.StringIO()
    telemetry.configure_logging(level="warning", stream=stream)
    structlog.get_logger("a").info("quiet")
    structlog.get_logger("a").warning("loud")
    assert [line["event"] for line in _lines(stream)] == ["loud"]


def test_a_terminal_gets_readable_lines_without_secrets() -> None:
    stream = io.StringIO()
    telemetry.configure_logging(stream=stream, as_json=False)
    structlog.get_logger("a").info("started", token="t0k")
    assert "started" in stream.getvalue()
    assert "t0k" not in stream.getvalue()


def test_an_unknown_level_is_named() -> None:
    with pytest.raises(ValueError, match="level: got 'loud', wanted one of DEBUG"):
        telemetry.configure_logging(level="loud")


def test_secrets_are_hidden_through_mappings_and_lists() -> None:
    settings = {
        "sasl.password": "p",
        "ssl.key.password": "k",
        "bootstrap.servers": "h:1",
        "nested": [{"api_key": 1, "url": "redis://:pw@h/0"}],
        "oauth_token": None,
    }
    assert telemetry.redact(settings) == {
        "sasl.password": "***",
        "ssl.key.password": "***",
        "bootstrap.servers": "h:1",
        "nested": [{"api_key": "***", "url": "redis://***@h/0"}],
        "oauth_token": None,
    }


def test_metrics_are_in_their_own_registry() -> None:
    telemetry.EVENTS.labels("predictions").inc(3)
    telemetry.LAG.labels("predictions.v1", "0").set(7)
    text = generate_latest(telemetry.REGISTRY).decode()
    assert 'driftloop_events_total{source="predictions"}' in text
    assert 'driftloop_lag{partition="0",topic="predictions.v1"} 7.0' in text
    assert "python_gc" not in text
