"""A claim whose statistic is a place on a line between two groups; no model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerkit.errors import OutputError
from steerkit.plots.figures import (
    FAINT,
    INK,
    MUTED,
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
from steerkit.plots.labels import darker, family_marks, mark_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, ROW = 8.6, 0.27
OWN, CONTROL = "the Assistant", "a prompt that asks for nobody"


def save_humanlike(result: Mapping[str, Any], path: Path) -> None:
    """Draw where every family, the control and the Assistant fall between non-human things and human characters.

    Raises:
        OutputError: another ending than .png, .svg or .html, or a place that cannot be written.
    """
    check_ending(path)
    own = result["statistic"]
    rows = [{"who": name, "place": place, "low": None, "high": None} for name, place in _places(result).items()]
    for row in rows:
        if row["who"] == OWN:
            row.update(low=own["low"], high=own["high"])
    title = plain(claimed(result))
    drawn = "" if path.suffix == ".html" else title
    save_drawing(path, title, rows, partial(_line, result, drawn), "0 is the mean of the things, 1 of the characters")


def _places(result: Mapping[str, Any]) -> dict[str, float]:
    """Everybody's place, from the things upwards."""
    every = {**result["families"], CONTROL: result["control"], OWN: result["statistic"]["value"]}
    places = {name: place for name, place in every.items() if place is not None}
    if not places:
        raise OutputError("there is nothing to draw: people and things do not stand apart")
    return dict(sorted(places.items(), key=lambda entry: entry[1]))


def _line(result: Mapping[str, Any], title: str) -> Figure:
    places, own = _places(result), result["statistic"]
    height = ROW * len(places)
    about = f"{plain(result['model'])} · layer {result['layer']} · {result['people']} people, {result['things']} things"
    lines = verdict_lines(result, WIDTH)
    figure, top = sheet(WIDTH, height + 1.0 + 0.25 * len(lines), title, about)
    axes = axes_at(figure, 2.5, top + 0.1, WIDTH - 3.2, height)
    bounds = [*places.values(), *(own[key] for key in ("low", "high") if own[key] is not None), 0.0, 1.0]
    room = 0.06 * (max(bounds) - min(bounds))
    axes.set(ylim=(len(places) - 0.4, -0.6), xlim=(min(bounds) - room, max(bounds) + room), yticks=[])
    axes.axvline(result["thresholds"]["halfway"], color=FAINT, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    marks = family_marks(result["families"])
    for row, (name, place) in enumerate(places.items()):
        marker, colour = marks.get(name, ("*", INK))
        if name == OWN and own["low"] is not None:
            axes.plot([own["low"], own["high"]], [row, row], color=INK, linewidth=1.4)
        _mark(axes, row, name, place, marker, colour)
    axes.set_xlabel("from non-human things, 0, to human characters, 1 · line: 95 % interval")
    write_lines(figure, top + 0.1 + height + 0.75, lines)
    return figure


def _mark(axes: Axes, row: int, name: str, place: float, marker: str, colour: str) -> None:
    large, inside = 2.2 if marker == "*" else 1.25, "none" if name == CONTROL else colour
    style = {"markersize": mark_size(marker) * large, "markeredgecolor": darker(colour) if marker != "*" else INK}
    axes.plot([place], [row], marker, color=colour, markerfacecolor=inside, markeredgewidth=0.6, **style)
    beside, weight = axes.get_yaxis_transform(), "bold" if name == OWN else "normal"
    axes.text(-0.03, row, plain(name, 40), color=INK, weight=weight, transform=beside, ha="right", va="center")
    axes.text(1.07, row, number(place, "+.2f"), color=MUTED, transform=beside, ha="right", va="center", fontsize=7.5)
