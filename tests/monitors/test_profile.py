"""A reference is built from columns, travels in parts, and is whole only when all of them are there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from monitors.binning import Binning
from monitors.profile import FeatureProfile, PerformanceBaseline, ReferenceProfile, build_profile

ROWS = 4_000
BASELINE = PerformanceBaseline({"auc": 0.8, "accuracy": 0.9}, "auc", 0.8, 0.01, 500)


def build(seed: int = 0, version: str = "1") -> ReferenceProfile:
    rng = np.random.default_rng(seed)
    return build_profile(
        model="m",
        version=version,
        columns={
            "x": np.where(rng.random(ROWS) < 0.1, np.nan, rng.normal(size=ROWS)),
            "city": np.array(rng.choice(["köln", "paris", None], ROWS), dtype=object),
            "month": (np.arange(ROWS) // 400).astype(float),
            "@score": rng.random(ROWS),
        },
        kinds={"x": "numeric", "city": "categorical", "month": "numeric", "@score": "numeric"},
        panes=np.arange(ROWS) // 40,
        baseline=BASELINE,
        created_ms=1_700_000_000_000,
    )


def test_every_row_is_counted_for_every_feature():
    profile = build()
    assert profile.rows == ROWS
    assert {feature.rows for feature in profile.features.values()} == {ROWS}
    x = profile.features["x"]
    assert 300 < x.counts[x.binning.missing] < 500


def test_a_profile_survives_its_parts_exactly():
    profile = build()
    parts = profile.to_parts()
    assert set(parts) == {"manifest", "feature/x", "feature/city", "feature/month", "feature/@score"}
    again = ReferenceProfile.from_parts(parts)
    assert again is not None
    assert again.fingerprint == profile.fingerprint
    assert again.to_parts() == parts
    assert again.baseline == BASELINE
    assert again.features["x"].binning == profile.features["x"].binning
    assert (again.features["x"].counts == profile.features["x"].counts).all()


def test_a_profile_is_absent_until_its_last_part_has_come():
    parts = build().to_parts()
    come: dict[str, bytes] = {}
    for part, raw in list(parts.items())[:-1]:
        come[part] = raw
        assert ReferenceProfile.from_parts(come) is None
    assert ReferenceProfile.from_parts(parts) is not None


def test_parts_of_another_building_do_not_make_it_whole():
    parts = build(0).to_parts() | {"feature/x": build(1).to_parts()["feature/x"]}
    assert ReferenceProfile.from_parts(parts) is None


def test_without_its_manifest_a_profile_is_absent():
    parts = build().to_parts()
    del parts["manifest"]
    assert ReferenceProfile.from_parts(parts) is None


def test_a_feature_part_of_an_older_form_names_what_is_missing():
    document = build().features["x"].to_dict()
    del document["design_effect"]
    with pytest.raises(ValueError, match="feature profile: 'design_effect' is missing; build and publish"):
        FeatureProfile.from_dict(document)


def test_a_part_too_many_is_let_be():
    assert ReferenceProfile.from_parts(build().to_parts() | {"feature/old": b"?"}) is not None


def test_the_fingerprint_names_cells_and_counts_and_nothing_else():
    assert len(build().fingerprint) == 16
    assert build(0).fingerprint == build(0, version="2").fingerprint
    assert build(0).fingerprint != build(1).fingerprint


def test_the_same_fingerprint_has_the_same_layout_in_whatever_order_features_came():
    profile = build()
    turned = replace(profile, features=dict(reversed(profile.features.items())))
    assert turned.fingerprint == profile.fingerprint
    assert turned.layout == profile.layout


def test_the_layout_gives_every_cell_of_every_feature_one_place():
    profile = build()
    taken = [cell for place in profile.layout.places.values() for cell in range(profile.layout.size)[place]]
    assert taken == list(range(profile.layout.size))
    for name, feature in profile.features.items():
        assert len(range(profile.layout.size)[profile.layout.places[name]]) == feature.binning.size


@pytest.mark.parametrize(
    ("raw", "message"),
    [(b"{", "part manifest: not JSON"), (b"[]", "wanted an object"), (b"{}", "'features'")],
)
def test_a_part_that_cannot_be_read_is_named(raw: bytes, message: str):
    with pytest.raises(ValueError, match=message):
        ReferenceProfile.from_parts({"manifest": raw})


def test_a_feature_that_stays_the_same_within_panes_is_worth_few_independent_rows():
    features = build().features
    assert features["month"].design_effect > 20
    assert features["month"].pane_concentration == 1
    assert features["x"].design_effect < 1.3
    assert features["x"].pane_concentration < 0.5


def test_without_panes_rows_count_as_independent():
    values = {"x": np.arange(300.0)}
    profile = build_profile(
        model="m", version="1", columns=values, kinds={"x": "numeric"}, panes=None, baseline=None, created_ms=0
    )
    assert profile.features["x"].design_effect == 1
    again = ReferenceProfile.from_parts(profile.to_parts())
    assert again is not None
    assert again.baseline is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kinds": {}}, "kinds.x: missing"),
        ({"kinds": {"x": "text"}}, "x.kind: got 'text'"),
        ({"panes": np.zeros(2)}, "columns: got lengths"),
    ],
)
def test_columns_that_do_not_fit_together_are_refused(changed, message: str):
    arguments = {
        "model": "m",
        "version": "1",
        "columns": {"x": np.arange(3.0)},
        "kinds": {"x": "numeric"},
        "panes": None,
        "baseline": None,
        "created_ms": 0,
    }
    with pytest.raises(ValueError, match=message):
        build_profile(**(arguments | changed))


def test_a_baseline_must_be_a_number():
    with pytest.raises(ValueError, match=r"baseline\.auc: got nan"):
        PerformanceBaseline({"auc": float("nan")}, "auc", 0.8, 0.1, 10)


def test_counts_must_be_over_the_cells():
    binning = Binning("x", "numeric", values=(1.0,))
    with pytest.raises(ValueError, match=r"x\.counts: got shape \(3,\), wanted \(5,\)"):
        FeatureProfile(binning, np.zeros(3, dtype=np.int64))
    with pytest.raises(ValueError, match=r"x\.design_effect: got 0\.5"):
        FeatureProfile(binning, np.zeros(5, dtype=np.int64), 0.5)
