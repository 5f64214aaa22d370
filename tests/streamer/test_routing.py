"""An entity stays where it is, populations are nested, and the reader never makes its caller wait twice."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.events import Deployment
from streamer.routing import BUCKETS, Choice, SplitReader, bucket_of, choose
from streamer.state import Keys


def _rollout(percent: float, epoch: int = 3) -> Deployment:
    return Deployment(
        model="flight_delay",
        model_epoch=1,
        epoch=epoch,
        champion="7",
        challenger="8",
        percent=percent,
        step=0,
        rollout_id="canary-1",
        salt="canary-1",
    )


@pytest.mark.parametrize(
    ("entity_id", "salt", "bucket"),
    [("N14228", "canary-1", 225), ("", "", 896), ("Zoë", "s", 764), ("42", "canary-1", 668)],
)
def test_a_bucket_is_pinned_for_every_language(entity_id: str, salt: str, bucket: int) -> None:
    assert bucket_of(entity_id, salt) == bucket


@given(st.text(), st.text())
def test_a_bucket_is_one_of_a_thousand(entity_id: str, salt: str) -> None:
    assert 0 <= bucket_of(entity_id, salt) < BUCKETS


def test_buckets_are_even_and_another_salt_is_another_shuffle() -> None:
    entities = [f"user-{number}" for number in range(20_000)]
    one = [bucket_of(entity, "a") for entity in entities]
    other = [bucket_of(entity, "b") for entity in entities]
    share = sum(bucket < 100 for bucket in one) / len(entities)
    both = sum(x < 100 and y < 100 for x, y in zip(one, other, strict=True)) / len(entities)
    assert share == pytest.approx(0.10, abs=0.01)
    assert both == pytest.approx(0.01, abs=0.004)


@given(st.text(min_size=1), st.floats(0, 100), st.floats(0, 100))
def test_who_sees_the_challenger_still_sees_it_at_a_larger_share(entity_id: str, one: float, other: float) -> None:
    small, large = sorted((one, other))
    if choose(_rollout(small), entity_id).arm == "challenger":
        assert choose(_rollout(large), entity_id).arm == "challenger"


@given(st.text(min_size=1))
def test_the_ends_of_the_ramp_are_whole(entity_id: str) -> None:
    assert choose(_rollout(0), entity_id).version == "7"
    assert choose(_rollout(100), entity_id).version == "8"


def test_both_arms_carry_the_rollout_and_the_bucket() -> None:
    bucket = bucket_of("N14228", "canary-1")
    assert choose(_rollout(100), "N14228") == Choice("8", "canary-1", bucket, "challenger")
    assert choose(_rollout(0), "N14228") == Choice("7", "canary-1", bucket, "champion")


def test_without_a_rollout_there_is_no_bucket() -> None:
    deployment = Deployment(model="m", model_epoch=1, epoch=1, champion="7", rollout_id="canary-0", salt="old")
    assert choose(deployment, "N14228") == Choice("7")


def test_an_unknown_model_has_no_version() -> None:
    assert choose(None, "N14228") == Choice("_")


class FakeRedis:
    """Answers MGET over a real socket, so that time-outs and lost connections are real."""

    def __init__(self) -> None:
        self.documents: dict[str, bytes] = {}
        self.silent = False
        self.pause_s = 0.0
        self.reads = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0?protocol=2"

    def close(self) -> None:
        self._listener.close()
        for connection in self._connections:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rwb") as stream:
                while header := stream.readline():
                    words = []
                    for _ in range(int(header[1:])):
                        length = int(stream.readline()[1:])
                        words.append(stream.read(length + 2)[:-2].decode())
                    if self.silent:
                        continue
                    stream.write(self._answer(words))
                    stream.flush()
        except OSError:
            return

    def _answer(self, words: list[str]) -> bytes:
        if words[0] != "MGET":
            return b"+OK\r\n"
        self.reads += 1
        time.sleep(self.pause_s)
        documents = [self.documents.get(key) for key in words[1:]]
        texts = (b"$-1\r\n" if text is None else b"$%d\r\n%s\r\n" % (len(text), text) for text in documents)
        return b"*%d\r\n" % len(documents) + b"".join(texts)


@pytest.fixture
def server() -> Iterator[FakeRedis]:
    fake = FakeRedis()
    yield fake
    fake.close()


@pytest.fixture
def reader(server: FakeRedis) -> Iterator[SplitReader]:
    made = SplitReader(server.url, "ns", max_age_s=0.02, timeout_s=0.2)
    yield made
    made.close()


def _publish(server: FakeRedis, deployment: Deployment, stamp: str | None = None) -> None:
    if stamp is not None:
        server.documents[Keys("ns").stamp("flight_delay")] = stamp.encode()
    server.documents[Keys("ns").split("flight_delay")] = msgspec.json.encode(deployment)


def _until(condition: object, seconds: float = 30.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def test_the_first_question_reads_the_split_and_later_ones_are_kept_fresh(
    server: FakeRedis, reader: SplitReader
) -> None:
    _publish(server, _rollout(0))
    assert reader.choose("flight_delay", "x").version == "7"
    _publish(server, _rollout(100, epoch=4))
    _until(lambda: reader.choose("flight_delay", "x").version == "8")


def test_all_who_ask_first_at_once_wait_for_the_answer(server: FakeRedis) -> None:
    _publish(server, _rollout(0))
    server.pause_s = 0.2
    reader = SplitReader(server.url, "ns", max_age_s=60, timeout_s=10)
    with ThreadPoolExecutor(3) as pool:
        versions = list(pool.map(lambda _: reader.choose("flight_delay", "x").version, range(3)))
    assert (versions, server.reads) == (["7"] * 3, 1)
    reader.close()


def test_later_questions_are_answered_from_memory(server: FakeRedis) -> None:
    _publish(server, _rollout(0))
    reader = SplitReader(server.url, "ns", max_age_s=60, timeout_s=0.2)
    for number in range(100):
        reader.choose("flight_delay", str(number))
    assert server.reads == 1
    reader.close()


def test_an_unknown_model_is_asked_for_again_in_the_background(server: FakeRedis, reader: SplitReader) -> None:
    assert reader.choose("flight_delay", "x") == Choice("_")
    _publish(server, _rollout(0))
    _until(lambda: reader.choose("flight_delay", "x").version == "7")


def test_the_last_split_stays_in_force_while_redis_is_away_or_has_lost_it(
    server: FakeRedis, reader: SplitReader
) -> None:
    _publish(server, _rollout(100))
    assert reader.choose("flight_delay", "x").version == "8"
    server.documents.clear()
    reader.refresh()
    assert reader.choose("flight_delay", "x").version == "8"
    server.close()
    reader.refresh()
    assert reader.choose("flight_delay", "x").version == "8"


def test_a_silent_redis_holds_up_only_the_first_question(
    server: FakeRedis, reader: SplitReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.silent = True
    asking: list[str] = []
    read = reader._read

    def noted(models: list[str]) -> None:
        asking.append(threading.current_thread().name)
        read(models)

    monkeypatch.setattr(reader, "_read", noted)
    for number in range(1_000):
        assert reader.choose("flight_delay", str(number)) == Choice("_")
        assert reader.choose(f"other-{number % 10}", "x") == Choice("_")
    # Whoever asks Redis waits for it; after the first, that is the reader's own thread alone.
    assert asking[:1] == [threading.current_thread().name]
    assert set(asking[1:]) <= {"driftloop-split"}


def test_an_older_or_broken_document_is_not_taken(
    server: FakeRedis, reader: SplitReader, caplog: pytest.LogCaptureFixture
) -> None:
    _publish(server, _rollout(100, epoch=9))
    assert reader.choose("flight_delay", "x").version == "8"
    _publish(server, _rollout(0, epoch=8))
    reader.refresh()
    assert reader.choose("flight_delay", "x").version == "8"
    server.documents[Keys("ns").split("flight_delay")] = b'{"model": 1}'
    reader.refresh()
    assert reader.choose("flight_delay", "x").version == "8"
    assert "the split of flight_delay stays as it is" in caplog.text


def test_an_older_split_of_a_kafka_made_anew_is_taken(
    server: FakeRedis, reader: SplitReader, caplog: pytest.LogCaptureFixture
) -> None:
    def seen(epoch: int, percent: float, stamp: str) -> str:
        _publish(server, _rollout(percent, epoch=epoch), stamp)
        reader.refresh()
        return reader.choose("flight_delay", "x").version

    # What an earlier release stamped says no log: nothing to compare with.
    assert seen(9, 100, "512") == "8"
    assert seen(8, 0, "600") == "8"
    assert seen(10, 100, "700 log-a log-a") == "8"
    assert seen(9, 0, "800 log-a log-a") == "8"
    # The new Kafka's documents are there before its first split: what is left of the old one's stays in force.
    assert seen(10, 100, "3 log-b log-a") == "8"
    assert seen(1, 0, "5 log-b log-b") == "7"
    assert caplog.text.count("is of another Kafka than before") == 1
    assert seen(2, 100, "6 log-b log-b") == "8"
    assert seen(1, 0, "6 log-b log-b") == "8"


def test_a_forked_child_reads_on_its_own(server: FakeRedis, reader: SplitReader) -> None:
    _publish(server, _rollout(0))
    assert reader.choose("flight_delay", "x").version == "7"
    _publish(server, _rollout(100, epoch=4))
    child = os.fork()
    if child == 0:
        deadline = time.monotonic() + 5
        while reader.choose("flight_delay", "x").version != "8" and time.monotonic() < deadline:
            time.sleep(0.01)
        os._exit(0 if reader.choose("flight_delay", "x").version == "8" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
