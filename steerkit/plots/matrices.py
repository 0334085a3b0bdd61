"""Pictures of many against many: how steering one trait moves the others, and what a file of replies selects for.

`save_spillover` draws what the experiment `spillover` reports, `save_screen` what `steerkit screen` does; no model.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerkit.errors import OutputError
from steerkit.plots.figures import (
    FAINT,
    INK,
    MUTED,
    PALE,
    PAPER,
    axes_at,
    check_ending,
    claimed,
    number,
    plain,
    save_drawing,
    sheet,
    verdict_lines,
    write_lines,
)
from steerkit.plots.labels import GREY, around, darker, family_marks, mark_size, place_labels, text_size
from steerkit.plots.planes import GROUND, interval, shown, spoken
from steerkit.tints import FULL, tint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = {"malign": ("^", "#d55e00"), "benign": ("o", "#009e73"), "other": ("s", GREY)}
TINY, MIXED = 6.0, ("D", GREY)
LARGEST, LEGIBLE, PALENESS = 0.46, 0.34, 0.3
MOST, LEAST, CHANCE, MOST_NAMED, MOST_PAIRS = 15, 5, 2.0, 6, 4
Result = Mapping[str, Any]
Matrix = Sequence[Sequence[float]]


def save_spillover(result: Result, path: Path) -> None:
    """Draw what steering each trait does to every other, beside the angles between their directions.

    Raises:
        OutputError: another ending than .png, .svg or .html, no traits, or a place that cannot be written.
    """
    check_ending(path)
    if not result["traits"]:
        raise OutputError("there is nothing to draw: no traits were steered; name at least two")
    rows = [
        {
            "steered": result["traits"][i]["name"],
            "measured": result["traits"][j]["name"],
            "shift": result["propensity"][i][j],
            "standard score": result["z"][i][j],
            "beyond chance": "yes" if result["significant"][i][j] else "no",
            "cosine": result["geometry"][i][j],
        }
        for i in result["order"]
        for j in result["order"]
    ]
    about = "shifts in nats a token, standard scores against random directions"
    save_drawing(path, plain(claimed(result)), rows, partial(_spillover, result, _title(claimed(result), path)), about)


def save_screen(result: Result, path: Path) -> None:
    """Draw which personas a file of replies leans to most, and which least, beyond what it does to random directions.

    Raises:
        OutputError: another ending than .png, .svg or .html, no probes, or a place that cannot be written.
    """
    check_ending(path)
    if not result["probes"]:
        raise OutputError("there is nothing to draw: the file was read with no probes; name some")
    keys = {"name": "probe", "family": "family", "mean": "mean", "low": "low", "high": "high", "beyond": "beyond"}
    rows = [
        {head: probe.get(key) for key, head in (keys | {"length_r": "r with length"}).items()}
        for probe in result["probes"]
    ]
    about = "means and intervals are scores, beyond is in standard deviations of random directions"
    save_drawing(path, plain(result["selects"]), rows, partial(_screen, result, _title(result["selects"], path)), about)


def _title(title: str, path: Path) -> str:
    """What is written over a drawing; a page has its title already."""
    return "" if path.suffix == ".html" else title


def _spillover(result: Result, title: str) -> Figure:
    """The shifts, large; the cosines in the same order; and the one against the other."""
    names = [spoken(trait["name"]) for trait in result["traits"]]
    cell = min(LARGEST, max(6.6 / len(names), 0.2))
    block, beside = cell * len(names), max(text_size(name, 7.5)[0] for name in names) + 0.35
    above, right = 0.3 + 0.75 * beside, max(2.9, 0.5 * cell * len(names))
    tall, x = max(above + block + 0.65, right + 3.2), 0.25 + beside + block + 0.9
    width = x + right + 0.35
    lines = _spillover_lines(result, width)
    verdict = verdict_lines(result, width)
    figure, top = sheet(width, tall + 0.5 + 0.19 * (len(verdict) + len(lines)), title, _about_spillover(result))
    shifts, scale = axes_at(figure, 0.25 + beside, top + above, block, block), _scale(result["propensity"])
    _heat(shifts, result, result["propensity"], scale, result["significant"])
    _name_sides(shifts, result, cell)
    _notch(shifts, result, cell)
    _colours(axes_at(figure, 0.25 + beside, top + above + block + 0.15, min(block, 2.2), 0.09), scale)
    _heat(axes_at(figure, x, top + 0.3, right, right), result, result["geometry"], 1.0)
    y = 1 - (top + 0.15) / figure.get_size_inches()[1]
    figure.text(x / width, y, "cosine of the directions, in the same order", va="center")
    rest = tall - right - 1.3
    _against(axes_at(figure, x, top + right + 0.85, right, rest), result, (right, rest))
    write_lines(figure, top + tall + 0.3, verdict, lines)
    return figure


def _about_spillover(result: Result) -> str:
    return (
        f"{plain(result['model'])} · rows are steered, columns are measured · pale: no more than random directions do"
    )


def _spillover_lines(result: Result, width: float) -> list[str]:
    null = result["null"]
    line = f"spill {interval(result['statistic'], '.0%')} of a trait's own rise"
    if exchanged := null.get("relabelled"):
        line += f", at most {shown(exchanged['most'], '.0%')} with labels exchanged (p {shown(exchanged['p'], '.3f')})"
    chance = f"{shown(null['least'], '+.2f')} to {shown(null['most'], '+.2f')}"
    lines = [f"{line} · {null['n']} random directions shift a trait by {chance} nats a token"]
    for heading, key in (("strongest", "strongest"), ("notched, the least foretold by their cosine", "surprising")):
        texts = [f"{_pair(one)} {shown(one['shift'], '+.2f')}" for one in result.get(key) or ()]
        lines += [f"{heading}: {' · '.join(texts[:MOST_NAMED])}"] if texts else []
    return [part for line in lines for part in textwrap.wrap(line, int(width * 15))]


def _pair(entry: Result) -> str:
    return f"{spoken(entry['steered'])} → {spoken(entry['measured'])}"


def _scale(matrix: Matrix) -> float:
    """What is drawn in full colour: the largest shift of another trait, which a trait's own would drown."""
    others = [abs(x) for i, row in enumerate(matrix) for j, x in enumerate(row) if i != j and math.isfinite(x)]
    return max([*others, *([] if others else [abs(x) for row in matrix for x in row])]) or 1.0


