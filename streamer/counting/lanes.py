"""Features as they lie in decoded events, row by row, to cells: one pass for all models, whatever each one watches."""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import chain, cycle
from operator import call, itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitors.cells import UNWATCHED, Cells, CellTable
from monitors.performance import canonical
from monitors.slices import slice_keys
from streamer.counting.columns import Block, IntArray, Watched
from streamer.counting.layouts import fields_of
from streamer.counting.text_table import TextTable
from streamer.models import ModelConfig

Row = tuple[Any, ...]
_BEYOND = sys.float_info.max
# So many combinations of values are kept; there is no end to what may come.
_MAX_SLICES = 10_000


class Lane(NamedTuple):
    """Which fields of a model's events are watched, and where they are counted.

    Attributes
    ----------
    kind : which models' fields they are, and `number` which of their lanes it is.
    ids : (numbers,) the binnings of the first fields, which are numbers; none where none is watched.
    pack : what makes those bytes.
    pick : what takes the texts that are watched from a row, `cells` what has the cell of each.
    """

    kind: _Kind
    number: int
    ids: IntArray
    pack: Callable[..., bytes]
    pick: Callable[[Row], Row]
    cells: tuple[Callable[[Any], int], ...]


@dataclass
class _Kind:
    """Models of the same configured features; the fields of their events are alike.

    Attributes
    ----------
    ids : of each lane, the binnings of all its numbers.
    texts : place → the cells of its texts, by lane; of the fields that are watched as texts by any.
    """

    numbers: tuple[str, ...]
    others: tuple[str, ...]
    ids: list[IntArray] = field(default_factory=list)
    texts: dict[int, TextTable] = field(default_factory=dict)
    _matrix: IntArray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))

    @cached_property
    def pack(self) -> Callable[..., bytes]:
        """What makes a row's numbers bytes; struct.error or OverflowError where one of them is none."""
        return struct.Struct(f"{len(self.numbers)}d").pack

    @property
    def matrix(self) -> IntArray:
        """(lanes, numbers) what `ids` holds."""
        if len(self._matrix) < len(self.ids):
            self._matrix = np.array(self.ids, dtype=np.int64).reshape(len(self.ids), -1)
        return self._matrix

    def lane(self, watched: Watched) -> Lane:
        """Add a lane."""
        number = len(self.ids)
        ids = np.array([watched.numbers.get(name, UNWATCHED) for name in self.numbers], dtype=np.int64)
        self.ids.append(ids)
        places, cells = list[int](), list[Callable[[Any], int]]()
        for place, name in enumerate((*self.numbers, *self.others)):
            if name in watched.texts:
                places.append(place)
                cells.append(watched.texts[name].__getitem__)
                self.texts.setdefault(place, TextTable()).add(number, watched.texts[name])
        start = places[0] if places else 0
        together = places == list(range(start, start + len(places)))
        pick: Any = itemgetter(slice(start, start + len(places))) if together else itemgetter(*places)
        ids = ids if ids.any() else ids[:0]
        return Lane(self, number, ids, struct.Struct(f"{len(ids)}d").pack, pick, tuple(cells))


