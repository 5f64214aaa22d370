"""Features as they lie in decoded events, row by row, to cells: one pass for all models, whatever each one watches."""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from operator import call, itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitors.cells import UNWATCHED, Cells, CellTable
from monitors.performance import canonical
from monitors.slices import slice_keys
from streamer.columns import Block, IntArray, Watched
from streamer.layouts import Layout

Row = tuple[Any, ...]
_BEYOND = sys.float_info.max
# So many combinations of values are kept; there is no end to what may come.
_MAX_SLICES = 10_000


class Lane(NamedTuple):
    """Which fields of one layout are watched, and where they are counted.

    Attributes
    ----------
    ids : (numbers,) the binnings of the first fields, which are numbers.
    pack : what makes those bytes.
    pick : what takes the texts that are watched from a row, `cells` what has the cell of each.
    """

    ids: IntArray
    pack: Callable[..., bytes]
    pick: Callable[[Row], Row]
    cells: tuple[Callable[[Any], int], ...]


def lane_of(layout: Layout, watched: Watched) -> Lane:
    """Return how a layout's fields are counted; worked out once."""
    # A layout that has learned a field is another, and what was worked out of the one before it goes with that.
    found: Lane | None = watched.lanes.get(layout)
    if found is None:
        found = watched.lanes[layout] = _lane(layout, watched)
    return found


def _lane(layout: Layout, watched: Watched) -> Lane:
    fields = layout.names[: layout.numbers]
    ids = [watched.numbers.get(name, UNWATCHED) for name in fields]
    if not any(ids):
        ids, pack = [], struct.Struct("").pack
    else:
        pack = layout.pack
    places, cells = list[int](), list[Callable[[Any], int]]()
    for place, name in enumerate(layout.names[: layout.numbers + layout.texts]):
        if name in watched.texts:
            places.append(place)
            cells.append(watched.texts[name].__getitem__)
    start = places[0] if places else 0
    together = places == list(range(start, start + len(places)))
    pick: Any = itemgetter(slice(start, start + len(places))) if together else itemgetter(*places)
    return Lane(np.array(ids, dtype=np.int64), pack, pick, tuple(cells))


def lane_blocks(table: CellTable, rows: Sequence[Row], lanes: Sequence[Lane], lane_of_row: IntArray) -> Iterator[Block]:
    """Give the cells of every row's watched fields: its numbers, then its texts."""
    if len(lanes) == 1:
        (lane,) = lanes
        if len(lane.ids):
            packed = _packed(rows, [lane.pack], [len(lane.ids)], None)
            yield Block(_assigned(table, packed, lane.ids), len(lane.ids))
        if lane.cells:
            texts = chain.from_iterable(map(lane.pick, rows))
            yield _text_block(lane.cells * len(rows), texts, len(lane.cells))
        return
    codes = lane_of_row.tolist()
    widths = np.array([len(lane.ids) for lane in lanes])
    if widths.any():
        packed = _packed(rows, [lane.pack for lane in lanes], widths.tolist(), codes)
        yield Block(_assigned(table, packed, _ragged([lane.ids for lane in lanes], lane_of_row)), widths[lane_of_row])
    widths = np.array([len(lane.cells) for lane in lanes])
    if widths.any():
        picks = [lane.pick for lane in lanes]
        texts = chain.from_iterable([picks[code](row) for code, row in zip(codes, rows, strict=True)])
        cells = tuple(chain.from_iterable(map([lane.cells for lane in lanes].__getitem__, codes)))
        yield _text_block(cells, texts, widths[lane_of_row])


def number_cells(table: CellTable, values: Sequence[Any], ids: IntArray) -> Cells:
    """Return the cell of each value of a column of numbers; text is unseen, None is missing."""
    try:
        packed = _Packed(np.frombuffer(struct.pack(f"{len(values)}d", *values)), ())
    except (struct.error, OverflowError):
        odd = list[int]()
        numbers = np.array([_number(value, odd, at) for at, value in enumerate(values)], dtype=np.float64)
        packed = _Packed(numbers, odd)
    return _assigned(table, packed, ids)


