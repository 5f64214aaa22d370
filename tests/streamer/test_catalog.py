"""What is known of a reference is what the newest value of each of its parts says, whatever order they came in."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from monitors.profile import MANIFEST, ReferenceProfile, build_profile
from streamer.catalog import Catalog


def reference(shift: float) -> dict[str, bytes]:
    """Return the parts of a reference of three features, one of which is the same whatever the shift."""
    columns = {"a": np.arange(200.0) + shift, "manifest": np.arange(300.0)[:200], "c": np.arange(200.0) * (1 + shift)}
    kinds = dict.fromkeys(columns, "numeric")
    return build_profile(
        model="m", version="1", columns=columns, kinds=kinds, panes=None, baseline=None, created_ms=0
    ).to_parts()


ONE, OTHER = reference(0.0), reference(1.0)
RECORDS = [*((part, parts[part]) for parts in (ONE, OTHER) for part in parts), *((part, None) for part in ONE)]


@given(records=st.lists(st.sampled_from(RECORDS), max_size=40))
@settings(max_examples=300, deadline=None)
def test_a_reference_is_known_as_its_newest_parts_are_whatever_came_in_between(
    records: list[tuple[str, bytes | None]],
) -> None:
    catalog = Catalog()
    newest: dict[str, bytes] = {}
    known: ReferenceProfile | None = None
    for part, value in [*ONE.items(), *records]:
        catalog.put_reference(f"m/1/{part}", value)
        if value is None:
            newest.pop(part, None)
            known = None
        else:
            newest[part] = value
            known = ReferenceProfile.from_parts(newest) or known
        found = catalog.reference("m", "1")
        assert (found and found.to_parts()) == (known and known.to_parts())


def test_a_reference_that_is_published_again_is_no_new_one_and_a_whole_one_keeps_no_raw_parts() -> None:
    catalog = Catalog()
    with capture_logs() as lines:
        for _ in range(2):
            for part, value in ONE.items():
                catalog.put_reference(f"m/1/{part}", value)
    assert [line["event"] for line in lines] == ["reference_known"]
    assert list(catalog._held["m", "1"].parts) == [MANIFEST]
