"""What a candidate must show before it may meet live traffic: each gate measures one thing and keeps its number."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from threadpoolctl import threadpool_limits

from dags.steps.artefact import ArtefactError, round_trip
from dags.steps.measuring import Answers, answer, answer_inputs, gain, labels_of, measure, measure_slices
from dags.steps.tables import inputs
from monitors.performance import canonical
from streamer.catalog import describe
from streamer.models import ModelConfig

if TYPE_CHECKING:
    import pandas as pd

# A slice with fewer held-out rows says too little to stop a model.
MIN_SLICE_ROWS = 200
# In the units of the primary metric; for regression as shares of the champion's error.
MAX_SLICE_LOSS = 0.05
MAX_ROBUSTNESS_LOSS = 0.05
MISSING_SHARE = 0.1
NOISE_DEVIATIONS = 0.1
LATENCY_ROWS = 20
# Below this a single row is quick enough whatever the champion takes.
QUICK_MS = 50.0
SAMPLE_ROWS = 5_000
ARTEFACT_ROWS = 200


@dataclass(frozen=True)
class Gate:
    """One gate's result: `value` is held against `threshold` in the direction `wanted` says."""

    name: str
    value: float | None
    threshold: float | None
    wanted: str
    passed: bool
    detail: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the gate as JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class Contender:
    """A trained pipeline and the features it takes."""

    model: Any
    features: list[str]


def run_gates(
    config: ModelConfig, candidate: Contender, champion: Contender | None, held_out: pl.DataFrame
) -> list[Gate]:
    """Run every gate on the newest held-out rows; candidate and champion see the same ones.

    Without a champion the candidate is held against always giving the commonest answer.
    """
    candidate_answers = answer(config, candidate.model, candidate.features, held_out)
    champion_answers = (
        constant(config, held_out) if champion is None else answer(config, champion.model, champion.features, held_out)
    )
    return [
        performance(
            config, candidate_answers, champion_answers, against="constant" if champion is None else "champion"
        ),
        fairness(config, candidate_answers, champion_answers, held_out),
        robustness(config, candidate, champion, held_out),
        latency(config, candidate, champion, held_out),
        interpretability(config, candidate, held_out),
        artefact(config, candidate, held_out),
    ]


def constant(config: ModelConfig, table: pl.DataFrame) -> Answers:
    """Return the answers of a model that always says the commonest label (regression: the median)."""
    labels = labels_of(table)
    if config.task == "regression":
        middle = statistics.median(float(label) for label in labels)
        return Answers(labels, [canonical(middle)] * len(labels), np.full(len(labels), middle))
    common = statistics.mode(labels)
    share = labels.count(canonical(config.positive) if config.task == "binary" else common) / max(len(labels), 1)
    return Answers(labels, [common] * len(labels), np.full(len(labels), share))


def performance(config: ModelConfig, candidate: Answers, champion: Answers, *, against: str = "champion") -> Gate:
    """Hold the candidate's gain in the primary metric against `retrain.min_gain`."""
    ours, theirs = measure(config, candidate), measure(config, champion)
    value = gain(config, ours, theirs)
    least = config.retrain.min_gain
    return Gate(
        "performance",
        value,
        least,
        "at least",
        value >= least,
        {"against": against, "rows": len(candidate.labels), "candidate": ours, "champion": theirs},
    )


def fairness(config: ModelConfig, candidate: Answers, champion: Answers, table: pl.DataFrame) -> Gate:
    """Hold the worst loss of any slice against what a slice may lose: a gain of the whole must not be paid by a few."""
    ours, theirs = measure_slices(config, candidate, table), measure_slices(config, champion, table)
    primary = describe(config).schema.primary
    losses = {
        key: -gain(config, metrics, theirs[key]) / _unit(config, theirs[key])
        for key, metrics in ours.items()
        if metrics["n"] >= MIN_SLICE_ROWS
    }
    worst = max(losses, key=lambda key: losses[key], default=None)
    value = losses[worst] if worst is not None else 0.0
    detail: dict[str, Any] = {"slices": len(losses), "min_rows": MIN_SLICE_ROWS}
    if worst is not None:
        detail |= {"worst": worst, "candidate": ours[worst][primary], "champion": theirs[worst][primary]}
    return Gate("fairness", value, MAX_SLICE_LOSS, "at most", value <= MAX_SLICE_LOSS, detail)


def robustness(config: ModelConfig, candidate: Contender, champion: Contender | None, table: pl.DataFrame) -> Gate:
    """Hold the candidate against the champion on rows with noise, missing values and unseen categories.

    Whatever leans on a feature loses when it is missing: the question is whether the candidate then loses more than
    what serves now. Every answer must be a number, to a row of nothing but missing values too.
    """
    rows = inputs(table, list(config.features))
    labels = labels_of(table)
    commonest = constant(config, table)
    rng = np.random.default_rng(config.retrain.seed)
    gains, finite = {}, True
    for name, disturbed in _disturbed(rows, rng).items():
        ours = _ask(config, candidate, disturbed, labels)
        theirs = commonest if champion is None else _ask(config, champion, disturbed, labels)
        finite = finite and bool(np.isfinite(ours.scores).all())
        reference = measure(config, theirs)
        gains[name] = gain(config, measure(config, ours), reference) / _unit(config, reference)
    nothing = rows.head(1).copy()
    nothing[:] = np.nan
    finite = finite and bool(np.isfinite(_ask(config, candidate, nothing, labels[:1]).scores).all())
    value = min(gains.values())
    passed = finite and value >= -MAX_ROBUSTNESS_LOSS
    return Gate("robustness", value, -MAX_ROBUSTNESS_LOSS, "at least", passed, {**gains, "all_answers_finite": finite})


