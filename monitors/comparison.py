"""A rollout's plan, and what its panes add up to: contrasts of both arms, never an event."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from monitors.arms import EXPOSURE_DTYPE, Rows
from monitors.contrast import BUCKETS, CHALLENGER, CHAMPION, Contrast

CONTRASTS = ("outcomes", "since", "errors", "latency", "coverage")
COUNTERS = ("step", "used", "left_out", "left_out_run", "last_pane_ms")


Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CanaryPlan:
    """The ramp and what each of its steps must show.

    Attributes
    ----------
    steps : rising percentages of traffic. control_percent : what the champion keeps at the last of them.
    margin : the loss of mean outcome that would still be accepted, in the outcome's units.
    tolerance : harm is a loss that is surely more than this.
    alpha : one-sided error of a whole rollout; the guardrails together have another of the same size.
    min_outcomes : new labelled challenger events a step needs. min_buckets : effective buckets a verdict needs.
    max_latency_ratio : of geometric means, challenger over champion. max_error_increase : difference of shares.
    max_panes : panes with labels after which a step that is still open is inconclusive.
    outcome_variance : of one outcome, guessed before the rollout; ¼ is the most a 0/1 outcome can have. A
        wrong guess widens the bounds a little and keeps them valid; for regression give the baseline's.
    """

    steps: tuple[float, ...] = (5, 10, 25, 50, 100)
    control_percent: float = 2.0
    margin: float = 0.03
    tolerance: float = 0.0
    alpha: float = 0.05
    min_outcomes: int = 100
    min_buckets: float = 20.0
    max_latency_ratio: float = 2.0
    max_error_increase: float = 0.02
    max_panes: int = 60
    outcome_variance: float = 0.25

    def __post_init__(self) -> None:
        percents = [self.percent_at(step) for step in range(len(self.steps))]
        if not percents or any(later <= earlier for earlier, later in zip([0.0, *percents], percents, strict=False)):
            raise ValueError(
                f"steps: got {self.steps} with control_percent {self.control_percent}, wanted rising percentages, "
                f"all but the last below {100 - self.control_percent:g}"
            )

    @property
    def last_step(self) -> int:
        """Return the index of the last step."""
        return len(self.steps) - 1

    def percent_at(self, step: int) -> float:
        """Return the challenger's share of traffic at a step; 0 before the first; the last leaves the control."""
        if step < 0:
            return 0.0
        if step > self.last_step:
            raise ValueError(f"step: got {step}, wanted −1 to {self.last_step}; the plan has {len(self.steps)} steps")
        return float(min(self.steps[step], 100 - self.control_percent))


@dataclass(frozen=True)
class StepTally:
    """What one step has seen: panes with outcomes in them, and each arm's outcomes and exposures; Σw of its panes."""

    panes: int = 0
    outcomes: tuple[int, int] = (0, 0)
    exposures: tuple[int, int] = (0, 0)
    weight: float = 0.0


