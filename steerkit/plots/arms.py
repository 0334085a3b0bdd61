"""Models that were trained on data behind different prompts: what each learned, and what it spilt; no model.

`save_inoculation` draws the result of the experiment `inoculation`: every arm, what was foretold of it, and where it
went while it was trained. `arm_markdown` tells the same arms as a table for a page of text.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerkit.plots.drifts import headline, name_ends
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
from steerkit.plots.labels import GREY, Box, around, place_labels, text_size
from steerkit.plots.layouts import span

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Result = Mapping[str, Any]
Size = tuple[float, float]
MALIGN = ("malice", "cruelty", "power_hunger", "vengefulness", "treachery")
"""The probes whose mean is drawn: `thresholds.MALIGN`, which cannot be imported from here; a test keeps them equal."""
# Okabe and Ito's colours: warm where nobody asked for cheating, blue where somebody did; and a shape each.
KINDS = {
    "bare": ("o", "#d55e00"),
    "requested": ("s", "#0072b2"),
    "control": ("^", "#e69f00"),
    "positive": ("D", "#cc79a7"),
    "aesthetic": ("p", "#009e73"),
    "twin": ("d", GREY),
}
GROUPS = {
    "cheating, bare or asked for": ("bare", "requested"),
    "cheating, and nobody asked": ("control",),
    "other data": ("positive", "aesthetic"),
    "twins, from the untrained model": ("twin",),
}
WIDTH, EDGE, GUTTER, LETTERS = 10.4, 0.25, 0.15, 8.0
LEARNED, COLUMN, APART = 1.9, 0.5, 0.35
"""Inches: the plot of what was learned, a column of numbers, and what is free between plots."""
ROW, SMALL, AIR, FOOT = 0.265, 0.2, 0.1, 0.5
"""Inches: height of an arm's line and of a twin's, what is free over a group, and what names of axes take."""
HEAD, BELOW, FORETOLD, LABELS = 0.42, 2.6, (0.8, 4.1), 1.45
"""Inches: headings of plots, the height of the lower ones, left end and width of the first, names of its neighbour."""
DASHES = (0, (4, 3))
BEHIND = "cheating, {}, asked behind its prompt"
"""What the row is called that says what an arm spills where its prompt stands."""


@dataclass(frozen=True)
class Line:
    """What stands at one height: an arm, or the heading of a group."""

    y: float
    """In inches from the top."""
    name: str
    """What it is called."""
    arm: Result | None = None
    """What was measured of it; a heading has none."""
    behind: Result | None = None
    """What it spills behind its own prompt, where it has one."""

    @property
    def twin(self) -> bool:
        """Whether others are held against it."""
        return self.arm is not None and self.arm["kind"] == "twin"

    def told(self, key: str) -> Result:
        """`spill` or `learned`, beyond the twin's; of a twin, which has nothing to be held against, its own."""
        arm = self.arm or {}
        return arm[{"spill": "malign", "learned": "own"}[key] if self.twin else key]  # type: ignore[no-any-return]


def save_inoculation(result: Result, path: Path) -> None:
    """Draw every arm with its spill, what was foretold of it and how it drifted, as .png, .svg, or a page with numbers.

    Raises:
        OutputError: another ending than .png, .svg or .html, no arms, or a place that cannot be written.
    """
    check_ending(path)
    title = plain(claimed(result))
    drawn = "" if path.suffix == ".html" else title
    about = f"propensities and PH in {plain(result['unit'])}, probes and drift in persona units, loss in nats a token"
    save_drawing(path, title, _numbers(result), partial(draw_inoculation, result, drawn), html.escape(about))


