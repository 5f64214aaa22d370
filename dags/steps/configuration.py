"""A model's configuration as evaluate has it: read from the topic that every worker reads it from."""

from __future__ import annotations

from typing import Any

import msgspec

from streamer.kafka.reader import newest_by_key
from streamer.models import ModelConfig, parse_model
from streamer.settings import ConfigError, Settings


def read_config(settings: Settings, model: str) -> ModelConfig:
    """Return a model's published configuration.

    Raises
    ------
    ConfigError
        When none is published, or it is not valid.
    """
    topic = settings.topic("models")
    value = newest_by_key(settings, topic).get(model)
    if value is None:
        raise ConfigError(f"{topic}: no model {model!r}; publish it with `driftloop models apply`")
    try:
        document: dict[str, Any] = msgspec.json.decode(value, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ConfigError(f"{topic} key {model}: not a JSON object: {error}; apply the model again") from error
    return parse_model(document, f"{topic} key {model}")
