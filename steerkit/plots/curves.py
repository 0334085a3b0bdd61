"""Curves with their bands, each named where it ends and not in a legend; no model."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from steerkit.plots.figures import INK, MARKS, MUTED, PAPER, axes_at, plain
from steerkit.plots.labels import text_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curves = Mapping[str, Any]
GAP, WRAP, MOST_TICKS = 0.04, 20, 9


def draw_curves(
    figure: Figure,
    curves: Curves,
    place: tuple[float, float],
    size: tuple[float, float],
    letters: float,
) -> None:
    """Put curves on a figure.

    Args:
        figure: where.
        curves: `x`, `y` and `lines`, each with a `name` and `points` of `x`, `value`, `low` and `high`.
        place: of the upper left corner of the plot, in inches from that of the figure.
        size: of the plot in inches, with the names of several lines, which stand to the right.
        letters: the size of the names in points.
    """
    lines = [line for line in curves["lines"] if any(point["value"] is not None for point in line["points"])]
    names = [textwrap.wrap(plain(line["name"], 40), WRAP)[:2] or [""] for line in lines]
    reserved = max((text_size(part, letters - 1)[0] for name in names for part in name), default=0.0) + 0.2
    width = size[0] - (reserved if len(lines) > 1 else 0.0)
    axes = axes_at(figure, *place, width, size[1])
    axes.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
    places = _places(lines)
    for line, (marker, colour) in zip(lines, _marks(len(lines)), strict=True):
        _curve(axes, line, places, marker, colour)
    _ticks(axes, places, letters)
    axes.set_xlabel(plain(curves["x"], 50), fontsize=letters)
    head = plain(curves["y"], 80) + (f" · {plain(lines[0]['name'], 40)}" if len(lines) == 1 else "")
    axes.set_title("\n".join(textwrap.wrap(head, 48)), loc="left", fontsize=letters, pad=7)
    axes.spines["left"].set_visible(True)
    if len(lines) > 1:
        _label(axes, lines, names, places, (width, size[1]), letters - 1)


def _marks(n: int) -> list[tuple[str, str]]:
    """A shape and a colour for each line; after a dozen they come again."""
    return [MARKS[i % len(MARKS)] for i in range(n)]


def _places(lines: Sequence[Curves]) -> dict[Any, float]:
    """Where each x stands: a number at itself, anything else in the order in which it comes."""
    met = list(dict.fromkeys(point["x"] for line in lines for point in line["points"]))
    if all(isinstance(x, int | float) for x in met):
        return {x: float(x) for x in met}
    return {x: float(i) for i, x in enumerate(met)}


def _curve(axes: Axes, line: Curves, places: Mapping[Any, float], marker: str, colour: str) -> None:
    points = sorted(line["points"], key=lambda point: places[point["x"]])
    known = [point for point in points if point["value"] is not None]
    x = [places[point["x"]] for point in known]
    low, high = (
        [point["value"] if point.get(key) is None else point[key] for point in known] for key in ("low", "high")
    )
    axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
    style: dict[str, Any] = {"markersize": 4.5, "markeredgecolor": PAPER, "markeredgewidth": 0.5}
    axes.plot(x, [point["value"] for point in known], marker=marker, color=colour, linewidth=1.4, zorder=2, **style)


def _ticks(axes: Axes, places: Mapping[Any, float], letters: float) -> None:
    axes.tick_params(length=2.5, labelsize=letters - 1)
    axes.locator_params(axis="y", nbins=6, steps=[1, 2, 2.5, 5, 10])
    if places and len(places) <= MOST_TICKS:
        axes.set_xticks(list(places.values()), [plain(x, 14) for x in places])


def _label(
    axes: Axes,
    lines: Sequence[Curves],
    names: Sequence[Sequence[str]],
    places: Mapping[Any, float],
    size: tuple[float, float],
    letters: float,
) -> None:
    """Names at the ends of lines, moved apart where they would stand on each other."""
    low, high = axes.get_ylim()
    ends = [_end(line, places) for line in lines]
    heights = [size[1] * (y - low) / (high - low) for _, y in ends]
    rooms = [text_size("x", letters)[1] * len(name) + GAP for name in names]
    left, right = axes.get_xlim()
    for (x, _), name, height, own, (_, colour) in zip(
        ends, names, spread(heights, rooms, size[1]), heights, _marks(len(lines)), strict=True
    ):
        end, beside = (x - left) / (right - left), 1 + 0.12 / size[0]
        across, up = [end, beside - 0.02], [own / size[1], height / size[1]]
        axes.plot(across, up, color=colour, linewidth=0.6, transform=axes.transAxes, clip_on=False, zorder=0)
        style: dict[str, Any] = {"transform": axes.transAxes, "va": "center", "fontsize": letters, "linespacing": 1.1}
        axes.text(beside, height / size[1], "\n".join(name), color=INK, **style)
    axes.set(xlim=(left, right), ylim=(low, high))


def _end(line: Curves, places: Mapping[Any, float]) -> tuple[float, float]:
    known = [point for point in line["points"] if point["value"] is not None]
    last = max(known, key=lambda point: places[point["x"]])
    return places[last["x"]], last["value"]


def spread(heights: Sequence[float], rooms: Sequence[float], most: float) -> list[float]:
    """Heights of labels near those that are wanted, in their order, none over another, all inside if they fit.

    Args:
        heights: where the middle of each label should be.
        rooms: how high each label is.
        most: how high the whole is.

    >>> [round(x, 2) for x in spread([0.5, 0.5], [0.2, 0.2], 1.0)]
    [0.4, 0.6]
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    # Labels that touch form a block, which stands where the mean of what its labels want is.
    blocks: list[list[int]] = []
    for i in order:
        blocks.append([i])
        while len(blocks) > 1 and _bottom(blocks[-1], heights, rooms, most) < _top(blocks[-2], heights, rooms, most):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    found = [0.0] * len(heights)
    for block in blocks:
        y = _bottom(block, heights, rooms, most)
        for i in block:
            found[i], y = y + rooms[i] / 2, y + rooms[i]
    return found


def _bottom(block: Sequence[int], heights: Sequence[float], rooms: Sequence[float], most: float) -> float:
    whole = sum(rooms[i] for i in block)
    middle = sum(heights[i] for i in block) / len(block)
    return max(0.0, min(middle - whole / 2, most - whole))


def _top(block: Sequence[int], heights: Sequence[float], rooms: Sequence[float], most: float) -> float:
    return _bottom(block, heights, rooms, most) + sum(rooms[i] for i in block)
