"""The difference of two arms' means, stratified by pane and clustered by bucket, as sums that go on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from monitors import sequential

BUCKETS = 1_000
ARMS = 2
CHAMPION, CHALLENGER = 0, 1

Floats = npt.NDArray[np.float64]


def _empty() -> Floats:
    return np.zeros((ARMS, BUCKETS))


@dataclass(frozen=True, eq=False)
class Contrast:
    """What is known of challenger − champion so far.

    Attributes
    ----------
    numerator : Σ over panes of w · (ȳ₁ − ȳ₀), with w = n₁n₀ / (n₁ + n₀).
    weight : Σ w.
    influence : (arms, buckets), a bucket's (w/n) · Σ (y − ȳ) in its arm: what its users add to the numerator's error.
    load : (arms, buckets), a bucket's w · (its share of the arm's rows); each arm's sum up to `weight`.
    """

    numerator: float = 0.0
    weight: float = 0.0
    influence: Floats = field(default_factory=_empty)
    load: Floats = field(default_factory=_empty)

    def add(self, n: Floats, total: Floats) -> Contrast:
        """Return the contrast with one more pane in it.

        Parameters
        ----------
        n, total : (arms, buckets), rows and sum of their outcomes, champion first. A pane without rows
            in one of the arms compares nothing and changes nothing.
        """
        rows = n.sum(axis=1)
        if not (rows > 0).all():
            return self
        weight = float(rows[CHAMPION] * rows[CHALLENGER] / rows.sum())
        means = total.sum(axis=1) / rows
        scale = (weight / rows)[:, None]
        return Contrast(
            numerator=self.numerator + weight * float(means[CHALLENGER] - means[CHAMPION]),
            weight=self.weight + weight,
            influence=self.influence + scale * (total - n * means[:, None]) * np.array([[-1.0], [1.0]]),
            load=self.load + scale * n,
        )

    @property
    def delta(self) -> float | None:
        """Return the estimated difference of means, challenger − champion; None before any pane."""
        return self.numerator / self.weight if self.weight > 0 else None

    @property
    def effective_buckets(self) -> float:
        """Return the effective number (Σe)²/Σe² of buckets of the arm that has fewer."""
        squares = (self.load**2).sum(axis=1)
        return float((self.load.sum(axis=1) ** 2 / squares).min()) if (squares > 0).all() else 0.0

    @property
    def variance(self) -> float:
        """Return the numerator's variance, clustered by bucket: Σ_b (ψ_b / (1 − h_b))².

        h_b is the bucket's share of its arm; a bucket that was in both arms adds up over them, since the
        same users made both errors. Infinite when one bucket is all of an arm.
        """
        if self.weight <= 0:
            return 0.0
        share = self.load / self.load.sum(axis=1, keepdims=True)
        if (share > 1 - 1e-9).any():
            return float("inf")
        return float(((self.influence / (1 - share)).sum(axis=0) ** 2).sum())

    def radius(self, *, variance_at_verdict: float, alpha: float) -> float:
        """Return the one-sided anytime-valid radius around `delta`; infinite before any pane."""
        if self.weight <= 0:
            return float("inf")
        rho = sequential.rho(variance_at_verdict, alpha=alpha)
        return sequential.radius(self.variance, rho=rho, alpha=alpha) / self.weight

    def to_state(self) -> dict[str, Any]:
        """Return the contrast as builtins and bytes; only buckets that have rows are in it."""
        at = np.flatnonzero(self.load)
        return {
            "numerator": self.numerator,
            "weight": self.weight,
            "at": at.astype("<i2").tobytes(),
            "influence": self.influence.ravel()[at].astype("<f8").tobytes(),
            "load": self.load.ravel()[at].astype("<f8").tobytes(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Contrast:
        """Return what `to_state` was taken of."""
        at = np.frombuffer(state["at"], dtype="<i2")
        influence, load = np.zeros(ARMS * BUCKETS), np.zeros(ARMS * BUCKETS)
        influence[at] = np.frombuffer(state["influence"], dtype="<f8")
        load[at] = np.frombuffer(state["load"], dtype="<f8")
        shape = (ARMS, BUCKETS)
        return cls(state["numerator"], state["weight"], influence.reshape(shape), load.reshape(shape))
