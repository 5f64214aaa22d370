"""References as files: whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from monitors.profile import ReferenceProfile
from streamer.references import ProfileError, load, save
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
