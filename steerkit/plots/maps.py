"""The picture of a persona space: who stands where, and the Assistant among them; no model.

`save_map` draws what `steerkit map` reports: for print (.png, .svg), or as one page to explore (.html, by `atlas`).
The other pictures of many personas, `save_spillover` and `save_screen`, are drawn by `matrices`.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerkit.errors import OutputError
from steerkit.files import replacing_file
from steerkit.plots.atlas import map_page
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
    looks,
    plain,
    render,
    sheet,
    verdict_lines,
    write_lines,
)
from steerkit.plots.labels import GREY, darker, family_marks, mark_size
from steerkit.plots.matrices import save_screen, save_spillover
from steerkit.plots.planes import (
    GROUND,
    LARGE,
    SMALL,
    Plane,
    about_map,
    fit_plane,
    landmarks,
    map_confounds,
    map_numbers,
    map_plane,
    name_landmarks,
    name_personas,
    null_spectrum,
    shown,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["save_map", "save_screen", "save_spillover"]
WIDTH, SCATTER, LEAST, BESIDE, MOST_ACROSS, PANEL = 11.4, (7.5, 6.4), 5.2, 2.5, 6, 1.95
ENOUGH, BLUE = 0.7, "#0072b2"
ARROW: dict[str, Any] = {
    "arrowstyle": "-|>,head_width=0.18,head_length=0.4",
    "color": MUTED,
    "linewidth": 0.9,
    "shrinkA": 0,
    "shrinkB": 0,
}
Result = Mapping[str, Any]


def save_map(result: Result, path: Path) -> None:
    """Draw what `steerkit map` reports of a persona space.

    Raises:
        OutputError: another ending than .png, .svg or .html, nothing to draw, or a place that cannot be written.
    """
    check_ending(path)
    if not result["points"] or not result["spectrum"]:
        raise OutputError("there is nothing to draw: the map has no personas; name some, or none to map the library")
    if path.suffix == ".html":
        with looks():
            written = map_page(result, render(partial(_beneath, result), "svg").decode()).encode()
    else:
        written = render(partial(_map, result), path.suffix[1:])
    with replacing_file(path) as temporary:
        temporary.write_bytes(written)


def _map(result: Result) -> Figure:
    """The map, beside it who is who and how many dimensions it takes, beneath it the verdict and the other layers."""
    plane, maps, verdict = (
        map_plane(result, *SCATTER, least=LEAST),
        result.get("maps") or (),
        verdict_lines(result, WIDTH),
    )
    rows = math.ceil(len(maps) / MOST_ACROSS) if len(maps) > 1 else 0
    foot = 1.7 + 0.19 * (len(verdict) + len(_confounds(result)))
    figure, top = sheet(
        WIDTH, plane.height + foot + PANEL * rows + bool(rows) * 0.3, claimed(result), about_map(result)
    )
    _scatter(axes_at(figure, 0.7, top, plane.width, plane.height), result, plane)
    across, low = 0.7 + plane.width + 0.35, top + plane.height
    _legend(axes_at(figure, across, top, BESIDE, 3.0), result)
    _scree(axes_at(figure, across + 0.35, low - 1.75, BESIDE - 0.35, 1.75), result)
    write_lines(figure, low + 0.7, verdict)
    _numbers(figure, low + 0.7 + 0.19 * len(verdict) + 0.1, result)
    if rows:
        _layers(figure, low + foot - 0.05, result)
    return figure


def _numbers(figure: Figure, y: float, result: Result) -> None:
    """The three numbers that the verdict rests on, each beside what random points give, and the confounds."""
    width, height = figure.get_size_inches()
    draws = plain(result["null"]["components"]["n"])
    for i, (value, text, null) in enumerate(map_numbers(result)):
        x = (0.25 + 3.65 * i) / width
        figure.text(x, 1 - (y + 0.05) / height, value, fontsize=11, va="center")
        figure.text(x, 1 - (y + 0.25) / height, text, fontsize=7.5, va="center")
        figure.text(
            x, 1 - (y + 0.42) / height, f"random points, {draws} draws: {null}", color=MUTED, fontsize=7.5, va="center"
        )
    write_lines(figure, y + 0.68, (), _confounds(result))


def _confounds(result: Result) -> list[str]:
    return textwrap.wrap(" · ".join(map_confounds(result)), int(WIDTH * 15))


def _scatter(axes: Axes, result: Result, plane: Plane) -> None:
    axes.axhline(0, color=PALE, linewidth=0.8, zorder=0)
    axes.axvline(0, color=PALE, linewidth=0.8, zorder=0)
    _axis(axes, plane)
    _dots(axes, [(one["x"], one["y"]) for one in result["points"]], [one["family"] for one in result["points"]])
    _path(axes, result.get("path") or ())
    for name, place in landmarks(result).items():
        _star(axes, place, name == "the Assistant")
    for label in [*name_landmarks(result, plane).values(), *name_personas(result, plane).values()]:
        left, bottom, right, top = label.box
        place, weight = (
            plane.back(((left + right) / 2, (bottom + top) / 2)),
            "bold" if label.size == LARGE else "normal",
        )
        axes.text(*place, label.text, fontsize=label.size, weight=weight, zorder=5, ha="center", va="center_baseline")
        if leader := label.leader():
            ends = zip(plane.back(label.point), plane.back(leader), strict=True)
            axes.plot(*ends, color=FAINT, linewidth=0.6, zorder=2)
    low, high = plane.back((0, 0)), plane.back((plane.width, plane.height))
    shares = [
        f"PC{k + 1}, {shown(share, '.0%')} of the variance" for k, share in enumerate([*result["spectrum"], 0][:2])
    ]
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel=shares[0], ylabel=shares[1])
    axes.spines["left"].set_visible(True)
    axes.tick_params(length=2.5, labelsize=6.5)
    axes.locator_params(nbins=6, steps=[1, 2, 5, 10])


def _axis(axes: Axes, plane: Plane) -> None:
    """The Assistant axis through the middle of the cloud, with an arrow at the Assistant's end, and its ends' names."""
    if not plane.ends:
        return
    tips = [plane.back(plane.moved((*end.tip, *end.tip))[:2]) for end in plane.ends]
    axes.annotate("", tips[0], tips[1], arrowprops=ARROW, zorder=1)
    for end in plane.ends:
        left, bottom, right, top = plane.moved(end.box)
        place = plane.back(((left + right) / 2, (bottom + top) / 2))
        style = {"fontsize": SMALL, "color": MUTED, "style": "italic", "linespacing": 1.25}
        axes.text(*place, "\n".join(end.names), ha="center", va="center", zorder=5, **style)


def _dots(axes: Axes, places: Sequence[Sequence[float]], families: Sequence[str], size: float = 1.0) -> None:
    for family, (marker, colour) in family_marks(families).items():
        mine = [place for place, other in zip(places, families, strict=True) if other == family]
        style = {
            "markersize": mark_size(marker) * size,
            "markeredgecolor": darker(colour),
            "markeredgewidth": 0.5 * size,
        }
        x, y = zip(*mine, strict=True)
        axes.plot(x, y, marker, color=colour, alpha=0.92, zorder=3, **style)


def _star(axes: Axes, place: Sequence[float], whole: bool, size: float = 1.0) -> None:
    """The Assistant's star, or the small open one of the control."""
    style: dict[str, Any] = {"markersize": 8.5 * size, "markerfacecolor": PAPER, "markeredgecolor": INK}
    if whole:
        style = {"markersize": 17 * size, "markerfacecolor": INK, "markeredgecolor": PAPER}
    axes.plot([place[0]], [place[1]], "*", zorder=4, markeredgewidth=0.9 * size, clip_on=False, **style)