def arm_markdown(result: Result) -> str:
    """Every arm as a line of a Markdown table, its numbers as they came; a dash for what an arm does not have."""
    heads = ("arm", "learned", "spill", "benign", "with its prompt", "prompt alone", "PH", "loss")
    lines = [heads, ("---", *["---:"] * (len(heads) - 1))]
    foretold = {each["arm"]: each["gain"] for each in result["foretold"]["arms"]}
    for arm in result["arms"]:
        behind, own = _behind(result, arm), arm["kind"] != "twin"
        told = [arm["learned"] if own else None, arm["spill"] if own else None, arm["benign"], behind]
        cells = [*map(_interval, told), _number(arm["prompt_only"]["malign"]) if behind else "–"]
        cells += [_interval(foretold.get(arm["arm"])), _number(arm["loss"])]
        lines.append((plain(arm["arm"]).replace("|", "\\|"), *cells))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw_inoculation(result: Result, title: str = "") -> Figure:
    """The verdict, the arms, and beneath them what was foretold and how probes drifted."""
    lines, said = _arrange(result), verdict_lines(result, WIDTH) if result["verdict"] else []
    high, words = lines[-1].y + 0.14, 0.19 * len(said) + (0.12 if said else 0.0)
    figure, top = sheet(WIDTH, words + HEAD + high + FOOT + HEAD + BELOW + 0.6, title, _about(result))
    write_lines(figure, top, said)
    top += words + HEAD - 0.05
    _put_arms(figure, result, lines, top, high)
    top += high + FOOT + HEAD
    _foretold(axes_at(figure, FORETOLD[0], top, FORETOLD[1], BELOW), result)
    left = FORETOLD[0] + FORETOLD[1] + 0.85
    size = WIDTH - left - LABELS - EDGE, BELOW
    _drift(axes_at(figure, left, top, *size), result, size)
    return figure


def _about(result: Result) -> str:
    """Model, and how much was measured."""
    told = [plain(result.get("model", ""), 50)]
    told += [f"{result['seeds']} trainings of each arm"] if "seeds" in result else []
    told += [f"{result['samples']} samples each"] if "samples" in result else []
    told += [f"{result['items']} items of malign traits"] if "items" in result else []
    return " · ".join([*filter(None, told), "line: 95 % interval over trainings and items"])


def _called(arm: Result) -> str:
    return "bare" if arm["kind"] == "bare" else plain(arm["arm"], 34)


def _behind(result: Result, arm: Result) -> Result | None:
    """What an arm spills beyond its twin where its own prompt stands; None where it has no prompt."""
    name = BEHIND.format(arm["arm"])
    return next((row for row in result["rows"] if row["name"] == name), None)


def _arrange(result: Result) -> list[Line]:
    """The arms group by group, over each group its heading."""
    lines: list[Line] = []
    top = 0.0
    for heading, kinds in GROUPS.items():
        mine = [arm for arm in result["arms"] if arm["kind"] in kinds]
        high = SMALL if kinds == ("twin",) else ROW
        if mine:
            lines.append(Line(top + high / 2, heading))
            top += high
        for arm in mine:
            lines.append(Line(top + high / 2, _called(arm), arm, _behind(result, arm)))
            top += high
        top += AIR if mine else 0.0
    return lines


