"""The worker's app: what it hosts can be stopped at any time."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

from streamer.app import build_app
from streamer.catalog import Catalog
from streamer.settings import Settings


def test_stages_that_are_stopped_before_they_have_started_stop_in_good_order(tmp_path: Any) -> None:
    settings = Settings()
    worker: Any = SimpleNamespace(
        settings=settings.model_copy(update={"worker": settings.worker.model_copy(update={"data_dir": tmp_path})}),
        role="all",
        catalog=Catalog(),
        stop=threading.Event(),
        watchdog=SimpleNamespace(leave_within=lambda _s: None),
    )

    async def stopped() -> None:
        (stages,) = build_app(worker)._extra_services
        await stages().on_stop()

    asyncio.run(stopped())
    assert worker.stop.is_set()
