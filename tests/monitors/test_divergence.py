"""Divergences from counts agree with their definitions and with scipy on the raw values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from scipy.spatial.distance import jensenshannon

from monitors import divergence
from monitors.binning import fit
from monitors.sketch import count_cells

CELLS = 12
PRESENT = np.delete(np.arange(CELLS + 4), CELLS)
sides = hnp.arrays(np.int64, CELLS + 4, elements=st.integers(0, 1_000))


def plain(*counts: int) -> np.ndarray:
    return np.array([*counts, 0, 0, 0, 0])


def samples() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    return rng.normal(size=5_000), rng.normal(0.3, 1.2, size=3_000)


def test_psi_is_the_sum_over_smoothed_shares():
    p, q = np.array([30.5, 70.5]) / 101, np.array([50.5, 50.5]) / 101
    assert divergence.psi(plain(30, 70), plain(50, 50)) == pytest.approx(float(((q - p) * np.log(q / p)).sum()))


def test_psi_of_a_known_shift_of_normals_is_its_closed_form():
    """For equal variances PSI is the symmetric KL divergence, shift²; pooling to many groups comes near it."""
    rng = np.random.default_rng(0)
    reference, current = rng.normal(size=400_000), rng.normal(0.5, 1, size=400_000)
    binning = fit("x", reference, kind="numeric")
    counts = [count_cells(binning.assign(side), binning.size) for side in (reference, current)]
    assert divergence.psi(*counts, groups=100) == pytest.approx(0.25, rel=0.03)


@given(sides, sides, st.booleans(), st.integers(2, 20))
def test_psi_is_never_negative(reference: np.ndarray, current: np.ndarray, ordered: bool, groups: int):
    value = divergence.psi(reference, current, groups=groups, ordered=ordered)
    assert np.isnan(value) or value >= 0


@given(sides, st.booleans())
def test_equal_counts_have_no_divergence(counts: np.ndarray, ordered: bool):
    assume(counts[:CELLS].sum() > 0)
    assert divergence.psi(counts, counts, ordered=ordered) == 0
    assert divergence.ks(counts, counts) == 0
    assert divergence.jensen_shannon(counts, counts) == pytest.approx(0, abs=1e-7)
    assert divergence.kl(counts, counts) == pytest.approx(0, abs=1e-12)
    assert divergence.chi_square(counts, counts) == pytest.approx(0, abs=1e-9)
    assert divergence.wasserstein(counts, counts, np.arange(CELLS, dtype=float)) == 0


@given(sides, sides)
def test_jensen_shannon_and_ks_stay_between_zero_and_one(reference: np.ndarray, current: np.ndarray):
    for value in (divergence.jensen_shannon(reference, current), divergence.ks(reference, current)):
        assert np.isnan(value) or 0 <= value <= 1 + 1e-12


@given(sides, sides, st.integers(0, 10_000))
def test_missing_values_are_no_divergence(reference: np.ndarray, current: np.ndarray, missing: int):
    more = current.copy()
    more[CELLS] = missing
    for statistic in (divergence.psi, divergence.ks, divergence.jensen_shannon, divergence.kl, divergence.chi_square):
        assert statistic(reference, current) == pytest.approx(statistic(reference, more), nan_ok=True)


def test_ks_is_the_raw_distance_up_to_the_heaviest_cell():
    reference, current = samples()
    binning = fit("x", reference, kind="numeric", max_cells=50)
    counts = [count_cells(binning.assign(side), binning.size) for side in (reference, current)]
    raw = stats.ks_2samp(reference, current).statistic
    heaviest = max((side / side.sum()).max() for side in counts)
    assert raw - heaviest <= divergence.ks(*counts) <= raw + 1e-12


def test_ks_on_discrete_values_is_exactly_the_raw_distance():
    rng = np.random.default_rng(1)
    reference, current = rng.poisson(3, 2_000).astype(float), rng.poisson(4, 1_000).astype(float)
    binning = fit("x", np.concatenate([reference, current]), kind="numeric")
    counts = [count_cells(binning.assign(side), binning.size) for side in (reference, current)]
    assert divergence.ks(*counts) == pytest.approx(stats.ks_2samp(reference, current).statistic)


def test_ks_sees_values_out_of_the_reference_range():
    assert divergence.ks(plain(50, 50), np.array([0, 0, 0, 0, 10, 0])) == 1


@given(sides, sides)
def test_jensen_shannon_is_scipys(reference: np.ndarray, current: np.ndarray):
    assume(reference[PRESENT].sum() > 0 and current[PRESENT].sum() > 0)
    wanted = jensenshannon(reference[PRESENT], current[PRESENT], base=2)
    assert divergence.jensen_shannon(reference, current) == pytest.approx(np.nan_to_num(wanted), abs=1e-6)


@given(sides, sides)
def test_kl_is_scipys_entropy_of_smoothed_shares(reference: np.ndarray, current: np.ndarray):
    assume(reference[PRESENT].sum() > 0 and current[PRESENT].sum() > 0)
    held = PRESENT[(reference + current)[PRESENT] > 0]
    wanted = stats.entropy(current[held] + 0.5, reference[held] + 0.5)
    assert divergence.kl(reference, current) == pytest.approx(float(wanted), abs=1e-12)


@given(sides, sides)
def test_chi_square_is_scipys_contingency_statistic(reference: np.ndarray, current: np.ndarray):
    assume(reference[PRESENT].sum() > 0 and current[PRESENT].sum() > 0)
    held = PRESENT[(reference + current)[PRESENT] > 0]
    wanted = stats.chi2_contingency(np.stack([reference[held], current[held]]), correction=False).statistic
    assert divergence.chi_square(reference, current) == pytest.approx(wanted)


@given(sides, sides)
def test_wasserstein_is_scipys_between_the_cells_positions(reference: np.ndarray, current: np.ndarray):
    reference[CELLS:] = current[CELLS:] = 0
    assume(reference.sum() > 0 and current.sum() > 0)
    positions = np.cumsum(np.arange(1.0, CELLS + 1))
    wanted = stats.wasserstein_distance(positions, positions, reference[:CELLS], current[:CELLS])
    assert divergence.wasserstein(reference, current, positions) == pytest.approx(wanted, abs=1e-9)


def test_wasserstein_comes_near_the_raw_distance_and_takes_outliers_to_the_outermost_cell():
    reference, current = samples()
    binning = fit("x", reference, kind="numeric")
    assert binning.positions is not None
    counts = [count_cells(binning.assign(side), binning.size) for side in (reference, current)]
    got = divergence.wasserstein(*counts, binning.positions)
    assert got == pytest.approx(stats.wasserstein_distance(reference, current), rel=0.1)
    assert divergence.wasserstein(plain(10, 0), np.array([0, 0, 0, 0, 10, 0]), np.array([1.0, 3.0])) == 2


@pytest.mark.parametrize("statistic", [divergence.psi, divergence.ks, divergence.jensen_shannon, divergence.kl])
@pytest.mark.parametrize("empty", [np.zeros(6, dtype=np.int64), np.array([0, 0, 9, 0, 0, 0])])
def test_an_empty_side_has_no_divergence_to_tell(statistic: Callable[..., float], empty: np.ndarray):
    assert np.isnan(statistic(empty, plain(1, 2)))
    assert np.isnan(statistic(plain(1, 2), empty))


def test_chi_square_and_wasserstein_of_an_empty_side_are_nan():
    assert np.isnan(divergence.chi_square(plain(0, 0), plain(1, 2)))
    assert np.isnan(divergence.wasserstein(plain(0, 0), plain(1, 2), np.array([1.0, 2.0])))


def test_counts_over_other_cells_are_refused():
    with pytest.raises(ValueError, match="count both over one binning"):
        divergence.psi(plain(1, 2), plain(1, 2, 3))


@given(sides, st.integers(2, 12))
def test_ordered_groups_are_neighbours_of_about_equal_mass(reference: np.ndarray, groups: int):
    assume(reference[:CELLS].sum() > 0)
    reference[CELLS:] = 0
    group_of = divergence.grouping(reference, groups=groups)
    inner = group_of[:CELLS]
    assert group_of[CELLS] == -1
    assert (np.diff(inner) >= 0).all()
    assert len(np.unique(inner[reference[:CELLS] > 0])) <= groups
    for group in np.unique(inner):
        mass = reference[:CELLS][inner == group]
        assert mass.sum() <= reference.sum() / groups + mass.max() * 2


def test_out_of_range_values_join_the_outermost_group_of_a_continuous_number():
    reference = np.concatenate([np.full(100, 10), np.zeros(4, dtype=np.int64)])
    group_of = divergence.grouping(reference)
    assert group_of[101] == group_of[0] == 0
    assert group_of[102] == group_of[99] == 9


def test_a_number_of_one_value_that_changes_to_another_is_a_great_drift():
    constant, changed = np.array([500, 0, 0, 0, 0]), np.array([0, 0, 0, 500, 0])
    assert divergence.psi(constant, changed) > 5


def test_rare_categories_are_pooled_with_what_was_never_seen():
    reference = np.array([500, 4, 300, 3, 200, 2, 0, 0, 0, 0])
    group_of = divergence.grouping(reference, ordered=False)
    assert group_of[[0, 2, 4]].tolist() == [0, 1, 2]
    assert set(group_of[[1, 3, 5, 9]]) == {3}


def test_a_hundred_categories_make_no_more_groups_than_asked_for():
    reference = np.concatenate([np.arange(100, 200), np.zeros(4, dtype=np.int64)])
    assert divergence.grouping(reference, groups=10, ordered=False).max() == 9
