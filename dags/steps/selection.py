"""Choosing among the families' best by a weighted score, with the whole table kept as evidence."""

from __future__ import annotations

from typing import Any

from streamer.models import ModelConfig

WEIGHTS = {"loss": 0.5, "discrimination": 0.3, "correctness": 0.15, "cost": 0.05}
# A fit that takes this long gets half the points for cost.
HALF_COST_S = 30.0


def select(config: ModelConfig, candidates: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the winner's family and a row a candidate with its parts of the score, the best first.

    Parameters
    ----------
    candidates : summaries of `dags.steps.training.Candidate`.

    Notes
    -----
    Each part lies in [0, 1] and higher is better. loss: 1 / (1 + log loss) (regression: 1 / (1 + MAE relative
    to the best candidate's)); discrimination: AUC (multiclass: accuracy, regression: R² at least 0);
    correctness: accuracy (regression: as loss); cost: 1 / (1 + seconds / 30).
    """
    if not candidates:
        raise ValueError("candidates: got none, wanted at least one trained family")
    best_error = min((each["metrics"].get("mae", 0.0) for each in candidates), default=0.0)
    table = []
    for each in candidates:
        parts = _parts(config, each, best_error)
        score = sum(WEIGHTS[name] * value for name, value in parts.items())
        row = {"family": each["family"], "score": score, **parts, "metrics": each["metrics"]}
        table.append(row | {"parameters": each["parameters"], "seconds": each["seconds"]})
    # Equal scores fall in the order of the configuration, never in that of the tasks' ends.
    order = {family: place for place, family in enumerate(config.retrain.families)}
    table.sort(key=lambda row: (-row["score"], order.get(row["family"], len(order))))
    return {"winner": table[0]["family"], "weights": WEIGHTS, "table": table}


def _parts(config: ModelConfig, candidate: dict[str, Any], best_error: float) -> dict[str, float]:
    metrics = candidate["metrics"]
    cost = 1 / (1 + candidate["seconds"] / HALF_COST_S)
    if config.task == "regression":
        closeness = 1 / (1 + metrics["mae"] / best_error) if best_error > 0 else 1.0
        spread = max(metrics.get("r2", 0.0), 0.0)
        return {"loss": closeness, "discrimination": spread, "correctness": closeness, "cost": cost}
    accuracy = metrics["accuracy"]
    return {
        "loss": 1 / (1 + metrics["log_loss"]),
        "discrimination": metrics.get("auc", 0.5) if config.task == "binary" else accuracy,
        "correctness": accuracy,
        "cost": cost,
    }
