"""Event-time slots: when a pane is complete, when its labels are mature, and which panes make a window."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Source = tuple[str, int]


def pane_start(event_time_ms: int, pane_ms: int) -> int:
    """Return the start of the pane an event falls into; panes are [start, start + pane_ms), aligned to the epoch."""
    return event_time_ms - event_time_ms % pane_ms


@dataclass(slots=True)
class Boundaries:
    """Pane ends one watermark has passed, waiting for every partition to be read far enough.

    `crossings` holds (end, record_time): every pane end up to `end` was first passed by a record of
    that time. Ends rise along the list, so a jump over a year of empty panes is one entry.
    """

    done_ms: int = 0
    crossings: list[tuple[int, int]] = field(default_factory=list)

    def cross(self, end_ms: int, record_time_ms: int) -> bool:
        """Note that the watermark has passed every pane end up to `end_ms`; return whether that is new."""
        if end_ms <= (self.crossings[-1][0] if self.crossings else self.done_ms):
            return False
        self.crossings.append((end_ms, record_time_ms))
        return True

    def advance(self, limits: Iterable[tuple[int, int]], idle_ms: int) -> int:
        """Move `done_ms` as far as every partition allows, and return it.

        Parameters
        ----------
        limits : (passed_end, read_up_to) of every partition: the last pane end its own watermark
            has passed, and the record time it has been read up to.
        idle_ms : how much longer than the crossing a partition must have been read to count as silent.
        """
        partitions = list(limits) if self.crossings else []
        while self.crossings:
            end, crossed_at = self.crossings[0]
            waiting = [passed for passed, read_up_to in partitions if read_up_to < crossed_at + idle_ms]
            reached = min([end, *waiting])
            self.done_ms = max(self.done_ms, reached)
            if reached < end:
                break
            self.crossings.pop(0)
        return self.done_ms


@dataclass(slots=True)
class ModelClock:
    """How far one model's event time has come, and which of its panes are complete and mature.

    Watermarks are running maxima of live event time, one a source partition. `complete` are the
    panes drift may be looked at; `mature` those whose labels have had `maturity` to arrive.
    """

    pane_ms: int
    lateness_ms: int
    maturity_ms: int
    idle_ms: int
    watermarks: dict[Source, int] = field(default_factory=dict)
    complete: Boundaries = field(default_factory=Boundaries)
    mature: Boundaries = field(default_factory=Boundaries)

    @property
    def watermark_ms(self) -> int:
        """The largest live event time seen, 0 before the first."""
        return max(self.watermarks.values(), default=0)

    @property
    def waits_until_ms(self) -> int | None:
        """The record time before which no partition's progress alone completes or matures a pane; None for never."""
        firsts = [boundaries.crossings[0] for boundaries in (self.complete, self.mature) if boundaries.crossings]
        return min(record_time_ms for _end, record_time_ms in firsts) + self.idle_ms if firsts else None

    def observe(self, source: Source, event_time_ms: int, record_time_ms: int) -> bool:
        """Take in the largest event time of a batch from one partition, and its last record's time.

        Returns
        -------
        Whether a watermark has passed the end of a pane: else nothing completes that would not have without it.
        """
        return self.observe_all([(source, event_time_ms, record_time_ms)])

    def observe_all(self, seen: Iterable[tuple[Source, int, int]]) -> bool:
        """Take in what `observe` does, of some partitions one after the other."""
        newest_ms, passed_one = self.watermark_ms, False
        for source, event_time_ms, record_time_ms in seen:
            held_ms = self.watermarks.get(source, 0)
            if event_time_ms <= held_ms:
                continue
            self.watermarks[source] = event_time_ms
            passed = self._passed(event_time_ms)
            passed_one |= passed != self._passed(held_ms)
            if event_time_ms > newest_ms:
                newest_ms = event_time_ms
                passed_one |= self.complete.cross(passed, record_time_ms)
                passed_one |= self.mature.cross(self._passed(event_time_ms - self.maturity_ms), record_time_ms)
        return passed_one

    def advance(self, read_up_to: Mapping[Source, int], *, drift: Sequence[Source], labels: Sequence[Source]) -> None:
        """Complete and mature what the progress of all partitions allows.

        Parameters
        ----------
        read_up_to : record time each partition has been read up to; a partition without an entry blocks.
        drift : every partition of the topics drift panes wait for.
        labels : every partition of the label topic; performance panes wait for these as well.
        """
        self.complete.advance(
            ((self._passed(self.watermarks.get(source, 0)), read_up_to.get(source, -1)) for source in drift),
            self.idle_ms,
        )
        # Labels have no watermark: a partition only counts by having been read long enough.
        self.mature.advance(((-1, read_up_to.get(source, -1)) for source in (*drift, *labels)), self.idle_ms)

    def is_late(self, start_ms: int) -> bool:
        """Tell whether the pane starting there was complete already."""
        return start_ms + self.pane_ms <= self.complete.done_ms

    def _passed(self, watermark_ms: int) -> int:
        """Return the last pane end whose lateness this watermark has passed."""
        # `pane_start` written out: this is asked for every partition, model and flush.
        reached_ms = watermark_ms - self.lateness_ms - 1
        return reached_ms - reached_ms % self.pane_ms if reached_ms > 0 else 0


def window(events: Mapping[int, int], *, end_ms: int, pane_ms: int, min_events: int, max_age_ms: int) -> list[int]:
    """Return the starts of the panes that make the window ending at `end_ms`, newest first.

    Parameters
    ----------
    events : pane start → events in it.
    min_events : panes are taken back from the newest until they hold this many.
    max_age_ms : no pane that starts before `end_ms - max_age_ms` is taken.
    """
    taken: list[int] = []
    held = 0
    for start in sorted((s for s in events if s + pane_ms <= end_ms and s >= end_ms - max_age_ms), reverse=True):
        if held >= min_events:
            break
        taken.append(start)
        held += events[start]
    return taken
