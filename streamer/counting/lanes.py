"""Features as they lie in decoded events, row by row, to cells: one pass for all models, whatever each one watches."""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
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
    kind : models whose fields lie alike, and `number` which of their lanes it is.
    ids : (numbers,) the binnings of the first fields, which are numbers; none where none is watched.
    pick : what takes the texts that are watched from a row, `cells` what has the cell of each.
    """

    kind: _Kind
    number: int
    ids: IntArray
    pick: Callable[[Row], Row]
    cells: tuple[Callable[[Any], int], ...]


@dataclass
class _Kind:
    """Models of as many configured numbers and others: the fields of their events lie alike, whatever their names.

    Attributes
    ----------
    index : which of the kinds it is.
    width : how many of the fields are numbers.
    ids : of each lane, the binnings of all its numbers.
    texts : place → the cells of its texts, by lane; of the fields that are watched as texts by any.
    """

    index: int
    width: int
    ids: list[IntArray] = field(default_factory=list)
    texts: dict[int, TextTable] = field(default_factory=dict)
    _matrix: IntArray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))

    @property
    def matrix(self) -> IntArray:
        """(lanes, numbers) what `ids` holds."""
        if len(self._matrix) < len(self.ids):
            self._matrix = np.array(self.ids, dtype=np.int64).reshape(len(self.ids), -1)
        return self._matrix

    def lane(self, names: tuple[tuple[str, ...], tuple[str, ...]], watched: Watched) -> Lane:
        """Add a lane: what is watched of features of these names, numbers and others."""
        numbers, others = names
        number = len(self.ids)
        ids = np.array([watched.numbers.get(name, UNWATCHED) for name in numbers], dtype=np.int64)
        self.ids.append(ids)
        places, cells = list[int](), list[Callable[[Any], int]]()
        for place, name in enumerate((*numbers, *others)):
            if name in watched.texts:
                places.append(place)
                cells.append(watched.texts[name].__getitem__)
                self.texts.setdefault(place, TextTable()).add(number, watched.texts[name])
        start = places[0] if places else 0
        together = places == list(range(start, start + len(places)))
        pick: Any = itemgetter(slice(start, start + len(places))) if together else itemgetter(*places)
        return Lane(self, number, ids if ids.any() else ids[:0], pick, tuple(cells))


class _Columns(NamedTuple):
    """Lanes by their index, as columns.

    Attributes
    ----------
    kinds, numbers : the index of each one's kind, and its number there.
    starts, widths : where the binnings of its numbers begin in `ids`, and how many they are.
    picks, cells, texts : its texts, and how many they are.
    """

    kinds: IntArray
    numbers: IntArray
    starts: IntArray
    widths: IntArray
    ids: IntArray
    picks: list[Callable[[Row], Row]]
    cells: list[tuple[Callable[[Any], int], ...]]
    texts: IntArray

    @classmethod
    def of(cls, lanes: Sequence[Lane]) -> _Columns:
        """Put lanes into columns."""
        widths = np.array([len(lane.ids) for lane in lanes], dtype=np.int64)
        return cls(
            np.array([lane.kind.index for lane in lanes], dtype=np.int64),
            np.array([lane.number for lane in lanes], dtype=np.int64),
            np.cumsum(widths) - widths,
            widths,
            np.concatenate([lane.ids for lane in lanes]),
            [lane.pick for lane in lanes],
            [lane.cells for lane in lanes],
            np.array([len(lane.cells) for lane in lanes], dtype=np.int64),
        )


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
        self._kinds: dict[tuple[int, int], _Kind] = {}
        self._lanes: list[Lane] = []
        self._made: dict[tuple[int, int], int] = {}
        self._columns: _Columns | None = None
        # Of each stream, the index of its lane.
        self._of_stream: list[int] = []
        self._index = np.zeros(0, dtype=np.int64)

    def add(self, config: ModelConfig, watched: Watched) -> None:
        """Add the next stream: its model, and what is watched of it."""
        self.watched.append(watched)
        names = fields_of(config)
        numbers, others = map(len, names)
        kind = self._kinds.setdefault((numbers, others), _Kind(len(self._kinds), numbers))
        key = (kind.index, id(watched))
        if key not in self._made:
            self._made[key] = len(self._lanes)
            self._lanes.append(kind.lane(names, watched))
            self._columns = None
        self._of_stream.append(self._made[key])

    def blocks(self, rows: Sequence[Row], stream: IntArray) -> Iterator[Block]:
        """Give the cells of every row's watched fields: its numbers, then its texts."""
        columns = self._columns = self._columns or _Columns.of(self._lanes)
        if len(self._index) < len(self._of_stream):
            self._index = np.array(self._of_stream, dtype=np.int64)
        at = self._index[stream]
        some, kind = self._lanes[int(at[0])], columns.kinds[at]
        if (kind != kind[0]).any():
            yield from self._mixed(columns, rows, at)
        elif (at != at[0]).any():
            yield from self._alike(some.kind, rows, columns.numbers[at])
        else:
            yield from self._same(some, rows)

    def _same(self, lane: Lane, rows: Sequence[Row]) -> Iterator[Block]:
        """Give the cells of rows of one lane."""
        width = len(lane.ids)
        if width:
            yield Block(_assigned(self.table, _packed(rows, [width]), lane.ids), width)
        if lane.cells:
            texts = chain.from_iterable(map(lane.pick, rows))
            yield _text_block(lane.cells * len(rows), texts, len(lane.cells))

    def _alike(self, kind: _Kind, rows: Sequence[Row], lane: IntArray) -> Iterator[Block]:
        """Give the cells of rows of some lanes of one kind."""
        ids = kind.matrix[lane]
        if ids.any():
            yield Block(_assigned(self.table, _packed(rows, [kind.width]), ids.reshape(-1)), kind.width)
        if kind.texts:
            columns = [table.assign(lane, [row[place] for row in rows]) for place, table in kind.texts.items()]
            yield Block(np.stack(columns, axis=1).reshape(-1), len(columns))

    def _mixed(self, columns: _Columns, rows: Sequence[Row], lane: IntArray) -> Iterator[Block]:
        """Give the cells of rows of any lanes, each given by its index."""
        widths, texts, lanes = columns.widths[lane], columns.texts[lane], lane.tolist()
        if widths.any():
            packed = _packed(rows, widths.tolist())
            # The binnings of one row after those of another: from where they begin among those of all lanes.
            behind = columns.starts[lane] - np.cumsum(widths) + widths
            at = np.repeat(behind, widths) + np.arange(len(packed.numbers))
            yield Block(_assigned(self.table, packed, columns.ids[at]), widths)
        if texts.any():
            picked = chain.from_iterable(map(call, map(columns.picks.__getitem__, lanes), rows))
            cells = tuple(chain.from_iterable(map(columns.cells.__getitem__, lanes)))
            yield _text_block(cells, picked, texts)


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


@lru_cache(maxsize=1_000)
def _packer(width: int) -> Callable[..., bytes]:
    """Return what makes so many numbers bytes; struct.error or OverflowError where one of them is none."""
    return struct.Struct(f"{width}d").pack


def _packed(rows: Sequence[Row], widths: Sequence[int]) -> _Packed:
    """Put the first fields of every row one after the other, as many as is said of each, or once for all."""
    try:
        if len(widths) == 1:
            (width,) = widths
            pack = _packer(width)
            parts = [pack(*row[:width]) for row in rows]
        else:
            packs = {width: _packer(width) for width in set(widths)}
            parts = [packs[width](*row[:width]) for width, row in zip(widths, rows, strict=True)]
        return _Packed(np.frombuffer(b"".join(parts)), ())
    except (struct.error, OverflowError):
        # A value is missing, or no number, or none that a float can hold.
        return _packed_with_care(rows, widths)


def _packed_with_care(rows: Sequence[Row], widths: Sequence[int]) -> _Packed:
    parts, odd, at = list[bytes](), list[int](), 0
    for width, row in zip(cycle(widths), rows, strict=False):
        pack = _packer(width)
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
