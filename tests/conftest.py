"""What holds for all tests: hypothesis does not time, a machine under load is waited for, loggers are nobody's yet."""

from __future__ import annotations

import logging
import sys

import pytest
import structlog
from hypothesis import settings

_OURS = ("streamer", "dags", "demo")

# A test says what holds, not how fast: on a busy machine a first example takes half a second.
settings.register_profile("driftloop", deadline=None)
settings.load_profile("driftloop")


@pytest.fixture(autouse=True)
def _loggers_as_they_were_made() -> None:
    """Undo what a test, or Airflow or MLflow once imported, has made of logging.

    They set levels, switch off the loggers there are, and have loggers remember the configuration they first met.
    """
    logging.disable(logging.NOTSET)
    logging.getLogger().setLevel(logging.WARNING)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith(_OURS) and isinstance(logger, logging.Logger):
            logger.setLevel(logging.NOTSET)
            logger.disabled, logger.propagate = False, True
    structlog.reset_defaults()
    for name in [name for name in sys.modules if name.startswith(_OURS)]:
        proxy = vars(sys.modules[name]).get("log")
        if hasattr(proxy, "_logger_factory_args"):
            vars(proxy).pop("bind", None)
