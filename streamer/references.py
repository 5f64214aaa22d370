"""Models and references on their way into the control topics and back, and references as files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from monitors.profile import MANIFEST, ReferenceProfile
from streamer.events import SCHEMA_HEADER, SCHEMA_VERSION, UNREADABLE
from streamer.kafka.clients import producer_config
from streamer.kafka.reader import newest_by_key
from streamer.models import ModelConfig, parse_stored_model
from streamer.settings import ConfigError, Settings

_TIMEOUT_S = 30.0


class ProfileError(Exception):
    """A reference cannot be built, read or published; the message says which part and what to do."""


class _File(msgspec.Struct, kw_only=True):
    """A reference as a file: its parts, JSON inside JSON, so that it can be read and compared by people."""

    model: str
    version: str
    parts: dict[str, msgspec.Raw]


def save(profile: ReferenceProfile, target: Path) -> Path:
    """Write a reference to a file, or as `<model>-<version>.json` into a directory; return the file.

    A target without a suffix is a directory, made if need be.
    """
    directory = target.is_dir() or not target.suffix
    path = target / f"{profile.model}-{profile.version}.json" if directory else target
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = {name: msgspec.Raw(value) for name, value in profile.to_parts().items()}
    document = _File(model=profile.model, version=profile.version, parts=parts)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1))
    return path


def load(path: Path) -> ReferenceProfile:
    """Read a reference that `save` wrote; a directory must hold exactly one.

    Raises
    ------
    ProfileError
        When there is none, several, or it cannot be read.
    """
    if path.is_dir():
        found = sorted(path.glob("*.json"))
        if len(found) != 1:
            names = ", ".join(each.name for each in found) or "no .json file"
            raise ProfileError(f"{path}: holds {names}; give the one file of the reference")
        path = found[0]
    try:
        document = msgspec.json.decode(path.read_bytes(), type=_File)
        # Parts are compared by digest: indentation must go before that.
        compact = {name: msgspec.json.format(bytes(raw), indent=-1) for name, raw in document.parts.items()}
        profile = ReferenceProfile.from_parts(compact)
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror}; give a file that `driftloop reference build` wrote") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise ProfileError(f"{path}: not a reference: {error}; build it again") from error
    if profile is None:
        raise ProfileError(f"{path}: parts are missing or were changed; build it again")
    return profile


def publish(settings: Settings, profile: ReferenceProfile) -> bool:
    """Publish a reference, its manifest last; return False when the very same is published already.

    Raises
    ------
    ProfileError
        When another reference is published under this version: what decisions were taken on must not change.
    KafkaException
        When Kafka does not take it.
    """
    parts = profile.to_parts()
    published = read_parts(settings).get((profile.model, profile.version), {})
    if MANIFEST in published:
        if _content(published[MANIFEST]) == _content(parts[MANIFEST]):
            return False
        raise ProfileError(
            f"{profile.model} {profile.version}: another reference is published under this version, and a published "
            f"one never changes; build it with another --version"
        )
    records = [(f"{profile.model}/{profile.version}/{part}", value) for part, value in parts.items()]
    _produce(settings, settings.topic("references"), records)
    return True


def read(settings: Settings, model: str, version: str) -> ReferenceProfile | None:
    """Return a published reference, None where there is none or not all of it."""
    return ReferenceProfile.from_parts(read_parts(settings).get((model, version), {}))


def published_versions(settings: Settings) -> dict[str, list[str]]:
    """Return the versions that have a whole reference, by model."""
    versions: dict[str, list[str]] = defaultdict(list)
    for (model, version), parts in sorted(read_parts(settings).items()):
        if MANIFEST in parts:
            versions[model].append(version)
    return dict(versions)


def publish_models(settings: Settings, models: Iterable[ModelConfig]) -> None:
    """Publish models' configurations.

    Raises
    ------
    ConfigError
        When one of them does not go with what is published under its name; then none is.
    KafkaException
        When Kafka does not take them all.
    """
    models = list(models)
    topic = settings.topic("models")
    newest = newest_by_key(settings, topic)
    refused = [why for model in models if (why := _conflict(model, newest.get(model.name)))]
    if refused:
        raise ConfigError("\n".join(refused))
    _produce(settings, topic, [(model.name, model.to_json()) for model in models])


def read_models(settings: Settings) -> dict[str, ModelConfig]:
    """Return the published models, by name.

    Raises
    ------
    ConfigError
        When one of them is not valid; the message names it.
    """
    topic = settings.topic("models")
    newest = newest_by_key(settings, topic)
    return {name: parse_stored_model(newest[name], name, topic) for name in sorted(newest)}


class _Standing(msgspec.Struct):
    """What of a published configuration its counts depend on; a configuration of another release has it too."""

    task: str
    model_epoch: int = 1


def _conflict(model: ModelConfig, published: bytes | None) -> str | None:
    """Say why a configuration cannot follow the published one: its counts go on, or begin anew at a higher epoch."""
    if published is None:
        return None
    try:
        stands = msgspec.json.decode(published, type=_Standing)
    except UNREADABLE:
        return None
    anew = stands.model_epoch + 1
    if model.model_epoch < stands.model_epoch:
        return (
            f"{model.name}: model_epoch: got {model.model_epoch}, but {stands.model_epoch} is published, and events of "
            f"a lower epoch are not counted; apply it with model_epoch = {stands.model_epoch}, or with {anew} to begin "
            "anew"
        )
    if model.model_epoch == stands.model_epoch and model.task != stands.task:
        return (
            f"{model.name}: task: got {model.task!r}, but {stands.task!r} is published at model_epoch "
            f"{stands.model_epoch}, and counts of one task are not the other's; apply it with model_epoch = {anew} to "
            f"begin anew, or with task = {stands.task!r}"
        )
    return None


def read_parts(settings: Settings) -> dict[tuple[str, str], dict[str, bytes]]:
    """Return the published parts of every (model, version), whole or not."""
    grouped: dict[tuple[str, str], dict[str, bytes]] = defaultdict(dict)
    for key, value in newest_by_key(settings, settings.topic("references")).items():
        model, version, part = [*key.split("/", 2), "", ""][:3]
        grouped[model, version][part] = value
    return grouped


def _content(manifest: bytes) -> Mapping[str, Any]:
    """Return what makes a reference what it is: everything but when it was built."""
    document = msgspec.json.decode(manifest, type=dict[str, Any])
    document.pop("created_ms", None)
    return document


def _produce(settings: Settings, topic: str, records: list[tuple[str, bytes]]) -> None:
    """Send records in order and wait until Kafka has every one.

    A plain producer, never a transaction: the workers' tables over these topics would not recover.
    """
    failures: list[KafkaError] = []

    def delivered(error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            failures.append(error)

    # What it only retries is nothing to tell a person who waits for the answer; what fails is raised below.
    producer = Producer(producer_config(settings, {"log_level": 3}))
    for key, value in records:
        producer.produce(topic, value, key.encode(), headers=[(SCHEMA_HEADER, SCHEMA_VERSION)], on_delivery=delivered)
        producer.poll(0)
    left = producer.flush(_TIMEOUT_S)
    if failures:
        raise KafkaException(failures[0])
    if left:
        raise KafkaException(KafkaError(KafkaError._MSG_TIMED_OUT))
