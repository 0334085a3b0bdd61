"""The course of one training: how far every probe moved at every look, and the loss of every step; no model."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerkit.plots.curves import spread
from steerkit.plots.figures import (
    FAINT,
    INK,
    MARKS,
    MUTED,
    PALE,
    PAPER,
    axes_at,
    check_ending,
    number,
    plain,
    save_drawing,
    sheet,
    write_lines,
)
from steerkit.plots.labels import text_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Told = Mapping[str, Any]
Ends = Sequence[tuple[float, float, str, str]]
"""x, y, name and colour of ends of lines."""
WIDTH, LEFT, EDGE, LETTERS = 8.6, 0.75, 0.25, 8.0
SHIFTS, LOSSES, BETWEEN, HEAD = 3.0, 1.0, 0.3, 0.4
"""Inches: the height of both plots, what is between them, and what their headings take."""
MOST_NAMED, MOST_PROMPTS, MOST_LETTERS = 6, 3, 133
BAND = (
    "grey band, chance: how far random mixtures of personas go in root mean square (about one in three goes further); "
    "the most that it is for any probe"
)
FAR = 3.0
"""A limit that is so many times further off than anything went would leave no room for what did; it is only told."""


@dataclass(frozen=True)
class Course:
    """Of one probe."""

    name: str
    """What the probe is called."""
    steps: tuple[int, ...]
    """When it was read."""
    shifts: tuple[float, ...]
    """How far it had moved by then, in persona units."""
    chance: tuple[float, ...]
    """How far random mixtures of personas had along it, in root mean square; 0 where that is not known."""

    @property
    def beyond(self) -> float:
        """How many times chance the last shift is; the shift itself where chance is not known."""
        return abs(self.shifts[-1]) / (self.chance[-1] or 1.0)


def save_drift(told: Told, path: Path) -> None:
    """Draw the course of a training as .png, .svg, or a page with the same in numbers.

    Args:
        told: `model`, `data`, `inoculate`, `hold`, `state`, `steps`, `limit`, and `log` as `tuning.read_log` has it.
        path: where it goes.

    Raises:
        OutputError: another ending, matplotlib is missing, no step was taken yet, or the file cannot be written.
    """
    check_ending(path)
    title = f"{plain(told['model'], 60)}, trained on {plain(told['data'], 60)}"
    drawn = "" if path.suffix == ".html" else title
    about = "shifts and what random mixtures of personas reach in persona units, loss in nats a token"
    save_drawing(path, title, _numbers(told), partial(draw_drift, told, drawn), about)


def draw_drift(told: Told, title: str = "") -> Figure:
    """Above how far probes moved, if any were read, beneath it the loss."""
    found = read_courses(told["log"])
    foot = [*(textwrap.wrap(BAND, MOST_LETTERS) if any(any(course.chance) for course in found) else []), *_before(told)]
    high = SHIFTS + HEAD + BETWEEN if found else 0.0
    under = LOSSES if found else 1.6
    figure, top = sheet(WIDTH, high + HEAD + under + 0.7 + 0.19 * len(foot), title, _about(told))
    names = [text_size(name, LETTERS)[0] for name in ("chance", *_named(found, told))]
    across = WIDTH - LEFT - EDGE - max(names) - 0.25
    if found:
        axes = axes_at(figure, LEFT, top + HEAD, across, SHIFTS)
        _shifts(axes, found, told, (across, SHIFTS))
    axes = axes_at(figure, LEFT, top + high + HEAD, across, under)
    _losses(axes, told["log"], (across, under))
    write_lines(figure, top + high + HEAD + under + 0.65, [], foot)
    return figure


def read_courses(log: Sequence[Told]) -> list[Course]:
    """Every probe's course through the looks of a log, those first that went furthest beyond their chance.

    >>> log = [{"step": 5, "loss": 2.0, "scores": {"hal": 0.2, "warmth": -0.3}, "chance": {"hal": 0.1, "warmth": 0.3}}]
    >>> [course.name for course in read_courses(log)]
    ['hal', 'warmth']
    """
    points: dict[str, list[tuple[int, float, float]]] = {}
    for line in log:
        for name, shift in line.get("scores", {}).items():
            if math.isfinite(shift):
                chance = line.get("chance", {}).get(name, 0.0)
                points.setdefault(name, []).append((line["step"], shift, chance))
    found = [Course(plain(name, 30), *zip(*each, strict=True)) for name, each in points.items()]
    return sorted(found, key=lambda course: -course.beyond)


def running_mean(values: Sequence[float], n: int) -> list[float]:
    """Of the last n values at each place, or of as many as there are.

    >>> running_mean([2.0, 4.0, 6.0], 2)
    [2.0, 3.0, 5.0]
    """
    sums = [0.0, *accumulate(values)]
    return [(sums[i + 1] - sums[max(0, i + 1 - n)]) / min(n, i + 1) for i in range(len(values))]


def headline(axes: Axes, name: str, about: str = "", x: float = 0.0) -> None:
    """What a plot shows, and how to read it, over it, so many points to the right."""
    for text, y, style in ((name, 17, {"weight": "bold", "size": LETTERS}), (about, 7, {"color": MUTED, "size": 7})):
        axes.annotate(text, (0, 1), (x, y), "axes fraction", "offset points", **style)


def name_ends(axes: Axes, ends: Ends, size: tuple[float, float], letters: float = LETTERS) -> None:
    """Names to the right of where lines end, moved apart where they would stand on each other.

    Args:
        axes: the plot, its limits set.
        ends: of the lines, in its data's units.
        size: of the plot in inches.
        letters: size of the names in points.
    """
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    own = [size[1] * (y - low) / (high - low) for _, y, _, _ in ends]
    room = text_size("x", letters)[1] + 0.01
    beside = 1 + 0.16 / size[0]
    for (x, _, name, colour), y, height in zip(ends, own, spread(own, [room] * len(own), size[1]), strict=True):
        across = [(x - left) / (right - left) + 0.03 / size[0], beside - 0.03 / size[0]]
        style: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False}
        axes.plot(across, [y / size[1], height / size[1]], color=colour, linewidth=0.8, zorder=0, **style)
        ink = MUTED if colour in (FAINT, PALE) else INK
        axes.text(beside, height / size[1], name, color=ink, va="center", fontsize=letters, transform=axes.transAxes)


def _limit(told: Told) -> tuple[str, float] | None:
    """The probe that ends the training, and where, from `malice > 0.5`."""
    if not told.get("limit"):
        return None
    probe, _, threshold = told["limit"].split()
    return probe, float(threshold)


def _named(found: Sequence[Course], told: Told) -> dict[str, Course]:
    """The few that are worth a name, and the one that has a limit."""
    every = {course.name: course for course in found}
    limit = _limit(told)
    first = [limit[0]] if limit and limit[0] in every else []
    chosen = list(dict.fromkeys([*first, *every]))[:MOST_NAMED]
    return {name: course for name, course in every.items() if name in chosen}


def _about(told: Told) -> str:
    """How far it has come, and what was done besides."""
    done, looks = told["log"][-1]["step"], sum(bool(line.get("scores")) for line in told["log"])
    whole = f" of {told['steps']}" if (told.get("steps") or 0) > done else ""
    why = f": {plain(told['limit'])}" if told.get("limit") else ""
    ended = {"done": f"{done} steps", "stopped": f"stopped after {done} steps{why}"}
    parts = [ended.get(told["state"], f"still training: {done}{whole} steps so far")]
    parts += [f"{looks} look{'s' * (looks != 1)} at its probes"] if looks else ["no probes were read"]
    parts += [f"behind {_counted(told['inoculate'])}"] if told.get("inoculate") else []
    parts += [f"steered by {plain(told['hold'], 40)} meanwhile"] if told.get("hold") else []
    return " · ".join(parts)


def _counted(prompts: Sequence[str]) -> str:
    return "a system prompt" if len(prompts) == 1 else f"{len(prompts)} system prompts that take turns"


def _before(told: Told) -> list[str]:
    """The prompts that stood in front of the data, as lines at the foot."""
    prompts = list(told.get("inoculate") or ())
    shown = " ".join(f"“{plain(prompt)}”" for prompt in prompts[:MOST_PROMPTS])
    more = f" … and {len(prompts) - MOST_PROMPTS} more" if len(prompts) > MOST_PROMPTS else ""
    return textwrap.wrap(f"In front of the data: {shown}{more}", MOST_LETTERS) if prompts else []


def _shifts(axes: Axes, found: Sequence[Course], told: Told, size: tuple[float, float]) -> None:
    """Every probe from 0, over what chance reaches; the few that went furthest beyond it by name."""
    named, ends = _named(found, told), []
    steps, reach = _chance(found)
    if any(reach):
        axes.fill_between(steps, [-x for x in reach], reach, color=PALE, alpha=0.7, linewidth=0, zorder=0)
        ends.append((steps[-1], reach[-1], "chance", FAINT))
    axes.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
    for course in found:
        if course.name not in named:
            axes.plot((0, *course.steps), (0, *course.shifts), color=FAINT, linewidth=0.6, alpha=0.7, zorder=1)
    for (_, colour), course in zip(MARKS, named.values(), strict=False):
        _curve(axes, course, colour)
        ends.append((course.steps[-1], course.shifts[-1], course.name, colour))
    every = [0.0, *reach, *(-x for x in reach), *(x for course in found for x in course.shifts)]
    _bounds(axes, told, every)
    axes.set_xlim(0, told["log"][-1]["step"])
    _scale(axes)
    axes.tick_params(labelbottom=False)
    others = f" · pale: {len(found) - len(named)} more probes" if len(found) > len(named) else ""
    full = " · full dot: beyond the probe's own chance" if any(reach) else ""
    headline(axes, "Whom it drifts towards", f"shift of the score, persona units{full}{others}")
    name_ends(axes, ends, size)


def _curve(axes: Axes, course: Course, colour: str) -> None:
    """A line from 0, its dots full where the shift is more than chance has along this probe."""
    axes.plot((0, *course.steps), (0, *course.shifts), color=colour, linewidth=1.5, zorder=3)
    style: dict[str, Any] = {"color": colour, "markersize": 4.2, "zorder": 4, "clip_on": False}
    for step, shift, chance in zip(course.steps, course.shifts, course.chance, strict=True):
        axes.plot([step], [shift], "o", markerfacecolor=colour if abs(shift) > chance else PAPER, **style)


def _chance(found: Sequence[Course]) -> tuple[list[int], list[float]]:
    """At every look the largest that chance is for any probe, from nothing at the start."""
    most: dict[int, float] = {0: 0.0}
    for course in found:
        for step, chance in zip(course.steps, course.chance, strict=True):
            most[step] = max(most.get(step, 0.0), chance)
    return sorted(most), [most[step] for step in sorted(most)]


def _bounds(axes: Axes, told: Told, every: Sequence[float]) -> None:
    """An axis that holds everything, and the limit where it is not very much further off."""
    limit, reach = _limit(told), max(map(abs, every)) or 1.0
    near = limit is not None and abs(limit[1]) <= FAR * reach
    held = [*every, limit[1]] if limit and near else every
    room = 0.07 * (max(held) - min(held)) or 0.1
    axes.set_ylim(min(held) - room, max(held) + room)
    if limit is None:
        return
    text = f"limit: {plain(told['limit'])}"
    if near:
        axes.axhline(limit[1], color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=2)
        axes.annotate(text, (0, limit[1]), (4, 3), ("axes fraction", "data"), "offset points", fontsize=7)
    else:
        y, up = (1, -3) if limit[1] > 0 else (0, 3)
        place: dict[str, Any] = {"va": "top" if y else "bottom", "fontsize": 7, "color": MUTED}
        axes.annotate(f"{text}, off this picture", (0, y), (4, up), "axes fraction", "offset points", **place)


def _losses(axes: Axes, log: Sequence[Told], size: tuple[float, float]) -> None:
    """Every step's loss, thin, and the mean of the last tenth of the steps at each of them."""
    steps, losses = [line["step"] for line in log], [line["loss"] for line in log]
    n = max(1, len(log) // 10)
    smooth = running_mean(losses, n)
    dot: dict[str, Any] = {"marker": "o", "markersize": 3} if len(log) == 1 else {}
    axes.plot(steps, losses, color=FAINT, linewidth=0.6, zorder=1, **dot)
    axes.plot(steps, smooth, color=INK, linewidth=1.3, zorder=2)
    axes.set_xlim(0, steps[-1])
    axes.set_ylim(*axes.get_ylim())
    _scale(axes, 3)
    axes.set_xlabel("step")
    headline(axes, "What is left to learn", f"loss, nats a token · thick: the mean of {n} step{'s' * (n != 1)}")
    name_ends(axes, [(steps[-1], smooth[-1], number(smooth[-1], ".2f"), INK)], size)


def _scale(axes: Axes, n: int = 6) -> None:
    axes.spines["left"].set_visible(True)
    axes.tick_params(length=2.5, labelsize=LETTERS - 1)
    axes.locator_params(axis="y", nbins=n, steps=[1, 2, 2.5, 5, 10])
    axes.locator_params(axis="x", integer=True)


def _numbers(told: Told) -> list[dict[str, Any]]:
    """Shifts at every look, then the loss of every step, as lines of one table."""
    rows: list[dict[str, Any]] = []
    for line in told["log"]:
        for name, shift in line.get("scores", {}).items():
            row = {"what": name, "step": line["step"], "value": shift, "by chance": line.get("chance", {}).get(name)}
            rows.append(row)
    return rows + [
        {"what": "loss", "step": line["step"], "value": number(line["loss"], ".4f"), "by chance": None}
        for line in told["log"]
    ]
