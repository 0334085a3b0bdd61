"""The plane that a map of personas is drawn on: where everything stands, what is named, what is said beside it.

No model and no drawing: the picture for print (`maps`) and the page to explore (`atlas`) are both laid out by this.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steerkit.plots.figures import number, plain
from steerkit.plots.labels import Box, around, most_telling, place_labels, text_size

SMALL, MIDDLING, LARGE = 6.5, 7.0, 9.0
GROUND = "#f3f2ee"
ROOM, BESIDE_STAR, CLEAR, MOST_LABELS = 0.36, 0.13, 0.03, 30
Place = tuple[float, float]
Result = Mapping[str, Any]


@dataclass(frozen=True)
class End:
    """One end of the Assistant axis, with the names of those who stand there."""

    tip: Place
    """Where the line ends, in inches from the origin of the space."""
    box: Box
    """Where the names are written, in the same; past everything that is drawn, so over nothing."""
    names: tuple[str, ...]
    """From the outermost inwards."""


@dataclass(frozen=True)
class Plane:
    """Where two components are drawn, both on one scale, so that distances on paper are distances in the space."""

    width: float
    """In inches, as all that follows."""
    height: float
    """Of the same."""
    scale: float
    """Inches for one unit of the components."""
    origin: Place
    """Where the middle of the space is drawn, from the lower left corner."""
    ends: tuple[End, ...] = ()
    """Of the Assistant axis; none where it is not in this plane."""

    def at(self, place: Sequence[float]) -> Place:
        """A place of the space, in inches."""
        return self.origin[0] + self.scale * place[0], self.origin[1] + self.scale * place[1]

    def back(self, inches: Sequence[float]) -> Place:
        """The place of the space that is drawn there."""
        return (inches[0] - self.origin[0]) / self.scale, (inches[1] - self.origin[1]) / self.scale

    def moved(self, box: Box) -> Box:
        """A box given in inches from the middle of the space, in inches from the corner."""
        x, y = self.origin
        return box[0] + x, box[1] + y, box[2] + x, box[3] + y


def landmarks(result: Result) -> dict[str, Place]:
    """The places that are no persona's: the Assistant's and, where it was measured, the control's."""
    named = {"the Assistant": result["assistant"], "control": result.get("control")}
    return {name: (place["x"], place["y"]) for name, place in named.items() if place}


def all_places(result: Result) -> list[Place]:
    """Every place on the map: personas, then the Assistant and the control, then a conversation's turns."""
    personas, turns = ([(one["x"], one["y"]) for one in result.get(key) or ()] for key in ("points", "path"))
    return [*personas, *landmarks(result).values(), *turns]


def map_plane(result: Result, width: float, height: float, least: float = 0) -> Plane:
    """The plane of a whole map: as `fit_plane`, with room for the Assistant's name beside its star."""
    rooms = [(ROOM, ROOM)] * len(all_places(result))
    rooms[len(result["points"])] = (2 * (BESIDE_STAR + text_size("the Assistant", LARGE, bold=True)[0]) + 0.04, ROOM)
    return fit_plane(all_places(result), rooms, result["axis"], (width, height), least)


def fit_plane(
    places: Sequence[Sequence[float]],
    rooms: Sequence[tuple[float, float]],
    axis: Result,
    most: tuple[float, float],
    least: float = 0,
) -> Plane:
    """The largest scale at which everything fits into so many inches.

    Args:
        places: what stands on the plane, in units of the components.
        rooms: width and height, in inches, that each of them needs.
        axis: the direction of the Assistant axis, and the names at its ends.
        most: width and height of the plane in inches; what the height can spare is cut off.
        least: the height that is kept in any case.
    """
    (width, height), spans = (
        most,
        [max(place[k] for place in places) - min(place[k] for place in places) for k in (0, 1)],
    )
    scale = min([size / span for size, span in zip(most, spans, strict=True) if span] or [1.0])
    while True:
        ends = axis_ends(axis, places, scale)
        boxes = [around(scale * x, scale * y, *room) for (x, y), room in zip(places, rooms, strict=True)]
        boxes += [end.box for end in ends]
        left, bottom = (min(box[k] for box in boxes) for k in (0, 1))
        wide, high = max(box[2] for box in boxes) - left, max(box[3] for box in boxes) - bottom
        # Long names in a small picture could leave no scale at all; then the names run over its edge.
        if (wide <= width and high <= height) or scale * max(spans) < min(most) / 4:
            height = min(height, max(least, high))
            return Plane(width, height, scale, ((width - wide) / 2 - left, (height - high) / 2 - bottom), tuple(ends))
        scale *= 0.98


