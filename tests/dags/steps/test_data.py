from __future__ import annotations

from typing import Any

import msgspec
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dags.steps import data
from dags.steps.offsets import merged
from dags.steps.tables import TableError, typed
from streamer.events import OffsetRange, RetrainRequest
from streamer.models import ModelConfig, parse_model
from streamer.settings import AirflowSettings, Settings
from tests.dags.steps.test_workspace import request
from tests.dags.toys import T0, config, raw

LABELS = {"@id": pl.String, "@label_ts": pl.Int64, "@revision": pl.Int64, "@deleted": pl.Boolean}
PLACE = {"@partition": pl.Int32, "@offset": pl.Int64, "@row": pl.Int32}


def labels(*rows: tuple[Any, ...]) -> pl.DataFrame:
    schema = {**LABELS, **PLACE, "@label": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def test_the_effective_label_is_the_largest_by_revision_then_time_then_position() -> None:
    found = data.effective_labels(
        labels(
            ("a", 10, 0, False, 0, 1, 0, "old"),
            ("a", 5, 1, False, 0, 2, 0, "corrected"),
            ("b", 10, 0, False, 0, 3, 0, "early"),
            ("b", 11, 0, False, 0, 4, 0, "late"),
            ("c", 10, 0, False, 0, 5, 0, "first"),
            ("c", 10, 0, False, 0, 6, 0, "second"),
            ("d", 10, 0, False, 0, 7, 9, "ninth row"),
            ("d", 10, 0, False, 0, 7, 10, "tenth row"),
        )
    )
    assert dict(found.sort("@id").iter_rows()) == {"a": "corrected", "b": "late", "c": "second", "d": "tenth row"}


def test_a_deletion_that_stands_leaves_no_label_and_one_that_is_overtaken_does() -> None:
    found = data.effective_labels(
        labels(
            ("a", 10, 0, False, 0, 1, 0, "true"),
            ("a", 11, 0, True, 0, 2, 0, None),
            ("b", 10, 0, True, 0, 3, 0, None),
            ("b", 11, 0, False, 0, 4, 0, "false"),
        )
    )
    assert dict(found.iter_rows()) == {"b": "false"}


def test_the_window_takes_live_predictions_once_each() -> None:
    rows = pl.DataFrame(
        {
            "@id": ["a", "a", "shadowed", "before", "after"],
            "@ts": [5, 5, 6, 4, 10],
            "@origin": ["live", "live", "shadow", "live", "live"],
            "@partition": [0, 0, 0, 0, 0],
            "@offset": [8, 2, 3, 4, 5],
            "@row": [0, 0, 0, 0, 0],
            "x": [1.0, 2.0, 3.0, 4.0, 5.0],
        }
    )
    wanted = msgspec.structs.replace(request(), kind="performance", window_start_ms=5, window_end_ms=10)
    assert data.window(rows, wanted, config())["x"].to_list() == [2.0]


@pytest.mark.parametrize(("kind", "kept"), [("performance", ["old", "new"]), ("drift", ["old"]), ("manual", ["old"])])
def test_predictions_whose_labels_may_still_come_are_left_out(kind: str, kept: list[str]) -> None:
    day_ms = 86_400_000
    rows = pl.DataFrame(
        {
            "@id": ["old", "new"],
            "@ts": [day_ms, 3 * day_ms - 1],
            "@origin": ["live", "live"],
            "@partition": [0, 0],
            "@offset": [0, 1],
            "@row": [0, 0],
        }
    )
    wanted = msgspec.structs.replace(request(), kind=kind, window_start_ms=0, window_end_ms=3 * day_ms)
    assert data.window(rows, wanted, config())["@id"].to_list() == kept


def test_features_logged_apart_are_found_by_prediction_and_by_entity_as_of_its_time() -> None:
    model = parse_model(
        {
            "name": "m",
            "task": "regression",
            "features": {"x": {"kind": "numeric"}, "balance": {"kind": "numeric", "source": "features"}},
        },
        "test",
    )
    rows = pl.DataFrame(
        {"@id": ["p1", "p2", "p3"], "@ts": [10, 20, 30], "@entity": ["e", "e", None], "x": [1.0, 2.0, 3.0]}
    )
    logs = pl.DataFrame(
        {
            "@id": [None, None, "p3"],
            "@ts": [5, 15, 29],
            "@entity": ["e", "e", None],
            "@partition": [0, 0, 0],
            "@offset": [0, 1, 2],
            "@row": [0, 0, 0],
            "balance": [100.0, 200.0, 300.0],
        },
        schema_overrides={"@id": pl.String},
    )
    joined = data.with_logged_features(rows, logs, model).sort("@id")
    assert joined["balance"].to_list() == [100.0, 200.0, 300.0]


def test_history_comes_first_and_a_row_in_both_counts_once() -> None:
    model = config()
    older, newer = raw(rows=50, seed=1), raw(rows=50, seed=2)
    window = typed(pl.concat([newer, older.head(5)]), model)
    joined = data.append_history(window, older, model)
    assert len(joined) == 100
    assert joined["prediction_id"].n_unique() == 100
    assert joined["ts"].is_sorted()


def rows_of_last_week(_config: ModelConfig, _request: RetrainRequest) -> pl.DataFrame:
    return raw(rows=30)


def no_table(_config: ModelConfig, _request: RetrainRequest) -> list[int]:
    return []


def test_a_users_own_loader_replaces_the_extraction() -> None:
    model = config(loader=f"{__name__}:rows_of_last_week")
    settings = Settings(airflow=AirflowSettings(loaders=("nothing", __name__)))
    table, summary = data.extract(settings, model, request())
    assert len(table) == 30
    assert summary["source"].endswith(":rows_of_last_week")


@pytest.mark.parametrize(
    ("loader", "allowed"),
    [
        ("os:getenv", ()),
        ("os:getenv", ("o", "os.path", "my")),
        ("oswald.rows:load", ("os",)),
        ("", ("os",)),
        (":f", ()),
    ],
)
def test_a_loader_in_a_package_nobody_has_listed_is_not_imported(
    loader: str, allowed: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.importlib, "import_module", lambda name: pytest.fail(f"imported {name}"))
    with pytest.raises(TableError, match=r"in a package that airflow\.loaders lists"):
        data.load(config(loader=loader), request(), allowed=allowed)


@pytest.mark.parametrize("loader", ["nowhere:f", f"{__name__}:absent", "plain"])
def test_a_loader_that_is_not_there_is_named(loader: str) -> None:
    with pytest.raises(TableError, match="cannot be imported"):
        data.load(config(loader=loader), request(), allowed=("nowhere", __name__, "plain"))


def test_a_loader_must_return_a_table() -> None:
    with pytest.raises(TableError, match="returned list"):
        data.load(config(loader=f"{__name__}:no_table"), request(), allowed=(__name__,))


@given(
    st.lists(
        st.tuples(st.sampled_from([0, 1]), st.integers(0, 60), st.integers(0, 20)),
        max_size=12,
    )
)
def test_merged_ranges_hold_the_same_offsets_each_once(spans: list[tuple[int, int, int]]) -> None:
    ranges = [OffsetRange(topic="t", topic_id="i", partition=p, start=s, end=s + n) for p, s, n in spans]
    wanted = {(each.partition, offset) for each in ranges for offset in range(each.start, each.end)}
    made = [(each.partition, offset) for each in merged(ranges) for offset in range(each.start, each.end)]
    assert len(made) == len(set(made))
    assert set(made) == wanted


def test_toys_begin_where_they_say() -> None:
    assert raw(rows=5)["ts"].min() >= T0  # type: ignore[operator]
