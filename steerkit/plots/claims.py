"""One picture for every claim that comes with rows: what was measured, its controls and its nulls, on one line each.

`save_claim` draws what an experiment's `run()` reports. The same drawing without its words goes into a page, once wide
and once narrow, so that it can be read on a desk and on a telephone; no model.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerkit.plots.curves import draw_curves
from steerkit.plots.figures import (
    FAINT,
    INK,
    MUTED,
    PALE,
    PAPER,
    axes_at,
    blank,
    check_ending,
    claimed,
    number,
    plain,
    save_drawing,
    sheet,
    verdict_lines,
    write_lines,
)
from steerkit.plots.layouts import (
    TELEPHONE,
    Group,
    Layout,
    Line,
    Row,
    arrange,
    full_height,
    goes_through,
    is_band,
    narrow_layout,
    span,
    wide_layout,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Result = Mapping[str, Any]
EDGE, GUTTER, VALUES, COSTS = 0.25, 0.15, 0.55, 0.5
"""Inches from the side, between names and plot, and of the columns on its right."""
BESIDE, BENEATH, APART, FOOT = (3.9, 2.6), (3.6, 2.5), 0.75, 0.55
"""Width and height of the curves beside the rows or beneath them, and what is left free for the names of axes."""


def save_claim(result: Result, path: Path) -> None:
    """Draw a claim's rows with their intervals, its curves where it has any, and its verdict.

    Raises:
        OutputError: another ending than .png, .svg or .html, no rows, or a place that cannot be written.
    """
    check_ending(path)
    title = plain(claimed(result))
    about = f"values in {plain(result['unit'])}, KL p95 in nats a token"
    drawn = "" if path.suffix == ".html" else title
    save_drawing(path, title, _numbers(result), partial(draw_claim, result, drawn), html.escape(about))


def draw_claim(result: Result, title: str = "") -> Figure:
    """The picture as a file has it: title, rows, curves beside them, verdict.

    Raises:
        OutputError: there are no rows.
    """
    layout, curves = wide_layout(result), result.get("curves")
    width = _across(layout) + (APART + BESIDE[0] + EDGE if curves else 0.0)
    body = max(full_height(arrange(result, layout)), BESIDE[1] if curves else 0.0) + FOOT + 0.2
    said = verdict_lines(result, width)
    figure, top = sheet(width, body + 0.3 + 0.19 * len(said), title, about_claim(result))
    _put(figure, result, layout, top)
    if curves:
        draw_curves(figure, curves, (_across(layout) + APART, top + 0.2), BESIDE, layout.letters)
    write_lines(figure, top + body, said)
    return figure


def draw_inline(result: Result, narrow: bool = False) -> Figure:
    """The picture for a page that says claim and verdict itself; narrow, names stand over lines, curves beneath rows.

    Raises:
        OutputError: there are no rows.
    """
    layout, curves = narrow_layout() if narrow else wide_layout(result), result.get("curves")
    height = full_height(arrange(result, layout)) + FOOT
    if narrow:
        figure = blank(TELEPHONE + 2 * GUTTER, height + (BENEATH[1] + 0.95 if curves else 0.0), "", "")
        place, size = (0.55, height + 0.4), BENEATH
    else:
        width = _across(layout) + (APART + BESIDE[0] + EDGE if curves else 0.0)
        figure = blank(width, max(height, BESIDE[1] + 0.85 if curves else 0.0), "", "")
        place, size = (_across(layout) + APART, 0.35), BESIDE
    _put(figure, result, layout, 0.1)
    if curves:
        draw_curves(figure, curves, place, size, layout.letters)
    return figure


def _across(layout: Layout) -> float:
    """Width of names, plot and columns."""
    return EDGE + layout.names + GUTTER + layout.plot + VALUES + COSTS + 0.2


def about_claim(result: Result) -> str:
    """Model, how much was measured, and how to read a row."""
    told = [plain(result.get("model", "")), *(f"{result[key]} {key}" for key in ("contexts", "items") if key in result)]
    return " · ".join([*filter(None, told), "line: 95 % interval", "KL: p95, nats a token"])


def _put(figure: Figure, result: Result, layout: Layout, top: float) -> None:
    """The rows on their axes, `top` inches from the top of a figure."""
    lines, form = arrange(result, layout), _form(result["rows"])
    left, high = GUTTER if layout.stacked else EDGE + layout.names + GUTTER, full_height(lines)
    axes = axes_at(figure, left, top, layout.plot, high)
    bounds = span([line.row for line in lines if line.row])
    _ground(axes, lines, layout, bounds)
    for line in lines:
        if line.row is None:
            _heading(axes, line, layout)
        else:
            _name(axes, line, line.row, layout, form)
            _draw(axes, line.y, line.group, line.row, bounds)
    if not layout.stacked:
        known = any(row.get("kl") is not None for row in result["rows"])
        for inches, text in ((VALUES, "value"), (VALUES + COSTS, "KL" if known else "")):
            _beside(axes, lines[0].y, layout, inches, text, MUTED, 7.0)
    axes.set(ylim=(high, 0), yticks=[], xlim=bounds)
    axes.tick_params(length=2.5, labelsize=layout.letters - 1)
    axes.locator_params(axis="x", nbins=6, steps=[1, 2, 2.5, 5, 10])
    axes.set_xlabel(plain(result["unit"], 60), fontsize=layout.letters)


def _ground(axes: Axes, lines: Sequence[Line], layout: Layout, bounds: tuple[float, float]) -> None:
    """Guides from name to mark, zero, and what random directions do; not behind names that stand in the plot."""
    bands = [line.row for line in lines if line.row and goes_through(line.row)]
    ends = [[min(bounds[1], max(bounds[0], row[key])) for key in ("low", "high")] for row in bands]
    rows = [line.y for line in lines if line.row is not None]
    pieces = [(y - 0.1, y + 0.1) for y in rows] if layout.stacked else [(0.0, full_height(lines))]
    for above, below in pieces:
        axes.plot([0, 0], [above, below], color=MUTED, linewidth=0.8, zorder=1)
        for low, high in ends:
            axes.fill_between([low, high], above, below, color=PALE, alpha=0.6, linewidth=0, zorder=-1)
    for y in rows:
        axes.plot(bounds, [y, y], color=PALE, linewidth=0.5, zorder=0)


def _heading(axes: Axes, line: Line, layout: Layout) -> None:
    """A group's mark and what its rows are; over stacked rows on the left, otherwise where their names end."""
    x, inwards, side = (0.05, 0.13, "left") if layout.stacked else (-GUTTER, -0.11, "right")
    x, inwards, beside = x / layout.plot, inwards / layout.plot, axes.get_yaxis_transform()
    style: dict[str, Any] = {"markersize": 5.5, "markeredgecolor": PAPER, "clip_on": False, "transform": beside}
    axes.plot([x], [line.y], line.group.marker, color=line.group.colour, **style)
    place: dict[str, Any] = {"ha": side, "va": "center", "transform": beside, "fontsize": layout.letters}
    axes.text(x + inwards, line.y, line.parts[0], weight="bold", **place)


