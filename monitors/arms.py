"""What is counted of one arm of a canary: its outcomes and exposures by bucket, as rows that add up."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

OUTCOME_DTYPE = np.dtype([("bucket", "<i2"), ("n", "<i8"), ("total", "<f8"), ("total_sq", "<f8")])
EXPOSURE_DTYPE = np.dtype(
    [
        ("bucket", "<i2"),
        ("n", "<i8"),
        ("errors", "<i8"),
        ("latency_n", "<i8"),
        ("latency_total_ms", "<f8"),
        ("latency_log_total", "<f8"),
    ]
)
# A clock too coarse to see a fast answer logs 0 ms; its logarithm is taken at a microsecond.
MIN_LATENCY_MS = 0.001

Rows = npt.NDArray[np.void]


def fold_outcomes(buckets: npt.ArrayLike, outcomes: npt.ArrayLike, signs: npt.ArrayLike) -> Rows:
    """Fold labelled events of one arm into rows of OUTCOME_DTYPE, one a bucket present, by bucket.

    Parameters
    ----------
    buckets : (events,) 0 to 999. outcomes : (events,) higher is better. signs : (events,) +1, or −1 to take back.
    """
    present, where = np.unique(np.asarray(buckets, dtype=np.int64), return_inverse=True)
    value, sign = np.asarray(outcomes, dtype=np.float64), np.asarray(signs, dtype=np.float64)
    rows = np.zeros(len(present), dtype=OUTCOME_DTYPE)
    rows["bucket"] = present
    for name, column in (("n", sign), ("total", sign * value), ("total_sq", sign * value**2)):
        rows[name] = np.bincount(where, weights=column, minlength=len(present))
    return rows


def fold_exposures(buckets: npt.ArrayLike, errors: npt.ArrayLike, latencies_ms: npt.ArrayLike) -> Rows:
    """Fold predictions of one arm into rows of EXPOSURE_DTYPE, one a bucket present, by bucket.

    Parameters
    ----------
    buckets : (events,) 0 to 999. errors : (events,) whether it failed. latencies_ms : (events,) nan or
        negative: not known.
    """
    present, where = np.unique(np.asarray(buckets, dtype=np.int64), return_inverse=True)
    latency = np.asarray(latencies_ms, dtype=np.float64)
    timed = np.isfinite(latency) & (latency >= 0)
    latency = np.where(timed, latency, 0.0)
    columns = {
        "n": np.ones(len(where)),
        "errors": np.asarray(errors, dtype=np.float64),
        "latency_n": timed.astype(np.float64),
        "latency_total_ms": latency,
        "latency_log_total": np.where(timed, np.log(np.maximum(latency, MIN_LATENCY_MS)), 0.0),
    }
    rows = np.zeros(len(present), dtype=EXPOSURE_DTYPE)
    rows["bucket"] = present
    for name, column in columns.items():
        rows[name] = np.bincount(where, weights=column, minlength=len(present))
    return rows


def merge_rows(a: Rows, b: Rows) -> Rows:
    """Add two sets of rows of one dtype by bucket; integers, and sums of whole numbers, exactly."""
    if a.dtype != b.dtype:
        raise ValueError(f"b: got rows of {b.dtype.names}, wanted those of a: {a.dtype.names}")
    both = np.concatenate([a, b])
    present, where = np.unique(both["bucket"], return_inverse=True)
    rows = np.zeros(len(present), dtype=a.dtype)
    rows["bucket"] = present
    for name in (a.dtype.names or ())[1:]:
        np.add.at(rows[name], where, both[name])
    return rows
