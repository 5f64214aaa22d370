"""Requests, ledger, deployments and panes as evaluate makes them of its input alone, held against the topics."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest.mock import patch

import msgspec

from monitors.lifecycle import FINAL
from streamer.catalog import Catalog
from streamer.evaluate import Evaluate
from streamer.evaluation.state_log import decode_position, read_partitions
from streamer.kafka import clients as kafka_clients
from streamer.kafka.reader import read_to_end
from streamer.settings import Settings
from streamer.stage import Batch, Partition, Standing
from tests.chaos.retraining import LEFT_ALONE

Document = dict[str, Any]
_TOPICS = ("retrain-requests", "ledger", "deployments")
# When in record time something was answered depends on how the two input topics came to be read side by side;
# what was answered does not.
_RECORD_TIMES = {"at_ms", "since_ms", "raised_at_ms", "published_at_ms"}
_NEXT: dict[str, set[str]] = {
    "": {"raised"},
    "raised": {"accepted", "expired", "failed"},
    "accepted": {"training", "rejected", "failed"},
    "training": {"validated", "rejected", "failed"},
    "validated": {"canary", "failed"},
    "canary": {"promoted", "rolled_back", "failed"},
}


class Decided(NamedTuple):
    """What evaluate has published, by topic and model in order, and the panes it keeps, by their stored key."""

    published: dict[tuple[str, str], list[Document]]
    panes: dict[str, bytes]


class _Input(NamedTuple):
    offset: int
    record_ms: int
    value: bytes


def compare_decisions(settings: Settings, catalog: Catalog) -> tuple[int, list[str]]:
    """Decide everything again without a server; return how much was compared, and what differs."""
    amiss: list[str] = []
    compared = 0
    again, found = decide_again(settings, catalog), read_decided(settings)
    for topic, model in sorted(again.published.keys() | found.published.keys()):
        if model == LEFT_ALONE:
            # Deadlines fire by the clock of whoever reads; what they do to its ledger is looked at below.
            continue
        wanted = [_timeless(each) for each in again.published.get((topic, model), [])]
        got = [_timeless(each) for each in found.published.get((topic, model), [])]
        compared += len(wanted)
        amiss += _differences(f"{topic} of {model}", got, wanted)
    for key in sorted(again.panes.keys() | found.panes.keys()):
        compared += 1
        if again.panes.get(key) != found.panes.get(key):
            amiss.append(f"state: {key} is not what the partials make of it")
    return compared, amiss + broken_rules(settings, found)


def _differences(what: str, got: list[Document], wanted: list[Document]) -> list[str]:
    if got == wanted:
        return []
    if len(got) != len(wanted):
        return [f"{what}: {len(got)}, wanted {len(wanted)}: {got[:3]} … and {wanted[:3]} …"]
    first = next(at for at, (one, other) in enumerate(zip(got, wanted, strict=True)) if one != other)
    return [f"{what}, number {first}: got {got[first]}, wanted {wanted[first]}"]


def decide_again(settings: Settings, catalog: Catalog) -> Decided:
    """Run evaluate over its whole input, side by side as the commits of the real one say it was read."""
    decided = Decided(defaultdict(list), {})
    for index in range(settings.internal_partitions):
        _decide_partition(settings, catalog, index, decided)
    return decided


def _decide_partition(settings: Settings, catalog: Catalog, index: int, decided: Decided) -> None:
    evaluate = Evaluate(settings, catalog, consumer_properties={}, show=lambda _shards: ())
    places = [Partition(topic, index) for topic in evaluate.topics]
    inputs = {place: list(_inputs(settings, place)) for place in places}
    read = dict.fromkeys(places, 0)
    with patch("streamer.evaluate.read_partitions", return_value={index: {}}):
        evaluate.restore(dict.fromkeys(places, Standing(None, 0)))
    for applied in _commits(settings, index):
        for place in places:
            end = read[place]
            while end < len(inputs[place]) and inputs[place][end].offset < applied.get(place.topic, 0):
                end += 1
            _feed(evaluate, place, inputs[place][read[place] : end])
            read[place] = end
        positions = {place: applied.get(place.topic, 0) for place in places}
        for record in evaluate.results(positions):
            _keep(settings, decided, record.topic, (record.key or b"").decode(), record.value)
        evaluate.committed()


def _feed(evaluate: Evaluate, place: Partition, read: list[_Input]) -> None:
    if not read:
        return
    evaluate.fold(
        Batch(
            place,
            read[0].offset,
            read[-1].offset + 1,
            True,
            read[-1].record_ms,
            [each.offset for each in read],
            [each.record_ms for each in read],
            [None] * len(read),
            [each.value for each in read],
        )
    )


def _inputs(settings: Settings, place: Partition) -> Iterator[_Input]:
    for message in read_to_end(settings, place.topic, [place.number]):
        value: Any = message.value()
        yield _Input(message.offset() or 0, message.timestamp()[1], value or b"")


def _commits(settings: Settings, index: int) -> Iterator[dict[str, int]]:
    """Give how far each input had been read at each commit of a partition of the models."""
    for message in read_to_end(settings, settings.topic("state"), [index]):
        value: Any = message.value()
        if message.key() == b"position" and value is not None:
            yield decode_position(value).applied


def _keep(settings: Settings, decided: Decided, topic: str, key: str, value: bytes | None) -> None:
    if topic != settings.topic("state"):
        name = next(each for each in _TOPICS if settings.topic(each) == topic)
        decided.published[name, key].append(msgspec.json.decode(value or b"{}"))
    elif key.startswith("pane|"):
        if value is None:
            decided.panes.pop(key, None)
        else:
            decided.panes[key] = value


def read_decided(settings: Settings) -> Decided:
    """Return what the real evaluates have published."""
    found = Decided(defaultdict(list), {})
    for topic in _TOPICS:
        for message in read_to_end(settings, settings.topic(topic)):
            key, value = message.key(), message.value()
            if isinstance(key, bytes) and isinstance(value, bytes):
                _keep(settings, found, settings.topic(topic), key.decode(), value)
    properties = kafka_clients.librdkafka(settings.kafka.properties(), scope="consumer")
    stored = read_partitions(properties, settings.topic("state"), range(settings.internal_partitions))
    for values in stored.values():
        found.panes.update({key: value for key, value in values.items() if key.startswith("pane|")})
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(each) for name, each in value.items() if name not in _RECORD_TIMES}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def broken_rules(settings: Settings, found: Decided) -> list[str]:
    """Return what may not be, whatever was decided."""
    appended: Counter[str] = Counter()
    for message in read_to_end(settings, settings.topic("commands")):
        value: Any = message.value()
        command = msgspec.json.decode(value or b"{}")
        if command.get("kind") != "tick":
            appended[command["command_id"]] += 1
    answered: Counter[str] = Counter()
    amiss: list[str] = []
    for (topic, model), entries in found.published.items():
        if topic == "ledger":
            amiss += _broken_in_ledger(model, entries)
            answered.update(entry["command_id"] for entry in entries if entry.get("outcome"))
        elif topic == "retrain-requests":
            amiss += _broken_in_requests(model, entries, found.published.get(("ledger", model), []))
        else:
            epochs = [entry["epoch"] for entry in entries]
            if epochs != sorted(set(epochs)):
                amiss.append(f"deployments of {model}: epochs {epochs}, wanted them to rise")
    if appended != answered:
        amiss.append(f"commands: not answered once each: {appended - answered or answered - appended}")
    return amiss


def _broken_in_ledger(model: str, entries: list[Document]) -> list[str]:
    amiss: list[str] = []
    state: dict[str, str] = {}
    is_open = ""
    epoch = 0
    for entry in entries:
        if entry["epoch"] < epoch:
            amiss.append(f"ledger of {model}: epoch {entry['epoch']} after {epoch}")
        epoch = entry["epoch"]
        if entry.get("outcome") or entry["subject_kind"] != "request":
            continue
        subject, moved = entry["subject"], entry["state"]
        before = state.get(subject, "")
        if entry.get("previous", "") != before or moved not in _NEXT.get(before, set()):
            amiss.append(f"ledger of {model}: {subject} from {before!r} to {moved!r}")
        if moved == "raised" and is_open:
            amiss.append(f"ledger of {model}: {subject} was raised while {is_open} is open")
        state[subject] = moved
        is_open = "" if moved in FINAL else subject
    return amiss


def _broken_in_requests(model: str, requests: list[Document], ledger: list[Document]) -> list[str]:
    amiss = []
    attempts: dict[str, list[int]] = defaultdict(list)
    for request in requests:
        attempts[request["request_id"]].append(request.get("attempt", 1))
    for request_id, numbers in attempts.items():
        if numbers != list(range(1, len(numbers) + 1)):
            amiss.append(f"requests of {model}: {request_id} was published as attempts {numbers}")
    raised = [entry["subject"] for entry in ledger if entry.get("state") == "raised"]
    if raised != list(attempts):
        amiss.append(f"requests of {model}: published {list(attempts)}, the ledger has {raised}")
    return amiss
