"""Makes the two tables of the how-to from a data set that comes with river: what was trained on, and what came then.

The Space Shuttle's sensor readings (UCI Statlog). A logistic regression learns from four in five of the readings of
the flight's first 55 minutes. What it is asked then are the others of them, shuffled, and after them another phase.
"""

from __future__ import annotations

import polars as pl
from river import datasets, linear_model, preprocessing

FEATURES = [f"f{number}" for number in range(2, 10)]

flight = pl.read_csv(datasets.Shuttle().path).with_row_index()
early, held_out = pl.col("f1") <= 55, pl.col("index") % 5 == 0
model = preprocessing.StandardScaler() | linear_model.LogisticRegression()
for row in flight.filter(early & ~held_out).iter_rows(named=True):
    model.learn_one({name: row[name] for name in FEATURES}, row["anomaly"])


def answered(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the readings with what the model says of each, and what it was."""
    scores = [
        model.predict_proba_one({name: row[name] for name in FEATURES})[True] for row in rows.iter_rows(named=True)
    ]
    answers = rows.with_columns(score=pl.Series(scores).round(4))
    return answers.select(*FEATURES, "score", prediction=(pl.col("score") >= 0.5).cast(int), label="anomaly")


tables = {
    "training.csv": flight.filter(early & ~held_out),
    "live.csv": pl.concat(
        [flight.filter(early & held_out).sample(fraction=1, shuffle=True, seed=1), flight.filter(~early).sort("f1")]
    ),
}
for name, rows in tables.items():
    answered(rows).write_csv(name)
    print(f"{name}: {len(rows):,} rows")
