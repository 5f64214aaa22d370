"""References from tables: a column means what the same values mean as events, and errors name the column."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.counting.columns import TextCells
from streamer.models import ModelConfig, parse_model
from streamer.reference_table import OutputColumns, build, numbers, read_table, texts, times_ms
from streamer.references import ProfileError

NOW = 1_700_000_000_000


def model(task: str = "binary", **more: object) -> ModelConfig:
    document = {
        "name": "churn",
        "task": task,
        "features": {"age": {"kind": "numeric"}, "plan": {"kind": "categorical"}},
        **({"positive": True} if task == "binary" else {}),
        **more,
    }
    return parse_model(document, "test")


def table_of(path: Path, text: str) -> pl.DataFrame:
    path.write_text(text)
    return read_table(path)


def test_a_csv_file_becomes_cells_and_a_baseline(tmp_path: Path) -> None:
    rows = [f"{20 + n % 40},{'abc'[n % 3]},{n % 10 < 7},{0.7 if n % 10 < 7 else 0.2},{n % 10 < 8}" for n in range(500)]
    table = table_of(tmp_path / "t.csv", "age,plan,prediction,score,label\n" + "\n".join(rows))
    profile = build(model(), table, OutputColumns.find(table, model()), version="3", created_ms=NOW)
    assert (profile.model, profile.version, profile.rows, profile.created_ms) == ("churn", "3", 500, NOW)
    assert set(profile.features) == {"age", "plan", "@score"}
    assert profile.features["plan"].binning.categories == ("a", "b", "c")
    assert profile.baseline is not None
    assert (profile.baseline.primary, profile.baseline.value, profile.baseline.n) == ("accuracy", 0.9, 500)
    assert profile.baseline.standard_error == pytest.approx(math.sqrt(0.09 / 500))


@given(st.lists(st.sampled_from([1, 2.0, 7, True, False, None, 3.0]), min_size=1, max_size=20))
def test_a_column_of_events_values_counts_as_the_events_do(values: list[object]) -> None:
    """What a CSV file makes of values is what the same values are as JSON in events."""
    kinds = {type(value) for value in values if value is not None}
    if bool in kinds and len(kinds) > 1:
        values = [value for value in values if not isinstance(value, bool)] or [1]
    column = pl.Series("plan", [None if value is None else str(value) for value in values], dtype=pl.String)
    config = model(positive="1")
    table = pl.DataFrame({"age": ["1"] * len(values), "plan": column})
    profile = build(config, table, OutputColumns(), version="1", created_ms=NOW)
    binning = profile.features["plan"].binning
    cells = list(map(TextCells(binning, 0).__getitem__, values))
    assert np.array_equal(np.bincount(cells, minlength=binning.size), profile.features["plan"].counts)


def test_texts_are_spelled_as_events_spell_them() -> None:
    def read(*values: str) -> list[object]:
        return list(texts(pl.Series("x", values)))

    assert read("True", "False", "") == ["true", "false", None]
    assert read("3.0", "4", "-1.0") == ["3", "4", "-1"]
    assert read("007", "8") == ["007", "8"]
    assert read("1.5", "2.0") == ["1.5", "2.0"]
    assert list(texts(pl.Series("x", [3.0, 2.5, None]))) == ["3", "2.5", None]
    assert list(texts(pl.Series("x", [True, None]))) == ["true", None]


def test_numbers_know_how_files_say_missing() -> None:
    assert numbers(pl.Series("x", ["1.5", "", "NA", " 2 "])).tolist()[0] == 1.5
    assert np.isnan(numbers(pl.Series("x", ["1.5", "", "NA", "nan"]))[1:]).all()
    assert numbers(pl.Series("x", ["True", "False"])).tolist() == [1.0, 0.0]
    with pytest.raises(ProfileError, match=r"age: got 'old', wanted a number; .* declare the feature categorical"):
        numbers(pl.Series("age", ["1", "old"]))
    with pytest.raises(ProfileError, match="when: got Date, wanted numbers"):
        numbers(pl.Series("when", ["2024-01-01"]).str.to_date())


def test_times_are_milliseconds_however_they_are_written() -> None:
    assert times_ms(pl.Series("ts", [NOW])).tolist() == [NOW]
    assert times_ms(pl.Series("ts", [str(NOW), f"{NOW}.0"])).tolist() == [NOW, NOW]
    assert times_ms(pl.Series("ts", ["2023-11-14T22:13:20"])).tolist() == [NOW]
    assert times_ms(pl.Series("ts", ["2023-11-14"]).str.to_date()).tolist() == [1_699_920_000_000]
    with pytest.raises(ProfileError, match="ts: got 1700000000, which looks like seconds; wanted epoch milliseconds"):
        times_ms(pl.Series("ts", [NOW // 1000]))
    with pytest.raises(ProfileError, match="ts: got 'noon', wanted epoch milliseconds or ISO 8601"):
        times_ms(pl.Series("ts", ["noon"]))
    with pytest.raises(ProfileError, match="ts: 1 rows have no time"):
        times_ms(pl.Series("ts", [NOW, None]))


def test_rows_of_the_same_time_that_are_alike_count_for_less() -> None:
    hours = np.repeat(np.arange(50), 40)
    table = pl.DataFrame(
        {
            "age": (hours % 7 * 10).astype(float),
            "plan": ["a"] * 2000,
            "ts": NOW + hours * 3_600_000,
            "prediction": [True] * 2000,
            "label": (hours % 5 > 0).tolist(),
        }
    )
    config = model(time={"pane": "1h"})
    timed = build(config, table, OutputColumns.find(table, config), version="1", created_ms=NOW)
    untimed = build(config, table.drop("ts"), OutputColumns.find(table.drop("ts"), config), version="1", created_ms=NOW)
    assert timed.features["age"].design_effect > 10
    assert untimed.features["age"].design_effect == 1
    assert timed.baseline is not None
    assert untimed.baseline is not None
    assert timed.baseline.standard_error > 5 * untimed.baseline.standard_error


def test_a_regression_is_watched_by_its_prediction_and_judged_by_its_error(tmp_path: Path) -> None:
    table = table_of(tmp_path / "t.tsv", "age\tplan\tprediction\tlabel\n30\ta\t10.5\t10\n40\tb\t9\t10\n50\tb\t\t10\n")
    profile = build(model("regression"), table, OutputColumns.find(table, model()), version="1", created_ms=NOW)
    assert set(profile.features) == {"age", "plan", "@score"}
    assert profile.baseline is not None
    assert (profile.baseline.primary, profile.baseline.value, profile.baseline.n) == ("mae", 0.75, 2)


def test_a_multiclass_model_is_watched_by_its_classes() -> None:
    table = pl.DataFrame({"age": [1.0, 2.0], "plan": ["a", "b"], "prediction": [1, 2], "label": ["1", "1"]})
    profile = build(model("multiclass"), table, OutputColumns.find(table, model()), version="1", created_ms=NOW)
    assert profile.features["@prediction"].binning.categories == ("1", "2")
    assert profile.baseline is not None
    assert profile.baseline.value == 0.5


def test_a_binary_model_that_answers_with_words_and_no_score_has_no_output_to_watch() -> None:
    table = pl.DataFrame({"age": [1.0, 2.0], "plan": ["a", "b"], "prediction": ["yes", "no"], "label": ["yes", "yes"]})
    config = model(positive="yes")
    profile = build(config, table, OutputColumns.find(table, config), version="1", created_ms=NOW)
    assert set(profile.features) == {"age", "plan"}
    assert profile.baseline is not None
    assert profile.baseline.value == 0.5


def test_columns_are_found_by_name_unless_they_are_features() -> None:
    table = pl.DataFrame({"score": [1.0], "label": [1], "y": [0]})
    config = parse_model({"name": "m", "task": "regression", "features": {"score": {"kind": "numeric"}}}, "test")
    assert OutputColumns.find(table, config) == OutputColumns(label="label")
    assert OutputColumns.find(table, config, label="y").label == "y"
    with pytest.raises(ProfileError, match="--ts-column: got 'when', the table has score, label, y"):
        OutputColumns.find(table, config, ts="when")


def test_errors_name_what_is_wrong_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="columns: plan not in the table; it has age"):
        build(model(), pl.DataFrame({"age": [1.0]}), OutputColumns(), version="1", created_ms=NOW)
    table = pl.DataFrame({"age": [1.0], "plan": ["a"], "prediction": [1], "label": [1]})
    with pytest.raises(ProfileError, match=r"label: got 1; none is the positive label 'true'"):
        build(model(), table, OutputColumns.find(table, model()), version="1", created_ms=NOW)
    empty = table.with_columns(label=pl.lit(None, dtype=pl.Int64))
    with pytest.raises(ProfileError, match="label: no row has both a label and a prediction"):
        build(model(), empty, OutputColumns.find(empty, model()), version="1", created_ms=NOW)
    with pytest.raises(ProfileError, match=r"x\.xls: wanted a \.parquet, \.csv or \.tsv file"):
        read_table(tmp_path / "x.xls")
    with pytest.raises(ProfileError, match=r"none\.csv"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(ProfileError, match="has no rows"):
        table_of(tmp_path / "t.csv", "age,plan\n")


def test_parquet_and_gzipped_csv_are_read(tmp_path: Path) -> None:
    import gzip

    table = pl.DataFrame({"age": [1.0, 2.0], "plan": ["a", None]})
    table.write_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"age,plan\n1,a\n2,\n"))
    profiles = [
        build(model(), read_table(tmp_path / name), OutputColumns(), version="1", created_ms=NOW)
        for name in ("t.parquet", "t.csv.gz")
    ]
    assert profiles[0].fingerprint == profiles[1].fingerprint
