"""Beside an address stand user, password and TLS's files; what Redis misses in a client is named by its setting."""

from __future__ import annotations

import pytest
import redis
from pydantic import SecretStr

from streamer import redis_clients
from streamer.settings import RedisSettings, Settings

TABLE = {"username": "worker", "password": "hush", "ssl_ca_certs": "ca.pem", "ssl_certfile": None, "url": "x"}


def test_tls_files_concern_an_encrypted_address_alone() -> None:
    assert redis_clients.options("rediss://a:1/0", TABLE) == {
        "username": "worker",
        "password": "hush",
        "ssl_ca_certs": "ca.pem",
    }
    assert redis_clients.options("redis://a:1/0", TABLE) == {"username": "worker", "password": "hush"}


def test_what_stands_in_an_address_wins_over_what_stands_beside_it() -> None:
    settings = Settings(
        redis=RedisSettings(
            url="redis://view:1/0",
            join_url="redis://other:word@labels:1/0",
            username="worker",
            password=SecretStr("hush"),
        )
    )
    view = redis_clients.connect(settings, socket_timeout=5).connection_pool.connection_kwargs
    assert (view["username"], view["password"], view["socket_timeout"]) == ("worker", "hush", 5)
    store = redis_clients.connect_store(settings).connection_pool.connection_kwargs
    assert (store["host"], store["username"], store["password"]) == ("labels", "other", "word")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (redis.exceptions.NoPermissionError("no permissions to run the 'xadd' command"), "'xadd'.*give its user"),
        (redis.AuthenticationError("WRONGPASS invalid username-password pair"), "DRIFTLOOP_REDIS__PASSWORD"),
        (redis.ConnectionError("Error 8 while writing. EOF occurred in violation of protocol"), "redis.ssl_certfile"),
        (redis.ConnectionError("Error 1 [SSL: WRONG_VERSION_NUMBER] wrong version"), "speaks no TLS: .*redis://"),
    ],
)
def test_a_refusal_names_the_setting_and_hides_the_password(error: redis.RedisError, told: str) -> None:
    said = redis_clients.refusal(error, "rediss://me:hush@a:1/0")
    assert said is not None
    assert "hush" not in said
    with pytest.raises(redis_clients.Unreachable, match=told):
        raise redis_clients.Unreachable(said)


def test_a_server_that_is_away_refuses_nothing() -> None:
    assert redis_clients.refusal(redis.ConnectionError("Error 111 connecting"), "redis://a:1/0") is None
    assert redis_clients.refusal(ValueError("ours"), "redis://a:1/0") is None
