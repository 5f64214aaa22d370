"""Where a series of pane values changed: river's streaming detectors, run over the whole series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from river import drift

Detector: TypeAlias = Literal["adwin", "page_hinkley"]

# ADWIN's delta is its error probability; Page–Hinkley's is the drift it tolerates, in standard deviations.
DEFAULT_DELTA = {"adwin": 0.002, "page_hinkley": 0.5}
# Page–Hinkley's threshold in standard deviations, and the panes it needs before it may speak.
PAGE_HINKLEY_THRESHOLD = 10.0
MIN_PANES = 10


def detect(values: Sequence[float], *, kind: Detector = "adwin", delta: float | None = None) -> list[int]:
    """Return the indices at which a change of the mean was noticed.

    Parameters
    ----------
    values : one number a pane, in order of time; nan (no number) is passed over.
    kind : "adwin" [1] or "page_hinkley" [2].
    delta : > 0. For "adwin" its error probability (0.002 by default); for "page_hinkley" the drift it lets
        pass, in standard deviations of the series (0.5 by default).

    Returns
    -------
    Rising indices into `values`: where a change was noticed, some panes after it began.

    Raises
    ------
    ValueError
        The kind is none of these, or delta is not positive.

    Notes
    -----
    Values are first put into robust standard deviations, from the differences of neighbours, so that the
    thresholds mean the same for a PSI and for a metric and the change itself does not widen them. ADWIN looks
    at every pane: a pane is thousands of events, not one.

    [1] A. Bifet, R. Gavaldà, *Learning from Time-Changing Data with Adaptive Windowing*, SIAM SDM 2007.
    [2] E. S. Page, *Continuous Inspection Schemes*, Biometrika 41 (1954).
    """
    if kind not in get_args(Detector):
        raise ValueError(f"kind: got {kind!r}, wanted 'adwin' or 'page_hinkley'")
    delta = DEFAULT_DELTA[kind] if delta is None else delta
    if not delta > 0:
        raise ValueError(f"delta: got {delta}, wanted a positive number")
    series = np.asarray(values, dtype=np.float64)
    known = np.flatnonzero(np.isfinite(series))
    detector = _detector(kind, delta)
    found = []
    for index, value in zip(known.tolist(), _standardised(series[known]).tolist(), strict=True):
        detector.update(value)
        if detector.drift_detected:
            found.append(index)
    return found


def _detector(kind: Detector, delta: float) -> Any:
    # river's detectors carry no types.
    if kind == "adwin":
        adwin: Any = drift.ADWIN
        return adwin(delta=delta, clock=1, grace_period=MIN_PANES)
    # Forgetting would let a slow change pass: the series is finite, so all of it counts.
    return drift.PageHinkley(min_instances=MIN_PANES, delta=delta, threshold=PAGE_HINKLEY_THRESHOLD, alpha=1.0)


def _standardised(series: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    if len(series) < 2:
        return np.zeros_like(series)
    steps = np.diff(series)
    # 1.4826 makes the median absolute value a standard deviation; a difference of two has √2 of it.
    scale = 1.4826 * float(np.median(np.abs(steps))) / np.sqrt(2)
    if scale == 0:
        scale = float(np.std(series)) or 1.0
    standardised: npt.NDArray[np.float64] = (series - np.median(series)) / scale
    return standardised