def _name(axes: Axes, line: Line, row: Row, layout: Layout, form: str) -> None:
    """A row's name, its value and its KL, beside its line or over it."""
    ink, size = INK if row["value"] is not None else MUTED, layout.letters
    place: dict[str, Any] = {"color": ink, "transform": axes.get_yaxis_transform()}
    if layout.stacked:
        place |= {"va": "bottom", "fontsize": size}
        axes.text(0, line.y - 0.12, "\n".join(line.parts), linespacing=1.05, **place)
        axes.text(1, line.y - 0.12, _shown(row["value"], form), ha="right", **place)
        return
    size -= 0.7 * (len(line.parts) > 1)
    for i, part in enumerate(line.parts):
        # One by one, because a browser with another font would align the lines of one text otherwise.
        y = line.y + 0.115 * (i - (len(line.parts) - 1) / 2)
        axes.text(-GUTTER / layout.plot, y, part, va="center", ha="right", fontsize=size, **place)
    _beside(axes, line.y, layout, VALUES, _shown(row["value"], form), ink, 7.5)
    _beside(axes, line.y, layout, VALUES + COSTS, _shown(row.get("kl"), ".2f"), MUTED, 7.5)


def _beside(axes: Axes, y: float, layout: Layout, inches: float, text: str, ink: str, size: float) -> None:
    """A number so many inches to the right of the plot."""
    place: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "center"}
    axes.text(1 + inches / layout.plot, y, text, color=ink, fontsize=size, **place)


def _draw(axes: Axes, y: float, group: Group, row: Row, bounds: tuple[float, float]) -> None:
    """A row's value and interval; where the interval goes on past the axis, an arrow says so."""
    if row["value"] is None:
        axes.text(0, y, " not known", color=MUTED, fontsize=7, va="center", style="italic")
        return
    low, high = (row["value"] if row[key] is None else row[key] for key in ("low", "high"))
    ends = min(max(low, bounds[0]), bounds[1]), max(min(high, bounds[1]), bounds[0])
    if is_band(row):
        axes.fill_between(ends, y - 0.05, y + 0.05, color=FAINT, alpha=0.75, linewidth=0, zorder=2)
        axes.plot([row["value"]], [y], "|", color=INK, markersize=6, zorder=3)
        return
    axes.plot(ends, [y, y], color=group.colour, linewidth=1.5, zorder=2)
    for end, beyond, arrow in ((ends[0], low < bounds[0], "<"), (ends[1], high > bounds[1], ">")):
        if beyond:
            axes.plot([end], [y], arrow, color=group.colour, markersize=4.5, clip_on=False, zorder=2)
    edge: dict[str, Any] = {"markersize": 5.8, "markeredgecolor": PAPER, "markeredgewidth": 0.7, "zorder": 3}
    if bounds[0] <= row["value"] <= bounds[1]:
        axes.plot([row["value"]], [y], group.marker, color=group.colour, **edge)


def _form(rows: Sequence[Row]) -> str:
    """Two decimals, or three where everything is small."""
    return "+.3f" if all(abs(row["value"] or 0.0) < 0.1 for row in rows) else "+.2f"


def _shown(value: float | None, form: str) -> str:
    """A number, a dash where there is none, and no sign before nothing."""
    if value is None or not math.isfinite(value):
        return "–" if form[0] == "+" else ""
    text = number(value, form)
    return text[1:] if form[0] == "+" and not float(text[1:]) else text


def _numbers(result: Result) -> list[dict[str, Any]]:
    """Rows, then points of curves, as lines of one table."""
    keys = ("name", "group", "value", "low", "high", "kl")
    rows = [{key: row.get(key) for key in keys} for row in result["rows"]]
    curves = result.get("curves") or {"x": "", "lines": ()}
    return rows + [
        {"name": f"{line['name']}, {curves['x']} {point['x']}", "group": "curve"}
        | {key: point.get(key) for key in keys[2:]}
        for line in curves["lines"]
        for point in line["points"]
    ]
