"""What the demo's data promises to the story: identities, labels that come later, and time that only goes on."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import polars as pl
import pytest

from demo import flights


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def table(cache: Path) -> pl.DataFrame:
    return flights.load(cache)


def test_every_flight_of_the_year_has_an_identity_of_its_own(table: pl.DataFrame) -> None:
    assert table.height == 336_776
    assert table["prediction_id"].n_unique() == table.height
    assert table["entity_id"].null_count() == 0
    assert table["ts"].is_sorted()


def test_event_time_is_the_scheduled_departure_in_utc(table: pl.DataFrame) -> None:
    first = table.row(0, named=True)
    assert first["prediction_id"].startswith("20130101T1015-")  # 05:15 in New York, in winter
    assert first["ts"] == flights.at(1, 1, 10) + 15 * 60_000
    assert first["hour"] == 5
    assert first["weekday"] == "tue"


def test_only_what_is_known_before_departure_is_a_feature(table: pl.DataFrame) -> None:
    known_later = {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "late", "label_ts"}
    assert set(flights.FEATURES) <= set(table.columns)
    assert not known_later & set(flights.FEATURES)


def test_a_label_comes_after_its_flight_left_and_within_a_day_or_so(table: pl.DataFrame) -> None:
    hours = table.select((pl.col("label_ts") - pl.col("ts")) / flights.HOUR_MS).drop_nulls().to_series()
    assert hours.min() > 0
    assert hours.median() < 4
    assert hours.quantile(0.999) < 12


def test_a_flight_that_never_arrived_has_no_label(table: pl.DataFrame) -> None:
    never = table.filter(pl.col("late").is_null())
    assert never.height == 9_430
    assert never["label_ts"].null_count() == never.height


def test_history_knows_only_what_had_landed(table: pl.DataFrame) -> None:
    before = flights.at(3, 1)
    known = flights.history(table, before)
    assert known["label_ts"].max() < before
    assert known["late"].null_count() == 0
    still_in_the_air = table.filter(pl.col("ts") < before, pl.col("label_ts") >= before)
    assert still_in_the_air.height > 0
    assert not set(still_in_the_air["prediction_id"]) & set(known["prediction_id"])


def test_history_starts_where_it_is_told(table: pl.DataFrame) -> None:
    assert flights.history(table, flights.at(3, 1), since_ms=flights.at(2, 1))["ts"].min() >= flights.at(2, 1)


def test_slots_play_every_departure_and_every_landing_once_and_in_time(table: pl.DataFrame) -> None:
    start, end = flights.at(6, 1), flights.at(6, 4)
    played = list(flights.slots(table, start, end))
    assert [slot.start_ms for slot in played] == list(range(start, end, flights.HOUR_MS))
    for slot in played:
        assert slot.departures["ts"].is_between(slot.start_ms, slot.end_ms, closed="left").all()
        assert slot.landings["label_ts"].is_between(slot.start_ms, slot.end_ms, closed="left").all()
    expected = table.filter(pl.col("ts") >= start, pl.col("ts") < end)
    departed = pl.concat([slot.departures for slot in played])
    landed = pl.concat([slot.landings for slot in played])
    assert departed["prediction_id"].to_list() == expected["prediction_id"].to_list()
    assert set(landed["prediction_id"]) == set(expected.filter(pl.col("label_ts") < end)["prediction_id"])
    assert landed["prediction_id"].n_unique() == landed.height


def test_the_last_slot_ends_with_the_story(table: pl.DataFrame) -> None:
    end = flights.at(6, 1) + 90 * 60_000
    last = list(flights.slots(table, flights.at(6, 1), end))[-1]
    assert last.end_ms == end


def test_the_second_reading_comes_from_the_cache(table: pl.DataFrame, cache: Path) -> None:
    (kept,) = cache.iterdir()
    assert kept.suffix == ".parquet"
    written = kept.stat().st_mtime_ns
    assert flights.load(cache).equals(table)
    assert kept.stat().st_mtime_ns == written


def test_missing_data_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(flights.FlightsMissingError, match=r"driftloop\[demo\]"):
        flights.load(tmp_path)