def _path(axes: Axes, turns: Sequence[Result]) -> None:
    """A conversation as a line from turn to turn, each with its number."""
    axes.plot([turn["x"] for turn in turns], [turn["y"] for turn in turns], color=INK, linewidth=0.9, zorder=3.5)
    for turn in turns:
        style = {"color": PAPER, "markeredgecolor": INK, "markersize": 8.5, "markeredgewidth": 0.7}
        axes.plot([turn["x"]], [turn["y"]], "o", zorder=4.5, **style)
        number = {"fontsize": 5.5, "ha": "center", "va": "center_baseline", "zorder": 4.6}
        axes.text(turn["x"], turn["y"], plain(turn["turn"], 3), **number)


def _legend(axes: Axes, result: Result) -> None:
    """Who is who, in the space of a column: a mark a line."""
    families = [one["family"] for one in result["points"]]
    lines = [(name, str(families.count(name))) for name in family_marks(families)]
    axes.set(xlim=(0, BESIDE), ylim=(3.0, 0), xticks=[], yticks=[], frame_on=False)
    y = 0.08
    for name, count in lines:
        marker, colour = family_marks(families)[name]
        style = {"markersize": mark_size(marker) * 1.1, "markeredgecolor": darker(colour), "markeredgewidth": 0.5}
        axes.plot([0.1], [y], marker, color=colour, clip_on=False, **style)
        axes.text(0.28, y, plain(name, 28), va="center", fontsize=7.5)
        axes.text(BESIDE - 0.3, y, count, va="center", ha="right", fontsize=7.5, color=MUTED)
        y += min(0.2, 1.9 / len(lines))
    y += 0.1
    _star(axes, (0.1, y), whole=True, size=0.7)
    axes.text(0.28, y, "the Assistant: no system prompt", va="center", fontsize=7.5)
    if result.get("control"):
        y += 0.2
        _star(axes, (0.1, y), whole=False)
        axes.text(0.28, y, "control: a prompt that asks for nobody", va="center", fontsize=7.5)
    y += 0.2
    axes.annotate("", (0.2, y), (0.0, y), arrowprops=ARROW)
    axes.text(0.28, y, "the Assistant axis, its ends named", va="center", fontsize=7.5)
    if result.get("path"):
        y += 0.2
        axes.plot([0.0, 0.2], [y, y], color=INK, linewidth=0.9)
        axes.plot([0.1], [y], "o", color=PAPER, markeredgecolor=INK, markersize=6.5, markeredgewidth=0.7)
        axes.text(0.28, y, "a conversation, turn by turn", va="center", fontsize=7.5)


