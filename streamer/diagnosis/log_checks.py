"""Whether the log holds what workers need of it: room, offsets, models and references; and what was refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]
from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from monitors.profile import MANIFEST, ReferenceProfile
from streamer import references
from streamer.counting.fold import UNVERSIONED
from streamer.diagnosis.checks import Check
from streamer.events import UNREADABLE
from streamer.explain import known_field
from streamer.kafka import clients as kafka_clients
from streamer.kafka.offsets import committed_offsets, offsets_of
from streamer.kafka.reader import newest_by_key
from streamer.letters import deadletters
from streamer.models import parse_stored_model
from streamer.settings import ConfigError, Settings

_TIMEOUT_S = 5.0
_GB = 2**30
# Below these shares of a broker's disk.
_LITTLE, _HARDLY_ANY = 0.10, 0.02
_HOUR_MS = 3_600_000
# As many of the newest dead letters are looked into.
_LOOKED_INTO = 500
# What a stage writes whenever it commits offsets, and where it goes on without them.
_WRITES = {"ingest": "partials", "evaluate": "state"}
_GOES_ON = {
    "ingest": "ingest goes on where evaluate's state, and the partials it has not read, say that counting stood",
    "evaluate": "evaluate goes on at the offsets its own state names",
}

Place = tuple[str, int]


def room(settings: Settings) -> Check:
    """Look how much room the brokers' disks have: a broker whose disk is full ends."""
    try:
        admin = KafkaAdminClient(**kafka_clients.kafka_python(settings.kafka.properties()))
        try:
            brokers: list[dict[str, Any]] = admin.describe_log_dirs()
        finally:
            admin.close()
    except (KafkaError, OSError, ValueError) as error:
        return Check("kafka disks", "skipped", f"cannot be asked: {error}")
    return judge_room(brokers)


def judge_room(brokers: Iterable[Mapping[str, Any]]) -> Check:
    """Say how full the disks are that brokers have described."""
    remedy = "make room, or shorten topics.<name>.retention; a broker whose disk is full ends, and so do the workers"
    told, least = [], 1.0
    for broker in brokers:
        for directory in broker.get("log_dirs", ()):
            where = f"broker {broker.get('broker', '?')} {directory.get('log_dir', '')}"
            if directory.get("error_code"):
                return Check("kafka disks", "failed", f"{where}: has failed", "see the broker's log; " + remedy)
            total, usable = directory.get("total_bytes", -1), directory.get("usable_bytes", -1)
            if total > 0 and usable >= 0:
                least = min(least, usable / total)
                told.append(f"{where}: {usable / _GB:.1f} of {total / _GB:.1f} GB free")
    if not told:
        return Check("kafka disks", "skipped", "the brokers do not say how much room they have")
    if least >= _LITTLE:
        return Check("kafka disks", "ok", "; ".join(told))
    return Check("kafka disks", "failed" if least < _HARDLY_ANY else "warning", "; ".join(told), remedy)


def offsets(settings: Settings) -> Check:
    """Hold the offsets the workers have committed against what the log still has."""
    admin = AdminClient({**kafka_clients.admin_config(settings), "log_level": 0})
    by_stage = {stage: _committed(admin, _group(settings, stage)) for stage in _WRITES}
    committed = {place: offset for found in by_stage.values() for place, offset in found.items()}
    expired = [
        f"Kafka has let {stage}'s offsets expire: {_GOES_ON[stage]}"
        for stage, found in by_stage.items()
        if not found and _was_written(settings, admin, _WRITES[stage])
    ]
    if not committed and not expired:
        return Check("offsets", "ok", "no worker has read anything yet")
    existing = admin.list_topics(timeout=_TIMEOUT_S).topics
    gone = sorted({topic for topic, number in committed if number not in _partitions(existing, topic)})
    places = [place for place in committed if place[0] not in gone]
    asked = [TopicPartition(*place) for place in places]
    first = offsets_of(admin, asked, OffsetSpec.earliest(), timeout_s=_TIMEOUT_S)  # type: ignore[no-untyped-call]
    end = offsets_of(admin, asked, OffsetSpec.latest(), timeout_s=_TIMEOUT_S)  # type: ignore[no-untyped-call]
    lost = [
        f"{topic}[{number}]: {committed[topic, number]} to {first[topic, number]} are gone and were never read"
        for topic, number in places
        if committed[topic, number] < first[topic, number]
    ]
    beyond = [
        f"{topic}[{number}]: read up to {committed[topic, number]}, but the log ends at {end[topic, number]}"
        for topic, number in places
        if committed[topic, number] > end[topic, number]
    ]
    missing = [f"{topic}: read by the workers, and not there" for topic in gone]
    if lost or beyond or missing:
        remedy = "docs/how-to/when-things-go-wrong.md; workers go on from what there is and count what is lost"
        return Check("offsets", "failed", "; ".join([*missing, *lost, *beyond, *expired]), remedy)
    if expired:
        remedy = "start it (driftloop worker) before retention overtakes that, too"
        return Check("offsets", "warning", "; ".join(expired), remedy)
    unread = sum(end[place] - committed[place] for place in places)
    return Check("offsets", "ok", f"every committed offset is in the log, {unread:,} messages unread")