def _heat(
    axes: Axes, result: Result, matrix: Matrix, scale: float, known: Sequence[Sequence[bool]] | None = None
) -> None:
    """A matrix in the order of the clusters; where `known` says no, pale."""
    from matplotlib.collections import PolyCollection

    order, squares, colours = result["order"], [], []
    for y, i in enumerate(order):
        for x, j in enumerate(order):
            strength = FULL * matrix[i][j] / scale * (1.0 if known is None or known[i][j] else PALENESS)
            squares.append([(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1)])
            colours.append(tint(strength)[0] or GROUND)
    axes.add_collection(PolyCollection(squares, facecolors=colours, edgecolors=PAPER, linewidths=0.9))
    for y in range(len(order)):
        axes.plot([y, y + 1, y + 1, y, y], [y, y, y + 1, y + 1, y], color=INK, linewidth=0.7, solid_joinstyle="miter")
    axes.set(xlim=(0, len(order)), ylim=(len(order), 0), xticks=[], yticks=[], frame_on=False)


def _name_sides(axes: Axes, result: Result, cell: float) -> None:
    """Names with the marks of their kinds, and in cells that are large enough the numbers that are beyond chance."""
    order, size = result["order"], 7.5 if cell > LEGIBLE else 6.0
    for place, i in enumerate(order):
        trait = result["traits"][i]
        marker, colour = KINDS.get(trait["kind"], KINDS["other"])
        for x, y in ((-0.12 / cell, place + 0.5), (place + 0.5, -0.12 / cell)):
            axes.plot([x], [y], marker, color=colour, markersize=4.2, clip_on=False)
        name = spoken(trait["name"])
        axes.text(-0.24 / cell, place + 0.5, name, ha="right", va="center", fontsize=size)
        style = {"rotation": 45, "rotation_mode": "anchor", "ha": "left", "va": "center", "fontsize": size}
        axes.text(place + 0.5, -0.26 / cell, name, **style)
        for x, j in enumerate(order):
            if result["significant"][i][j] and cell > LEGIBLE:
                shift = result["propensity"][i][j]
                ink = tint(FULL * shift / _scale(result["propensity"]))[1] or INK
                axes.text(x + 0.5, place + 0.5, number(shift, "+.2f"), ha="center", va="center", fontsize=6, color=ink)


