from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dags.steps import registering, retraining, staging
from dags.steps.bootstrap import bootstrap
from dags.steps.registry import CHALLENGER, CHAMPION, REQUEST_TAG, STATUS_TAG, TRAINING, Registry, RegistryError
from dags.steps.serving import loader
from dags.steps.tables import typed
from dags.steps.workspace import Workspace
from monitors.profile import ReferenceProfile
from streamer.references import ProfileError
from streamer.settings import Settings
from tests.dags.steps.test_workspace import request
from tests.dags.toys import config, raw


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[ReferenceProfile]:
    """References go into a list, not to Kafka."""
    kept: list[ReferenceProfile] = []

    def publish(_settings: Settings, profile: ReferenceProfile) -> bool:
        kept.append(profile)
        return True

    monkeypatch.setattr(registering.references, "publish", publish)
    return kept


def workspace_of(settings: Settings) -> Workspace:
    return Workspace(next((settings.airflow.work_dir / "driftloop").glob("*/*")))


def test_the_first_champion_is_registered_with_all_that_explains_it(
    settings: Settings, published: list[ReferenceProfile], tmp_path: Path
) -> None:
    model = config()
    version = bootstrap(model, raw(), settings=settings)
    registry = Registry(settings, model.name)
    assert registry.alias(CHAMPION) == version
    assert registry.alias(CHALLENGER) is None
    tags = registry.tags(version)
    assert tags[STATUS_TAG] == "champion"
    assert tags["driftloop.parent_version"] == "none"
    run = registry.run_of(version)
    files = {Path(str(file.path)).name for file in registry._client.list_artifacts(run.info.run_id)}
    assert files >= {"model", "training", "reference", "gates.json", "selection.json", "features.json", "lineage.json"}
    assert run.info.status == "FINISHED"
    rows = registry.fetch(version, TRAINING, tmp_path)
    assert rows is not None
    assert rows.stat().st_size > 1_000
    (profile,) = published
    parts = {path.relative_to(reference).with_suffix("").as_posix(): path.read_bytes()
             for reference in [registry.fetch(version, "reference", tmp_path)] if reference is not None
             for path in reference.rglob("*.json")}  # fmt: skip
    again = ReferenceProfile.from_parts(parts)
    assert again is not None
    assert again.fingerprint == profile.fingerprint


def test_the_reference_has_the_features_of_all_rows_and_the_output_and_baseline_of_unseen_ones(
    settings: Settings, published: list[ReferenceProfile]
) -> None:
    bootstrap(config(), raw(), settings=settings)
    (profile,) = published
    rows = len(typed(raw(), config()))
    assert profile.features["x"].rows == rows
    assert set(profile.features) == {"x", "noise", "city", "@score"}
    assert profile.baseline is not None
    assert profile.baseline.n == profile.features["@score"].rows < 0.3 * rows
    gates = workspace_of(settings).read_json(retraining.GATES)["gates"]
    assert profile.baseline.value == pytest.approx(gates[0]["detail"]["candidate"]["accuracy"])


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_other_tasks_go_all_the_way(task: str, settings: Settings, published: list[ReferenceProfile]) -> None:
    version = bootstrap(config(task), raw(task), settings=settings)
    predict = loader(settings, config(task))(version)
    said = predict({"x": [2.0, None, -2.0], "noise": [0.0, 0.0, 0.0], "city": ["rome", None, "mars"]})
    assert len(said.prediction) == 3
    assert ("@prediction" if task == "multiclass" else "@score") in published[0].features
    assert published[0].baseline is not None
    if task == "regression":
        assert said.prediction[0] > said.prediction[2]


def test_doing_it_again_finds_the_version_that_was_made(
    settings: Settings, published: list[ReferenceProfile], tmp_path: Path
) -> None:
    first = bootstrap(config(), raw(), settings=settings)
    assert bootstrap(config(), raw(), settings=settings) == first
    # A lost workspace: the registry still knows what the request has brought forth.
    elsewhere = settings.model_copy(
        update={"airflow": settings.airflow.model_copy(update={"work_dir": tmp_path / "elsewhere"})}
    )
    assert bootstrap(config(), raw(), settings=elsewhere) == first
    assert bootstrap(config(), raw(seed=5), settings=settings) != first
    assert published[0].fingerprint == published[1].fingerprint