def axis_ends(axis: Result, places: Sequence[Sequence[float]], scale: float) -> list[End]:
    """The ends of the Assistant axis, its own first, past all places; none where the axis has no length here."""
    length = math.hypot(axis["x"], axis["y"])
    if not length:
        return []
    x, y = axis["x"] / length, axis["y"] / length
    along = [x * place[0] + y * place[1] for place in places]
    ends = []
    for sign, key, most in ((1, "high_end", max(along)), (-1, "low_end", -min(along))):
        names = tuple(spoken(name) for name in axis.get(key, ()))
        wide = max([text_size(name, SMALL)[0] for name in names] or [0.0])
        high = len(names) * text_size("", SMALL)[1]
        far = most * scale + ROOM / 2
        # A box of names begins where the line ends, whichever way it points.
        middle = far + 0.06 + (abs(x) * wide + abs(y) * high) / 2
        box = around(sign * middle * x, sign * middle * y, wide, high)
        ends.append(End((sign * far * x, sign * far * y), box, names))
    return ends


@dataclass(frozen=True)
class Label:
    """A name on the plane."""

    text: str
    """As it is shown."""
    box: Box
    """Where it is written, in inches from the lower left corner."""
    point: Place
    """Where its mark is, in the same."""
    size: float
    """Of its letters, in points."""

    def leader(self) -> Place | None:
        """Where a line from the mark should end; none where the name stands right beside it."""
        near = tuple(min(max(self.point[k], self.box[k]), self.box[k + 2]) for k in (0, 1))
        return (near[0], near[1]) if math.dist(near, self.point) > 1.8 * BESIDE_STAR else None


def name_landmarks(result: Result, plane: Plane) -> dict[str, Label]:
    """Where the names of the Assistant and the control are written; far off rather than not at all."""
    sizes, places = {"the Assistant": LARGE, "control": MIDDLING}, landmarks(result)
    wanted = [(name, plane.at(place), sizes[name]) for name, place in places.items()]
    reaches = [BESIDE_STAR + 0.05 * i for i in range(16)]
    placed = _placed(wanted, _marks(result, plane), plane, len(wanted), reaches)
    return {wanted[i][0]: label for i, label in placed.items()}


def name_personas(result: Result, plane: Plane, most: int = MOST_LABELS) -> dict[int, Label]:
    """Which personas are named, by their index, and where; no name covers a name or a mark."""
    points = result["points"]
    order = most_telling([(one["x"], one["y"]) for one in points], [one["family"] for one in points])
    wanted = [(spoken(points[i]["name"]), plane.at((points[i]["x"], points[i]["y"])), SMALL) for i in order]
    taken = [*_marks(result, plane), *(label.box for label in name_landmarks(result, plane).values())]
    return {order[i]: label for i, label in _placed(wanted, taken, plane, most, (0.055, 0.1)).items()}


def _placed(
    wanted: Sequence[tuple[str, Place, float]], taken: Sequence[Box], plane: Plane, most: int, reaches: Sequence[float]
) -> dict[int, Label]:
    sizes = [(*point, *text_size(text, size, bold=size == LARGE)) for text, point, size in wanted]
    placed = place_labels(sizes, taken, (0, 0, plane.width, plane.height), most, reaches, CLEAR)
    return {i: Label(wanted[i][0], box, *wanted[i][1:]) for i, box in placed.items()}


def spoken(name: str) -> str:
    """A persona's name as it is read, cut short.

    >>> spoken("drill_sergeant")
    'drill sergeant'
    """
    return plain(name, 26).replace("_", " ")