@dataclass(frozen=True, eq=False)
class Comparison:
    """All that is kept of one rollout: sums over its mature panes, never an event.

    `since` restarts with the step, `exposed` (exposures a bucket) too; the other contrasts go on.
    `left_out_run` counts the panes left out since the last one used.
    """

    outcomes: Contrast = field(default_factory=Contrast)
    since: Contrast = field(default_factory=Contrast)
    errors: Contrast = field(default_factory=Contrast)
    latency: Contrast = field(default_factory=Contrast)
    coverage: Contrast = field(default_factory=Contrast)
    step: int = -1
    tallies: tuple[StepTally, ...] = ()
    exposed: Integers = field(default_factory=lambda: np.zeros(BUCKETS, dtype=np.int64))
    used: int = 0
    left_out: int = 0
    left_out_run: int = 0
    last_pane_ms: int | None = None

    def tally(self, step: int) -> StepTally:
        """Return what a step has seen; nothing before its first pane."""
        return self.tallies[step] if 0 <= step < len(self.tallies) else StepTally()

    def to_state(self) -> dict[str, Any]:
        """Return the comparison as builtins and bytes, for msgpack."""
        return {
            **{name: getattr(self, name).to_state() for name in CONTRASTS},
            **{name: getattr(self, name) for name in COUNTERS},
            "tallies": [[t.panes, list(t.outcomes), list(t.exposures), t.weight] for t in self.tallies],
            "exposed": self.exposed.astype("<i8").tobytes(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Comparison:
        """Return what `to_state` was taken of."""
        return cls(
            **{name: Contrast.from_state(state[name]) for name in CONTRASTS},  # type: ignore[arg-type]
            **{name: state[name] for name in COUNTERS},
            tallies=tuple(
                StepTally(panes, (outcomes[0], outcomes[1]), (exposures[0], exposures[1]), weight)
                for panes, outcomes, exposures, weight in state["tallies"]
            ),
            exposed=np.frombuffer(state["exposed"], dtype="<i8").astype(np.int64),
        )


def new_comparison(plan: CanaryPlan) -> Comparison:
    """Return the comparison of a rollout that has not seen a pane."""
    return Comparison(tallies=(StepTally(),) * len(plan.steps))


def add_pane(
    plan: CanaryPlan,
    comparison: Comparison,
    *,
    pane_start_ms: int,
    champion_outcomes: Rows,
    challenger_outcomes: Rows,
    champion_exposures: Rows,
    challenger_exposures: Rows,
) -> Comparison:
    """Return the comparison with one more pane, mature in both arms, in it.

    A pane without challenger is before the ramp and changes nothing. One in which the split changed,
    or was not one the plan sets, is left out and counted. Panes come in the order of their time; a
    pane's step is told from its buckets, and it adds to the since-step sums if that is the newest.
    """
    top = max(_buckets(challenger_outcomes, challenger_exposures), default=-1)
    if top < 0:
        return comparison
    lowest = min(_buckets(champion_outcomes, champion_exposures), default=BUCKETS)
    step = _step_of(plan, comparison.step, top, lowest)
    if step is None:
        return replace(comparison, left_out=comparison.left_out + 1, left_out_run=comparison.left_out_run + 1)
    labelled, totals = (
        _by_bucket("n", champion_outcomes, challenger_outcomes),
        _by_bucket("total", champion_outcomes, challenger_outcomes),
    )
    shown = {
        name: _by_bucket(name, champion_exposures, challenger_exposures) for name in (EXPOSURE_DTYPE.names or ())[1:]
    }
    if step > comparison.step:
        comparison = replace(comparison, step=step, since=Contrast(), exposed=np.zeros(BUCKETS, dtype=np.int64))
    if step == comparison.step:
        comparison = replace(
            comparison,
            since=comparison.since.add(labelled, totals),
            exposed=comparison.exposed + shown["n"].sum(axis=0).astype(np.int64),
        )
    outcomes = comparison.outcomes.add(labelled, totals)
    tally = _counted(comparison.tally(step), labelled, shown["n"], outcomes.weight - comparison.outcomes.weight)
    return replace(
        comparison,
        outcomes=outcomes,
        errors=comparison.errors.add(shown["n"], shown["errors"]),
        latency=comparison.latency.add(shown["latency_n"], shown["latency_log_total"]),
        coverage=comparison.coverage.add(shown["n"], labelled),
        tallies=(*comparison.tallies[:step], tally, *comparison.tallies[step + 1 :]),
        used=comparison.used + 1,
        left_out_run=0,
        last_pane_ms=pane_start_ms,
    )


def _step_of(plan: CanaryPlan, newest: int, top: int, lowest: int) -> int | None:
    """Return the step whose share lies between the arms' buckets, None when none does.

    The smallest that does, but none before the newest seen: a ramp only rises, and few users may all
    happen to be in low buckets.
    """
    fitting = [step for step in range(len(plan.steps)) if top < 10 * plan.percent_at(step) <= lowest]
    return next((step for step in fitting if step >= newest), fitting[0] if fitting else None)


def _buckets(*arrays: Rows) -> list[int]:
    """Return the buckets that have rows."""
    return [int(bucket) for rows in arrays for bucket in rows["bucket"][rows["n"] > 0]]


def _by_bucket(name: str, champion: Rows, challenger: Rows) -> Floats:
    """Return (arms, buckets) one field of both arms' rows."""
    table = np.zeros((2, BUCKETS))
    for arm, rows in ((CHAMPION, champion), (CHALLENGER, challenger)):
        table[arm, rows["bucket"]] = rows[name]
    return table


def _counted(tally: StepTally, labelled: Floats, exposed: Floats, weight: float) -> StepTally:
    """Return the tally with a pane's rows added."""
    outcomes, exposures = labelled.sum(axis=1).astype(int), exposed.sum(axis=1).astype(int)
    return StepTally(
        panes=tally.panes + bool(outcomes.any()),
        outcomes=(tally.outcomes[0] + int(outcomes[0]), tally.outcomes[1] + int(outcomes[1])),
        exposures=(tally.exposures[0] + int(exposures[0]), tally.exposures[1] + int(exposures[1])),
        weight=tally.weight + weight,
    )
