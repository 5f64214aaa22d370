"""References as files: whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from monitors.profile import ReferenceProfile
from streamer import references
from streamer.references import ProfileError, load, save
from streamer.settings import ConfigError, Settings
from tests.integration.events import MODEL, profile_of


@pytest.fixture
def profile() -> ReferenceProfile:
    return profile_of(MODEL, "1")


def test_a_reference_comes_back_from_its_file(profile: ReferenceProfile, tmp_path: Path) -> None:
    path = save(profile, tmp_path / "new" / "directory")
    assert path == tmp_path / "new" / "directory" / "churn-1.json"
    for source in (path, path.parent):
        found = load(source)
        assert found.to_parts() == profile.to_parts()
    assert save(profile, tmp_path / "r.json") == tmp_path / "r.json"


def test_a_file_that_was_changed_is_refused(profile: ReferenceProfile, tmp_path: Path) -> None:
    path = save(profile, tmp_path)
    document = json.loads(path.read_text())
    document["parts"]["feature/age"]["counts"][0] += 1
    path.write_text(json.dumps(document))
    with pytest.raises(ProfileError, match="parts are missing or were changed; build it again"):
        load(path)


def test_what_is_no_reference_is_an_error_that_names_the_file(profile: ReferenceProfile, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"none\.json: No such file or directory"):
        load(tmp_path / "none.json")
    with pytest.raises(ProfileError, match=r"holds no \.json file"):
        load(tmp_path)
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(ProfileError, match=r"a\.json: not a reference: Expected `object`"):
        load(tmp_path / "a.json")
    save(profile, tmp_path / "b.json")
    with pytest.raises(ProfileError, match=r"holds a\.json, b\.json; give the one file"):
        load(tmp_path)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """In place of the models topic: what is published in it, by key."""
    topic = {MODEL.name: MODEL.model_copy(update={"model_epoch": 3}).to_json()}
    monkeypatch.setattr(references, "newest_by_key", lambda *_: dict(topic))
    monkeypatch.setattr(references, "_produce", lambda _settings, _topic, records: topic.update(records))
    return topic


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_epoch": 2}, "churn: model_epoch: got 2, but 3 is published.* model_epoch = 3, or with 4"),
        (
            {"model_epoch": 3, "task": "regression"},
            "churn: task: got 'regression', but 'binary' is published.* model_epoch = 4",
        ),
    ],
)
def test_a_model_that_does_not_go_with_what_is_published_is_refused(
    published: dict[str, bytes], changed: dict[str, Any], message: str
) -> None:
    before = dict(published)
    other = MODEL.model_copy(update={"name": "other"})
    with pytest.raises(ConfigError, match=message):
        references.publish_models(Settings(), [other, MODEL.model_copy(update=changed)])
    assert published == before


@pytest.mark.parametrize("standing", [b'{"task": "binary", "model_epoch": 3, "of": "another release"}', b"not JSON"])
def test_a_model_begun_anew_is_published_whatever_stands(published: dict[str, bytes], standing: bytes) -> None:
    published[MODEL.name] = standing
    anew = MODEL.model_copy(update={"model_epoch": 4, "task": "regression"})
    references.publish_models(Settings(), [anew])
    assert published[MODEL.name] == anew.to_json()
