"""All features compared in a few passes show what each shows alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors import divergence
from monitors.binning import Binning, fit
from monitors.profile import FeatureProfile
from monitors.sketch import Counts
from monitors.stacked import Stacked


def _binning(kind: str, name: str, cells: int) -> Binning:
    rng = np.random.default_rng(cells)
    if kind == "numeric":
        return fit(name, rng.normal(size=cells * 4).round(2), kind="numeric")
    return fit(name, np.array([f"c{number % cells}" for number in range(cells * 4)], dtype=object), kind="categorical")


BINNINGS = [_binning("numeric", "a", 40), _binning("categorical", "b", 5), _binning("numeric", "c", 3)]
# None: the reference or the window has nothing at all.
Drawn = list[tuple[int | None, int | None, Binning]]
features = st.lists(
    st.tuples(
        st.one_of(st.none(), st.integers(0, 999)), st.one_of(st.none(), st.integers(0, 999)), st.sampled_from(BINNINGS)
    ),
    min_size=1,
    max_size=5,
)


def _counts(seed: int | None, size: int) -> Counts:
    if seed is None:
        return np.zeros(size, dtype=np.int64)
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.choice([0.1, 3, 3_000]), size) * rng.integers(0, 2, size)


def _stack(drawn: Drawn) -> tuple[Stacked, list[FeatureProfile], list[Counts]]:
    profiles = [FeatureProfile(binning, _counts(before, binning.size)) for before, _after, binning in drawn]
    windows = [_counts(after, binning.size) for _before, after, binning in drawn]
    return Stacked.of({f"f{number}": profile for number, profile in enumerate(profiles)}), profiles, windows


@settings(max_examples=300, deadline=None)
@given(features)
def test_every_feature_shows_what_it_shows_alone(drawn: Drawn):
    stacked, profiles, windows = _stack(drawn)
    whole = np.concatenate(windows)
    found = stacked.compare(whole)
    for at, (profile, window) in enumerate(zip(profiles, windows, strict=True)):
        before, ordered = profile.counts, profile.binning.ordered
        pooled = divergence.pool(before, window, ordered=ordered)
        near = {"rel": 1e-9, "abs": 1e-9, "nan_ok": True}
        assert found.psi[at] == pytest.approx(divergence.pooled_psi(*pooled), **near)
        assert found.jensen_shannon[at] == pytest.approx(divergence.pooled_jensen_shannon(*pooled), **near)
        assert found.groups[at] == len(pooled[0])
        positions = profile.binning.positions
        assert found.ks[at] == pytest.approx(divergence.ks(before, window) if ordered else np.nan, **near)
        assert found.wasserstein[at] == pytest.approx(
            np.nan if positions is None else divergence.wasserstein(before, window, positions), **near
        )


@given(features)
def test_shares_count_the_special_cells_of_every_feature(drawn: Drawn):
    stacked, _profiles, windows = _stack(drawn)
    shares = stacked.shares_of(np.concatenate(windows))
    for at, ((_before, _after, binning), window) in enumerate(zip(drawn, windows, strict=True)):
        assert shares.n[at] == window.sum()
        assert shares.present[at] == window.sum() - window[binning.missing]
        assert shares.missing[at] == window[binning.missing]
        assert shares.unseen[at] == window[binning.unseen]
        assert shares.out_of_range[at] == window[binning.below] + window[binning.above]


def test_a_reference_without_features_is_compared_with_nothing():
    stacked = Stacked.of({})
    nothing = np.zeros(0, dtype=np.int64)
    assert len(stacked.compare(nothing).psi) == 0