def _notch(axes: Axes, result: Result, cell: float) -> None:
    """A dark corner in each cell that surprises."""
    size = 0.09 / cell
    for y, x in _cells(result, "surprising"):
        axes.fill([x + 1 - size, x + 1, x + 1], [y, y, y + size], color=INK, linewidth=0)


def _cells(result: Result, key: str) -> Iterator[tuple[int, int]]:
    """Rows and columns, as they are drawn, of the cells of a list."""
    names = [result["traits"][i]["name"] for i in result["order"]]
    for one in result.get(key) or ():
        if one["steered"] in names and one["measured"] in names:
            yield names.index(one["steered"]), names.index(one["measured"])


def _colours(axes: Axes, scale: float) -> None:
    """What the colours mean, and the marks of the kinds."""
    steps = 21
    for i in range(steps):
        axes.bar(i, 1, 1.02, color=tint(FULL * (2 * i / (steps - 1) - 1))[0] or GROUND, align="edge", linewidth=0)
    axes.set(xlim=(0, steps), ylim=(0, 1), yticks=[], frame_on=False)
    axes.set_xticks([0, steps / 2, steps], [number(-scale, ".2f"), "0", number(scale, "+.2f")], fontsize=6.5)
    axes.tick_params(length=0, pad=2)
    axes.set_xlabel("shift of propensity, nats a token", fontsize=7, labelpad=1)
    for i, (kind, (marker, colour)) in enumerate(KINDS.items()):
        x, beside = 1.18 + 0.3 * i, axes.transAxes
        axes.plot([x], [0.5], marker, color=colour, markersize=4.6, transform=beside, clip_on=False)
        axes.text(x + 0.05, 0.5, kind, fontsize=7, color=MUTED, transform=beside, va="center_baseline")


def _against(axes: Axes, result: Result, size: tuple[float, float]) -> None:
    """Each pair's cosine against what steering the one does to the other; filled where that is beyond chance."""
    kinds = [trait["kind"] for trait in result["traits"]]
    axes.axhline(0, color=PALE, linewidth=0.8, zorder=0)
    axes.axvline(0, color=PALE, linewidth=0.8, zorder=0)
    for i, j in ((i, j) for i in result["order"] for j in result["order"] if i != j):
        marker, colour = KINDS.get(kinds[i], KINDS["other"]) if kinds[i] == kinds[j] else MIXED
        fill = colour if result["significant"][i][j] else PAPER
        style = {"color": colour, "markerfacecolor": fill, "markersize": 3.8, "markeredgewidth": 0.6}
        axes.plot([result["geometry"][i][j]], [result["propensity"][i][j]], marker, **style)
    found = f", r {shown(result['agreement'], '.2f')}" if "agreement" in result else ""
    axes.set_title(f"what the cosine foretells of the shift{found}", loc="left", fontsize=8, pad=16)
    about = "grey: of two kinds · hollow: no more than random directions do"
    axes.annotate(about, (0, 1), (0, 5), "axes fraction", "offset points", color=MUTED, fontsize=7)
    axes.set(xlabel="cosine of the directions", ylabel="shift, nats a token")
    axes.spines["left"].set_visible(True)
    axes.tick_params(length=2.5, labelsize=6.5)
    _name_pairs(axes, result, size)


