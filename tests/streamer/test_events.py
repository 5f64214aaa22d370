"""The wire formats, byte for byte: what an older driftloop wrote, this one reads, and writes the same."""

from __future__ import annotations

import inspect
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer import events
from streamer.events import (
    Command,
    Deployment,
    FeatureLog,
    Finding,
    Increment,
    Label,
    LedgerEntry,
    ModelMark,
    OffsetRange,
    Partial,
    Prediction,
    RetrainRequest,
    SourceProgress,
)

GOLDEN = Path(__file__).parent / "golden"
T0 = 1_700_000_000_000
ID = "018bcfe5-6800-7000-8000-000000000001"

# Every public message twice: with all its fields, and with those alone that must be given.
MESSAGES: dict[str, msgspec.Struct] = {
    "prediction": Prediction(
        prediction_id=ID,
        model="flight_delay",
        ts=T0,
        version="7",
        features={"distance": 1400.5, "hour": 17, "carrier": "UA", "weekend": False, "temp": None},
        prediction=True,
        score=0.75,
        entity_id="N14228",
        origin="shadow",
        rollout_id="canary-r1",
        bucket=225,
        latency_ms=1.5,
        error="time-out",
    ),
    "prediction-least": Prediction(prediction_id=ID, model="flight_delay", ts=T0, prediction=1),
    "prediction-classes": Prediction(
        prediction_id=ID, model="m", ts=T0, prediction="red", score={"red": 0.75, "blue": 0.25}
    ),
    "features": FeatureLog(
        model="flight_delay", ts=T0, features={"temp": 3.5}, version="7", prediction_id=ID, entity_id="N14228"
    ),
    "features-least": FeatureLog(model="flight_delay", ts=T0, features={}),
    "label": Label(
        prediction_id=ID,
        model="flight_delay",
        ts=T0,
        label=False,
        value=-12.5,
        revision=2,
        deleted=True,
        version="7",
        prediction=True,
        score=0.75,
        prediction_ts=T0 - 1,
        previous=True,
    ),
    "label-least": Label(prediction_id=ID, model="flight_delay", ts=T0, label="late"),
    "request": RetrainRequest(
        request_id="a1b2c3",
        namespace="ns",
        model="flight_delay",
        model_epoch=2,
        version="7",
        kind="drift",
        pane_end_ms=T0,
        window_start_ms=T0 - 86_400_000,
        window_end_ms=T0,
        raised_at_ms=T0 + 5,
        findings=[
            Finding(
                subject="distance",
                statistic="psi",
                value=0.31,
                threshold=0.05,
                floor=0.1,
                n_reference=5000,
                n_current=900,
                p_value=0.0001,
                reference_value=0.02,
            )
        ],
        offsets=[OffsetRange(topic="predictions.v1", topic_id="x" * 22, partition=3, start=10, end=20)],
        policy={"psi": 0.1},
        reason="psi of distance",
        attempt=2,
    ),
    "request-least": RetrainRequest(
        request_id="a1b2c3",
        namespace="",
        model="m",
        model_epoch=1,
        version="_",
        kind="manual",
        pane_end_ms=0,
        window_start_ms=0,
        window_end_ms=0,
        raised_at_ms=T0,
    ),
    "command": Command(
        command_id="c1",
        kind="set_step",
        model="flight_delay",
        model_epoch=2,
        subject="canary-a1b2c3",
        expected_epoch=4,
        payload={"step": 1},
        actor="dag:canary",
    ),
    "command-least": Command(command_id="c1", kind="tick"),
    "ledger-entry": LedgerEntry(
        model="flight_delay",
        model_epoch=2,
        at_ms=T0,
        subject_kind="rollout",
        subject="canary-a1b2c3",
        state="active",
        previous="prepared",
        epoch=5,
        actor="dag:canary",
        command_id="c1",
        command_kind="set_step",
        outcome="accepted",
        reason="as asked",
        detail={"percent": 10.0},
    ),
    "ledger-entry-least": LedgerEntry(
        model="m", model_epoch=1, at_ms=T0, subject_kind="model", subject="", state="quiet"
    ),
    "deployment": Deployment(
        model="flight_delay",
        model_epoch=2,
        epoch=5,
        champion="7",
        challenger="8",
        percent=10.0,
        step=1,
        since_ms=T0,
        rollout_id="canary-a1b2c3",
        salt="canary-a1b2c3",
    ),
    "deployment-least": Deployment(model="m", model_epoch=1, epoch=1, champion="1"),
}