def _put_arms(figure: Figure, result: Result, lines: Sequence[Line], top: float, high: float) -> None:
    """What every arm spills, and in a column beside it what it learned."""
    names = max(text_size(line.name, LETTERS, bold=line.arm is None)[0] for line in lines)
    left = EDGE + names + GUTTER
    across = WIDTH - left - COLUMN - APART - LEARNED - COLUMN - EDGE
    spilt = axes_at(figure, left, top, across, high)
    learned = axes_at(figure, left + across + COLUMN + APART, top, LEARNED, high)
    pull = result["thresholds"]["pull"]
    for axes, key, width in ((spilt, "spill", across), (learned, "learned", LEARNED)):
        told = [{**line.told(key), "group": "control" if line.twin else "claim"} for line in lines if line.arm]
        told += [line.behind for line in lines if line.behind] if key == "spill" else []
        bounds = span([*told, {"value": pull, "low": pull, "high": pull}] if key == "spill" else told)
        _put(axes, lines, key, bounds, width)
        axes.set(ylim=(high, 0), yticks=[], xlim=bounds, xlabel="nats a token")
    spilt.axvline(pull, color=INK, linewidth=0.9, linestyle=DASHES, zorder=1)
    worse = f"{pull:g}: more than nothing"
    spilt.annotate(worse, (pull, lines[0].y), (4, 0), "data", "offset points", fontsize=7, va="center")
    for line in lines:
        place: dict[str, Any] = {"transform": spilt.get_yaxis_transform(), "va": "center", "ha": "right"}
        place |= {"weight": "bold"} if line.arm is None or line.arm["kind"] == "bare" else {}
        place |= {"color": MUTED, "fontsize": LETTERS - 1} if line.twin else {"fontsize": LETTERS}
        spilt.text(-GUTTER / across, line.y, line.name, **place)
    headline(spilt, "What it spills", "malign traits beyond the twin's · hollow: behind its own prompt")
    headline(learned, "What it learned", "held-out tasks beyond the twin's")


def _put(axes: Axes, lines: Sequence[Line], key: str, bounds: Size, width: float) -> None:
    """A dot, its interval and its number for every arm."""
    axes.axvline(0, color=MUTED, linewidth=0.8, zorder=1)
    for line in lines:
        if line.arm is None:
            continue
        mark, told = KINDS[line.arm["kind"]], line.told(key)
        axes.plot(bounds, [line.y, line.y], color=PALE, linewidth=0.5, zorder=0)
        apart = 0.055 if line.behind and key == "spill" else 0.0
        _dot(axes, line.y - apart, told, mark, bounds, small=line.twin)
        if line.behind and key == "spill":
            _dot(axes, line.y + apart, line.behind, mark, bounds, hollow=True)
        place: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "center"}
        place |= {"color": MUTED, "fontsize": 7} if line.twin else {"color": INK, "fontsize": 7.5}
        axes.text(1 + COLUMN / width, line.y, _short(told["value"]), **place)
    axes.tick_params(length=2.5, labelsize=LETTERS - 1)
    axes.locator_params(axis="x", nbins=6 if key == "spill" else 4, steps=[1, 2, 2.5, 5, 10])


def _dot(
    axes: Axes,
    y: float,
    told: Result,
    mark: tuple[str, str],
    bounds: Size,
    hollow: bool = False,
    small: bool = False,
) -> None:
    """A value and its interval; where that goes on past the axis, an arrow says so."""
    low, high = max(told["low"], bounds[0]), min(told["high"], bounds[1])
    faint = hollow or small
    axes.plot([low, high], [y, y], color=mark[1], linewidth=0.8 if faint else 1.6, alpha=0.6 if hollow else 1, zorder=2)
    for end, beyond, arrow in ((low, told["low"] < low, "<"), (high, told["high"] > high, ">")):
        if beyond:
            axes.plot([end], [y], arrow, color=mark[1], markersize=3.5, clip_on=False, zorder=2)
    style: dict[str, Any] = {"markersize": 4.2 if faint else 6.0, "zorder": 4}
    style |= {"markerfacecolor": PAPER} if hollow else {"markeredgecolor": PAPER, "markeredgewidth": 0.7}
    if bounds[0] <= told["value"] <= bounds[1]:
        axes.plot([told["value"]], [y], mark[0], color=mark[1], **style)


