"""Changes in a series of panes are noticed soon after they begin, and rarely where there are none."""

from __future__ import annotations

import numpy as np
import pytest

from monitors.changepoint import Detector, detect

KINDS: tuple[Detector, ...] = ("adwin", "page_hinkley")


def series(seed: int, shift: float, length: int = 60) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(size=length), rng.normal(shift, 1, size=length)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 0.001])
def test_a_step_is_noticed_soon_after_it_began_in_any_unit(kind: Detector, scale: float):
    for seed in range(10):
        found = detect((scale * series(seed, 3)).tolist(), kind=kind)
        assert found
        assert 60 <= found[0] <= 80


@pytest.mark.parametrize("kind", KINDS)
def test_a_series_without_a_change_is_rarely_accused(kind: Detector):
    assert sum(bool(detect(series(seed, 0).tolist(), kind=kind)) for seed in range(100)) <= 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("values", [[], [1.0], [2.0] * 50, [float("nan")] * 50])
def test_nothing_to_see_is_no_change(kind: Detector, values: list[float]):
    assert detect(values, kind=kind) == []


def test_panes_without_a_number_are_passed_over_and_keep_their_index():
    values = series(0, 3)
    gaps = np.full(len(values) * 2, np.nan)
    gaps[::2] = values
    assert detect(gaps.tolist()) == [2 * index for index in detect(values.tolist())]


def test_a_stricter_delta_notices_later():
    values = series(1, 3).tolist()
    assert detect(values, delta=1e-6)[0] > detect(values, delta=0.1)[0]


def test_an_unknown_detector_or_delta_is_refused():
    with pytest.raises(ValueError, match="kind: got 'cusum'"):
        detect([1.0], kind="cusum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="delta: got 0"):
        detect([1.0], delta=0)
