"""The outbox never makes its caller wait, never holds more than it may, and accounts for every event."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.client.entry import EVENT_HEADERS, Entry, Headers
from streamer.client.outbox import CloseReport, Outbox, Stats
from streamer.client.spool import Spool, SpoolError, SpoolFullError
from streamer.client.transport import NotReadyError, Reaped
from streamer.events import Label, encode


class FakeTransport:
    """Acknowledges what it is told to; can be away, full, or give up, or refuse what holds a word."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, bytes | None, bytes, Headers]] = []
        self.acknowledging = True
        self.full = False
        self.refusals = 0
        self.broken = False
        self.closed = False
        self._awaited: list[tuple[int, bytes]] = []

    def send(self, number: int, topic: str, key: bytes | None, body: bytes, headers: Headers) -> None:
        if self.full:
            self.refusals += 1
            raise NotReadyError("full")
        if b"poison" in body:
            raise ValueError("too large")
        self.taken.append((topic, key, body, headers))
        self._awaited.append((number, body))

    def reap(self) -> Reaped:
        if self.broken:
            return Reaped([], [], RuntimeError("fenced"))
        if not self.acknowledging:
            return Reaped([], [])
        awaited, self._awaited = self._awaited, []
        return Reaped(
            [number for number, body in awaited if b"refused" not in body],
            [(number, RuntimeError("refused by the broker")) for number, body in awaited if b"refused" in body],
        )

    def close(self) -> None:
        self.closed = True


def _entries(*ids: str) -> list[Entry]:
    return [
        Entry("labels.v1", name.encode(), encode(Label(prediction_id=name, model="m", ts=1, label=1)), EVENT_HEADERS)
        for name in ids
    ]


def _ids(transport: FakeTransport) -> list[str]:
    return [key.decode() for _, key, _, _ in transport.taken if key is not None]


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
    # It never comes: neither would return if it waited for that.
    for number in range(1_000):
        outbox.put(_entries(str(number)))
    report = outbox.close(0.2)
    assert report == CloseReport(sent=0, failed=0, dropped=995, unsent=5)
    assert "no broker answers" in caplog.text
    assert "closed with events lost" in caplog.text


def test_a_connection_that_hangs_holds_no_caller_up(transport: FakeTransport) -> None:
    asked, answer = threading.Event(), threading.Event()

    def hanging() -> FakeTransport:
        asked.set()
        answer.wait()
        return transport

    outbox = Outbox(hanging, size=5)
    assert outbox.put(_entries("a")) == 1
    assert asked.wait(30)
    # The answer comes after the calls: one that waited for it would not return.
    assert outbox.put(_entries(*"bcdefg")) == 4
    assert outbox.stats() == Stats(queued=5, in_flight=0, sent=0, failed=0, dropped=2)
    answer.set()
    assert outbox.close(30) == CloseReport(sent=5, failed=0, dropped=2, unsent=0)


def test_a_client_that_hangs_in_the_sending_holds_no_caller_up() -> None:
    asked, answer = threading.Event(), threading.Event()

    class Hanging(FakeTransport):
        def send(self, number: int, topic: str, key: bytes | None, body: bytes, headers: Headers) -> None:
            asked.set()
            answer.wait()
            super().send(number, topic, key, body, headers)

    outbox = Outbox(Hanging, size=5)
    assert outbox.put(_entries("a")) == 1
    assert asked.wait(30)
    assert outbox.put(_entries(*"bcdefg")) == 4
    assert outbox.stats().dropped == 2
    answer.set()
    assert outbox.close(30) == CloseReport(sent=5, failed=0, dropped=2, unsent=0)


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
    _until(lambda: transport.refusals > 1)
    outbox.put(_entries("c"))
    transport.full = False
    assert outbox.flush(5) == 0
    assert _ids(transport) == ["a", "b", "c"]


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


def test_close_waits_for_what_is_on_its_way(transport: FakeTransport, outbox: Outbox) -> None:
    transport.acknowledging = False
    outbox.put(_entries("a", "b"))
    _until(lambda: len(transport.taken) == 2)
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(outbox.close, 30)
        # It takes nothing more from the moment it is closed on, and nothing has been acknowledged by then.
        _until(lambda: outbox.put(_entries("c")) == 0)
        assert not closing.done()
        transport.acknowledging = True
        report = closing.result()
    assert (report.failed, report.unsent) == (0, 0)
    assert report.sent >= 2


def test_close_does_not_wait_for_ever(transport: FakeTransport, outbox: Outbox) -> None:
    transport.acknowledging = False
    outbox.put(_entries("a", "b"))
    assert outbox.close(0.2) == CloseReport(sent=0, failed=0, dropped=0, unsent=2)
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


