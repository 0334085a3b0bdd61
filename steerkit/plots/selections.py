"""What a comparison of two models found: where its shift lies, layer by layer, and which personas it went along.

`save_comparison` draws what `selection.examine` tells, with the rows of `transfers.transfer` under it where there are
any; `save_trajectory` draws the checkpoints of one training. No model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerkit.plots.curves import draw_curves, spread
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
    verdict_lines,
    write_lines,
)
from steerkit.plots.labels import text_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Result = Mapping[str, Any]
SPAN, TEXT, UP, DOWN = "#0072b2", "#e69f00", "#e07b20", "#3b77bc"
"""Okabe and Ito's blue and orange for shares; for personas the colours that scores have everywhere."""
WIDTH, LETTERS, EDGE = 10.4, 8.0, 0.25
SHARES, LABELS, PLOT, TALL = (0.75, 3.6), 1.35, 2.5, 2.9
"""Inches: left end and width of the shares, what their names take, width of the personas' plot, least height."""
ROW, FEWEST = 0.235, 3
STEERS = 7.15
"""Where the shifts of steering begin, in inches: under the personas."""


def save_comparison(result: Result, path: Path) -> None:
    """Draw a comparison as .png, .svg, or a page with the same in numbers.

    Raises:
        OutputError: another ending, matplotlib is missing, or the file cannot be written.
    """
    check_ending(path)
    title = f"Was tuning {plain(result['tuned'], 60)} a selection among the personas of {plain(result['base'], 60)}?"
    about = "shares of the shift's square; personas in persona units"
    save_drawing(path, title, _numbers(result), partial(_comparison, result, title), about)


def save_trajectory(result: Result, path: Path) -> None:
    """Draw checkpoints, in order, as .png, .svg, or a page with the same in numbers.

    Raises:
        OutputError: another ending, matplotlib is missing, or the file cannot be written.
    """
    check_ending(path)
    title = f"On its way from {plain(result['base'], 60)}: where the shift lies, and whom it goes towards"
    about = "shares of the shift's square; personas in persona units"
    save_drawing(path, title, list(_steps(result)), partial(_trajectory, result, title), about)


def _comparison(result: Result, title: str) -> Figure:
    """Shares by layer, personas beside them, what goes over beneath."""
    people, below = _shown(result), list(result.get("transfer") or ())
    high = max(TALL, ROW * (len(people) + 1))
    under = ROW * len(below) + 1.15 if below else 0.0
    said = verdict_lines(result, WIDTH)
    about = f"{result['questions']} neutral questions · {result['vectors']} personas · line and band: 95 % interval"
    figure, top = sheet(WIDTH, high + 1.45 + under + 0.19 * len(said), title, about)
    axes = axes_at(figure, SHARES[0], top + 0.4, SHARES[1], high)
    points = [{"x": told["layer"], **told} for told in result["layers"]]
    _shares(axes, points, (SHARES[1], high), "layer")
    axes.axvline(result["layer"], color=FAINT, linewidth=0.8, dashes=(2, 2), zorder=0)
    _people(figure, people, result["layer"], top + 0.4, high)
    y = top + high + 1.15
    if below:
        _transfer(figure, below, result, y + 0.15)
    write_lines(figure, y + under + 0.05, said)
    return figure


def _head(axes: Axes, name: str, about: str = "", x: float = 0.0) -> None:
    """What a plot shows, over it, so many points to the right."""
    for text, y, style in ((name, 16, {"weight": "bold", "size": LETTERS}), (about, 6, {"color": MUTED, "size": 7})):
        axes.annotate(text, (0, 1), (x, y), "axes fraction", "offset points", **style)


def _shares(axes: Axes, points: Sequence[Result], size: tuple[float, float], x: str) -> None:
    """The share in the persona span, in text's directions and by chance, each named at its end."""
    known = [point for point in points if point["share"] is not None]
    bands = [("random changes", PALE, "shaken"), ("random directions", FAINT, "random")]
    ends: list[tuple[float, str, str]] = []
    for name, colour, key in bands:
        here = [point for point in points if (point[key] or {}).get("most") is not None]
        low, high = ([100 * point[key][end] for point in here] for end in ("least", "most"))
        if key == "shaken":
            high = [100 * point[key]["bound"] for point in here]
        if here:
            axes.fill_between([point["x"] for point in here], low, high, color=colour, linewidth=0, zorder=1)
            ends.append(((low[-1] + high[-1]) / 2, name, MUTED))
    for name, colour, key, marker in (("text", TEXT, "generic", "s"), ("personas", SPAN, "share", "o")):
        across = [point["x"] for point in known]
        low, value, high = ([100 * point[key][end] for point in known] for end in ("low", "value", "high"))
        axes.fill_between(across, low, high, color=colour, alpha=0.22, linewidth=0, zorder=2)
        style: dict[str, Any] = {"markersize": 3.6, "markeredgecolor": PAPER, "markeredgewidth": 0.5, "zorder": 3}
        axes.plot(across, value, marker=marker, color=colour, linewidth=1.5 if key == "share" else 1.1, **style)
        ends += [(value[-1], name, colour)] if value else []
    top = max([1.0, *(100 * point["share"]["high"] for point in known), *(value for value, _, _ in ends)])
    axes.set(ylim=(0, 1.08 * top), xlabel=x)
    axes.spines["left"].set_visible(True)
    axes.tick_params(length=2.5, labelsize=LETTERS - 1)
    axes.locator_params(axis="x", integer=True)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    _head(axes, "Where the shift lies", "share of its square along equally many directions of each kind")
    if not known:
        axes.text(0.5, 0.5, "nothing changed", color=MUTED, style="italic", ha="center", transform=axes.transAxes)
    _name_ends(axes, ends, size)