def _foretold(axes: Axes, result: Result) -> None:
    """What was foretold of the arms that learn cheating beside what they spilt, whose intervals stand above."""
    arms = {arm["arm"]: arm for arm in result["arms"]}
    points = [(each["gain"], arms[each["arm"]]) for each in result["foretold"]["arms"]]
    pull = result["thresholds"]["pull"]
    axes.axhline(0, color=MUTED, linewidth=0.8, zorder=0)
    axes.axhline(pull, color=INK, linewidth=0.9, linestyle=DASHES, zorder=0)
    for gain, arm in points:
        (marker, colour), y = KINDS[arm["kind"]], arm["spill"]["value"]
        axes.plot([gain["low"], gain["high"]], [y, y], color=colour, linewidth=1.1, zorder=1)
        axes.plot([gain["value"]], [y], marker, color=colour, markersize=6, markeredgecolor=PAPER, zorder=3)
    across = _wide([x for gain, _ in points for x in gain.values()], 0.12)
    up = _wide([0.0, pull, *(arm["spill"]["value"] for _, arm in points)], 0.12)
    axes.set(xlim=across, ylim=up, xlabel="how much likelier the prompt makes a token, nats (PH)")
    axes.set_ylabel("spilt, nats a token (intervals above)")
    axes.spines["left"].set_visible(True)
    axes.tick_params(length=2.5, labelsize=LETTERS - 1)
    _name_points(axes, points, (0.0, pull))
    headline(axes, "Foretold before any training", _agreement(result["foretold"]["agreement"]["gain"]))


def _wide(values: Sequence[float], share: float) -> Size:
    room = share * (max(values) - min(values)) or 1.0
    return min(values) - room, max(values) + room


def _agreement(told: Result) -> str:
    if told["r"] is None:
        return f"{told['n']} arms · their order cannot be compared"
    return f"{told['n']} arms · Spearman r {number(told['r'], '+.2f')}, p {told['p']:.3f} against other orders"


def _name_points(axes: Axes, points: Sequence[tuple[Result, Result]], through: Sequence[float]) -> None:
    """Names beside points and beside all lines, further off where there is no room; then a line leads to them."""
    size, limits = (FORETOLD[1], BELOW), (axes.get_xlim(), axes.get_ylim())

    def inches(value: float, k: int) -> float:
        return size[k] * (value - limits[k][0]) / (limits[k][1] - limits[k][0])

    places = [(inches(gain["value"], 0), inches(arm["spill"]["value"], 1)) for gain, arm in points]
    names = [_called(arm) for _, arm in points]
    wanted = [(*place, *text_size(name, 7.5)) for place, name in zip(places, names, strict=True)]
    taken: list[Box] = [(0.0, inches(y, 1) - 0.01, size[0], inches(y, 1) + 0.01) for y in through]
    for place, (gain, _) in zip(places, points, strict=True):
        taken += [
            around(*place, 0.1),
            (inches(gain["low"], 0), place[1] - 0.01, inches(gain["high"], 0), place[1] + 0.01),
        ]
    reaches = [0.06 + 0.05 * i for i in range(30)]
    for i, box in place_labels(wanted, taken, (0.02, 0.02, size[0] + 0.4, size[1]), reaches=reaches).items():
        _name_point(axes, places[i], box, names[i], size)


def _name_point(axes: Axes, place: Size, box: Box, name: str, size: Size) -> None:
    """A name in its box, and a line to its point where that is not next to it."""
    near = [min(max(place[k], box[k]), box[k + 2]) for k in (0, 1)]
    if math.dist(place, near) > 0.14:
        across, up = ([point[k] / size[k] for point in (place, near)] for k in (0, 1))
        axes.plot(across, up, color=FAINT, linewidth=0.6, transform=axes.transAxes, zorder=2)
    style: dict[str, Any] = {"va": "center", "fontsize": 7.5, "transform": axes.transAxes}
    axes.text(box[0] / size[0], (box[1] + box[3]) / 2 / size[1], name, **style)


def _courses(result: Result) -> Iterator[tuple[Result, list[tuple[int, float]]]]:
    """Every arm's mean shift of malign probes at every look, as far as any of them was read."""
    arms = {arm["arm"]: arm for arm in result["arms"]}
    for each in result["drift"]:
        read = [name for name in MALIGN if name in each["points"][0]]
        if read:
            mean = [(point["step"], sum(point[name] for name in read) / len(read)) for point in each["points"]]
            yield arms[each["arm"]], mean