def _marks(result: Result, plane: Plane) -> list[Box]:
    """The room that marks take, and lines, and the names at the ends of the axis."""
    turns = [plane.at((turn["x"], turn["y"])) for turn in result.get("path") or ()]
    sizes = [0.08] * len(result["points"]) + [0.22, 0.14][: len(landmarks(result))] + [0.15] * len(turns)
    marks = [around(*plane.at(place), size) for place, size in zip(all_places(result), sizes, strict=True)]
    tips = [plane.moved((*end.tip, *end.tip))[:2] for end in plane.ends]
    lines = [box for line in (tips, turns) for box in _along(line)]
    return [*marks, *lines, *(plane.moved(end.box) for end in plane.ends)]


def _along(line: Sequence[Place], width: float = 0.03) -> list[Box]:
    """Small boxes all along a line."""
    boxes = []
    for (x, y), (far, high) in itertools.pairwise(line):
        steps = math.ceil(math.dist((x, y), (far, high)) / width) or 1
        boxes += [around(x + (far - x) * i / steps, y + (high - y) * i / steps, width) for i in range(steps + 1)]
    return boxes


def about_map(result: Result) -> str:
    """What was measured, in one line."""
    over = "at the end of the prompt" if result.get("reading") == "prompt" else f"× {result['tokens']} tokens"
    asked = f"{len(result['points'])} personas, each over {result['questions']} questions {over}"
    return f"{plain(result['model'])} · layer {result['layer']} · {asked}"


def interval(entry: Mapping[str, float | None], form: str) -> str:
    """A number, called value or r, with its interval.

    >>> interval({"value": 0.5, "low": -0.25, "high": None}, "+.2f")
    '+0.50 (−0.25 to –)'
    """
    texts = [shown(entry.get(key), form) for key in ("value" if "value" in entry else "r", "low", "high")]
    return f"{texts[0]} ({texts[1]} to {texts[2]})"


def shown(value: float | None, form: str) -> str:
    """A number that may be missing.

    >>> shown(0.985, ".1%"), shown(None, ".1%")
    ('98.5 %', '–')
    """
    return number(math.nan if value is None else value, form).replace("%", " %")


def map_numbers(result: Result) -> list[tuple[str, str, str]]:
    """Each statistic: what it is, its value with interval, and what random points give."""
    said, null = result["statistic"], result["null"]
    texts = {
        "components": ("components carry 70 % of the variance", ".0f"),
        "percentile": ("of the personas lie below the Assistant on PC1", ".0%"),
        "cosine": ("the cosine of PC1 with the Assistant axis", ".2f"),
    }
    return [
        (interval(said[key], form), text, f"{shown(null[key]['least'], form)} to {shown(null[key]['most'], form)}")
        for key, (text, form) in texts.items()
    ]


def map_confounds(result: Result) -> list[str]:
    """What else PC1 could be, and what is left of the Assistant's place without it, as far as it was measured."""
    confounds, called = result.get("confounds") or {}, {"length": "the length of replies"}
    against = [
        f"against {called.get(name, plain(name))}: "
        + (f"cosine {shown(entry['cosine'], '+.2f')}" if "cosine" in entry else f"r {interval(entry, '+.2f')}")
        for name, entry in confounds.items()
        if "r" in entry
    ]
    lines = [f"PC1 {', '.join(against)}"] if against else []
    if control := confounds.get("control"):
        lines.append(f"a prompt that asks for nobody lies beyond {shown(control['percentile'], '.0%')}")
    if left := confounds.get("without"):
        share, angle = shown(left["percentile"], ".0%"), shown(left["cosine"], ".2f")
        lines.append(f"without what these explain, {share} lie below the Assistant and the cosine is {angle}")
    return lines


def null_spectrum(result: Result) -> Mapping[str, Sequence[float]]:
    """The shares of variance of random points' components, the least (`low`) and the most (`high`) of all draws."""
    return result.get("null_spectrum") or result["null"]["spectrum"]
