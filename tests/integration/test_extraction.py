"""Reading exact offset ranges back from a real log, and joining them as the monitor would."""

from __future__ import annotations

import msgspec
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from dags.steps import data
from dags.steps.offsets import OffsetsError, read_events
from streamer.events import FeatureLog, Label, OffsetRange, Prediction, RetrainRequest, encode
from streamer.kafka import topics
from streamer.models import parse_model
from streamer.settings import Settings
from tests.streamer.arrows import arrow_of

pytestmark = pytest.mark.integration

MODEL = parse_model(
    {
        "name": "toy",
        "task": "binary",
        "positive": True,
        "features": {
            "x": {"kind": "numeric"},
            "code": {"kind": "categorical"},
            "balance": {"kind": "numeric", "source": "features"},
        },
    },
    "test",
)
T0 = 1_700_000_000_000
OTHER = "another-model"


class Log:
    """Sends events to the raw topics and knows where each went."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer = Producer({**settings.kafka.properties()})
        self.places: list[tuple[str, int, int]] = []

    def send(self, topic: str, *events: Prediction | Label | FeatureLog | bytes, partition: int = 0) -> None:
        for event in events:
            value = event if isinstance(event, bytes) else encode(event)
            self._producer.produce(self._settings.topic(topic), value, partition=partition, on_delivery=self._delivered)
        assert self._producer.flush(10) == 0

    def _delivered(self, error: object, message: object) -> None:
        assert error is None
        self.places.append((message.topic(), message.partition(), message.offset()))  # type: ignore[attr-defined]

    def ranges(self) -> list[OffsetRange]:
        ids = topics.topic_ids(self._settings, {topic for topic, _, _ in self.places})
        spans: dict[tuple[str, int], list[int]] = {}
        for topic, partition, offset in self.places:
            spans.setdefault((topic, partition), []).append(offset)
        return [
            OffsetRange(topic=topic, topic_id=ids[topic], partition=partition, start=min(each), end=max(each) + 1)
            for (topic, partition), each in spans.items()
        ]


def request(ranges: list[OffsetRange]) -> RetrainRequest:
    return RetrainRequest(
        request_id="rq-1",
        namespace="",
        model="toy",
        model_epoch=1,
        version="1",
        kind="performance",
        pane_end_ms=T0 + 1_000_000,
        window_start_ms=T0,
        window_end_ms=T0 + 1_000_000,
        raised_at_ms=0,
        offsets=ranges,
    )


def prediction(name: str, ts: int = T0 + 500_000, **fields: object) -> Prediction:
    base = Prediction(prediction_id=name, model="toy", ts=ts, features={"x": 1.0, "code": 7}, prediction=True)
    return msgspec.structs.replace(base, **fields)


def label(name: str, value: object = True, **fields: object) -> Label:
    base = Label(prediction_id=name, model="toy", ts=T0 + 600_000, label=value)  # type: ignore[arg-type]
    return msgspec.structs.replace(base, **fields)


def test_the_window_comes_back_joined_with_its_effective_labels(settings: Settings) -> None:
    log = Log(settings)
    log.send("predictions", prediction("a"), prediction("corrected"), prediction("deleted"), prediction("unlabelled"))
    log.send("predictions", prediction("elsewhere", model=OTHER), prediction("too-early", ts=T0 - 1), partition=1)
    log.send("predictions", prediction("a", features={"x": 9.0}), prediction("shadow", origin="shadow"), partition=2)
    log.send(
        "predictions", b"not json", b"[" * 100_000, prediction("odd", features={"x": "text", "code": True}), partition=3
    )
    log.send("labels", label("a"), label("corrected", True), label("deleted"), label("odd", False))
    log.send("labels", label("corrected", False, revision=1), label("deleted", deleted=True, ts=T0 + 700_000), b"{}")
    log.send("labels", label("elsewhere", model=OTHER), label("too-early"), label("shadow"), partition=1)
    log.send("features", FeatureLog(model="toy", ts=T0, features={"balance": 5.0}, prediction_id="a"))
    table, summary = data.extract(settings, MODEL, request(log.ranges()))
    rows = {row["prediction_id"]: row for row in table.iter_rows(named=True)}
    assert set(rows) == {"a", "corrected", "odd"}
    assert rows["a"]["x"] == 1.0
    assert (rows["a"]["label"], rows["corrected"]["label"]) == ("true", "false")
    assert (rows["a"]["code"], rows["odd"]["code"], rows["odd"]["x"]) == ("7", "true", None)
    assert (rows["a"]["balance"], rows["odd"]["balance"]) == (5.0, None)
    assert summary["predictions"]["invalid"] == 2
    assert summary["labels"]["invalid"] == 1
    assert summary["labelled"] == 3


def test_rows_of_arrow_messages_are_extracted_as_events_are(settings: Settings) -> None:
    log = Log(settings)
    rows = [prediction("a"), prediction("a", features={"x": 9.0, "code": 8}), prediction("b"), prediction("c")]
    log.send(
        "predictions", arrow_of([*map(msgspec.to_builtins, rows), {"prediction_id": "", "model": "toy", "ts": T0}])
    )
    labels = [label("a"), label("b"), label("b", False), label("c"), label("c", deleted=True, revision=1)]
    log.send("labels", arrow_of([msgspec.to_builtins(each) for each in labels]))
    table, summary = data.extract(settings, MODEL, request(log.ranges()))
    found = [
        (row["prediction_id"], row["x"], row["label"]) for row in table.sort("prediction_id").iter_rows(named=True)
    ]
    assert found == [("a", 1.0, "true"), ("b", 1.0, "false")]
    assert (summary["predictions"]["messages"], summary["predictions"]["invalid"]) == (1, 1)


def test_no_offset_outside_the_ranges_is_read(settings: Settings) -> None:
    log = Log(settings)
    log.send("predictions", *(prediction(f"p{number}") for number in range(100)))
    (everything,) = log.ranges()
    parts = [
        msgspec.structs.replace(everything, start=everything.start + 10, end=everything.start + 20),
        msgspec.structs.replace(everything, start=everything.start + 15, end=everything.start + 30),
        msgspec.structs.replace(everything, start=everything.start + 50, end=everything.start + 60),
    ]
    read = read_events(settings, MODEL, parts, "predictions")
    assert sorted(read.table["@offset"].to_list()) == [everything.start + n for n in [*range(10, 30), *range(50, 60)]]
    assert (read.messages, read.lost) == (30, 0)


def test_a_request_without_offsets_reads_nothing(settings: Settings) -> None:
    table, _ = data.extract(settings, MODEL, request([]))
    assert table.is_empty()


def test_what_retention_has_deleted_is_counted(settings: Settings) -> None:
    log = Log(settings)
    log.send("predictions", *(prediction(f"p{number}") for number in range(40)))
    (everything,) = log.ranges()
    admin = AdminClient({**settings.kafka.properties()})
    place = TopicPartition(settings.topic("predictions"), 0, everything.start + 25)
    for deleted in admin.delete_records([place]).values():
        deleted.result()
    read = read_events(settings, MODEL, [everything], "predictions")
    assert (len(read.table), read.lost) == (15, 25)


def test_a_topic_made_anew_is_another_topic(settings: Settings) -> None:
    log = Log(settings)
    log.send("predictions", prediction("a"))
    (found,) = log.ranges()
    stranger = msgspec.structs.replace(found, topic_id="AAAAAAAAAAAAAAAAAAAAAA")
    with pytest.raises(OffsetsError, match="made anew since"):
        read_events(settings, MODEL, [stranger], "predictions")


def test_a_log_that_ends_before_the_range_is_said_to_have_lost_records(settings: Settings) -> None:
    log = Log(settings)
    log.send("predictions", prediction("a"))
    (found,) = log.ranges()
    longer = msgspec.structs.replace(found, end=found.end + 5)
    with pytest.raises(OffsetsError, match="records were deleted"):
        read_events(settings, MODEL, [longer], "predictions")


def test_uncommitted_records_are_not_read_and_markers_are_passed_over(settings: Settings) -> None:
    producer = Producer({**settings.kafka.properties(), "transactional.id": f"{settings.namespace}-test"})
    producer.init_transactions(10)
    topic = settings.topic("predictions")
    for outcome in ("commit", "abort", "commit"):
        producer.begin_transaction()
        producer.produce(topic, encode(prediction(outcome)), partition=0)
        producer.flush(10)
        getattr(producer, f"{outcome}_transaction")(10)
    identity = topics.topic_ids(settings, [topic])[topic]
    whole = OffsetRange(topic=topic, topic_id=identity, partition=0, start=0, end=6)
    assert read_events(settings, MODEL, [whole], "predictions").table["@id"].to_list() == ["commit", "commit"]
