"""Malformed messages of every kind, and sound ones between them, drawn from a seed and sent to the raw topics."""

from __future__ import annotations

import time
from functools import partial
from random import Random
from zlib import crc32

from confluent_kafka import KafkaError, Message, Producer

from streamer.catalog import Catalog
from streamer.decode import Event, decode
from streamer.decode import Kind as Topic
from streamer.events import FeatureLog
from streamer.kafka.clients import producer_config
from streamer.models import parse_model
from streamer.settings import Settings
from tests.chaos.faults import FAULTS, MODEL
from tests.chaos.mutations import DAMAGES, REGRESSION, mutation, named, sound, written
from tests.chaos.oracle import judge
from tests.chaos.sent import Kind, Sent, comparable, key_of

_PARTITIONS = 4
_LARGEST = 20_000_000
_FLUSH_S = 120.0
# Of a thousand messages, so many are of a known kind; the others are drawn.
_KNOWN_PER_MILLE = 300
_NEIGHBOUR_EVERY = 10
_NOBODY = -1
_TURNS: tuple[Topic, ...] = ("predictions", "labels", "features")

# Nothing is too old for it: what damage makes of a time of event is counted wherever it falls.
_TIME = {"pane": "1d", "lateness": "1m", "idle": "500ms", "retention": "90000d"}
FEATURES = {"hour": {"kind": "numeric"}, "carrier": {"kind": "categorical"}, "temp": {"kind": "numeric"}}
MODELS = tuple(
    parse_model({"features": FEATURES, "time": _TIME, **document}, "fuzz")
    for document in (
        {"name": MODEL, "task": "binary", "positive": "true", "slices": ["carrier"]},
        {"name": REGRESSION, "task": "regression", "labels": {"mode": "context"}},
    )
)
KINDS = (*(Kind(fault.name, fault) for fault in FAULTS), *(Kind(name) for name in DAMAGES))
_DAMAGE = {name: len(FAULTS) + index for index, name in enumerate(DAMAGES)}


class Post:
    """Draws messages, says of each what must become of it, and sends it."""

    def __init__(self, settings: Settings, catalog: Catalog, messages: int, seed: int) -> None:
        self._settings = settings
        self._catalog = catalog
        self._random = Random(seed)
        self._refused: list[KafkaError] = []
        self._producer = Producer(producer_config(settings, {"message.max.bytes": _LARGEST}))
        self.sent = Sent(KINDS, messages)
        self.neighbours = 0

    def send_all(self) -> None:
        """Send everything and wait until Kafka has it."""
        # Each known kind once, the large ones only then; then known and drawn ones as they come.
        small = [index for index, fault in enumerate(FAULTS) if not fault.large]
        once = list(range(len(FAULTS)))
        self._random.shuffle(once)
        for number in range(self.sent.messages):
            if number % _NEIGHBOUR_EVERY == 0:
                self._send_neighbour()
            if once:
                self._send_known(number, once.pop())
            elif self._random.randrange(1_000) < _KNOWN_PER_MILLE:
                self._send_known(number, self._random.choice(small))
            else:
                self._send_drawn(number)
        left = self._producer.flush(_FLUSH_S)
        if left or self._refused:
            raise RuntimeError(f"fuzz: {left} messages not taken in {_FLUSH_S:.0f} s, refused: {self._refused[:3]}")

    def _send_known(self, number: int, index: int) -> None:
        fault = FAULTS[index]
        value = fault.make(number)
        self.sent.expect(number, index, value, (fault.reason, fault.field))
        self._send(number, fault.topic, value, self._random.randrange(_PARTITIONS))

    def _send_drawn(self, number: int) -> None:
        before = named("good", self._random.randrange(max(self.neighbours, 1)))
        topic, damage, value = mutation(self._random, number, before)
        event, wanted = judge(
            self._catalog,
            topic,
            value,
            record_ms=int(time.time() * 1000),
            max_future_ms=self._settings.worker.max_future_ms,
        )
        self.sent.expect(number, _DAMAGE[damage], value, wanted and (comparable(wanted[0]), wanted[1]))
        self._send(number, topic, value, self._partition(event))

    def _send_neighbour(self) -> None:
        """Send a prediction, its label, or a feature log: whatever is damaged around it, it must be counted."""
        number, turn = divmod(self.neighbours, len(_TURNS))
        event = sound(self._random, _TURNS[turn], named("good", number))
        value = written(event)
        self._send(_NOBODY, _TURNS[turn], value, self._partition(decode(value, _TURNS[turn])))
        self.neighbours += 1

    def _partition(self, event: Event | None) -> int:
        """Return where to send a message: what has one id goes to one partition, so that its order is the log's."""
        if event is None or isinstance(event, FeatureLog):
            return self._random.randrange(_PARTITIONS)
        return crc32(event.prediction_id.encode()) % _PARTITIONS

    def _send(self, number: int, topic: Topic, value: bytes | None, place: int) -> None:
        key = None if number == _NOBODY else key_of(number)
        name = self._settings.topic(topic)
        delivered = partial(self._delivered, number)
        while True:
            try:
                self._producer.produce(name, value, key, place, on_delivery=delivered)
                self._producer.poll(0)
                return
            except BufferError:
                self._producer.poll(0.1)

    def _delivered(self, number: int, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._refused.append(error)
            return
        place = (message.topic() or "", message.partition() or 0, message.offset() or 0)
        self.sent.taken(number, *place)
