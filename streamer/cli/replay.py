"""`driftloop replay`: recorded events sent again in order of their time, or a lost label store made anew."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamer.cli.failures import CommandError
from streamer.cli.present import Json, count, moment, now_ms, write_json
from streamer.cli.surroundings import require_kafka, settings
from streamer.settings import Settings

if TYPE_CHECKING:
    from streamer.replay import Batch
    from streamer.sdk import Client

_SLICE_MS = 1_000


def register(app: typer.Typer) -> None:
    """Add `replay` to the command line."""
    app.command("replay")(replay)


def replay(
    predictions: Annotated[Path | None, typer.Option(help="A file of predictions, one JSON event a line.")] = None,
    labels: Annotated[Path | None, typer.Option(help="A file of labels, one JSON event a line.")] = None,
    speed: Annotated[
        float | None, typer.Option(min=0.001, help="How many times as fast as it was; as fast as can be by default.")
    ] = None,
    rebuild_join: Annotated[
        bool,
        typer.Option("--rebuild-join", help="Instead: fill a lost label store from the log; ingest must be stopped."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Send recorded events in order of their time, predictions and labels together."""
    configured = settings()
    if rebuild_join:
        from streamer.audit.join_rebuild import rebuild

        require_kafka(configured)
        done = rebuild(configured, now_ms=now_ms())
        if as_json:
            write_json(done)
        else:
            logs = f", {count(done.features)} feature logs" if done.features else ""
            typer.echo(f"{count(done.predictions)} predictions{logs} and {count(done.labels)} labels installed")
            if done.whole_since_ms is not None:
                typer.echo(
                    f"the log begins at {moment(done.whole_since_ms)}, within the labels' horizon: labels of "
                    "predictions before that find nothing, and do not count"
                )
        return
    files = {kind: path for kind, path in (("predictions", predictions), ("labels", labels)) if path is not None}
    if not files:
        raise CommandError("give --predictions FILE, --labels FILE, or --rebuild-join", code=2)
    events = {kind: _read(path, kind) for kind, path in files.items()}
    require_kafka(configured)
    _play(configured, events, speed, as_json)


def _read(path: Path, kind: Any) -> list[Any]:
    """Return a file's events in order of their time; a line that is none is an error that names it."""
    import msgspec

    from streamer.decode import decode
    from streamer.explain import explain_invalid

    events = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                events.append(decode(line, kind))
            except (msgspec.DecodeError, ValueError) as error:
                raise CommandError(f"{path} line {number}: {explain_invalid(line, kind)[0]}") from error
    return sorted(events, key=lambda event: event.ts)


def _play(configured: Settings, events: dict[str, list[Any]], speed: float | None, as_json: bool) -> None:
    from streamer.replay import Replay, merged, rated, sliced
    from streamer.sdk import Client

    def stream(kind: str, found: list[Any]) -> Iterator[Batch]:
        return sliced(kind, [event.ts for event in found], lambda first, last: found[first:last], slice_ms=_SLICE_MS)

    gate = None if speed is None else rated(event_ms_per_s=1000 * speed, clock_s=time.monotonic)
    kafka = configured.kafka.properties()
    servers = kafka.pop("bootstrap.servers")
    with Client(servers, redis_url=None, namespace=configured.namespace, kafka=kafka) as client:
        players = {
            "predictions": lambda batch: _hand_over(client, client.log_predictions, batch),
            "labels": lambda batch: _hand_over(client, client.log_labels, batch),
        }
        played = Replay(merged(*(stream(*each) for each in events.items())), players, gate=gate).run()
        report = client.close()
    lost = report.failed + report.dropped + report.unsent
    if as_json:
        write_json({"played": played, "sent": report.sent, "lost": lost})
    else:
        typer.echo(", ".join(f"{count(rows)} {kind}" for kind, rows in played.items()) + " sent")
    if lost:
        raise CommandError(
            f"Kafka did not take {count(lost)} of the events; send the file again, repeats are recognised"
        )


def _hand_over(client: Client, log: Any, batch: list[Any]) -> None:
    """Log a slice, some thousand events at a time: a full queue would drop what does not fit."""
    for first in range(0, len(batch), 10_000):
        log(batch[first : first + 10_000])
        client.flush(30.0)
