"""The figures as a picture: the peers' bars, and the cost of an event over models, partitions and features."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.figures import Curve, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = Path(__file__).parents[1] / "docs" / "performance.png"
BARS = "bars"
_COLUMNS = 3
_INK = "#1f4e79"
_COLOURS = (_INK, "#c8553d", "#6a994e", "#8d6a9f")


def draw(results: Results, path: Path = PICTURE) -> None:
    """Draw all curves, those of one picture together."""
    pictures: dict[str, list[Curve]] = defaultdict(list)
    for findings in results.subjects.values():
        for curve in findings.curves:
            pictures[curve.picture].append(curve)
    if not pictures:
        return
    # Takes a second to load, and a machine without it can still measure.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = -(-len(pictures) // _COLUMNS)
    columns = min(_COLUMNS, len(pictures))
    drawing, places = pyplot.subplots(rows, columns, figsize=(4.6 * columns, 3.3 * rows), squeeze=False)
    for place, (title, curves) in zip(places.flat, pictures.items(), strict=False):
        _draw_one(place, title, curves)
    for place in places.flat[len(pictures) :]:
        place.set_axis_off()
    drawing.tight_layout()
    drawing.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(drawing)


def _draw_one(place: Axes, title: str, curves: list[Curve]) -> None:
    place.set_title(title, fontsize=10)
    if all(curve.over == BARS for curve in curves):
        names = [curve.name for curve in curves]
        values = [curve.y[0] for curve in curves]
        bars = place.barh(names[::-1], values[::-1], color=_INK, height=0.6)
        place.bar_label(bars, labels=[f" {value:,.0f}" for value in values[::-1]], fontsize=8)
        place.margins(x=0.25)
        place.set_xlabel(curves[0].unit, fontsize=8)
        place.locator_params(axis="x", nbins=4)
    else:
        for curve, colour in zip(curves, _COLOURS, strict=False):
            place.plot(curve.x, curve.y, marker="o", markersize=3.5, linewidth=1.4, color=colour, label=curve.name)
        place.set_xlabel(curves[0].over, fontsize=8)
        place.set_ylabel(curves[0].unit, fontsize=8)
        place.set_ylim(bottom=0)
        if len({x for curve in curves for x in curve.x}) > 1 and curves[0].x[0] > 0 and _spread(curves) > 20:
            place.set_xscale("log")
        if len(curves) > 1:
            place.legend(fontsize=7, frameon=False)
    place.tick_params(labelsize=8)
    place.spines[["top", "right"]].set_visible(False)


def _spread(curves: list[Curve]) -> float:
    xs = [x for curve in curves for x in curve.x]
    return max(xs) / min(xs)
