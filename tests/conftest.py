"""What holds for all tests: hypothesis does not time, a machine under load is waited for, loggers are nobody's yet."""

from __future__ import annotations

import sys

import pytest
import structlog
from hypothesis import settings

# A test says what holds, not how fast: on a busy machine a first example takes half a second.
settings.register_profile("driftloop", deadline=None)
settings.load_profile("driftloop")


@pytest.fixture(autouse=True)
def _loggers_as_they_were_made() -> None:
    """Undo what a test, or Airflow once it is imported, has made of logging: loggers remember what they first met."""
    structlog.reset_defaults()
    for name in [name for name in sys.modules if name.startswith(("streamer", "dags", "demo"))]:
        logger = vars(sys.modules[name]).get("log")
        if logger is not None and hasattr(logger, "_logger_factory_args"):
            vars(logger).pop("bind", None)