def _ask(config: ModelConfig, contender: Contender, rows: pd.DataFrame, labels: list[str]) -> Answers:
    return answer_inputs(config, contender.model, rows[contender.features], labels)


def _disturbed(rows: pd.DataFrame, rng: np.random.Generator) -> dict[str, pd.DataFrame]:
    """Return the rows with noise on the numbers, with missing cells, and with categories nobody has seen."""
    noisy, missing, unseen = rows.copy(), rows.copy(), rows.copy()
    for name in rows.columns:
        if rows[name].dtype.kind == "f":
            spread = float(np.nan_to_num(rows[name].std()))
            noisy[name] = rows[name] + rng.normal(0, NOISE_DEVIATIONS * spread, len(rows))
        else:
            unseen.loc[rng.random(len(rows)) < MISSING_SHARE, name] = "@unseen"
        missing.loc[rng.random(len(rows)) < MISSING_SHARE, name] = np.nan
    return {"noise": noisy, "missing": missing, "unseen": unseen}


def latency(config: ModelConfig, candidate: Contender, champion: Contender | None, table: pl.DataFrame) -> Gate:
    """Hold the time a single row takes against the champion's, measured in turns on the same machine."""
    contenders = {"candidate": candidate, **({} if champion is None else {"champion": champion})}
    rows = {name: inputs(table.head(LATENCY_ROWS), each.features) for name, each in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    # CPU time of a single thread: that the machine is busy is not the candidate's fault, nor that threads spin.
    with threadpool_limits(1):
        for index in range(min(LATENCY_ROWS, len(table))):
            for name, each in contenders.items():
                row = rows[name].iloc[index : index + 1]
                started = time.thread_time()
                answer_inputs(config, each.model, row, [""])
                times[name].append(1_000 * (time.thread_time() - started))
    middle = {name: statistics.median(values) for name, values in times.items()}
    value, detail = middle["candidate"], {"median_ms": middle}
    if champion is None:
        return Gate("latency", value, None, "no limit without a champion", True, detail)
    limit = max(QUICK_MS, config.canary.max_latency_ratio * middle["champion"])
    return Gate("latency", value, limit, "at most", value <= limit, detail)


def interpretability(config: ModelConfig, candidate: Contender, table: pl.DataFrame) -> Gate:
    """Measure what each feature is worth by shuffling it; a model that no feature matters to says nothing."""
    sample = table.gather_every(max(1, -(-len(table) // SAMPLE_ROWS)))
    rows, labels = inputs(sample, candidate.features), labels_of(sample)
    base = measure(config, answer_inputs(config, candidate.model, rows, labels))
    loss = "mae" if config.task == "regression" else "log_loss"
    rng = np.random.default_rng(config.retrain.seed)
    importances = {}
    for name in candidate.features:
        shuffled = rows.copy()
        shuffled[name] = rows[name].to_numpy()[rng.permutation(len(rows))]
        importances[name] = measure(config, answer_inputs(config, candidate.model, shuffled, labels))[loss] - base[loss]
    ranked = dict(sorted(importances.items(), key=lambda item: -item[1]))
    value = next(iter(ranked.values()))
    return Gate("interpretability", value, 0.0, "above", value > 0, {"loss": loss, "importances": ranked})


def artefact(config: ModelConfig, candidate: Contender, table: pl.DataFrame) -> Gate:
    """Save the model as it will be registered, read it back if it holds nothing strange, and compare the answers."""
    rows = inputs(table.head(ARTEFACT_ROWS), candidate.features)
    try:
        again, size = round_trip(candidate.model)
    except ArtefactError as error:
        return Gate("artefact", None, 0.0, "at most", False, {"reason": str(error)})
    labels = labels_of(table.head(ARTEFACT_ROWS))
    ours, theirs = (answer_inputs(config, each, rows, labels).scores for each in (candidate.model, again))
    difference = float(np.abs(ours - theirs).max())
    return Gate("artefact", difference, 0.0, "at most", difference == 0.0, {"bytes": size, "rows": len(rows)})


def _unit(config: ModelConfig, metrics: dict[str, float]) -> float:
    """Return what a loss is measured in: itself for shares, the error it is held against for regression."""
    return max(metrics.get("mae", 1.0), 1e-12) if config.task == "regression" else 1.0


def failed(gates: Sequence[Gate]) -> list[str]:
    """Return what failed, each with its number, for people."""
    return [
        f"{gate.name}: {_number(gate.value)}, wanted {gate.wanted} {_number(gate.threshold)}"
        for gate in gates
        if not gate.passed
    ]


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
