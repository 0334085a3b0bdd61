"""What a crowded picture names, with which marks, and where the names fit. Geometry on plain numbers; no model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from steerkit.plots.figures import INK

Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""
Wanted = tuple[float, float, float, float]
"""A point, and the width and height of its label."""

GREY = "#8f8f89"
# Okabe and Ito's colours, which every kind of colour-blind eye tells apart, and for the same end a shape each.
FAMILIES = {
    "assistants": ("o", "#0072b2"),
    "role models": ("s", "#009e73"),
    "professions": ("D", "#56b4e9"),
    "concerning AIs": ("^", "#d55e00"),
    "characters": ("p", "#cc79a7"),
    "moral traits": ("v", "#e69f00"),
    "emotions": ("h", "#f0e442"),
    "styles": ("P", INK),
    "things": ("X", GREY),
}
OTHERS = tuple(itertools.product("<>d8*", ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")))
# Shapes of one width do not look equally large. In points.
SIZES = {"o": 5.2, "s": 4.7, "D": 4.4, "^": 5.8, "v": 5.8, "p": 6.2, "h": 6.0, "P": 6.2, "X": 6.2}
SIDES = ((1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1))


def family_marks(families: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Marker and colour of each family: those of the library in their order, then any others as they come.

    >>> family_marks(["mine", "things", "mine"])
    {'things': ('X', '#8f8f89'), 'mine': ('<', '#0072b2')}
    """
    met = list(dict.fromkeys(families))
    others = [name for name in met if name not in FAMILIES]
    spare = dict(zip(others, itertools.cycle(OTHERS), strict=False))
    return {name: mark for name, mark in (FAMILIES | spare).items() if name in met}


def mark_size(marker: str) -> float:
    """How wide a marker of some shape is drawn, in points, so that all look alike."""
    return SIZES.get(marker, 5.5)


def darker(colour: str) -> str:
    """A colour for the edge of a mark of this colour.

    >>> darker("#ff8000")
    '#a65300'
    """
    return "#" + "".join(f"{round(0.65 * int(colour[i : i + 2], 16)):02x}" for i in (1, 3, 5))


def text_size(text: str, points: float, bold: bool = False) -> tuple[float, float]:
    """Width and height of a line of text in inches, with a little room because another font may be wider."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(weight="bold" if bold else "normal", size=points)
    width = text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] if text.strip() else 0.0
    return 1.06 * width / 72, 1.25 * points / 72


def overlap(one: Box, other: Box) -> bool:
    """Whether two boxes share any room.

    >>> overlap((0, 0, 1, 1), (0.5, 0.5, 2, 2)), overlap((0, 0, 1, 1), (1, 0, 2, 1))
    (True, False)
    """
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def around(x: float, y: float, width: float, height: float | None = None) -> Box:
    """The box of a size in whose middle a point is."""
    half, tall = width / 2, (width if height is None else height) / 2
    return x - half, y - tall, x + half, y + tall


def grown(box: Box, by: float) -> Box:
    """A box with so much more on every side."""
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def place_labels(
    wanted: Sequence[Wanted],
    taken: Sequence[Box],
    bounds: Box,
    most: int = 10**6,
    reaches: Sequence[float] = (0.06,),
    clear: float = 0.0,
) -> dict[int, Box]:
    """Give labels room beside their points, first come first served; what finds none is left out.

    Args:
        wanted: points with the sizes of their labels, those first that should rather be named than others.
        taken: boxes that no label may cover, such as the marks of all points.
        bounds: the box that every label must lie in.
        most: how many labels are enough.
        reaches: how far a label may stand from its point, the best distance first.
        clear: how far it must stay from what is taken by others than its point, lest it be read as theirs.

    Returns:
        the index of each label that has found room, and its box; no two boxes overlap.
    """
    placed: dict[int, Box] = {}
    middle = (bounds[0] + bounds[2]) / 2, (bounds[1] + bounds[3]) / 2
    for i, label in enumerate(wanted):
        if len(placed) == most:
            break
        point = (*label[:2], *label[:2])
        others = [grown(box, -1e-9 if overlap(point, box) else clear) for box in taken]
        for box in _places(label, middle, reaches):
            inside = bounds[0] <= box[0] and bounds[1] <= box[1] and box[2] <= bounds[2] and box[3] <= bounds[3]
            if inside and not any(overlap(box, other) for other in itertools.chain(placed.values(), others)):
                placed[i] = box
                break
    return placed


def _places(label: Wanted, middle: tuple[float, float], reaches: Sequence[float]) -> Iterator[Box]:
    """Boxes around a point, near ones first and, of those, the ones that look outwards."""
    x, y, width, height = label
    outward = x - middle[0], y - middle[1]
    # Beside a point reads best, then at its corners; among equals, outwards is where there is room.
    sides = sorted(SIDES, key=lambda side: (abs(side[1]), -side[0] * outward[0] - side[1] * outward[1]))
    for reach in reaches:
        for across, up in sides:
            far = reach * (0.75 if across and up else 1.0)
            yield around(x + across * (far + width / 2), y + up * (far + height / 2), width, height)


def most_telling(places: Sequence[tuple[float, float]], families: Sequence[str]) -> list[int]:
    """Points in the order in which they deserve a name: the cloud's extremes, then in turn some of each family.

    Of a family, the farthest out comes first, then the most typical, then the others from the outside in.
    """
    if not places:
        return []
    turns = (math.tau * i / 8 for i in (0, 4, 2, 6, 1, 3, 5, 7))
    points = range(len(places))
    extremes = [max(points, key=lambda i: _along(places[i], math.cos(turn), math.sin(turn))) for turn in turns]
    members: dict[str, list[int]] = {}
    for i, family in enumerate(families):
        members.setdefault(family, []).append(i)
    rounds = itertools.zip_longest(*(_from_outside(places, rows) for rows in members.values()))
    return list(dict.fromkeys([*extremes, *(i for row in rounds for i in row if i is not None)]))


def _along(place: tuple[float, float], x: float, y: float) -> float:
    return place[0] * x + place[1] * y


def _from_outside(places: Sequence[tuple[float, float]], rows: Sequence[int]) -> list[int]:
    middle = [sum(places[i][k] for i in rows) / len(rows) for k in (0, 1)]
    order = sorted(rows, key=lambda i: -math.hypot(*places[i]))
    typical = min(rows, key=lambda i: math.hypot(places[i][0] - middle[0], places[i][1] - middle[1]))
    return list(dict.fromkeys([order[0], typical, *order]))
