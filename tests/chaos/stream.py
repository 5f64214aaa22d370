"""A seeded stream with a known answer: predictions of every kind, feature logs and labels in all the ways they come."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

from streamer.decode import Kind
from streamer.kafka.partitioning import partition_of
from tests.chaos.models import CARRIERS, CHALLENGER, CLASSES, MODELS, PANE_MS, PROMOTED, REGIONS, T0, UNKNOWN, VERSION

PARTITIONS = 4
TICK_S = 0.05
# Event time passes this much faster than the stream is played.
_PANE_TICKS = 10
_TICK_MS = PANE_MS // _PANE_TICKS
_DAY_MS = 86_400_000
# Drift comes and goes: on for so many panes out of so many.
_DRIFT_PANES, _DRIFT_OF = 14, 36
# `brief` is heard of at the start alone, and its labels when their horizon is surely over.
_BRIEF_TICKS = 20
_HORIZON_OVER_S = 75.0
SDK_MODEL = "churn"
_STREAMED = tuple(name for name in MODELS if name != PROMOTED)

Document = dict[str, Any]
# Model, version, origin.
Group = tuple[str, str, str]


class Sending(NamedTuple):
    """One message to send: a partition where it is not the key's own, a time stamp where the producer's clock is wrong.

    `document` is what it says; models logged through the SDK have it said by the SDK.
    """

    kind: Kind
    document: Document
    partition: int
    clock_ms: int


@dataclass
class Answer:
    """What must come out: predictions that count and those of them that are labelled, by model, version and origin.

    `sliced` has the labelled ones by slice as well; `logs` and `labels` say how feature logs and labels came.
    `refused` counts the messages that belong among the dead letters, `sent` all.
    """

    events: Counter[Group] = field(default_factory=Counter)
    labelled: Counter[Group] = field(default_factory=Counter)
    sliced: Counter[tuple[*Group, str]] = field(default_factory=Counter)
    refused: int = 0
    sent: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    logs: Counter[str] = field(default_factory=Counter)

    def add(self, other: Answer) -> None:
        """Add what must come out of a sender beside the stream."""
        self.events += other.events
        self.labelled += other.labelled
        self.sent += other.sent


class Stream:
    """So many ticks of a stream.

    Parameters
    ----------
    rate : predictions a tick, of all models.
    now_ms : the present, which time stamps that are too far ahead are ahead of.
    repeating : whether predictions come more than once.
    """

    def __init__(self, seed: int, *, ticks: int, rate: int, now_ms: int, repeating: bool = True) -> None:
        self._random = Random(seed)
        self._ticks = ticks
        self._rate = rate
        self._now_ms = now_ms
        self._repeating = repeating
        self._jumped = False
        self._due: list[tuple[int, int, Sending]] = []
        self._number = self._order = 0
        self._identities: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
        self._slices: dict[tuple[str, str], str] = {}
        self._labels: dict[tuple[str, str], tuple[tuple[int, int], bool]] = {}
        self.answer = Answer()

    def play(self) -> Iterator[list[Sending]]:
        """Yield what is to be sent, tick by tick; what is due after the last tick comes with it."""
        for tick in range(self._ticks):
            for _ in range(self._rate):
                self._predict(tick)
            batch = []
            last = tick == self._ticks - 1
            while self._due and (last or self._due[0][0] <= tick):
                batch.append(heapq.heappop(self._due)[2])
            self.answer.sent += len(batch)
            yield batch
        for key, identities in self._identities.items():
            held = self._labels.get(key)
            if held is None or held[1]:
                continue
            for version, origin in identities:
                self.answer.labelled[key[0], version, origin] += 1
                if key in self._slices:
                    feature, _, value = self._slices[key].partition("=")
                    known = version != UNKNOWN and value in (*CARRIERS, *REGIONS)
                    name = f"{feature}={value}" if known else f"{feature} (other)"
                    self.answer.sliced[key[0], version, origin, name] += 1

    def _later(self, tick: int, sending: Sending) -> None:
        self._order += 1
        heapq.heappush(self._due, (max(tick, 0), self._order, sending))

    def _predict(self, tick: int) -> None:
        """One prediction of one model, with its copies and labels."""
        random = self._random
        name = random.choice(_STREAMED)
        if name == "brief" and tick >= _BRIEF_TICKS:
            return
        self._number += 1
        event = self._prediction(name, f"{name}-{self._number}", tick)
        self._say(tick, "predictions", event)
        chance = random.random()
        if chance < 0.005:
            # A clock two days fast.
            self._refuse(tick, {**event, "prediction_id": f"ahead-{self._number}", "ts": self._now_ms + 2 * _DAY_MS})
        if name == "price":
            self._log_features(event, tick)
        if "error" in event:
            self._count(event)
            return
        self._count(event)
        if name == "fraud":
            self._label_in_context(event, tick)
            return
        if name == "brief":
            if self._ticks * TICK_S > _HORIZON_OVER_S:
                # The stream's last label of it: too late, so it counts nothing.
                self._say(self._ticks - 1, "labels", self._label(event, revision=0, late_ms=0))
            return
        if chance > 0.95 and self._repeating:
            self._copy(event, tick, chance)
        self._befall(event, tick)

    def _prediction(self, name: str, id_: str, tick: int) -> Document:
        random = self._random
        pane = tick // _PANE_TICKS
        shift = 30.0 if pane % _DRIFT_OF >= _DRIFT_OF - _DRIFT_PANES else 0.0
        ts = T0 + tick * _TICK_MS + random.randrange(_TICK_MS)
        if random.random() < 0.03:
            ts -= random.randrange(15 * PANE_MS)
        elif random.random() < 0.002:
            # A clock that is days slow, or, once in a stream, hours fast: all that comes after it is late.
            ts -= random.randrange(20 * _DAY_MS)
        elif name == "delay-class" and not self._jumped and tick > 0.7 * self._ticks:
            self._jumped = True
            ts += 5 * 3_600_000
        event: Document = {"prediction_id": id_, "model": name, "ts": ts, "version": VERSION}
        chance = random.random()
        if chance < 0.03:
            event["version"] = UNKNOWN
        elif chance < 0.1:
            event["version"] = CHALLENGER
        if name == "price":
            said = random.gauss(300.0, 60.0)
            features: Document = {"size": random.gauss(100.0 + shift, 20.0)}
            if random.random() < 0.1:
                features["region"] = random.choice(REGIONS)
            return {**event, "features": features, "prediction": said}
        features = {"hour": random.randrange(24), "carrier": random.choice(CARRIERS)}
        features["temp"] = None if random.random() < 0.02 else random.gauss(60.0 + shift, 10.0)
        if random.random() < 0.01:
            features["carrier"] = "a new one"
        event["features"] = features
        if name != SDK_MODEL and random.random() < 0.01:
            return {**event, "error": "timed out"}
        if name == "delay-class":
            shares = [random.random() for _ in CLASSES]
            score = {each: share / sum(shares) for each, share in zip(CLASSES, shares, strict=True)}
            return {**event, "prediction": max(score, key=lambda each: score[each]), "score": score}
        score = random.random()
        return {**event, "prediction": score > 0.5, "score": score}

    def _copy(self, event: Document, tick: int, chance: float) -> None:
        """Send a prediction again: in its own partition it may say something else, and counts as little."""
        home = partition_of(event["prediction_id"], PARTITIONS)
        later = tick + self._random.randrange(40)
        if event["model"] == SDK_MODEL or chance > 0.985:
            self._say(later, "predictions", event)
        elif chance > 0.97:
            self._say(later, "predictions", {**event, "score": None}, home)
        elif chance > 0.96:
            self._say(later, "predictions", event, self._random.randrange(PARTITIONS))
        else:
            shadow = {**event, "origin": "shadow"}
            self._say(later, "predictions", shadow)
            self._count(shadow)

    def _befall(self, event: Document, tick: int) -> None:
        """Label a prediction, or do not, in one of the ways labels come."""
        random = self._random
        how = random.choices(list(_FATES), weights=list(_FATES.values()))[0]
        self.answer.labels[how] += 1
        came = tick + random.randrange(2, 60)
        home = partition_of(event["prediction_id"], PARTITIONS)
        elsewhere = (home + random.randrange(1, PARTITIONS)) % PARTITIONS
        label = self._label(event, revision=0, late_ms=30_000)
        corrected = self._label(event, revision=1, late_ms=60_000)
        again = self._label(event, revision=2, late_ms=90_000)
        deleted = {**self._label(event, revision=3, late_ms=95_000), "deleted": True}
        sent: dict[str, list[tuple[int, Document, int]]] = {
            "none": [],
            "plain": [(0, label, home)],
            "twice": [(0, label, home), (random.randrange(30), label, home)],
            "twice, apart": [(0, label, home), (random.randrange(30), label, elsewhere)],
            "early": [(-came - 60 * (random.random() < 0.3), label, home)],
            "early, elsewhere": [(-came, label, elsewhere)],
            "elsewhere": [(0, label, elsewhere)],
            "corrected": [(0, label, home), (random.randrange(30), corrected, home)],
            "corrected, elsewhere": [(0, label, home), (random.randrange(30), corrected, elsewhere)],
            "correction corrected": [(0, label, home), (10, corrected, home), (random.randrange(20), again, elsewhere)],
            "correction first": [(random.randrange(30), label, home), (0, corrected, home)],
            "deleted": [(0, label, home), (random.randrange(30), deleted, home)],
            "deleted and given again": [(0, label, home), (10, deleted, home), (20, {**again, "revision": 4}, home)],
            "two racing": [(0, label, home), (0, {**label, "label": corrected["label"]}, elsewhere)],
        }
        for delay, document, partition in sent[how]:
            at = came + delay
            # Of what the SDK sends, the partition is the key's own.
            self._say(at, "labels", document, home if event["model"] == SDK_MODEL else partition)
            self._note(document)

    def _label(self, event: Document, *, revision: int, late_ms: int) -> Document:
        random = self._random
        if event["model"] == "price":
            truth: Any = event["prediction"] + random.gauss(0.0, 15.0)
        elif event["model"] == "delay-class":
            truth = random.choice(CLASSES)
        else:
            truth = event["prediction"] if random.random() < 0.7 else not event["prediction"]
        found = {"prediction_id": event["prediction_id"], "model": event["model"], "ts": event["ts"] + late_ms}
        return {**found, "label": truth, "revision": revision}

    def _label_in_context(self, event: Document, tick: int) -> None:
        """Labels of a model in context mode are counted as they come, corrections by what they say they correct."""
        label = self._label(event, revision=0, late_ms=30_000)
        context = {name: event[name] for name in ("version", "prediction", "score")} | {"prediction_ts": event["ts"]}
        came = tick + self._random.randrange(2, 60)
        self._say(came, "labels", {**label, **context})
        self.answer.labelled[event["model"], event["version"], "live"] += 1
        if self._random.random() < 0.1:
            truth = not label["label"]
            self._say(came + 10, "labels", {**label, **context, "previous": label["label"], "label": truth})

    def _log_features(self, event: Document, tick: int) -> None:
        """Say of a prediction what it does not say itself, or does, in one of the ways feature logs come."""
        random = self._random
        how = random.choices(list(_LOGGED), weights=list(_LOGGED.values()))[0]
        self.answer.logs[how] += 1
        first, newer = random.choice(REGIONS), random.choice(REGIONS)
        named = {name: event[name] for name in ("prediction_id", "model", "ts", "version")}
        plain = {**named, "features": {"stock": random.gauss(5.0, 2.0)}}
        log = {**named, "features": {**plain["features"], "region": first}}
        again = {**log, "ts": event["ts"] + 1, "features": {**log["features"], "region": newer}}
        home = partition_of(event["prediction_id"], PARTITIONS)
        elsewhere = (home + random.randrange(1, PARTITIONS)) % PARTITIONS
        soon, later = random.randrange(10), 10 + random.randrange(120)
        sent: dict[str, tuple[list[tuple[int, Document, int]], str | None]] = {
            "none": ([], None),
            "no slice": ([(soon, plain, home)], None),
            "soon": ([(soon, log, home)], first),
            "elsewhere": ([(soon, log, elsewhere)], first),
            "early": ([(-1, log, elsewhere)], first),
            "late": ([(later, log, home)], first),
            "twice": ([(soon, log, home), (later, log, home)], first),
            "twice, apart": ([(soon, log, home), (soon, log, elsewhere)], first),
            "newer": ([(soon, log, home), (later, again, elsewhere)], newer),
            "newer first": ([(later, log, home), (soon, again, elsewhere)], newer),
            "in parts": ([(later, log, elsewhere), (later, {**plain, "ts": event["ts"] + 1}, home)], first),
        }
        logs, region = sent[how]
        for delay, document, partition in logs:
            self._say(tick + delay, "features", document, partition)
        region = event["features"].get("region", region)
        if region is not None:
            self._slices["price", event["prediction_id"]] = f"region={region}"

    def _say(self, tick: int, kind: Kind, document: Document, partition: int | None = None) -> None:
        home = partition_of(document["prediction_id"], PARTITIONS)
        # Kafka's own clock counts: what a producer says of the time is nothing to go by.
        wrong = self._random.random() < 0.02
        clock_ms = self._now_ms + self._random.randrange(-_DAY_MS, _DAY_MS) if wrong else 0
        self._later(tick, Sending(kind, document, home if partition is None else partition, clock_ms))

    def _refuse(self, tick: int, event: Document) -> None:
        if event["model"] != SDK_MODEL:
            self.answer.refused += 1
            self._say(tick, "predictions", event)

    def _count(self, event: Document) -> None:
        version, origin = event["version"], event.get("origin", "live")
        self.answer.events[event["model"], version, origin] += 1
        if "error" not in event and event["model"] not in ("fraud", "brief"):
            key = event["model"], event["prediction_id"]
            self._identities[key].append((version, origin))
            if "carrier" in event["features"]:
                self._slices[key] = f"carrier={event['features']['carrier']}"

    def _note(self, label: Document) -> None:
        key = (label["model"], label["prediction_id"])
        rank = (label["revision"], label["ts"])
        if key not in self._labels or rank > self._labels[key][0]:
            self._labels[key] = (rank, label.get("deleted", False))


# How feature logs come, and how often.
_LOGGED = {
    "soon": 30,
    "none": 5,
    "no slice": 5,
    "elsewhere": 10,
    "early": 10,
    "late": 15,
    "twice": 5,
    "twice, apart": 5,
    "newer": 10,
    "newer first": 5,
    "in parts": 5,
}
# How labels come, and how often.
_FATES = {
    "plain": 40,
    "none": 10,
    "twice": 6,
    "twice, apart": 4,
    "early": 6,
    "early, elsewhere": 3,
    "elsewhere": 5,
    "corrected": 6,
    "corrected, elsewhere": 4,
    "correction corrected": 4,
    "correction first": 3,
    "deleted": 4,
    "deleted and given again": 2,
    "two racing": 3,
}
