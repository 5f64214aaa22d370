"""Slices of the traffic, such as `carrier=UA`: their keys, and rows spread over the slices they are in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, repeat

import numpy as np
import numpy.typing as npt

WHOLE = ""


def slice_key(feature: str, value: str) -> str:
    """Return the name of the slice of rows whose `feature` has that canonical text."""
    return f"{feature}={value}"


def slice_feature(key: str) -> str:
    """Return the feature of a slice, whose name holds no "="."""
    return key.partition("=")[0]


def slice_keys(features: Mapping[str, str]) -> list[str]:
    """Return the slices a row is in, by the canonical texts of its slice features, in their order."""
    return [slice_key(feature, value) for feature, value in features.items()]


def group(slices: Sequence[Iterable[str]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], list[str]]:
    """Spread rows over their slices, so that one fold counts the whole and every slice.

    Parameters
    ----------
    slices : a row's slice keys, for each row.

    Returns
    -------
    groups : (pairs,) index into keys.
    rows : (pairs,) index into slices.
    keys : the group names; the first is "", the whole, which every row is in.

    Examples
    --------
    >>> groups, rows, keys = group([["carrier=UA"], []])
    >>> groups.tolist(), rows.tolist(), keys
    ([0, 0, 1], [0, 1, 0], ['', 'carrier=UA'])
    """
    lists = [list(keys) for keys in slices]
    names = list(chain(repeat(WHOLE, len(lists)), *lists))
    index = {key: position for position, key in enumerate(dict.fromkeys([WHOLE, *names]))}
    groups = np.fromiter(map(index.__getitem__, names), dtype=np.int64, count=len(names))
    every = np.arange(len(lists), dtype=np.int64)
    lengths = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
    return groups, np.concatenate([every, np.repeat(every, lengths)]), list(index)