def _name_pairs(axes: Axes, result: Result, size: tuple[float, float]) -> None:
    """Name the pairs that geometry foretells least, where there is room on a plot of so many inches."""
    order, limits, whole = result["order"], (axes.get_xlim(), axes.get_ylim()), (0.0, 0.0, *size)

    def place(i: int, j: int) -> tuple[float, float]:
        values = result["geometry"][i][j], result["propensity"][i][j]
        x, y = (room * (v - low) / (high - low) for room, v, (low, high) in zip(size, values, limits, strict=True))
        return x, y

    pairs = [(order[y], order[x]) for y, x in _cells(result, "surprising") if x != y][:MOST_PAIRS]
    texts = [" → ".join(spoken(result["traits"][k]["name"]) for k in pair) for pair in pairs]
    wanted = [(*place(*pair), *text_size(text, TINY)) for pair, text in zip(pairs, texts, strict=True)]
    marks = [around(x, y, 0.06) for x, y in (place(i, j) for i in order for j in order if i != j)]
    placed = place_labels(wanted, marks, whole, reaches=[0.06 + 0.05 * i for i in range(12)], clear=0.01)
    style: dict[str, Any] = {"ha": "center", "va": "center_baseline", "transform": axes.transAxes, "fontsize": TINY}
    for i, (left, bottom, right, top) in placed.items():
        (x, y), (width, height) = wanted[i][:2], size
        axes.text((left + right) / 2 / width, (bottom + top) / 2 / height, texts[i], zorder=5, **style)
        near = min(max(x, left), right), min(max(y, bottom), top)
        ends = [x / width, near[0] / width], [y / height, near[1] / height]
        axes.plot(*ends, color=MUTED, linewidth=0.5, transform=axes.transAxes, zorder=1)


def _screen(result: Result, title: str) -> Figure:
    """The probes that the data leans to most and least, in multiples of what random directions do."""
    shown_probes = list(enumerate(result["probes"]))
    left_out = len(shown_probes) - MOST - LEAST
    if left_out > 0:
        shown_probes = shown_probes[:MOST] + shown_probes[-LEAST:]
    left = 0.35 + max(text_size(spoken(probe["name"]), 8)[0] for _, probe in shown_probes)
    high = 0.25 * (len(shown_probes) + (left_out > 0))
    figure, top = sheet(left + 8.0, high + 0.95, title, _about_screen(result))
    axes = axes_at(figure, left + 0.15, top + 0.2, 4.9, high)
    axes.axvspan(-CHANCE, CHANCE, color=PALE, linewidth=0, zorder=0)
    axes.axvline(0, color=FAINT, linewidth=0.8, zorder=0)
    marks = family_marks(probe["family"] for probe in result["probes"])
    for row, (place, probe) in enumerate(shown_probes):
        _probe(axes, row + (left_out > 0 and place >= MOST), probe, marks[probe["family"]])
    if left_out > 0:
        style = {"transform": axes.get_yaxis_transform(), "color": MUTED, "fontsize": 7, "ha": "right", "va": "center"}
        axes.text(-0.03, MOST, f"{left_out} more between", **style)
    for x, heading in ((1.12, "beyond"), (1.26, "r with length"), (1.3, "")):
        axes.text(
            x, -0.9, heading, color=MUTED, fontsize=7, transform=axes.get_yaxis_transform(), ha="right", va="center"
        )
    axes.set(ylim=(len(shown_probes) + (left_out > 0) - 0.4, -0.6), yticks=[])
    axes.set_xlabel(f"mean score, in standard deviations of {plain(result['null']['n'])} random directions")
    return figure


def _about_screen(result: Result) -> str:
    read = f"{result['samples']} samples, {len(result['probes'])} probes"
    return f"{plain(result['file'], 80)} · {plain(result['model'])} · {read} · line: 95 % interval · grey: chance"


def _probe(axes: Axes, y: float, probe: Result, mark: tuple[str, str]) -> None:
    marker, colour = mark
    mean, beyond = probe["mean"], probe["beyond"]
    if mean and math.isfinite(beyond / mean):
        ends = [probe[key] * beyond / mean for key in ("low", "high")]
        axes.plot(ends, [y, y], color=darker(colour), linewidth=1.0, alpha=0.8)
    style = {"markersize": mark_size(marker) * 1.25, "markeredgecolor": darker(colour), "markeredgewidth": 0.6}
    axes.plot([beyond], [y], marker, color=colour, **style)
    beside, ink = axes.get_yaxis_transform(), INK if abs(beyond) >= CHANCE else MUTED
    texts = {
        -0.03: (spoken(probe["name"]), INK),
        1.12: (number(beyond, "+.1f"), ink),
        1.26: (shown(probe.get("length_r"), "+.2f"), MUTED),
    }
    for x, (text, colour) in texts.items():
        axes.text(x, y, text, color=colour, transform=beside, ha="right", va="center", fontsize=8 if x < 0 else 7.5)
    axes.text(1.3, y, plain(probe["family"], 24), color=MUTED, transform=beside, va="center", fontsize=7.5)
