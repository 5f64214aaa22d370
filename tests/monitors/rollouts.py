"""Rollouts as tests make them: traffic on two arms, pane by pane."""

from __future__ import annotations

import numpy as np

from monitors.arms import EXPOSURE_DTYPE, OUTCOME_DTYPE
from monitors.canary import verdict
from monitors.comparison import CanaryPlan, Comparison, add_pane, new_comparison

BUCKETS = 1_000
ALL = np.arange(BUCKETS)
PLAN = CanaryPlan()


def counted(name: str, buckets: np.ndarray, **fields: np.ndarray) -> np.ndarray:
    rows = np.zeros(len(buckets), dtype=OUTCOME_DTYPE if name == "outcomes" else EXPOSURE_DTYPE)
    rows["bucket"] = buckets
    for field, values in fields.items():
        rows[field] = values
    return rows[rows["n"] > 0]


def below(percent: float) -> np.ndarray:
    """Return which buckets the router gives the challenger at that share."""
    return np.less(ALL, 10 * percent)


class World:
    """Traffic on two arms: each bucket has its users' habits, each pane its own day, shared by both arms."""

    def __init__(self, seed: int, *, mean_rows: float = 2.0, spread: float = 0.2, days: float = 0.7):
        self.rng = np.random.default_rng(seed)
        self.habit = self.rng.normal(0, spread, BUCKETS)
        self.traffic = self.rng.gamma(2, mean_rows / 2, BUCKETS)
        self.days = days
        self.pane = 0
        self.pooled = np.zeros((2, 2))

    def add(
        self,
        plan: CanaryPlan,
        comparison: Comparison,
        percent: float,
        *,
        worse: float = 0.0,
        covered: tuple[float, float] = (1.0, 1.0),
        failing: tuple[float, float] = (0.0, 0.0),
        latency_ms: tuple[float, float] = (10.0, 10.0),
        lost: float = 0.0,
        challenger: np.ndarray | None = None,
    ) -> Comparison:
        """Add a pane; `worse` is how much less often the challenger is right, `lost` its share of logs that vanish."""
        rng = self.rng
        hers = below(percent) if challenger is None else challenger
        arm = hers.astype(int)
        n = rng.poisson(self.traffic)
        n = np.where(hers, rng.binomial(n, 1 - lost), n)
        right = np.clip(1 / (1 + np.exp(-(1 + self.habit + rng.normal(0, self.days)))) - worse * hers, 0, 1)
        labelled = rng.binomial(n, np.take(covered, arm))
        total = rng.binomial(labelled, right)
        errors = rng.binomial(n, np.take(failing, arm))
        log_latency = n * np.log(np.take(latency_ms, arm)) + rng.normal(size=BUCKETS) * np.sqrt(n) * 0.5
        outcomes = {"n": labelled, "total": total, "total_sq": total}
        exposures = {"n": n, "errors": errors, "latency_n": n, "latency_log_total": log_latency}
        sides = {
            side: (
                counted("outcomes", ALL[chosen], **{k: v[chosen] for k, v in outcomes.items()}),
                counted("exposures", ALL[chosen], **{k: v[chosen] for k, v in exposures.items()}),
            )
            for side, chosen in (("champion", ~hers), ("challenger", hers))
        }
        self.pane += 1
        self.pooled += [(labelled[hers == side].sum(), total[hers == side].sum()) for side in (False, True)]
        return add_pane(
            plan,
            comparison,
            pane_start_ms=self.pane * 60_000,
            champion_outcomes=sides["champion"][0],
            challenger_outcomes=sides["challenger"][0],
            champion_exposures=sides["champion"][1],
            challenger_exposures=sides["challenger"][1],
        )


def after(panes: int, *, plan: CanaryPlan = PLAN, seed: int = 1, step: int = 2, mean_rows: float = 2.0, **pane):
    """Return the comparison after some panes at a step."""
    world, comparison = World(seed, mean_rows=mean_rows), new_comparison(plan)
    for _ in range(panes):
        comparison = world.add(plan, comparison, plan.percent_at(step), **pane)
    return comparison


def judged(plan: CanaryPlan, comparison: Comparison, step: int | None = None):
    return verdict(plan, comparison, step=comparison.step if step is None else step, epoch=7, at_ms=99)