def _scree(axes: Axes, result: Result) -> None:
    """The variance that the first components carry together, for these personas and for random points."""
    together = [0.0, *itertools.accumulate(result["spectrum"])]
    null, count, random = null_spectrum(result), *(result[key]["components"] for key in ("statistic", "null"))
    low, high = cumulated(null["low"], null["high"])
    axes.fill_between(range(len(low)), low, high, color=FAINT, alpha=0.6, linewidth=0)
    axes.plot(together, color=BLUE, linewidth=1.3)
    axes.axhline(ENOUGH, color=MUTED, linewidth=0.6, linestyle=(0, (3, 2)), zorder=1)
    axes.plot([random["least"], random["most"]], [ENOUGH] * 2, color=GREY, linewidth=4)
    axes.plot([count["value"]], [ENOUGH], "o", color=BLUE, markersize=4)
    near = {"textcoords": "offset points", "fontsize": 7}
    axes.annotate(shown(count["value"], ".0f"), (count["value"], ENOUGH), (5, -10), color=BLUE, weight="bold", **near)
    many = f"random: {shown(random['least'], '.0f')} to {shown(random['most'], '.0f')}"
    # Where the band is drawn as far as this, there is room on its right, and otherwise on the left.
    side = {"ha": "left"} if len(low) > random["most"] else {"ha": "right"}
    axes.annotate(many, (random["most"], ENOUGH), (4, -11), color=MUTED, **side, **near)
    most = max(len(together), len(low), count["value"], random["most"] * 1.15)
    axes.set(xlim=(0, most), ylim=(0, 1.02), xlabel="components, the largest first")
    axes.set_title("variance carried by the first components", loc="left", fontsize=8, color=MUTED, pad=5)
    axes.set_yticks([0, 0.5, ENOUGH, 1], ["0", "50 %", "70 %", "100 %"])
    axes.tick_params(length=2.5, labelsize=6.5)
    axes.spines["left"].set_visible(True)


def cumulated(low: Sequence[float], high: Sequence[float]) -> tuple[list[float], list[float]]:
    """Bounds of a running sum of shares, from 0 of them on, out of the bounds of each share.

    Where the shares are all there, those still to come bound the sum as well, because all together they are 1.
    """
    least, most = ([0.0, *itertools.accumulate(shares)] for shares in (low, high))
    if most[-1] < 1:
        return least, most
    rests = [[bound[-1] - sum_so_far for sum_so_far in bound] for bound in (most, least)]
    lower = [max(x, 1 - rest) for x, rest in zip(least, rests[0], strict=True)]
    return lower, [min(x, 1 - rest) for x, rest in zip(most, rests[1], strict=True)]


def _layers(figure: Figure, top: float, result: Result) -> None:
    """The map at every layer that was asked for."""
    width, height = figure.get_size_inches()
    figure.text(0.25 / width, 1 - top / height, "Layer by layer", weight="bold", va="center")
    families, maps = [one["family"] for one in result["points"]], sorted(result["maps"], key=lambda one: one["layer"])
    across = max(4, math.ceil(len(maps) / math.ceil(len(maps) / MOST_ACROSS)))
    wide, high = (WIDTH - 0.4) / across, PANEL - 0.4
    for i, one in enumerate(maps):
        x, y = 0.25 + i % across * wide, top + 0.2 + i // across * PANEL
        axes = axes_at(figure, x, y + 0.2, wide - 0.12, high)
        places, axis = [*one["points"], one["assistant"]], {"x": one["axis"][0], "y": one["axis"][1]}
        plane = fit_plane(places, [(0.18, 0.18)] * len(places), axis, (wide - 0.12, high), high)
        if plane.ends:
            tips = [plane.back(plane.moved((*end.tip, *end.tip))[:2]) for end in plane.ends]
            axes.plot(*zip(*tips, strict=True), color=FAINT, linewidth=0.7, zorder=1)
        _dots(axes, one["points"], families, 0.5)
        _star(axes, one["assistant"], whole=True, size=0.55)
        low, far = plane.back((0, 0)), plane.back((plane.width, plane.height))
        axes.set(xlim=(low[0], far[0]), ylim=(low[1], far[1]), xticks=[], yticks=[], facecolor=GROUND)
        axes.spines["bottom"].set_visible(False)
        main = one["layer"] == result["layer"]
        axes.set_title(f"layer {one['layer']}", loc="left", fontsize=7.5, pad=3, weight="bold" if main else "normal")
        axes.set_title(
            " + ".join(shown(share, ".0%") for share in one["shares"]), loc="right", fontsize=6.5, pad=3, color=MUTED
        )


def _beneath(result: Result) -> Figure:
    """What a page shows beneath its map."""
    figure = blank(3.4, 2.9, "", "")
    _scree(axes_at(figure, 0.5, 0.3, 2.75, 2.15), result)
    return figure
