"""The model families: scikit-learn pipelines that take raw features, and what their search tries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from streamer.models import ModelConfig

# Boosting bins a feature into 255 cells at most; rarer categories share one.
MAX_CATEGORIES = 200
RARE_ROWS = 20
Parameters = dict[str, Any]

# The first of each is a sensible default: with one trial, that is what is trained.
TRIALS: dict[str, tuple[Parameters, ...]] = {
    "hist_gradient_boosting": (
        {"max_iter": 100, "learning_rate": 0.1, "max_leaf_nodes": 15, "min_samples_leaf": 40, "l2_regularization": 1.0},
        {"max_iter": 60, "learning_rate": 0.1, "max_leaf_nodes": 8, "min_samples_leaf": 80, "l2_regularization": 5.0},
        {"max_iter": 150, "learning_rate": 0.1, "max_leaf_nodes": 31, "min_samples_leaf": 40, "l2_regularization": 1.0},
        {
            "max_iter": 200,
            "learning_rate": 0.05,
            "max_leaf_nodes": 15,
            "min_samples_leaf": 80,
            "l2_regularization": 5.0,
        },
        {"max_iter": 40, "learning_rate": 0.2, "max_leaf_nodes": 6, "min_samples_leaf": 40, "l2_regularization": 1.0},
    ),
    # `strength` is 1 / the penalty: C of a logistic regression, 1 / alpha of a ridge.
    "logistic_regression": ({"strength": 1.0}, {"strength": 0.1}, {"strength": 0.01}, {"strength": 10.0}),
    "random_forest": (
        {"n_estimators": 100, "min_samples_leaf": 20, "max_features": 0.3},
        {"n_estimators": 100, "min_samples_leaf": 60, "max_features": 0.3},
        {"n_estimators": 150, "min_samples_leaf": 10, "max_features": 0.5},
        {"n_estimators": 100, "min_samples_leaf": 20, "max_features": 0.7},
    ),
}


def trials(family: str, limit: int) -> tuple[Parameters, ...]:
    """Return the parameter sets a family's search tries, the default first."""
    if family not in TRIALS:
        raise ValueError(f"family: got {family!r}, wanted one of {sorted(TRIALS)}")
    return TRIALS[family][:limit]


def pipeline(
    config: ModelConfig, features: Sequence[str], family: str, parameters: Parameters, *, seed: int
) -> Pipeline:
    """Return an untrained pipeline over the named features.

    Every pipeline takes missing values and categories it never saw, whether or not the training rows had any.
    """
    numeric = [name for name in features if config.features[name].kind == "numeric"]
    categorical = [name for name in features if config.features[name].kind == "categorical"]
    regression = config.task == "regression"
    if family == "hist_gradient_boosting":
        boosting = HistGradientBoostingRegressor if regression else HistGradientBoostingClassifier
        model = boosting(
            **parameters,
            categorical_features=list(range(len(numeric), len(features))),
            early_stopping=False,
            random_state=seed,
        )
        prepare = _prepared(numeric, "passthrough", categorical, _ordinal(np.nan))
    elif family == "random_forest":
        forest = RandomForestRegressor if regression else RandomForestClassifier
        model = forest(**parameters, random_state=seed)
        prepare = _prepared(numeric, _imputer(), categorical, _ordinal(-1))
    else:
        strength = parameters["strength"]
        model = Ridge(alpha=1 / strength) if regression else LogisticRegression(C=strength, max_iter=300)
        scaled = Pipeline([("impute", _imputer()), ("scale", StandardScaler())])
        rare = OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=RARE_ROWS, max_categories=100)
        prepare = _prepared(numeric, scaled, categorical, rare)
    return Pipeline([("prepare", prepare), ("model", model)])


def _prepared(numeric: list[str], numbers: Any, categorical: list[str], texts: Any) -> ColumnTransformer:
    return ColumnTransformer([("numeric", numbers, numeric), ("categorical", texts, categorical)])


def _imputer() -> SimpleImputer:
    return SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)


def _ordinal(unknown: float) -> OrdinalEncoder:
    return OrdinalEncoder(
        handle_unknown="use_encoded_value",
        unknown_value=unknown,
        encoded_missing_value=unknown,
        max_categories=MAX_CATEGORIES,
    )