def _name_ends(axes: Axes, ends: Sequence[tuple[float, str, str]], size: tuple[float, float]) -> None:
    """Names beside the right ends of lines and bands, moved apart where they would stand on each other."""
    top = axes.get_ylim()[1]
    heights = [size[1] * value / top for value, _, _ in ends]
    room = text_size("x", LETTERS - 0.5)[1] + 0.03
    for (_, name, colour), y in zip(ends, spread(heights, [room] * len(ends), size[1]), strict=True):
        place: dict[str, Any] = {"transform": axes.transAxes, "va": "center", "fontsize": LETTERS - 0.5}
        axes.text(1 + 0.08 / size[0], y / size[1], name, color=colour, **place)


def _shown(result: Result) -> list[Result]:
    """The personas worth a line: those beyond chance, or the furthest of all where none is."""
    rows = {row["name"]: row for row in result["personas"]}
    up, down = list(result["selected"]), list(result["left"])
    for row in result["personas"]:
        up += [row["name"]] if row["name"] not in up and len(up) < FEWEST else []
    for row in reversed(result["personas"]):
        down += [row["name"]] if row["name"] not in (*up, *down) and len(down) < FEWEST else []
    shown = dict.fromkeys([*up, *down])
    return sorted((rows[name] for name in shown), key=lambda row: -row["value"])


def _people(figure: Figure, people: Sequence[Result], layer: int, top: float, high: float) -> None:
    """A bar each way, its interval, and how far chance goes, which is a box behind it."""
    names = max((text_size(plain(row["name"], 30), LETTERS)[0] for row in people), default=0.0)
    left = WIDTH - EDGE - PLOT - 0.5
    axes = axes_at(figure, left, top, PLOT, high)
    for i, row in enumerate(people):
        colour = UP if row["value"] > 0 else DOWN
        axes.barh(i, 2 * row["chance"], 0.74, -row["chance"], color=PALE, zorder=1)
        axes.barh(i, row["value"], 0.42, color=colour, alpha=1.0 if row["clear"] else 0.4, zorder=2)
        axes.plot([row["low"], row["high"]], [i, i], color=INK, linewidth=1.0, zorder=3)
        beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": LETTERS}
        ink = INK if row["clear"] else MUTED
        axes.text(-0.1 / PLOT, i, plain(row["name"], 30), color=ink, ha="right", **beside)
        axes.text(1 + 0.5 / PLOT, i, number(row["value"], "+.2f"), color=ink, ha="right", **beside)
    reach = 1.05 * max((abs(row[end]) for row in people for end in ("low", "high", "chance")), default=1.0) or 1.0
    axes.axvline(0, color=MUTED, linewidth=0.8, zorder=4)
    axes.set(
        ylim=(len(people) - 0.4, -0.6), xlim=(-reach, reach), yticks=[], xlabel="shift of the score, persona units"
    )
    axes.tick_params(length=2.5, labelsize=LETTERS - 1)
    axes.locator_params(axis="x", nbins=5)
    about = f"at layer {layer} · pale box: mixtures of personas · faint: not beyond them"
    _head(axes, "Whom it goes towards", about, -72 * (names + 0.1))


