"""Several models that were tuned from one base, a line each: where their shifts lie, and whom they went towards.

They are no course from one to the next, as checkpoints are; nothing joins them. No model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerkit.plots.figures import (
    FAINT,
    INK,
    MUTED,
    PALE,
    PAPER,
    axes_at,
    check_ending,
    number,
    plain,
    save_drawing,
    sheet,
)
from steerkit.plots.labels import text_size
from steerkit.plots.selections import SPAN, TEXT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Result = Mapping[str, Any]
WIDTH, EDGE, ROW, LETTERS, PLOT = 10.4, 0.25, 0.3, 8.0, 3.4
INKS = {"selection": "#1a7f37", "not selection": "#b42318"}


def save_siblings(results: Sequence[Result], path: Path) -> None:
    """Draw comparisons of several models with one base as .png, .svg, or a page with the same in numbers.

    Raises:
        OutputError: another ending, matplotlib is missing, or the file cannot be written.
    """
    check_ending(path)
    title = f"Tuned from {plain(results[0]['base'], 60)}: where each change lies, and whom it went towards"
    rows = [
        {"model": name_of(result), "verdict": result["verdict"], "what": key, **_ends(result[key])}
        for result in results
        for key in ("share", "generic", "shaken")
    ]
    about = "shares of the shift's square in the persona span, in text's directions, under random changes of the model"
    save_drawing(path, title, rows, partial(_draw, results, title), about)


def name_of(result: Result) -> str:
    """What was tuned, without the base that all of them have."""
    return plain(str(result["tuned"]).removeprefix(f"{result['base']}+"), 44)


def _ends(told: Mapping[str, Any] | None) -> dict[str, Any]:
    told = told or {}
    return {
        "value": told.get("value", told.get("mean")),
        "low": told.get("low", told.get("least")),
        "high": told.get("high", told.get("bound")),
    }


def _draw(results: Sequence[Result], title: str) -> Figure:
    """A row a model: both shares as dots, what random changes reach as a box, the verdict, and names."""
    high, first = ROW * len(results), results[0]
    about = (
        f"at layer {first['layer']} · {first['questions']} neutral questions · {first['vectors']} personas · blue: the "
        "persona span · orange: text's directions · box: random changes of the model"
    )
    figure, top = sheet(WIDTH, high + 0.75, title, about)
    names = max(text_size(name_of(result), LETTERS)[0] for result in results)
    left = EDGE + names + 0.2
    axes = axes_at(figure, left, top, PLOT, high)
    for i, result in enumerate(results):
        beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": LETTERS}
        axes.text(-0.1 / PLOT, i, name_of(result), ha="right", **beside)
        if result["shaken"]:
            box = result["shaken"]
            axes.barh(i, 100 * (box["bound"] - box["least"]), 0.7, 100 * box["least"], color=PALE, zorder=0)
        for key, colour, away in (("generic", TEXT, 0.17), ("share", SPAN, -0.1)):
            if result[key] is not None:
                low, value, end = (100 * result[key][each] for each in ("low", "value", "high"))
                axes.plot([low, end], [i + away, i + away], color=colour, linewidth=1.3)
                axes.plot([value], [i + away], "o", color=colour, markeredgecolor=PAPER, markersize=5)
        ink = INKS.get(result["verdict"], MUTED)
        axes.text(1 + 0.15 / PLOT, i, result["verdict"], color=ink, weight="bold", **beside)
        axes.text(1 + 1.25 / PLOT, i, _whom(result, left), color=INK, **beside)
    axes.axhline(-0.5, color=FAINT, linewidth=0)
    axes.set(ylim=(len(results) - 0.5, -0.5), yticks=[], xlabel="share of the shift")
    axes.set_xlim(left=0)
    axes.tick_params(length=2.5, labelsize=LETTERS - 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    return figure


def _whom(result: Result, left: float) -> str:
    """The personas furthest beyond chance either way, as many as there is room for."""
    rows = {row["name"]: row for row in result["personas"]}
    told, room = "", WIDTH - EDGE - left - PLOT - 1.25
    for name in [*result["selected"][:3], *result["left"][:3]]:
        longer = f"{told}{', ' if told else ''}{plain(name, 24)} {number(rows[name]['value'], '+.2f')}"
        if text_size(longer, LETTERS)[0] > room:
            break
        told = longer
    return told or "nobody beyond chance"
