"""What a stored pane takes in bytes and CPU, by how its counts are written and what compresses them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

import cramjam
import msgspec
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from monitors.sketch import HistogramSketch, encode_pairs

_CELLS = 260
_TIMES = 20

# Name → compress, decompress.
_CODECS: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    "none": (bytes, bytes),
    "lz4": (lambda raw: bytes(cramjam.lz4.compress(raw)), lambda raw: bytes(cramjam.lz4.decompress(raw))),
    "zstd 1": (lambda raw: bytes(cramjam.zstd.compress(raw, 1)), lambda raw: bytes(cramjam.zstd.decompress(raw))),
    "zstd 3": (lambda raw: bytes(cramjam.zstd.compress(raw, 3)), lambda raw: bytes(cramjam.zstd.decompress(raw))),
}


class Packed(msgspec.Struct, kw_only=True):
    """One way to store a pane of so many events: its bytes, and the CPU to write and to read it."""

    events: int
    form: str
    codec: str
    kept_bytes: int
    write_us: float
    read_us: float


def register(app: typer.Typer) -> None:
    """Add `packing` to the command line."""
    app.command("packing")(packing)


def packing(
    features: Annotated[int, typer.Option(help="Features of the pane's model.", min=1)] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compare the forms a pane's counts could be stored in."""
    found = [each for events in (3, 30, 300, 3_000, 30_000) for each in _measure(features, events)]
    if as_json:
        print(msgspec.json.encode(found).decode())
        return
    table = Table(title=f"a stored pane of {features} features of {_CELLS} cells")
    for heading in ("events", "form", "compressed by", "bytes", "write µs", "read µs"):
        table.add_column(heading, justify="left" if heading in ("form", "compressed by") else "right")
    for each in found:
        times = (f"{each.write_us:.0f}", f"{each.read_us:.0f}")
        table.add_row(f"{each.events:,}", each.form, each.codec, f"{each.kept_bytes:,}", *times)
    Console().print(table)


def _measure(features: int, events: int) -> list[Packed]:
    rng = np.random.default_rng(0)
    counts = rng.multinomial(events, np.full(_CELLS - 4, 1 / (_CELLS - 4)), features)
    whole = np.pad(counts, ((0, 0), (0, 4))).ravel()
    sketch = HistogramSketch.empty("f")
    sketch.add_pairs(encode_pairs(whole))
    forms: dict[str, Callable[[], bytes]] = {
        "pairs": lambda: encode_pairs(whole),
        "every cell": lambda: sketch.counts.tobytes(),
        "the shorter of few and all": sketch.pack,
    }
    found = []
    for form, write in forms.items():
        raw = write()
        for codec, (compress, decompress) in _CODECS.items():
            kept = compress(raw)
            found.append(
                Packed(
                    events=events,
                    form=form,
                    codec=codec,
                    kept_bytes=len(kept),
                    write_us=_cpu_us(lambda: compress(write())),  # noqa: B023 - called at once
                    read_us=_cpu_us(lambda: decompress(kept)),  # noqa: B023 - called at once
                )
            )
    return found


def _cpu_us(act: Callable[[], object]) -> float:
    began = time.process_time()
    for _ in range(_TIMES):
        act()
    return round((time.process_time() - began) / _TIMES * 1e6, 1)
