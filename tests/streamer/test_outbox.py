"""The outbox never makes its caller wait, never holds more than it may, and accounts for every event."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.events import Label
from streamer.outbox import CloseReport, Entry, Outbox, Stats
from streamer.transport import Headers, NotReadyError, Reaped


class FakeTransport:
    """Acknowledges what it is told to; can be away, full, or fail on what holds a word."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, bytes | None, bytes, Headers]] = []
        self.acknowledging = True
        self.full = False
        self.closed = False
        self._reaped = 0

    def send(self, topic: str, key: bytes | None, body: bytes, headers: Headers) -> None:
        if self.full:
            raise NotReadyError("full")
        if b"poison" in body:
            raise ValueError("too large")
        self.taken.append((topic, key, body, headers))

    def reap(self) -> Reaped:
        new = len(self.taken) - self._reaped if self.acknowledging else 0
        failed = sum(b"refused" in body for _, _, body, _ in self.taken[self._reaped : self._reaped + new])
        self._reaped += new
        return Reaped(new - failed, failed, RuntimeError("refused by the broker") if failed else None)

    def close(self) -> None:
        self.closed = True


def _entries(*ids: str) -> list[Entry]:
    return [Entry("labels.v1", name, Label(prediction_id=name, model="m", ts=1, label=1)) for name in ids]


def _until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


@pytest.fixture
def transport() -> FakeTransport:
    return FakeTransport()


@pytest.fixture
def outbox(transport: FakeTransport) -> Iterator[Outbox]:
    made = Outbox(lambda: transport, size=100)
    yield made
    made.close(0)


def test_events_go_out_encoded_in_order_with_key_and_schema(transport: FakeTransport, outbox: Outbox) -> None:
    assert outbox.put(_entries("a", "b")) == 2
    assert outbox.flush(5) == 0
    topic, key, body, headers = transport.taken[0]
    assert (topic, key, headers) == ("labels.v1", b"a", [("driftloop-schema", b"1")])
    assert msgspec.json.decode(body) == {"prediction_id": "a", "model": "m", "ts": 1, "label": 1}
    assert transport.taken[1][1] == b"b"
    assert outbox.close(5) == CloseReport(sent=2, failed=0, dropped=0, unsent=0)
    assert transport.closed


def test_more_than_may_be_on_their_way_are_dropped_counted_and_told(transport: FakeTransport) -> None:
    told: list[int] = []
    transport.acknowledging = False
    outbox = Outbox(lambda: transport, size=10, on_drop=told.append)
    assert outbox.put(_entries(*"abcdefgh")) == 8
    _until(lambda: len(transport.taken) == 8)
    assert outbox.put(_entries(*"ijklm")) == 2
    _until(lambda: outbox.stats() == Stats(queued=0, in_flight=10, sent=0, failed=0, dropped=3))
    _until(lambda: sum(told) == 3)
    transport.acknowledging = True
    assert outbox.flush(5) == 0
    assert outbox.put(_entries("n")) == 1
    assert outbox.close(5) == CloseReport(sent=11, failed=0, dropped=3, unsent=0)


def test_a_kafka_that_is_away_costs_the_caller_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def away() -> FakeTransport:
        raise NotReadyError("no broker answers")

    outbox = Outbox(away, size=5)
    started = time.monotonic()
    for number in range(1_000):
        outbox.put(_entries(str(number)))
    assert time.monotonic() - started < 0.5
    report = outbox.close(0.2)
    assert report == CloseReport(sent=0, failed=0, dropped=995, unsent=5)
    assert time.monotonic() - started < 3
    assert "no broker answers" in caplog.text
    assert "closed with events lost" in caplog.text


def test_events_wait_for_a_kafka_that_comes_later(transport: FakeTransport) -> None:
    tries: list[int] = []

    def late() -> FakeTransport:
        tries.append(1)
        if len(tries) < 2:
            raise NotReadyError("not yet")
        return transport

    outbox = Outbox(late, size=5)
    outbox.put(_entries("a", "b"))
    assert outbox.close(5) == CloseReport(sent=2, failed=0, dropped=0, unsent=0)


