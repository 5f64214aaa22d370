"""A version's reference: the cells of its features, how its training data fell into them, how well it did."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from math import isfinite
from typing import Any, cast

import msgspec
import numpy as np
import numpy.typing as npt

from monitors.binning import Binning, Kind, fit
from monitors.divergence import grouping
from monitors.significance import design_effect
from monitors.sketch import Counts, count_cells
from monitors.stacked import Stacked

MANIFEST = "manifest"
FEATURE_PREFIX = "feature/"
# A pane with fewer values than this says nothing about how concentrated a feature is within a pane.
MIN_PANE_VALUES = 10


@dataclass(frozen=True, eq=False)
class FeatureProfile:
    """One feature's cells and the reference's counts over them.

    Parameters
    ----------
    binning : the frozen cells.
    counts : (binning.size,) int64.
    design_effect : by how much correlated rows inflate the variance of shares, ≥ 1.
    pane_concentration : the median over the reference's panes of the heaviest group's share in the pane: near 1
        for a feature that hardly changes within a pane (the month, the weather); 0 when not known.
    """

    binning: Binning
    counts: Counts
    design_effect: float = 1.0
    pane_concentration: float = 0.0

    def __post_init__(self) -> None:
        name = self.binning.feature
        if self.counts.shape != (self.binning.size,):
            raise ValueError(f"{name}.counts: got shape {self.counts.shape}, wanted ({self.binning.size},)")
        if not (isfinite(self.design_effect) and self.design_effect >= 1):
            raise ValueError(f"{name}.design_effect: got {self.design_effect}, wanted a number of at least 1")

    @cached_property
    def rows(self) -> int:
        """The number of reference rows, missing values among them."""
        return int(self.counts.sum())

    @cached_property
    def digest(self) -> str:
        """16 hex digits naming all that is kept of the feature."""
        return digest_of(self.to_part())

    def to_part(self) -> bytes:
        """Return the feature's part of a profile, as JSON."""
        return _json(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        return {
            "binning": self.binning.to_dict(),
            "counts": self.counts.tolist(),
            "design_effect": self.design_effect,
            "pane_concentration": self.pane_concentration,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> FeatureProfile:
        """Read what `to_dict` wrote; ValueError names what is missing or wrong."""
        try:
            return cls(
                binning=Binning.from_dict(document["binning"]),
                counts=np.asarray(document["counts"], dtype=np.int64),
                design_effect=float(document["design_effect"]),
                pane_concentration=float(document["pane_concentration"]),
            )
        except KeyError as error:
            raise ValueError(f"feature profile: {error} is missing; build and publish the reference again") from error

    @classmethod
    def from_part(cls, part: str, raw: bytes, digest: str) -> FeatureProfile:
        """Read a feature's part, which `digest` names; ValueError names what is missing or wrong."""
        profile = cls.from_dict(_read(part, raw))
        # What the property would find: writing a feature takes ten times as long as reading it.
        profile.__dict__["digest"] = digest
        return profile


@dataclass(frozen=True)
class PerformanceBaseline:
    """How well a version did on data held out from its training.

    Parameters
    ----------
    metrics : metric name → value, finite; a metric that could not be computed is left out.
    primary : the metric decisions are made on.
    value, standard_error : the primary metric and its standard error.
    n : the number of held-out rows.
    """

    metrics: dict[str, float]
    primary: str
    value: float
    standard_error: float
    n: int

    def __post_init__(self) -> None:
        numbers = {**self.metrics, "value": self.value, "standard_error": self.standard_error}
        for name, number in numbers.items():
            if not isfinite(number):
                raise ValueError(f"baseline.{name}: got {number}, wanted a finite number; leave out unknown metrics")


@dataclass(frozen=True)
class CellLayout:
    """Where each feature's cells lie in one vector over the cells of all features.

    Parameters
    ----------
    places : feature → its cells' slice of the vector; features in the order of their names.
    size : how many cells there are in all.
    """

    places: Mapping[str, slice]
    size: int

    @classmethod
    def of(cls, sizes: Mapping[str, int]) -> CellLayout:
        """Lay out features of so many cells each."""
        places: dict[str, slice] = {}
        start = 0
        for name in sorted(sizes):
            places[name] = slice(start, start + sizes[name])
            start += sizes[name]
        return cls(places, start)


@dataclass(frozen=True, eq=False)
class ReferenceProfile:
    """What a version of a model is compared with; immutable once published.

    Parameters
    ----------
    model, version : whose reference it is.
    features : name → profile; "@score" or "@prediction", the model's own output, stands among them.
    baseline : performance on held-out data, or None.
    rows : the number of reference rows.
    created_ms : when it was built, epoch milliseconds UTC.
    """

    model: str
    version: str
    features: dict[str, FeatureProfile]
    baseline: PerformanceBaseline | None
    rows: int
    created_ms: int

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits naming these features' cells and counts: counts gathered over others never mix with these."""
        return digest_of(_json({name: feature.digest for name, feature in self.features.items()}))

    @cached_property
    def layout(self) -> CellLayout:
        """Where each feature's cells lie in a vector over all; the same wherever the fingerprint is."""
        return CellLayout.of({name: feature.binning.size for name, feature in self.features.items()})

    @cached_property
    def stacked(self) -> Stacked:
        """What of the features is worked out once, in the layout's order."""
        return Stacked.of({name: self.features[name] for name in self.layout.places})

    def to_parts(self) -> dict[str, bytes]:
        """Return the profile as JSON parts: "feature/<name>" for each feature, and last the "manifest".

        The manifest holds the profile's fingerprint and each feature part's digest.
        """
        parts = {FEATURE_PREFIX + name: feature.to_part() for name, feature in self.features.items()}
        manifest = {
            "model": self.model,
            "version": self.version,
            "fingerprint": self.fingerprint,
            "features": {name: feature.digest for name, feature in self.features.items()},
            "baseline": None if self.baseline is None else asdict(self.baseline),
            "rows": self.rows,
            "created_ms": self.created_ms,
        }
        return {**parts, MANIFEST: _json(manifest)}

    @classmethod
    def from_parts(
        cls, parts: Mapping[str, bytes], known: Mapping[str, FeatureProfile] | None = None
    ) -> ReferenceProfile | None:
        """Read what `to_parts` wrote; None while parts are missing or not yet those the manifest names.

        Parameters
        ----------
        known : part → the feature it was read into before, for the parts that are not given again.

        Raises
        ------
        ValueError
            A part is there but cannot be read.
        """
        if MANIFEST not in parts:
            return None
        manifest = _read(MANIFEST, parts[MANIFEST])
        try:
            digests: dict[str, str] = {FEATURE_PREFIX + name: digest for name, digest in manifest["features"].items()}
            held = {part: feature for part, feature in (known or {}).items() if part in digests and part not in parts}
            # Looked for before any is digested: parts come one by one, each time with a question after the whole.
            if any(part not in parts and part not in held for part in digests):
                return None
            if any(feature.digest != digests[part] for part, feature in held.items()):
                return None
            if any(digest_of(parts[part]) != digest for part, digest in digests.items() if part not in held):
                return None
            baseline = manifest["baseline"]
            return cls(
                model=manifest["model"],
                version=manifest["version"],
                features={
                    part.removeprefix(FEATURE_PREFIX): held[part]
                    if part in held
                    else FeatureProfile.from_part(part, parts[part], digest)
                    for part, digest in digests.items()
                },
                baseline=None if baseline is None else PerformanceBaseline(**baseline),
                rows=manifest["rows"],
                created_ms=manifest["created_ms"],
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"reference {MANIFEST}: {error}; build and publish the reference again") from error


def build_profile(
    *,
    model: str,
    version: str,
    columns: Mapping[str, npt.NDArray[Any]],
    kinds: Mapping[str, str],
    panes: npt.NDArray[Any] | None,
    baseline: PerformanceBaseline | None,
    created_ms: int,
    max_cells: int = 256,
) -> ReferenceProfile:
    """Build a version's reference from its training data.

    Parameters
    ----------
    columns : feature → (rows,) values as `Binning.assign` takes them, all of the same length.
    kinds : feature → "numeric" or "categorical".
    panes : (rows,) integers, the pane (event time // pane width) each row belongs to, from which the design
        effects are estimated; None where rows have no time: every row then counts as independent.

    Raises
    ------
    ValueError, TypeError
        A column has no kind, another length than the others, or values of another kind.
    """
    lengths = {name: len(values) for name, values in columns.items()} | ({} if panes is None else {"panes": len(panes)})
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns: got lengths {lengths}, wanted the same for all")
    pane_of = None if panes is None else np.unique(panes, return_inverse=True)[1]
    features = {}
    for name, values in columns.items():
        if name not in kinds:
            raise ValueError(f"kinds.{name}: missing; give 'numeric' or 'categorical'")
        # Binning itself refuses any other kind.
        binning = fit(name, values, kind=cast(Kind, kinds[name]), max_cells=max_cells)
        features[name] = _profile_feature(binning, binning.assign(values), pane_of)
    return ReferenceProfile(
        model=model,
        version=version,
        features=features,
        baseline=baseline,
        rows=next(iter(lengths.values()), 0),
        created_ms=created_ms,
    )


def _profile_feature(
    binning: Binning, cells: npt.NDArray[np.int32], pane_of: npt.NDArray[np.intp] | None
) -> FeatureProfile:
    counts = count_cells(cells, binning.size)
    if pane_of is None or not len(pane_of):
        return FeatureProfile(binning, counts)
    # Pooled before they are counted by pane: a year of short panes times every cell would be large.
    group_of = grouping(counts, ordered=binning.ordered)
    width = int(group_of.max()) + 1
    groups = group_of[cells]
    present = groups >= 0
    panes = int(pane_of.max()) + 1
    keys = pane_of[present] * width + groups[present]
    pane_counts = np.bincount(keys, minlength=panes * width).reshape(panes, width)
    return FeatureProfile(binning, counts, design_effect(pane_counts), _concentration(pane_counts))


def _concentration(pane_counts: npt.NDArray[np.int64]) -> float:
    rows = pane_counts.sum(axis=1)
    enough = rows >= MIN_PANE_VALUES
    return float(np.median(pane_counts[enough].max(axis=1) / rows[enough])) if enough.any() else 0.0


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _read(part: str, raw: bytes) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"reference part {part}: not JSON ({error}); publish the reference again") from error
    if not isinstance(document, dict):
        raise ValueError(f"reference part {part}: got a JSON {type(document).__name__}, wanted an object")
    return document


def digest_of(raw: bytes) -> str:
    """Return the 16 hex digits a part is known by."""
    return hashlib.sha256(raw).hexdigest()[:16]
