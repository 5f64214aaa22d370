"""A feature's frozen cells: which cell of a histogram a value falls into."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

Kind: TypeAlias = Literal["numeric", "categorical"]
Cells: TypeAlias = npt.NDArray[np.int32]

# After the k inner cells every histogram has these four, in this order: missing, below, above, unseen.
SPECIAL_CELLS = 4
# A number gets one cell a value when it has at most this many values, each seen this often on average.
MAX_DISCRETE_VALUES = 64
MIN_ROWS_PER_VALUE = 10


@dataclass(frozen=True)
class Binning:
    """The cells of one feature, frozen with its reference.

    Exactly one of `edges`, `values`, `categories` is given; none of them when the reference held no
    value at all (every value is then unseen).

    Parameters
    ----------
    feature : the feature's name, for errors.
    kind : "numeric" or "categorical".
    edges : k+1 rising numbers: cell i is [edges[i], edges[i+1]), the last cell closed at both ends.
    values : k rising numbers, one cell a value.
    categories : k texts, one cell a category.

    Notes
    -----
    Cells are laid out as inner cells [0..k), then missing = k, below = k+1, above = k+2, unseen = k+3. Numbers are held
    as an array: as objects they would take four times as much, and a worker has all of all models.
    """

    feature: str
    kind: Kind
    edges: Sequence[float] = ()
    values: Sequence[float] = ()
    categories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"{self.feature}.kind: got {self.kind!r}, wanted 'numeric' or 'categorical'")
        for name in ("edges", "values"):
            if getattr(self, name) != ():
                object.__setattr__(self, name, array("d", getattr(self, name)))
        given = [name for name in ("edges", "values", "categories") if getattr(self, name)]
        allowed = {"numeric": ("edges", "values"), "categorical": ("categories",)}[self.kind]
        if len(given) > 1 or not set(given) <= set(allowed):
            raise ValueError(f"{self.feature}: got {given} for a {self.kind} feature, wanted one of {list(allowed)}")
        for name in ("edges", "values"):
            numbers = np.asarray(getattr(self, name), dtype=np.float64)
            if not np.isfinite(numbers).all() or (numbers[1:] <= numbers[:-1]).any():
                raise ValueError(f"{self.feature}.{name}: wanted finite, strictly rising numbers")
        if len(self.edges) == 1:
            raise ValueError(f"{self.feature}.edges: got 1 edge, wanted at least 2; give a single value as `values`")
        if len(set(self.categories)) != len(self.categories):
            raise ValueError(f"{self.feature}.categories: a category stands there twice")

    @cached_property
    def cells(self) -> int:
        """The number k of inner cells."""
        return len(self.edges) - 1 if self.edges else len(self.values) + len(self.categories)

    @cached_property
    def size(self) -> int:
        """The length k + 4 of a histogram over these cells."""
        return self.cells + SPECIAL_CELLS

    @cached_property
    def missing(self) -> int:
        """The cell of missing values."""
        return self.cells

    @cached_property
    def below(self) -> int:
        """The cell of numbers under the reference's smallest."""
        return self.cells + 1

    @cached_property
    def above(self) -> int:
        """The cell of numbers over the reference's largest."""
        return self.cells + 2

    @cached_property
    def unseen(self) -> int:
        """The cell of values the reference has no cell for, neither below nor above its range."""
        return self.cells + 3

    @property
    def ordered(self) -> bool:
        """Whether the cells stand in an order, so that KS and Wasserstein mean something."""
        return self.kind == "numeric"

    @property
    def positions(self) -> npt.NDArray[np.float64] | None:
        """Where each inner cell stands on the number line: its value or midpoint; None for categories."""
        if self.kind == "categorical":
            return None
        if not self.edges:
            return np.asarray(self.values, dtype=np.float64)
        # Halved before they are added: the sum of two large edges may overflow.
        return self._marks[:-1] / 2 + self._marks[1:] / 2

    @cached_property
    def _marks(self) -> npt.NDArray[np.float64]:
        return np.asarray(self.edges or self.values, dtype=np.float64)

    @cached_property
    def _cell_of(self) -> dict[str, int]:
        return {category: cell for cell, category in enumerate(self.categories)}

    def assign(self, values: npt.NDArray[Any]) -> Cells:
        """Return the cell of each value.

        Parameters
        ----------
        values : numeric: (rows,) numbers, nan is missing, ±inf lies below or above the range.
            Categorical: (rows,) objects, text or None (missing).

        Returns
        -------
        (rows,) int32 cells in [0, size).

        Raises
        ------
        TypeError
            The values of a numeric feature are no numbers.
        """
        if self.kind == "categorical":
            return self._assign_categories(values)
        numbers = _numbers(self.feature, values)
        if not self.cells:
            cells: Cells = np.full(numbers.shape, self.unseen, dtype=np.int32)
        else:
            ranks = np.searchsorted(self._marks, numbers, side="right")
            cells = self._cell_of_rank.take(ranks)
            if self.edges:
                cells[numbers == self._marks[-1]] = self.cells - 1
            else:
                cells[(ranks > 0) & (self._marks.take(ranks - 1) != numbers)] = self.unseen
                cells[numbers > self._marks[-1]] = self.above
        cells[np.isnan(numbers)] = self.missing
        return cells

    @cached_property
    def _cell_of_rank(self) -> Cells:
        inner = np.arange(self.cells, dtype=np.int32)
        above = np.array([self.above], dtype=np.int32)
        return np.concatenate([np.array([self.below], dtype=np.int32), inner, above if self.edges else inner[:0]])

    def _assign_categories(self, values: npt.NDArray[Any]) -> Cells:
        cell_of, missing, unseen = self._cell_of, self.missing, self.unseen
        cells = (missing if value is None else cell_of.get(value, unseen) for value in values)
        return np.fromiter(cells, dtype=np.int32, count=len(values))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form; Python's JSON keeps every float exactly."""
        document: dict[str, Any] = {"feature": self.feature, "kind": self.kind}
        for name in ("edges", "values", "categories"):
            if getattr(self, name):
                document[name] = list(getattr(self, name))
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Binning:
        """Read what `to_dict` wrote; ValueError names the field that is missing or wrong."""
        for name in ("feature", "kind"):
            if not isinstance(document.get(name), str):
                raise ValueError(f"binning.{name}: got {document.get(name)!r}, wanted text")
        try:
            return cls(
                feature=document["feature"],
                kind=document["kind"],
                edges=document.get("edges", ()),
                values=document.get("values", ()),
                categories=tuple(str(category) for category in document.get("categories", ())),
            )
        except TypeError as error:
            raise ValueError(f"{document['feature']}: edges, values and categories must be lists: {error}") from error


