"""How the rows of a claim are laid out: in which groups, at which heights, how wide their names and how far their axis.

Numbers only; `claims` draws them. No model.
"""

from __future__ import annotations

import math
import re
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steerkit.errors import OutputError
from steerkit.plots.figures import plain
from steerkit.plots.labels import text_size

Row = Mapping[str, Any]
Result = Mapping[str, Any]
BAND = "least to most"
"""Rows whose names end so have no interval: they tell between which ends a null falls."""
FAR, SOMEWHAT = 4.0, 1.5
"""An interval that reaches so many times as far as is usual is cut off, or it would leave no room for the others; but
not where it would almost fit."""
WIDEST, TELEPHONE = 3.1, 3.9
"""Inches that names may take on a desk, and that everything may take on a telephone."""


@dataclass(frozen=True)
class Group:
    """How the rows of one kind look."""

    marker: str
    """A shape, because colour alone does not tell everybody."""
    colour: str
    """From Okabe and Ito's palette, as everywhere."""
    heading: str
    """What is written over them."""


GROUPS = {
    "claim": Group("o", "#0072b2", "what the claim is about"),
    "control": Group("s", "#d55e00", "controls, to compare it with"),
    "null": Group("D", "#8f8f89", "nulls, to tell it from chance"),
}


@dataclass(frozen=True)
class Layout:
    """Where everything stands, in inches, and how large letters are, in points."""

    names: float
    """Width of the names on the left; 0 where each name stands over its own line."""
    plot: float
    """Width of the plot."""
    row: float
    """Height of a row."""
    second: float
    """What a second line of a name adds to it."""
    letters: float
    """Size of the names."""
    wrap: int
    """Letters of a name that fit on a line; it has two."""

    @property
    def stacked(self) -> bool:
        """Whether names stand over their lines."""
        return not self.names


@dataclass(frozen=True)
class Line:
    """What stands at one height of the picture."""

    y: float
    """Where its mark is drawn, in inches from the top of the plot."""
    group: Group
    """Whose line it is."""
    row: Row | None
    """What was measured; the heading of the group has none."""
    parts: tuple[str, ...]
    """Its name, on one line or two."""


def arrange(result: Result, layout: Layout) -> list[Line]:
    """The rows group by group, over each group its heading.

    Raises:
        OutputError: there are no rows.
    """
    if not result["rows"]:
        raise OutputError("there is nothing to draw; measure something first")
    found: list[Line] = []
    top = 0.0
    for name, group in GROUPS.items():
        mine = [row for row in result["rows"] if (row["group"] if row["group"] in GROUPS else "control") == name]
        if mine:
            high = 0.3 if layout.stacked else layout.row
            found.append(Line(top + high / 2, group, None, (group.heading,)))
            top += high
        for row in mine:
            parts = name_parts(row["name"], layout.wrap)
            high = layout.row + layout.second * (len(parts) - 1)
            found.append(Line(top + (high - 0.12 if layout.stacked else high / 2), group, row, parts))
            top += high
        top += 0.12 if mine else 0.0
    return found


def full_height(lines: Sequence[Line]) -> float:
    """Of the plot, in inches."""
    return lines[-1].y + 0.14


def wide_layout(result: Result) -> Layout:
    """Names on the left, as wide as they need; rows closer where there are many."""
    row, letters, wrap = (0.245, 8.0, 50) if len(result["rows"]) <= 24 else (0.21, 7.5, 53)
    parts = [part for each in result["rows"] for part in name_parts(each["name"], wrap)]
    longest = max([text_size(part, letters)[0] for part in parts], default=0.0)
    heading = max(text_size(group.heading, letters, bold=True)[0] + 0.2 for group in GROUPS.values())
    names = min(WIDEST, max(longest, heading))
    return Layout(names, 3.3 if result.get("curves") else 4.4, row, 0.06, letters, wrap)


def narrow_layout() -> Layout:
    """Each name over its own line."""
    return Layout(0.0, TELEPHONE, 0.4, 0.13, 8.6, 46)


def name_parts(name: Any, wrap: int) -> tuple[str, ...]:
    """A name on at most two lines, which are about equally long.

    >>> name_parts("a prompt that asks for nobody", 28)
    ('a prompt that', 'asks for nobody')
    """
    text = plain(name)
    if len(text) > wrap:
        for narrower in range(len(text) // 2, wrap):
            if len(parts := textwrap.wrap(text, narrower)) == 2:
                return tuple(parts)
    return tuple(textwrap.wrap(text, wrap, max_lines=2, placeholder=" …")) or ("",)


def span(rows: Sequence[Row]) -> tuple[float, float]:
    """From where to where the axis goes: zero, what the claim is about, and whatever else is not very much farther out.

    >>> span([{"value": 1.0, "low": 0.0, "high": 2.0}])
    (-0.1, 2.1)
    """
    told = [row for row in rows if row.get("group") != "null"] or rows  # Nulls are near zero, and say little of usual.
    ends, usual_ends = (
        [x for row in some for x in (row["low"], row["value"], row["high"]) if x is not None] for some in (rows, told)
    )
    mine = [row["value"] for row in rows if row.get("group") == "claim" and row["value"] is not None]
    usual = statistics.median(map(abs, usual_ends)) if usual_ends else 0.0
    most = max([FAR * usual, *(1.1 * abs(x) for x in mine)]) or 1.0
    inside = [0.0, *mine, *(x if abs(x) <= SOMEWHAT * most else math.copysign(most, x) for x in ends)]
    room = 0.05 * (max(inside) - min(inside)) or 1.0
    return round(min(inside) - room, 9), round(max(inside) + room, 9)


def is_band(row: Row) -> bool:
    """Whether a row tells the least and the most of a null, not an interval.

    >>> is_band({"name": "20 random directions, least to most"}), is_band({"name": "nobody says why"})
    (True, False)
    """
    return BAND in str(row["name"])


def goes_through(row: Row) -> bool:
    """Whether a band is drawn through all rows, since every one of them is a shift that can be held against it.

    Other bands, of differences or of exchanged labels, are about one row alone; and one that is not around zero tells
    what random directions leave of something, not what they do.

    >>> goes_through({"name": "20 random directions, least to most", "low": -0.1, "high": 0.1})
    True
    >>> goes_through({"name": "labels exchanged, least to most", "low": -0.1, "high": 0.1})
    False
    """
    if not is_band(row) or row["low"] is None or not row["low"] <= 0 <= row["high"]:
        return False
    return bool(re.match(r"\d+ random directions\b", str(row["name"])))