def ingest_has_read(settings: Settings) -> bool:
    """Tell whether an ingest of this namespace has ever committed what it had read."""
    admin = AdminClient({**kafka_clients.admin_config(settings), "log_level": 0})
    committed = _committed(admin, _group(settings, "ingest"))
    return bool(committed) or _was_written(settings, admin, _WRITES["ingest"])


def _was_written(settings: Settings, admin: AdminClient, name: str) -> bool:
    """Tell whether a topic has ever had a record, whether or not it still has."""
    topic = settings.topic(name)
    asked = [
        TopicPartition(topic, number) for number in _partitions(admin.list_topics(timeout=_TIMEOUT_S).topics, topic)
    ]
    ends = offsets_of(admin, asked, OffsetSpec.latest(), timeout_s=_TIMEOUT_S)  # type: ignore[no-untyped-call]
    return any(ends.values())


def _group(settings: Settings, stage: str) -> str:
    return f"{settings.namespace or 'driftloop'}-{stage}"


def dead_letters(settings: Settings, now_ms: int) -> Check:
    """Say how many messages were refused in the last hour, and what was wrong with the newest of them."""
    recent = deadletters.count_since(settings, now_ms - _HOUR_MS)
    if not recent:
        return Check("dead letters", "ok", "none in the last hour")
    kinds: Counter[str] = Counter()
    last = ""
    for letter in deadletters.read(settings, _LOOKED_INTO):
        if letter.at_ms >= now_ms - _HOUR_MS:
            kinds[f"{letter.source_topic} {known_field(letter.field) or '(message)'}"] += 1
            last = letter.reason[:200]
    told = ", ".join(f"{number:,} {kind}" for kind, number in kinds.most_common(3))
    # Offsets count transactions' markers, too: where all letters were read, they are told instead.
    total = f"{kinds.total():,} in the last hour"
    if kinds.total() >= _LOOKED_INTO:
        total = f"about {recent:,} in the last hour; of the newest {kinds.total():,}"
    found = f"{total}: {told}; one of them: {last}"
    return Check(
        "dead letters", "warning", found, "driftloop dead-letters list; mend, then driftloop dead-letters replay"
    )


def models(settings: Settings, seen: Mapping[str, Iterable[str]]) -> Check:
    """Look whether the published models can be used, and whether what is counted has a reference.

    Parameters
    ----------
    seen : model → the versions the live view has numbers of.
    """
    topic = settings.topic("models")
    published = newest_by_key(settings, topic)
    if not published:
        return Check("models", "warning", "no model yet", "driftloop models apply config/models/<model>.toml")
    broken = []
    for name, value in sorted(published.items()):
        try:
            parse_stored_model(value, name, topic)
        except ConfigError as error:
            broken.append(str(error).splitlines()[0][:300])
    versions, unreadable = _versions(settings)
    if broken or unreadable:
        remedy = (
            "driftloop models apply, or reference publish, once more; what a worker had before stays until it restarts"
        )
        return Check("models", "failed", "; ".join([*broken, *unreadable]), remedy)
    bare = [name for name in sorted(published) if not versions.get(name)]
    if bare:
        remedy = "driftloop reference build …, then driftloop reference publish …"
        return Check("models", "warning", f"without a reference: {', '.join(bare)}", remedy)
    unknown = [
        f"{name} {'(logged without a version)' if version == UNVERSIONED else version}"
        for name, found in sorted(seen.items())
        for version in sorted(set(found) - set(versions.get(name, ())))
    ]
    if unknown:
        remedy = "publish their references, or correct the version the serving system logs"
        found = f"counted without a reference, so without drift: {', '.join(unknown[:20])}"
        return Check("models", "warning", found, remedy)
    told = ", ".join(
        f"{name} ({len(versions[name])} reference{'s'[: len(versions[name]) != 1]})" for name in sorted(published)
    )
    return Check("models", "ok", told)


def _versions(settings: Settings) -> tuple[dict[str, list[str]], list[str]]:
    """Return the versions that have a reference, by model, and what is wrong with those that cannot be read."""
    versions: dict[str, list[str]] = {}
    wrong = []
    for (model, version), parts in sorted(references.read_parts(settings).items()):
        if MANIFEST not in parts:
            continue
        try:
            if ReferenceProfile.from_parts(parts) is None:
                wrong.append(f"reference {model} {version}: parts are missing or are not those of its manifest")
                continue
        except (*UNREADABLE, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            wrong.append(f"reference {model} {version}: {str(error)[:200]}")
            continue
        versions.setdefault(model, []).append(version)
    return versions, wrong


def _committed(admin: AdminClient, group: str) -> dict[Place, int]:
    # As they stand: one that a hanging transaction may still move is found by `transaction_checks`.
    return committed_offsets(admin, group, timeout_s=_TIMEOUT_S, stable=False)


def _partitions(existing: Mapping[str, Any], topic: str) -> set[int]:
    return set(existing[topic].partitions) if topic in existing else set()
