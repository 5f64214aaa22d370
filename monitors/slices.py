"""Slices of the traffic, such as `carrier=UA`: their keys, which are kept apart, and rows spread over their slices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, repeat

import numpy as np
import numpy.typing as npt

from monitors.binning import Binning
from monitors.performance import canonical
from monitors.profile import ReferenceProfile

WHOLE = ""
_OTHER = " (other)"


def slice_key(feature: str, value: str) -> str:
    """Return the name of the slice of rows whose `feature` has that canonical text."""
    return f"{feature}={value}"


def slice_feature(key: str) -> str:
    """Return the feature of a slice, whose name holds no "="."""
    return key.partition("=")[0]


def slice_keys(features: Mapping[str, str]) -> list[str]:
    """Return the slices a row is in, by the canonical texts of its slice features, in their order."""
    return [slice_key(feature, value) for feature, value in features.items()]


def kept_slices(features: Iterable[str], reference: ReferenceProfile | None, most: int) -> frozenset[str]:
    """Return the slices that are kept apart: of each feature, the values most frequent in the reference.

    Parameters
    ----------
    features : the slice features.
    reference : that of the version the slices are of; without one nothing is kept apart.
    most : so many values of each feature; ties go by the cells' order.

    Notes
    -----
    A bound that asks nothing but the reference is the same in whatever order events come and however they are
    added up, and a label that is taken back finds the slice it was counted in.
    """
    if reference is None:
        return frozenset()
    kept: list[str] = []
    for feature in features:
        known = reference.features.get(feature)
        if known is not None:
            texts = _texts(known.binning)
            # Stable, so that ties keep the cells' order.
            often = np.argsort(-known.counts[: len(texts)], kind="stable")[:most]
            kept += [slice_key(feature, texts[cell]) for cell in often.tolist()]
    return frozenset(kept)


def _texts(binning: Binning) -> list[str]:
    """Return the canonical text of each inner cell that holds one value; of ranges there is none."""
    return [*map(canonical, binning.values), *binning.categories]


def bounded(key: str, kept: frozenset[str]) -> str:
    """Return the slice that is counted for a slice: itself, or its feature's other values, as `carrier (other)`."""
    # No feature among the slices has a "=" in its name: nothing else is called so.
    return key if key == WHOLE or key in kept else f"{slice_feature(key)}{_OTHER}"


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