def fit(feature: str, values: npt.NDArray[Any], *, kind: Kind, max_cells: int = 256) -> Binning:
    """Fit a feature's cells to its reference values.

    Parameters
    ----------
    feature : the feature's name.
    values : as `Binning.assign` takes them.
    kind : "numeric" or "categorical".
    max_cells : at most this many inner cells, ≥ 2.

    Returns
    -------
    Numeric: one cell a value when there are few (at most 64 values, each seen ten times on average, or
    at most two values); else cells of about equal reference mass, where a value heavier than a cell gets a
    cell of its own. Categorical: the most frequent `max_cells` categories, ties in text order.

    Raises
    ------
    ValueError, TypeError
        The kind, `max_cells` or a value is not what is wanted.
    """
    if max_cells < 2:
        raise ValueError(f"{feature}.max_cells: got {max_cells}, wanted at least 2")
    if kind == "categorical":
        counts = Counter(value for value in values if value is not None)
        strange = next((value for value in counts if not isinstance(value, str)), None)
        if strange is not None:
            raise TypeError(f"{feature}: got {strange!r} among its categories, wanted text or None")
        frequent = sorted(counts, key=lambda category: (-counts[category], category))[:max_cells]
        return Binning(feature, kind, categories=tuple(sorted(frequent)))
    numbers = _numbers(feature, values)
    numbers = numbers[np.isfinite(numbers)]
    distinct = np.unique(numbers)
    few = len(distinct) <= 2 or len(numbers) >= MIN_ROWS_PER_VALUE * len(distinct)
    if few and len(distinct) <= min(MAX_DISCRETE_VALUES, max_cells):
        return Binning(feature, kind, values=tuple(distinct.tolist()))
    return Binning(feature, kind, edges=_quantile_edges(numbers, max_cells))


def _quantile_edges(numbers: npt.NDArray[np.float64], max_cells: int) -> tuple[float, ...]:
    """Return the distinct quantiles, with an edge right after each one that stands in the grid twice."""
    grid = np.quantile(numbers, np.linspace(0, 1, max_cells + 1), method="inverted_cdf")
    quantiles, repeats = np.unique(grid, return_counts=True)
    heavy = quantiles[(repeats > 1) & (quantiles < quantiles[-1])]
    edges = np.unique(np.concatenate([quantiles, np.nextafter(heavy, np.inf)]))
    return tuple(edges.tolist())


def _numbers(feature: str, values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{feature}: got values that are no numbers ({error}), wanted floats with nan for missing; "
            "declare the feature categorical or convert it"
        ) from error
