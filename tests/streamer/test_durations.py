"""A length of time is read as people write it, and as nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from streamer.durations import Duration


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("500ms", 500),
        ("90s", 90_000),
        ("15m", 900_000),
        ("6h", 21_600_000),
        ("30d", 2_592_000_000),
        ("4w", 2_419_200_000),
        (" 1 d ", 86_400_000),
        ("0s", 0),
        ("750", 750),
        (750, 750),
    ],
)
def test_a_duration_is_whole_milliseconds(text: object, ms: int) -> None:
    assert Duration.parse(text) == ms


@pytest.mark.parametrize("value", ["", "soon", "1.5h", "-1s", "1y", "1 hour", True, None, 1.5, ["1s"]])
def test_anything_else_is_refused_with_what_came(value: object) -> None:
    with pytest.raises(ValueError, match="wanted a duration such as") as refused:
        Duration.parse(value)
    assert repr(value) in str(refused.value)


@given(st.integers(0, 10**9), st.sampled_from(["ms", "s", "m", "h", "d", "w"]))
def test_a_configuration_reads_back_what_it_wrote(count: int, unit: str) -> None:
    adapter = TypeAdapter(Duration)
    read = adapter.validate_python(f"{count}{unit}")
    assert adapter.validate_json(adapter.dump_json(read)) == read
    assert adapter.validate_python(read.text) == read


def test_a_wrong_one_is_a_validation_error_of_its_field() -> None:
    with pytest.raises(ValidationError, match="got 'soon', wanted a duration"):
        TypeAdapter(Duration).validate_python("soon")
