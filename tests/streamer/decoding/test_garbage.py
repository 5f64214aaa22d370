"""Bytes of any kind never raise what is not declared, and what is said of them stays short."""

from __future__ import annotations

from random import Random

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer import explain as explaining
from streamer.catalog import Catalog
from streamer.decode import MAX_EVENT_BYTES, Kind, decode
from streamer.decoding.bulk_decode import BulkDecoder
from streamer.explain import explain_invalid
from tests.chaos.faults import ALL, FAULTS, Fault
from tests.chaos.mutations import mutation, named
from tests.chaos.oracle import judge
from tests.chaos.post import MODELS

NOW, FUTURE = 1_370_100_000_000, 86_400_000
# A reason's numbers and a field's name are cut; the rest is our own words.
MAX_REASON, MAX_FIELD = 400, 210


def catalog() -> Catalog:
    found = Catalog()
    for model in MODELS:
        found.put_model(model.name, model.to_json())
    return found


CATALOG = catalog()
damaged = st.builds(lambda seed: mutation(Random(seed), seed, named("good", seed)), st.integers(0, 2**40))
anything = st.tuples(st.sampled_from(ALL), st.just(""), st.binary(max_size=300) | st.text(max_size=100).map(str.encode))


@given(st.one_of(damaged, damaged, anything))
@settings(max_examples=400, deadline=None)
def test_any_bytes_are_decoded_or_refused_as_declared_and_explained_in_few_words(
    drawn: tuple[Kind, str, bytes],
) -> None:
    kind, _name, raw = drawn
    try:
        decode(raw, kind)
    except (msgspec.DecodeError, ValueError):
        reason, field = explain_invalid(raw, kind)
        assert 0 < len(reason) <= MAX_REASON
        assert len(field) <= MAX_FIELD


@pytest.mark.parametrize("kind", ALL)
@given(seeds=st.lists(st.integers(0, 2**40), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_in_bulk_each_message_becomes_what_it_is_by_itself_whatever_stands_beside_it(
    kind: Kind, seeds: list[int]
) -> None:
    raws = [mutation(Random(seed), seed, named("good", seed))[2] for seed in seeds]
    wanted = {}
    for row, raw in enumerate(raws):
        _event, fault = judge(CATALOG, kind, raw, record_ms=NOW, max_future_ms=FUTURE)
        if fault is not None:
            wanted[row] = fault
    decoded, faults = BulkDecoder(CATALOG).decode(kind, raws, np.full(len(raws), NOW), FUTURE)
    assert faults == wanted
    sound = list(range(len(raws))) if decoded.rows is None else decoded.rows.tolist()
    assert sound == [row for row in range(len(raws)) if row not in wanted]


@pytest.mark.parametrize("kind", ALL)
def test_what_is_larger_than_an_event_may_be_is_refused_unread(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explaining.json, "loads", lambda *_, **__: pytest.fail("was parsed"))
    for filling in (b"[", b'{"a":', b"9", b"\\ud800", b" \n"):
        raw = b"{" + filling * (MAX_EVENT_BYTES // len(filling) + 1)
        with pytest.raises(msgspec.ValidationError):
            decode(raw, kind)
        assert explain_invalid(raw, kind)[0].startswith("too large: got")


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if not fault.large], ids=lambda each: each.name)
def test_every_known_fault_is_explained_as_it_must_be(fault: Fault) -> None:
    raw = fault.make(1) or b""
    _event, found = judge(CATALOG, fault.topic, raw, record_ms=NOW, max_future_ms=FUTURE)
    assert found is not None
    assert found[0].startswith(fault.reason)
    assert found[1] == fault.field
