"""A model's file is typed and checked; `models.v1` carries all of it, and reads back the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamer.models import ModelConfig, parse_model, read_model
from streamer.settings import ConfigError

MINIMAL: dict[str, Any] = {
    "name": "churn",
    "task": "binary",
    "positive": True,
    "features": {"age": {"kind": "numeric"}, "plan": {"kind": "categorical"}},
}
SHIPPED = sorted((Path(__file__).parents[2] / "config" / "models").glob("*.toml"))


def test_a_few_lines_are_a_model() -> None:
    config = parse_model(MINIMAL, "test")
    assert config.time.pane == 300_000
    assert config.features["age"].source == "predictions"
    assert config.model_epoch == 1


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_models_are_valid_and_named_as_their_files(path: Path) -> None:
    assert read_model(path).name == path.stem


def test_there_are_shipped_models() -> None:
    assert SHIPPED


@pytest.mark.parametrize("document", [MINIMAL, *(SHIPPED)], ids=str)
def test_what_the_topic_carries_reads_back_the_same(document: dict[str, Any] | Path) -> None:
    config = read_model(document) if isinstance(document, Path) else parse_model(document, "test")
    assert ModelConfig.model_validate_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Churn Model"}, "name: got 'Churn Model'"),
        ({"task": "ranking"}, r"task: got 'ranking': .*'binary', 'multiclass' or 'regression'"),
        ({"positive": None}, "positive: missing; for a binary model"),
        ({"features": {}}, "features: got {}"),
        ({"features": {"age": {"kind": "number"}}}, r"features\.age\.kind: got 'number'"),
        ({"slices": ["city"]}, r"slices: \['city'\] are not among the features"),
        (
            {"features": {"a=b": {"kind": "categorical"}}, "slices": ["a=b"]},
            r"slices: \['a=b'\] hold a \"=\", which parts a feature from its value",
        ),
        ({"time": {"pane": "5"}, "window": {"min_event": 3}}, r"window\.min_event: unknown key"),
        ({"time": {"pane": "often"}}, r"time\.pane: got 'often': .*wanted a duration"),
        ({"canary": {"steps": [10, 5]}}, r"steps: got \(10.0, 5.0\), wanted rising percentages"),
        ({"canary": {"steps": []}}, "wanted rising percentages"),
        ({"canary": {"steps": [50, 120]}}, "wanted rising percentages"),
        ({"canary": {"steps": [50, 99, 100]}}, "wanted all but the last below 98"),
        ({"canary": {"alpha": 0.5}}, r"canary\.alpha: got 0.5"),
        ({"labels": {"share": 0}}, r"labels\.share: got 0"),
        ({"policy": {"mode": "magic"}}, r"policy\.mode: got 'magic'"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"test: .*{message}"):
        parse_model({**MINIMAL, **changes}, "test")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^test: task: missing; it must be given$"):
        parse_model({name: value for name, value in MINIMAL.items() if name != "task"}, "test")


def test_a_file_that_is_not_there_or_not_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read: No such file"):
        read_model(tmp_path / "nowhere.toml")
    broken = tmp_path / "broken.toml"
    for content in (b"name = ", b"\xff"):
        broken.write_bytes(content)
        with pytest.raises(ConfigError, match=r"broken\.toml: not valid TOML"):
            read_model(broken)