@pytest.mark.parametrize("killed_in", ["log_parts", "set_alias", "finish", "create_version"])
def test_registering_killed_half_way_and_tried_again_makes_one_version(
    killed_in: str, settings: Settings, published: list[ReferenceProfile], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = config()
    real = getattr(Registry, killed_in)
    calls = []

    def dies_after(self: Registry, *arguments: Any, **named: Any) -> Any:
        result = real(self, *arguments, **named)
        calls.append(killed_in)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(Registry, killed_in, dies_after)
    with pytest.raises(KeyboardInterrupt):
        bootstrap(model, raw(seed=7), settings=settings)
    version = bootstrap(model, raw(seed=7), settings=settings)
    registry = Registry(settings, model.name)
    request_id = registry.tags(version)[REQUEST_TAG]
    assert registry.version_of(request_id) == version
    same = [each for each in registry._client.search_model_versions(f"name='{model.name}'")
            if each.tags.get(REQUEST_TAG) == request_id]  # fmt: skip
    assert len(same) == 1
    assert registry.alias(CHAMPION) == version


def test_a_loaded_version_serves_as_it_was_trained(settings: Settings, published: list[ReferenceProfile]) -> None:
    version = bootstrap(config(), raw(), settings=settings)
    predict = loader(settings, config())(version)
    said = predict({"x": [3.0, -3.0, None], "noise": [0, 1, 2], "city": ["rome", "lima", 7]})
    assert said.prediction[:2] == ["true", "false"]
    assert said.score is not None
    assert said.score[0] > 0.9 > 0.1 > said.score[1]


def test_rows_that_cannot_be_trained_on_are_rejected_with_evidence(settings: Settings) -> None:
    with pytest.raises(retraining.Rejected, match="rows: got 40") as rejected:
        bootstrap(config(), raw(rows=40), settings=settings)
    assert rejected.value.evidence["failed"]
    json.dumps(rejected.value.evidence)


def test_a_model_that_knows_nothing_is_rejected_by_its_gates(
    settings: Settings, published: list[ReferenceProfile]
) -> None:
    rows = raw(rows=3_000)
    shuffled = rows.with_columns(rows["label"].shuffle(seed=1))
    with pytest.raises(retraining.Rejected, match="the candidate"):
        bootstrap(config(min_gain=0.05), shuffled, settings=settings)
    assert published == []


def test_staging_notices_another_model(settings: Settings, published: list[ReferenceProfile]) -> None:
    model = config()
    version = bootstrap(model, raw(), settings=settings)
    work, registry = workspace_of(settings), Registry(settings, model.name)
    table, golden = work.read_table(retraining.DATA), work.read_json(retraining.GOLDEN)
    assert staging.stage(registry, version, model, table, golden)["largest_difference"] == 0.0
    other = {**golden, "scores": [score / 2 for score in golden["scores"]]}
    with pytest.raises(staging.StagingError, match="golden scores"):
        staging.stage(registry, version, model, table, other)
    with pytest.raises(staging.StagingError, match="golden predictions"):
        staging.stage(registry, version, model, table, {**golden, "predictions": golden["predictions"][::-1]})
    with pytest.raises(staging.StagingError, match="signature"):
        staging.stage(registry, version, model, table, {**golden, "features": ["x"]})


def test_another_reference_under_the_same_version_is_not_tried_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dags.steps.outcomes import Unmendable

    def refuse(_settings: Settings, _profile: ReferenceProfile) -> bool:
        raise ProfileError("another reference is published")

    monkeypatch.setattr(registering.references, "publish", refuse)
    with pytest.raises(Unmendable, match="another reference"):
        bootstrap(config(), raw(), settings=settings)


def test_aliases_come_and_go_and_another_versions_is_left_alone(
    settings: Settings, published: list[ReferenceProfile]
) -> None:
    version = bootstrap(config(), raw(seed=11), settings=settings)
    registry = Registry(settings, config().name)
    registry.set_alias("probe", version)
    registry.drop_alias("probe", "999")
    assert registry.alias("probe") == version
    registry.drop_alias("probe", version)
    assert registry.alias("probe") is None
    assert Registry(settings, "nobody").alias(CHAMPION) is None


def test_a_version_nobody_registered_is_named(settings: Settings, tmp_path: Path) -> None:
    registry = Registry(settings, config().name)
    assert not registry.has("v1")
    with pytest.raises(RegistryError, match=r"toy-binary 987654: not registered"):
        registry.fetch_model("987654", tmp_path)


def test_a_model_saved_as_a_pickle_is_not_read(settings: Settings, tmp_path: Path) -> None:
    from dags.steps.registry import pipeline_file

    (tmp_path / "MLmodel").write_text("flavors:\n  sklearn:\n    serialization_format: cloudpickle\n")
    with pytest.raises(RegistryError, match="serialization_format='skops'"):
        pipeline_file(tmp_path)


def test_extraction_brings_the_champion_and_its_rows(
    settings: Settings, published: list[ReferenceProfile], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dags.steps import data

    model = config()
    champion = bootstrap(model, raw(seed=21), settings=settings)
    window = typed(raw(seed=22, flipped=True, rows=2_000), model)
    monkeypatch.setattr(data, "extract", lambda *_: (window, {"source": "test"}))
    work = retraining.begin(settings, request("rq-next"), model, champion=champion, run_id="run-1")
    summary = retraining.extract(settings, work)
    assert summary["champion"] == champion
    assert summary["rows"] == len(window) + len(typed(raw(seed=21), model))
    assert retraining.extract(settings, work) == summary
    retraining.validate(work)
    for family in retraining.choose_features(work):
        retraining.train(work, family)
    retraining.select(work)
    assert retraining.gate(work)["performance"] > 0.1
    version = retraining.register(settings, work)
    retraining.stage(settings, work)
    registry = Registry(settings, model.name)
    assert registry.alias(CHALLENGER) == version
    assert registry.tags(version)["driftloop.parent_version"] == champion
    evidence = retraining.evidence(work)
    assert set(evidence) == {"gates", "winner", "rows", "staging"}
    assert len(json.dumps(evidence)) < 5_000


def test_a_champion_from_elsewhere_is_said_to_be_unknown(
    settings: Settings, published: list[ReferenceProfile], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dags.steps import data

    model = config()
    monkeypatch.setattr(data, "extract", lambda *_: (typed(raw(), model), {"source": "test"}))
    work = retraining.begin(settings, request("rq-alone"), model, champion="v7", run_id="run-1")
    assert "not in the registry" in retraining.extract(settings, work)["champion"]


def test_the_report_is_kept_with_the_run_and_one_that_cannot_be_written_says_why(
    settings: Settings, published: list[ReferenceProfile], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dags.steps import data, report

    model = config()
    monkeypatch.setattr(data, "extract", lambda *_: (typed(raw(), model), {"source": "test"}))
    work = retraining.begin(settings, request("rq-report"), model, champion="", run_id="run-1")
    retraining.extract(settings, work)

    def fails(*_: Any) -> dict[str, Any]:
        raise ZeroDivisionError("of <nothing>")

    with monkeypatch.context() as broken:
        broken.setattr(report, "write_report", fails)
        retraining.report(settings, work)
    assert "ZeroDivisionError(&#x27;of &lt;nothing&gt;&#x27;)" in work.path(retraining.REPORT).read_text()
    work.path(retraining.REPORT).unlink()
    found = retraining.report(settings, work)
    page = work.path(retraining.REPORT).read_text(encoding="utf-8")
    assert len(page) > 50_000
    assert "the data of rq-report</h1><p>Reference: the older half of the same rows, " in page
    registry = Registry(settings, model.name)
    run = registry._client.get_run(found["run"])
    assert "asked for by rq-report" in run.data.tags["mlflow.note.content"]
    assert registry._client.get_experiment(run.info.experiment_id).tags["mlflow.experimentKind"]
    assert "report.html" in {str(file.path) for file in registry._client.list_artifacts(found["run"])}