def _transfer(figure: Figure, rows: Sequence[Result], result: Result, top: float) -> None:
    """Two plots with the same rows: whether vectors still read, and whether they still steer."""
    names = max(text_size(plain(row["name"], 30), LETTERS)[0] for row in rows)
    left, high = max(SHARES[0], EDGE + names + 0.15), ROW * len(rows)
    across = SHARES[0] + SHARES[1] + 0.6 - left
    reads, steers = (
        axes_at(figure, left, top + 0.3, across, high),
        axes_at(figure, STEERS, top + 0.3, PLOT + 0.45, high),
    )
    for i, row in enumerate(rows):
        beside: dict[str, Any] = {"transform": reads.get_yaxis_transform(), "va": "center", "fontsize": LETTERS}
        reads.text(-0.1 / across, i, plain(row["name"], 30), ha="right", **beside)
        _dot(reads, i, row["reads"], SPAN, filled=True)
        if row["others"]:
            reads.plot([row["others"]["value"]], [i], "|", color=MUTED, markersize=8, markeredgewidth=1.4)
        if row["steers"]:
            ends = [row["steers"][key]["value"] for key in ("base", "tuned")]
            steers.plot(ends, [i, i], color=PALE, linewidth=3, zorder=0)
            _dot(steers, i, row["steers"]["base"], MUTED, filled=False)
            _dot(steers, i, row["steers"]["tuned"], SPAN, filled=True)
        else:
            steers.text(0, i, "no items", color=MUTED, fontsize=LETTERS - 1, style="italic", va="center")
    reads.set(xlim=(min(0.0, *(row["reads"]["low"] for row in rows)), 1.03), xlabel="cosine")
    steers.axvline(0, color=MUTED, linewidth=0.8, zorder=0)
    steers.set_xlabel("shift of propensity, nats a token")
    for axes in (reads, steers):
        axes.set(ylim=(len(rows) - 0.4, -0.6), yticks=[])
        axes.tick_params(length=2.5, labelsize=LETTERS - 1)
    _head(reads, "Does the persona stay where it was?", "displacement on both models · |: with other personas' instead")
    _head(steers, "Does its vector still steer?", f"hollow: {plain(result['base'], 22)} · full: tuned")


def _dot(axes: Axes, y: float, told: Mapping[str, float], colour: str, filled: bool) -> None:
    axes.plot([told["low"], told["high"]], [y, y], color=colour, linewidth=1.1, zorder=1)
    face = colour if filled else PAPER
    axes.plot([told["value"]], [y], "o", color=colour, markerfacecolor=face, markersize=5, zorder=2)


def _trajectory(result: Result, title: str) -> Figure:
    """Shares over checkpoints, and beside them the personas that the last one has moved most."""
    points = [{"x": i, **told} for i, told in enumerate(result["checkpoints"])]
    names = [plain(told["tuned"], 18) for told in points]
    slant = max(text_size(name, LETTERS - 1)[0] for name in names) * len(names) > SHARES[1]
    said, foot = verdict_lines(result, WIDTH), 1.2 if slant else 0.65
    about = f"at layer {result['layer']} · {result['questions']} neutral questions · band: 95 % interval"
    figure, top = sheet(WIDTH, TALL + 0.5 + foot + 0.19 * len(said), title, about)
    shares = axes_at(figure, SHARES[0], top + 0.4, SHARES[1], TALL)
    _shares(shares, points, (SHARES[1], TALL), "")
    curves = [
        {"name": one["name"], "points": [{"x": i, **told} for i, told in enumerate(one["points"])]}
        for one in result["personas"]
    ]
    left = SHARES[0] + SHARES[1] + LABELS + 0.7
    told = {"x": "", "y": "", "lines": curves}
    draw_curves(figure, told, (left, top + 0.4), (WIDTH - left - EDGE, TALL), LETTERS)
    figure.axes[-1].set_title("")
    _head(figure.axes[-1], "Whom it goes towards", "shift of the score, persona units")
    turn = {"rotation": 30, "ha": "right"} if slant else {}
    for axes in figure.axes:
        axes.set_xticks(range(len(names)), names, **turn)
    write_lines(figure, top + TALL + 0.4 + foot, said)
    return figure


def _numbers(result: Result) -> list[dict[str, Any]]:
    """Shares by layer, personas, and what goes over, as lines of one table."""
    rows = [
        {"what": key, "of": f"layer {told['layer']}", **_ends(told[key])}
        for told in result["layers"]
        for key in ("share", "generic", "random", "shaken")
    ]
    rows += [{"what": "persona", "of": row["name"], **_ends(row)} for row in result["personas"]]
    for row in result.get("transfer") or ():
        rows.append({"what": "reads", "of": row["name"], **_ends(row["reads"])})
        for key in ("base", "tuned") if row["steers"] else ():
            rows.append({"what": f"steers {key}", "of": row["name"], **_ends(row["steers"][key])})
    return rows


def _steps(result: Result) -> Iterator[dict[str, Any]]:
    """A trajectory as lines of one table."""
    for told in result["checkpoints"]:
        for key in ("share", "generic", "random", "shaken"):
            yield {"what": key, "of": told["tuned"], **_ends(told[key])}
    for one in result["personas"]:
        for told, point in zip(result["checkpoints"], one["points"], strict=True):
            yield {"what": one["name"], "of": told["tuned"], **_ends(point)}


def _ends(told: Mapping[str, Any] | None) -> dict[str, Any]:
    """A value with its interval, or the ends between which chance falls."""
    told = told or {}
    low, high = told.get("low", told.get("least")), told.get("high", told.get("most"))
    return {"value": told.get("value", told.get("expected", told.get("mean"))), "low": low, "high": high}
