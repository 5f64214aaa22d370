from __future__ import annotations

from streamer.join.sync_rhythm import SyncRhythm


def test_any_time_is_right_before_anything_is_known() -> None:
    assert SyncRhythm().is_time(0.0)


def test_after_a_wait_a_flush_begins_just_before_the_next_sync_so_early_that_its_joins_are_in_it() -> None:
    rhythm = SyncRhythm()
    rhythm.note(began_s=10.5, joined_s=10.6, durable_s=11.0)
    assert not rhythm.is_time(11.8)
    assert rhythm.is_time(11.87)


def test_a_store_that_syncs_at_once_is_not_waited_for() -> None:
    rhythm = SyncRhythm()
    rhythm.note(began_s=10.5, joined_s=10.6, durable_s=11.0)
    rhythm.note(began_s=11.87, joined_s=11.9, durable_s=11.905)
    assert rhythm.is_time(11.91)


def test_a_sync_that_was_missed_is_taken_for_the_new_rhythm() -> None:
    rhythm = SyncRhythm()
    rhythm.note(began_s=10.9, joined_s=11.05, durable_s=12.0)
    assert not rhythm.is_time(12.7)
    assert rhythm.is_time(12.81)