def _drift(axes: Axes, result: Result, size: Size) -> None:
    """Where cheats, honest workers and bad advisers went while they were trained."""
    found = [(arm, points) for arm, points in _courses(result) if _is_drawn(arm)]
    axes.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
    ends = []
    for arm, points in found:
        marker, colour = KINDS[arm["kind"]]
        wide = 2.0 if arm["kind"] == "bare" else 1.2
        style: dict[str, Any] = {"markersize": 4, "markeredgecolor": PAPER, "markeredgewidth": 0.5, "clip_on": False}
        axes.plot(*zip(*points, strict=True), marker=marker, color=colour, linewidth=wide, zorder=3, **style)
        ends.append((*points[-1], _called(arm), colour))
    axes.spines["left"].set_visible(True)
    axes.tick_params(length=2.5, labelsize=LETTERS - 1)
    axes.set_xlabel("step")
    if found:
        axes.set(xlim=(0, max(x for x, *_ in ends)), ylim=axes.get_ylim())
        name_ends(axes, ends, size, 7.5)
    else:
        axes.text(0.5, 0.5, "no malign probe was read", color=MUTED, style="italic", ha="center", va="center")
    headline(axes, "Where it went while it was trained", "mean shift of malign probes, persona units")


def _is_drawn(arm: Result) -> bool:
    """Cheats of every kind and their twin, and the worst that was done; styles say nothing here."""
    return arm["kind"] in ("bare", "requested", "control", "positive") or arm["arm"] == "honest work"


def _short(value: float) -> str:
    """Two decimals, and no sign before nothing."""
    text = number(value, "+.2f")
    return text if text[1:] != "0.00" else text[1:]


def _number(value: float | None) -> str:
    """As it came, with a true minus sign."""
    return "–" if value is None else number(value)


def _interval(told: Result | None) -> str:
    return f"{_number(told['value'])} [{_number(told['low'])}, {_number(told['high'])}]" if told else "–"


def _numbers(result: Result) -> list[dict[str, Any]]:
    """Everything that is known of every arm, as lines of one table."""
    foretold = {each["arm"]: each for each in result["foretold"]["arms"]}
    courses = {arm["arm"]: dict(points) for arm, points in _courses(result)}
    steps = sorted({step for course in courses.values() for step in course})
    rows = []
    for arm in result["arms"]:
        name, behind = arm["arm"], _behind(result, arm)
        row: dict[str, Any] = {"arm": name, "kind": arm["kind"]}
        row |= {key: _interval(arm[key] if arm["kind"] != "twin" else None) for key in ("learned", "spill")}
        row |= {"spill behind its prompt": _interval(behind)}
        for key in ("own", "malign", "benign"):
            row |= {
                key: _interval(arm[key]),
                f"{key} behind its prompt": _interval(arm[f"{key}_prompted"] if behind else None),
            }
        row |= {f"{key}, prompt alone": value if behind else None for key, value in arm["prompt_only"].items()}
        for key, said in (("gain", "PH"), ("projection", "projection difference")):
            row[said] = _interval(foretold[name][key]) if name in foretold else "–"
        row |= {"loss": arm["loss"]} | {probe: _probe(told) for probe, told in arm["probes"].items()}
        rows.append(row | {f"drift at step {step}": courses.get(name, {}).get(step) for step in steps})
    return rows


def _probe(told: Result) -> str:
    """A probe's shift, between which trainings it lies, behind the arm's prompt, and how many times chance it is."""
    value, least, most, prompted = (_number(told[key]) for key in ("value", "least", "most", "prompted"))
    return f"{value} [{least}, {most}], behind its prompt {prompted}, {number(told['beyond'], 'g')} × chance"