class _Packed(NamedTuple):
    """Numbers of rows one after the other, and where among them stood something that is no number."""

    numbers: NDArray[np.float64]
    odd: Sequence[int]


def _packed(
    rows: Sequence[Row], packs: Sequence[Callable[..., bytes]], widths: Sequence[int], codes: Sequence[int] | None
) -> _Packed:
    """Put the first fields of every row one after the other; without `codes`, all rows are alike."""
    try:
        if codes is None:
            pack, width = packs[0], widths[0]
            parts = [pack(*row[:width]) for row in rows]
        else:
            parts = [packs[code](*row[: widths[code]]) for code, row in zip(codes, rows, strict=True)]
        return _Packed(np.frombuffer(b"".join(parts)), ())
    except (struct.error, OverflowError):
        # A value is missing, or no number, or none that a float can hold.
        return _packed_with_care(rows, packs, widths, codes or [0] * len(rows))


def _packed_with_care(
    rows: Sequence[Row], packs: Sequence[Callable[..., bytes]], widths: Sequence[int], codes: Sequence[int]
) -> _Packed:
    parts, odd, at = list[bytes](), list[int](), 0
    for code, row in zip(codes, rows, strict=True):
        width = widths[code]
        try:
            parts.append(packs[code](*row[:width]))
        except (struct.error, OverflowError):
            parts.append(packs[code](*[_number(value, odd, at + place) for place, value in enumerate(row[:width])]))
        at += width
    return _Packed(np.frombuffer(b"".join(parts)), odd)


def _number(value: Any, odd: list[int], at: int) -> float:
    """Return what a value counts as: text is noted as odd, whatever it says; None is missing."""
    if value is None:
        return math.nan
    if isinstance(value, str):
        odd.append(at)
        return math.nan
    # Python compares whole numbers of any size with floats exactly.
    return math.inf if value > _BEYOND else -math.inf if value < -_BEYOND else float(value)


def _assigned(table: CellTable, packed: _Packed, ids: IntArray) -> Cells:
    """Return the cells of numbers; `ids` are those of one row where all rows are alike, else of all of them."""
    numbers = packed.numbers
    if len(ids) != len(numbers):
        numbers = numbers.reshape(-1, len(ids))
    cells = table.assign(numbers, ids).reshape(-1)
    if len(packed.odd):
        odd = np.array(packed.odd)
        cells[odd] = table.unseen(ids[odd % len(ids)])
    return cells


def _ragged(of_lane: Sequence[IntArray], lane_of_row: IntArray) -> IntArray:
    """Return what belongs to each row's lane, row after row."""
    lengths = np.array(list(map(len, of_lane)))
    starts = np.cumsum(lengths) - lengths
    here = lengths[lane_of_row]
    ends = np.cumsum(here)
    at = np.arange(int(ends[-1])) + np.repeat(starts[lane_of_row] - ends + here, here)
    found: IntArray = np.concatenate(of_lane)[at]
    return found


def _text_block(cells: Sequence[Callable[[Any], int]], texts: Iterator[Any], widths: int | IntArray) -> Block:
    return Block(np.fromiter(map(call, cells, texts), dtype=np.int32, count=len(cells)), widths)


@lru_cache(maxsize=1_000)
def keys_of(names: tuple[str, ...]) -> SliceKeys:
    """Return the slices by the values of these features; models of the same slice features share them."""
    return SliceKeys(names)


class SliceKeys(dict[Row, list[str]]):
    """The slices of rows with such values of a model's slice features; rows of the same slices share one list."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self._names = names

    def __missing__(self, values: Row) -> list[str]:
        named = zip(self._names, values, strict=True)
        keys = slice_keys({name: canonical(value) for name, value in named if value is not None})
        # True is 1 among keys, and not among slices.
        if len(self) < _MAX_SLICES and all(value is None or type(value) is str for value in values):
            self[values] = keys
        return keys