PARTIAL = Partial(
    ingest="ns-ingest-0",
    progress=[SourceProgress("predictions.v1", "x" * 22, 3, 10, 20, T0)],
    partition_counts={"predictions.v1": 4},
    increments=[
        Increment(
            model="flight_delay",
            model_epoch=2,
            version="7",
            origin="live",
            source="predictions",
            pane_start_ms=T0,
            pane_ms=300_000,
            fingerprint="f00d",
            events=3,
            sampled=2,
            errors=1,
            labelled=1,
            cells=b"\x00\x01\x00\x03",
            performance={"": b"\x00\xff"},
            exposures={"canary-a1b2c3": b"\x01"},
            outcomes={"canary-a1b2c3": b"\x02"},
            offsets=[0, 10, 19],
        )
    ],
    marks=[ModelMark("flight_delay", [0, T0, T0 + 1])],
    tallies={"flight_delay": {"late": 2}},
    sources=[("predictions.v1", "x" * 22, 3)],
)
PARTIAL_LEAST = Partial(ingest="ingest-0", progress=[], partition_counts={})


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_is_written_as_it_always_was(name: str) -> None:
    assert events.encode(MESSAGES[name]) == (GOLDEN / f"{name}.json").read_bytes()


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_that_was_written_is_read(name: str) -> None:
    message = MESSAGES[name]
    assert msgspec.json.decode((GOLDEN / f"{name}.json").read_bytes(), type=type(message)) == message


@pytest.mark.parametrize("name", MESSAGES)
def test_a_field_of_a_later_version_is_let_be(name: str) -> None:
    message = MESSAGES[name]
    document = msgspec.json.decode((GOLDEN / f"{name}.json").read_bytes())
    later = msgspec.json.encode({**document, "a_later_field": {"x": 1}})
    assert msgspec.json.decode(later, type=type(message)) == message


@pytest.mark.parametrize(("name", "partial"), [("partial", PARTIAL), ("partial-least", PARTIAL_LEAST)])
def test_a_partial_is_written_and_read_as_it_always_was(name: str, partial: Partial) -> None:
    written = bytes.fromhex((GOLDEN / f"{name}.msgpack.hex").read_text())
    assert msgspec.msgpack.encode(partial) == written
    assert msgspec.msgpack.decode(written, type=Partial) == partial


def test_every_format_is_pinned_with_all_its_fields() -> None:
    structs = {
        value
        for _, value in inspect.getmembers(events, inspect.isclass)
        if issubclass(value, msgspec.Struct) and value is not msgspec.Struct
    }
    pinned: set[type[msgspec.Struct]] = {type(message) for message in MESSAGES.values()}
    pinned |= {Finding, OffsetRange, Partial, Increment, SourceProgress, ModelMark}
    assert structs == pinned
    for name, message in MESSAGES.items():
        if name in {"prediction", "features", "label", "request", "command", "ledger-entry", "deployment"}:
            written = msgspec.json.decode((GOLDEN / f"{name}.json").read_bytes())
            assert set(written) == set(type(message).__struct_fields__)


def test_the_schema_header_is_pinned() -> None:
    assert (events.SCHEMA_HEADER, events.SCHEMA_VERSION) == ("driftloop-schema", b"1")


@pytest.mark.parametrize("ts", [1_700_000_000, -1, 1_700_000_000_000_000, 10**13])
def test_a_time_in_another_unit_is_refused(ts: int) -> None:
    raw = msgspec.json.encode({"prediction_id": ID, "model": "m", "ts": ts})
    with pytest.raises(msgspec.ValidationError, match=r"\$\.ts"):
        msgspec.json.decode(raw, type=Prediction)


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), st.text()
)


@given(
    st.builds(
        Prediction,
        prediction_id=st.text(min_size=1, max_size=200),
        model=st.from_regex(events.NAME_PATTERN, fullmatch=True),
        ts=st.integers(events.EARLIEST_MS, events.LATEST_MS),
        features=st.dictionaries(st.text(), SCALARS, max_size=4),
        prediction=SCALARS,
        bucket=st.one_of(st.none(), st.integers(0, 999)),
    )
)
def test_a_prediction_survives_the_wire(message: Prediction) -> None:
    assert msgspec.json.decode(events.encode(message), type=Prediction) == message