def test_what_kafka_cannot_take_yet_keeps_its_place(transport: FakeTransport, outbox: Outbox) -> None:
    transport.full = True
    outbox.put(_entries("a", "b"))
    time.sleep(0.05)
    outbox.put(_entries("c"))
    transport.full = False
    assert outbox.flush(5) == 0
    assert [key for _, key, _, _ in transport.taken] == [b"a", b"b", b"c"]


def test_a_bad_event_costs_itself_alone(
    transport: FakeTransport, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    outbox.put(_entries("a", "poison", "refused", "b"))
    assert outbox.close(5) == CloseReport(sent=2, failed=2, dropped=0, unsent=0)
    assert "too large" in caplog.text


def test_a_failing_on_drop_does_not_end_the_sending(transport: FakeTransport) -> None:
    def raising(_: int) -> None:
        raise RuntimeError("the caller's own")

    transport.acknowledging = False
    outbox = Outbox(lambda: transport, size=1, on_drop=raising)
    outbox.put(_entries("a", "b"))
    _until(lambda: len(transport.taken) == 1)
    transport.acknowledging = True
    _until(lambda: outbox.stats().in_flight == 0)
    outbox.put(_entries("c"))
    assert outbox.close(5) == CloseReport(sent=2, failed=0, dropped=1, unsent=0)


def test_a_client_that_cannot_be_made_at_all_keeps_the_events_counted() -> None:
    def broken() -> FakeTransport:
        raise TypeError("no such option")

    outbox = Outbox(broken, size=5)
    outbox.put(_entries("a", "b"))
    assert outbox.close(0.1) == CloseReport(sent=0, failed=0, dropped=0, unsent=2)


def test_after_close_events_are_dropped_and_the_report_stays(transport: FakeTransport, outbox: Outbox) -> None:
    outbox.put(_entries("a"))
    assert outbox.close(5).sent == 1
    assert outbox.put(_entries("b")) == 0
    assert outbox.close(5) == CloseReport(sent=1, failed=0, dropped=1, unsent=0)


def test_close_waits_no_longer_than_it_may(transport: FakeTransport, outbox: Outbox) -> None:
    transport.acknowledging = False
    outbox.put(_entries("a", "b"))
    started = time.monotonic()
    assert outbox.close(0.2) == CloseReport(sent=0, failed=0, dropped=0, unsent=2)
    assert 0.2 <= time.monotonic() - started < 2
    assert transport.closed


def test_an_outbox_that_was_never_used_has_no_thread(outbox: Outbox) -> None:
    names = {thread.name for thread in threading.enumerate()}
    assert "driftloop-send" not in names
    assert outbox.close(1) == CloseReport(0, 0, 0, 0)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=8), st.integers(1, 40))
def test_every_event_is_accounted_for(batches: list[int], size: int) -> None:
    outbox = Outbox(FakeTransport, size=size)
    writers = [
        threading.Thread(target=outbox.put, args=(_entries(*[f"{writer}-{n}" for n in range(count)]),))
        for writer, count in enumerate(batches)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    report = outbox.close(5)
    assert report.sent + report.dropped == sum(batches)
    assert (report.failed, report.unsent) == (0, 0)


def test_a_forked_child_starts_empty_and_sends_its_own() -> None:
    transports: list[FakeTransport] = []

    def connect() -> FakeTransport:
        transports.append(FakeTransport())
        return transports[-1]

    outbox = Outbox(connect, size=10)
    outbox.put(_entries("parent"))
    assert outbox.flush(5) == 0
    transports[0].acknowledging = False
    outbox.put(_entries("still on its way"))
    child = os.fork()
    if child == 0:
        good = outbox.stats() == Stats(0, 0, 0, 0, 0)
        outbox.put(_entries("child"))
        good = good and outbox.close(5) == CloseReport(sent=1, failed=0, dropped=0, unsent=0)
        good = good and [key for _, key, _, _ in transports[-1].taken] == [b"child"]
        good = good and not transports[0].closed
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    transports[0].acknowledging = True
    assert outbox.close(5).sent == 2