class Lanes:
    """The lane of every stream, by its number.

    Attributes
    ----------
    table : the binnings of all numeric features.
    watched : what is watched of each stream, by its number.
    """

    def __init__(self, table: CellTable) -> None:
        self.table = table
        self.watched: list[Watched] = []
        self._kinds: dict[tuple[tuple[str, ...], tuple[str, ...]], _Kind] = {}
        self._made: dict[tuple[int, int], Lane] = {}
        self._of_stream: list[Lane] = []
        self._columns = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))

    def add(self, config: ModelConfig, watched: Watched) -> None:
        """Add the next stream: its model, and what is watched of it."""
        self.watched.append(watched)
        names = fields_of(config)
        kind = self._kinds.setdefault(names, _Kind(*names))
        key = (id(kind), id(watched))
        if key not in self._made:
            self._made[key] = kind.lane(watched)
        self._of_stream.append(self._made[key])

    def blocks(self, rows: Sequence[Row], stream: IntArray) -> Iterator[Block]:
        """Give the cells of every row's watched fields: its numbers, then its texts."""
        kinds, numbers = self._by_stream()
        kind, lane = kinds[stream], numbers[stream]
        some = self._of_stream[int(stream[0])]
        if (kind != kind[0]).any():
            yield from self._mixed(rows, [self._of_stream[number] for number in stream.tolist()])
        elif (lane != lane[0]).any():
            yield from self._alike(some.kind, rows, lane)
        else:
            yield from self._same(some, rows)

    def _by_stream(self) -> tuple[IntArray, IntArray]:
        """Return the kind and the lane of each stream, by number."""
        if len(self._columns[0]) < len(self._of_stream):
            index = {id(kind): number for number, kind in enumerate(self._kinds.values())}
            kinds = np.array([index[id(lane.kind)] for lane in self._of_stream], dtype=np.int64)
            self._columns = (kinds, np.array([lane.number for lane in self._of_stream], dtype=np.int64))
        return self._columns

    def _same(self, lane: Lane, rows: Sequence[Row]) -> Iterator[Block]:
        """Give the cells of rows of one lane."""
        if len(lane.ids):
            packed = _packed(rows, [lane.pack], [len(lane.ids)])
            yield Block(_assigned(self.table, packed, lane.ids), len(lane.ids))
        if lane.cells:
            texts = chain.from_iterable(map(lane.pick, rows))
            yield _text_block(lane.cells * len(rows), texts, len(lane.cells))

    def _alike(self, kind: _Kind, rows: Sequence[Row], lane: IntArray) -> Iterator[Block]:
        """Give the cells of rows of some lanes of one kind."""
        ids = kind.matrix[lane]
        if ids.any():
            width = len(kind.numbers)
            yield Block(_assigned(self.table, _packed(rows, [kind.pack], [width]), ids.reshape(-1)), width)
        if kind.texts:
            columns = [table.assign(lane, [row[place] for row in rows]) for place, table in kind.texts.items()]
            yield Block(np.stack(columns, axis=1).reshape(-1), len(columns))

    def _mixed(self, rows: Sequence[Row], lanes: Sequence[Lane]) -> Iterator[Block]:
        """Give the cells of rows of any lanes."""
        widths = [len(lane.ids) for lane in lanes]
        if any(widths):
            packed = _packed(rows, [lane.pack for lane in lanes], widths)
            ids = np.concatenate([lane.ids for lane in lanes])
            yield Block(_assigned(self.table, packed, ids), np.array(widths))
        if any(lane.cells for lane in lanes):
            texts = chain.from_iterable([lane.pick(row) for lane, row in zip(lanes, rows, strict=True)])
            cells = tuple(chain.from_iterable([lane.cells for lane in lanes]))
            yield _text_block(cells, texts, np.array([len(lane.cells) for lane in lanes]))


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


def _packed(rows: Sequence[Row], packs: Sequence[Callable[..., bytes]], widths: Sequence[int]) -> _Packed:
    """Put the first fields of every row one after the other, as many as is said of each, or once for all."""
    try:
        if len(packs) == 1:
            (pack,), (width,) = packs, widths
            parts = [pack(*row[:width]) for row in rows]
        else:
            parts = [pack(*row[:width]) for pack, width, row in zip(packs, widths, rows, strict=True)]
        return _Packed(np.frombuffer(b"".join(parts)), ())
    except (struct.error, OverflowError):
        # A value is missing, or no number, or none that a float can hold.
        return _packed_with_care(rows, packs, widths)


def _packed_with_care(rows: Sequence[Row], packs: Sequence[Callable[..., bytes]], widths: Sequence[int]) -> _Packed:
    parts, odd, at = list[bytes](), list[int](), 0
    for pack, width, row in zip(cycle(packs), cycle(widths), rows, strict=False):
        try:
            parts.append(pack(*row[:width]))
        except (struct.error, OverflowError):
            parts.append(pack(*[_number(value, odd, at + place) for place, value in enumerate(row[:width])]))
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
