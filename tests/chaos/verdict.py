"""What a run must have come to: counts held against the log, against what was sent, and against the live view."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import msgspec
import redis

from streamer.audit import recount
from streamer.evaluation.evaluate_state import Committed, read_committed
from streamer.letters.deadletters import list_letters
from streamer.settings import Settings
from streamer.state import Keys
from tests.chaos.decisions import compare_decisions
from tests.chaos.garbage import MANY, Found, Garbage, hold_against
from tests.chaos.stream import Answer

_MOST_SHOWN = 20


class Findings(msgspec.Struct, kw_only=True):
    """What was compared, and what is not as it should be.

    Attributes
    ----------
    garbage_kinds : whatever the topic. garbage_found : malformed messages that are dead letters once, with
        their reason, field, key and bytes.
    drift_counts, performance_counts : how many of the workers' counts were compared with the recount.
    decisions : how many requests, ledger entries, deployments and stored panes were compared with what an evaluate
        without a server makes of the same input.
    differences : how many of all these differ. amiss : the first things that are not as they should be, in words.
    """

    events: int
    labels: int
    garbage_kinds: int
    garbage_sent: int
    garbage_found: int
    drift_counts: int
    performance_counts: int
    decisions: int
    differences: int
    amiss: list[str]


def await_view(settings: Settings, patience_s: float) -> list[str]:
    """Wait until the live view shows what is committed, of every model; return what it does not."""
    panes = read_committed(settings, recount.read_catalog(settings)).panes
    wanted: Counter[str] = Counter()
    for key, counts in panes.items():
        if key.kind == "events" and key.origin == "live":
            wanted[key.model] += int(counts.sum())
    client = redis.Redis.from_url(settings.redis.url)
    deadline = time.monotonic() + patience_s
    while True:
        shown: dict[Any, Any] = client.hgetall(Keys(settings.namespace).models())
        got = {name.decode(): msgspec.json.decode(summary)["n"] for name, summary in shown.items()}
        if got == dict(wanted) or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    return [
        f"live view: {got.get(name)} events of {name}, wanted {wanted[name]}"
        for name in sorted(wanted.keys() | got.keys())
        if got.get(name) != wanted[name]
    ]


def examine(settings: Settings, answer: Answer, garbage: Garbage) -> Findings:
    """Count everything again and compare."""
    catalog = recount.read_catalog(settings)
    committed = read_committed(settings, catalog)
    # Of everything the log holds, not only of what the workers say they have read.
    counted = recount.recount(settings, catalog)
    differences = recount.compare(counted, committed.panes)
    decided, wrong = compare_decisions(settings, catalog)
    found = hold_against(garbage.sent, list_letters(settings, MANY))
    keys = counted.panes.keys() | committed.panes.keys()
    performance = sum(key.kind in {"performance", "labelled"} for key in keys)
    amiss = [
        *_totals(answer, counted, committed),
        *(_told(each) for each in differences[:_MOST_SHOWN]),
        *wrong[:_MOST_SHOWN],
        *_letters(found, answer.refused),
    ]
    return Findings(
        events=counted.events,
        labels=counted.labels,
        garbage_kinds=garbage.kinds,
        garbage_sent=len(garbage.sent),
        garbage_found=found.found,
        drift_counts=len(keys) - performance,
        performance_counts=performance,
        decisions=decided,
        differences=len(differences) + len(wrong),
        amiss=amiss,
    )


def _told(found: recount.Difference) -> str:
    where = f"{found.model} {found.version} {found.origin}, pane {found.pane_start_ms}: {found.kind} {found.name}"
    pairs = enumerate(zip(found.got, found.wanted, strict=True))
    differing = {at: f"{got:g} for {wanted:g}" for at, (got, wanted) in pairs if got != wanted}
    return f"{where}: workers have, for the log's, {differing}"


def _totals(answer: Answer, counted: recount.Recount, committed: Committed) -> list[str]:
    """Hold both counts against what was sent: a recount of a log that lost something would agree with the workers."""
    amiss = []
    for what, wanted in (("events", answer.events), ("labelled", answer.labelled), ("performance", answer.sliced)):
        for who, panes in (("log", counted.panes), ("workers", committed.panes)):
            got: Counter[tuple[str, ...]] = Counter()
            for (model, version, origin, _width, _start, kind, name), counts in panes.items():
                if kind != what:
                    continue
                if kind != "performance":
                    got[model, version, origin] += int(counts.sum())
                elif name:
                    # The first entry of a slice's vector is how many are labelled.
                    got[model, version, origin, name] += int(counts[0])
            amiss += [
                f"{who}: {what} of {' '.join(group)}: {got[group]}, sent {wanted[group]}"
                for group in sorted(wanted.keys() | got.keys())
                if got[group] != wanted[group]
            ]
    return amiss


def _letters(found: Found, refused: int) -> list[str]:
    amiss = []
    if found.strange != refused:
        amiss.append(f"{found.strange} dead letters of messages that are no garbage, wanted {refused}")
    return [*amiss, *found.faults[:_MOST_SHOWN]]