def _spooling(path: Path) -> Callable[[], Spool]:
    return lambda: Spool(path, max_bytes=10_000_000)


def _away() -> FakeTransport:
    raise NotReadyError("no broker answers")


def test_what_a_client_gave_up_is_sent_again_in_order_by_a_new_one() -> None:
    transports: list[FakeTransport] = []

    def connect() -> FakeTransport:
        transports.append(FakeTransport())
        transports[-1].acknowledging = len(transports) > 1
        return transports[-1]

    outbox = Outbox(connect, size=100)
    outbox.put(_entries("a", "b", "c"))
    _until(lambda: outbox.stats().in_flight == 3)
    transports[0].broken = True
    outbox.put(_entries("d"))
    assert outbox.close(10) == CloseReport(sent=4, failed=0, dropped=0, unsent=0)
    assert transports[0].closed
    assert _ids(transports[1]) == ["a", "b", "c", "d"]


def test_with_a_spool_events_of_an_absent_kafka_are_kept_for_the_next_client(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    outbox = Outbox(_away, size=10, open_spool=_spooling(path))
    for number in range(8):
        assert outbox.put(_entries(str(number))) == 1
    _until(lambda: outbox.stats() == Stats(queued=0, in_flight=0, sent=0, failed=0, dropped=0, spooled=8))
    for number in range(8, 20):
        outbox.put(_entries(str(number)))
        _until(lambda: outbox.stats().queued == 0)
    assert outbox.close(0.2) == CloseReport(sent=0, failed=0, dropped=0, unsent=0, spooled=20)
    transport = FakeTransport()
    again = Outbox(lambda: transport, size=10, open_spool=_spooling(path))
    assert again.flush(10) == 0
    assert _ids(transport) == [str(number) for number in range(20)]
    assert again.close(5) == CloseReport(sent=20, failed=0, dropped=0, unsent=0)
    assert not path.exists()


class SlowTransport(FakeTransport):
    """Acknowledges no more messages than it may."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0
        self.allowed = 0

    def reap(self) -> Reaped:
        self.looks += 1
        count = min(self.allowed, len(self._awaited))
        self.allowed -= count
        sent, self._awaited = self._awaited[:count], self._awaited[count:]
        return Reaped([number for number, _ in sent], [])


@pytest.mark.parametrize("events", [1, 500])
def test_events_that_kafka_takes_too_slowly_are_spooled_and_none_is_dropped(tmp_path: Path, events: int) -> None:
    transport = SlowTransport()
    outbox = Outbox(lambda: transport, size=4_000, open_spool=_spooling(tmp_path / "spool"))
    most_spooled = put = 0
    for _ in range(25):
        transport.allowed = max(1, 100 // events)
        names = [str(number) for number in range(put, put + 1_000 // events)]
        put += outbox.put([msgspec.structs.replace(entry, events=events) for entry in _entries(*names)])
        looks = transport.looks
        _until(lambda looks=looks: transport.looks >= looks + 2)  # type: ignore[misc]
        most_spooled = max(most_spooled, outbox.stats().spooled)
    assert outbox.stats().dropped == 0
    assert most_spooled > 4_000
    transport.allowed = put
    assert outbox.close(30) == CloseReport(sent=25_000, failed=0, dropped=0, unsent=0)
    assert _ids(transport) == [str(number) for number in range(put)]


def test_closing_spools_what_was_queued_and_what_was_in_flight(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    transport = FakeTransport()
    transport.acknowledging = False
    outbox = Outbox(lambda: transport, size=10, open_spool=_spooling(path))
    outbox.put(_entries(*"abcde"))
    _until(lambda: len(transport.taken) == 2)
    outbox.put(_entries(*"fgh"))
    assert outbox.close(0.1) == CloseReport(sent=0, failed=0, dropped=0, unsent=0, spooled=8)
    second = FakeTransport()
    with_rest = Outbox(lambda: second, size=10, open_spool=_spooling(path))
    assert with_rest.close(10).sent == 8
    assert _ids(second) == list("abcdefgh")


def test_what_is_in_flight_and_in_the_spool_is_acknowledged_once(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    transport = FakeTransport()
    transport.acknowledging = False
    outbox = Outbox(lambda: transport, size=100, open_spool=_spooling(path))
    outbox.put(_entries("a", "b"))
    _until(lambda: outbox.stats() == Stats(queued=0, in_flight=0, sent=0, failed=0, dropped=0, spooled=2))
    outbox.put(_entries("c", "d"))
    _until(lambda: outbox.stats().spooled == 4)
    assert _ids(transport) == ["a", "b", "c", "d"]
    transport.acknowledging = True
    assert outbox.flush(5) == 0
    assert _ids(transport) == ["a", "b", "c", "d"]
    assert outbox.close(5) == CloseReport(sent=4, failed=0, dropped=0, unsent=0)
    assert not path.exists()


def test_a_spool_that_takes_no_more_drops_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SpoolFullError("no space left on device")

    monkeypatch.setattr(Spool, "append", full)
    outbox = Outbox(_away, size=5, open_spool=_spooling(tmp_path / "spool"))
    outbox.put(_entries(*"abcdef"))
    _until(lambda: "the spool takes no more events" in caplog.text)
    outbox.put(_entries("g"))
    assert outbox.close(0.1) == CloseReport(sent=0, failed=0, dropped=2, unsent=5)
    assert caplog.text.count("the spool takes no more events: no space left on device") == 1


def test_a_message_of_many_events_counts_them_all(transport: FakeTransport) -> None:
    outbox = Outbox(lambda: transport, size=100)
    batch = Entry("predictions.v1", None, b"arrow", [("content-type", b"x")], 90)
    assert outbox.put([batch, batch]) == 1
    assert outbox.close(5) == CloseReport(sent=90, failed=0, dropped=90, unsent=0)
    assert transport.taken == [("predictions.v1", None, b"arrow", [("content-type", b"x")])]


def test_a_forked_child_does_without_its_parents_spool_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    outbox = Outbox(FakeTransport, size=10, open_spool=_spooling(path))
    child = os.fork()
    if child == 0:
        records: list[logging.LogRecord] = []
        handler = logging.Handler()
        handler.emit = records.append  # type: ignore[method-assign]
        logging.getLogger("streamer.client.outbox").addHandler(handler)
        outbox.put(_entries("child"))
        good = outbox.close(5) == CloseReport(sent=1, failed=0, dropped=0, unsent=0)
        good = good and any("in use by another process" in record.getMessage() for record in records)
        os._exit(0 if good and path.exists() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    outbox.put(_entries("parent"))
    assert outbox.close(5).sent == 1
    assert not path.exists()


def test_a_forked_child_whose_spool_has_no_room_sends_without_it(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    outbox = Outbox(FakeTransport, size=10, open_spool=_spooling(path))
    child = os.fork()
    if child == 0:

        def refuse(*_: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        # In its place the child would make a file of its own.
        path.unlink()
        os.pwrite = refuse
        outbox.put(_entries("child"))
        good = outbox.close(5) == CloseReport(sent=1, failed=0, dropped=0, unsent=0)
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    outbox.close(1)


def test_a_spool_in_use_is_an_error_at_once(tmp_path: Path) -> None:
    first = Outbox(FakeTransport, size=10, open_spool=_spooling(tmp_path / "spool"))
    with pytest.raises(SpoolError, match="in use by another process"):
        Outbox(FakeTransport, size=10, open_spool=_spooling(tmp_path / "spool"))
    first.close(1)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(["put", "away", "back", "break", "reopen"]), min_size=1, max_size=10))
def test_with_a_spool_nothing_is_lost_and_a_key_keeps_its_order(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    path = tmp_path_factory.mktemp("steps") / "spool"
    transports: list[FakeTransport] = []
    away = False

    def connect() -> FakeTransport:
        transports.append(FakeTransport())
        transports[-1].acknowledging = not away
        return transports[-1]

    def opened() -> Outbox:
        # The last one may still be writing after its time to close.
        for _ in range(1_000):
            with contextlib.suppress(SpoolError):
                return Outbox(connect, size=40, open_spool=_spooling(path))
            time.sleep(0.01)
        raise AssertionError("the spool stays in use")

    outbox = opened()
    put = 0
    for step in [*steps, "put", "back"]:
        if step == "put":
            for _ in range(15):
                put += outbox.put(_entries(str(put)))
        elif step == "reopen":
            outbox.close(0.05)
            outbox = opened()
        elif step == "break" and transports:
            transports[-1].broken = True
        else:
            away = step == "away"
            if transports:
                transports[-1].acknowledging = not away
    report = outbox.close(20)
    assert (report.failed, report.unsent, report.spooled) == (0, 0, 0)
    sent = [int(name) for transport in transports for name in _ids(transport)]
    assert set(sent) == set(range(put))
    # A copy may come later; what comes for the first time comes in order.
    firsts = list(dict.fromkeys(sent))
    assert firsts == sorted(firsts)
