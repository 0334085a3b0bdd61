"""A map of personas as one page to explore, which needs no network and nothing else; no model.

Whatever comes from a user is text, never markup: it is escaped here, and the script only ever sets it as text.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from steerkit.plots.figures import FAINT, INK, MUTED, PALE, PAPER, claimed, plain
from steerkit.plots.labels import darker, family_marks, mark_size
from steerkit.plots.pages import STYLE
from steerkit.plots.planes import (
    GROUND,
    LARGE,
    SMALL,
    Label,
    Place,
    Plane,
    about_map,
    fit_plane,
    landmarks,
    map_confounds,
    map_numbers,
    map_plane,
    name_landmarks,
    name_personas,
    shown,
    spoken,
)

UNIT, SIZE, LEAST = 100, (6.9, 6.0), 4.8
STAR, CONTROL, TURN = 17.0, 9.5, 8.5
LETTERS = round(SMALL / 72 * UNIT, 1)
COORDINATES = {"score": "score", "Assistant axis": "axis", "PC1": "x", "PC2": "y", "PC3": "z"}
NOTHING = dict.fromkeys(("key", "numbers", "reply"), "")
VARIABLES = {INK: "ink", MUTED: "muted", FAINT: "faint", PALE: "pale", PAPER: "paper", GROUND: "panel"}
Result = Mapping[str, Any]


@dataclass(frozen=True)
class Frame:
    """The map at one layer, in the units of its drawing: hundredths of an inch from the upper left corner."""

    layer: int
    """0-based."""
    personas: tuple[Place, ...]
    """As they are listed."""
    assistant: Place
    """The Assistant's place."""
    line: tuple[float, ...]
    """The Assistant axis: x and y of its beginning, and of its end at the Assistant's side."""
    sides: tuple[str, str]
    """What the axes of the drawing are called."""


def map_page(result: Result, drawing: str) -> str:
    """The page of a map.

    Args:
        result: what `steerkit map` reports.
        drawing: an SVG of the variance that its components carry.
    """
    title, verdict = _text(claimed(result)), plain(result["verdict"])
    for colour, name in VARIABLES.items():
        drawing = drawing.replace(colour, f"var(--{name})")  # So that it follows the page into the dark.
    frames = map_frames(result, plane := map_plane(result, *SIZE, least=LEAST))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{STYLE}{_data("map.css")}{_colours(result)}</style></head><body>
<h1>{title}</h1><div class="about">{_text(about_map(result))}</div>
<p class="verdict"><b>{_text(verdict[:1].upper() + verdict[1:])}:</b> {_text(result["reason"])}</p>
<div class="map"><div>{_map(result, plane, frames)}{_bar(result, frames)}</div><div>{_key(result)}{CARD}</div></div>
{_numbers(result)}
<div class="two"><figure>{drawing}</figure>{_near(result, "nearest")}{_near(result, "farthest")}</div>
{_everybody(result)}
<footer><p>Made with steerkit.</p></footer><script>{_data("map.js")}</script></body></html>
"""


CARD = """<div id="card" aria-live="polite"><h2 id="card-name">the Assistant</h2><p id="card-family" class="quiet"></p>
<p id="card-summary">Point at a mark, or press Tab and then the arrow keys, to see who stands there.</p>
<p id="card-numbers" class="quiet"></p><blockquote id="card-reply" hidden></blockquote></div>"""


def _data(name: str) -> str:
    return (resources.files("steerkit") / "data" / name).read_text(encoding="utf-8")


def _text(text: Any) -> str:
    return html.escape(plain(text))


def _colours(result: Result) -> str:
    """A rule of style for each family; what is ink on paper turns light in the dark."""
    rules = []
    for i, (_, colour) in enumerate(_marks(result).values()):
        fill, edge = ("var(--ink)", "var(--panel)") if colour == INK else (colour, darker(colour))
        rules.append(f".f{i} {{ fill: {fill}; stroke: {edge}; stroke-width: .8; }}\n")
    return "".join(rules)


def map_frames(result: Result, plane: Plane) -> list[Frame]:
    """The map at each layer that was asked for, in their order, the main one as `plane` has it."""
    points, star = [(one["x"], one["y"]) for one in result["points"]], landmarks(result)["the Assistant"]
    frames = [_frame(result["layer"], plane, points, star, [*result["spectrum"], 0.0])]
    for one in result.get("maps") or ():
        if one["layer"] != result["layer"]:
            places, (x, y) = [*one["points"], one["assistant"]], one["axis"]
            size = plane.width, plane.height
            other = fit_plane(places, [(0.4, 0.4)] * len(places), {"x": x, "y": y}, size, plane.height)
            frames.append(_frame(one["layer"], other, one["points"], one["assistant"], one["shares"]))
    return sorted(frames, key=lambda frame: frame.layer)


def _frame(layer: int, plane: Plane, points: Sequence[Any], star: Sequence[float], shares: Sequence[float]) -> Frame:
    tips = [end.tip for end in reversed(plane.ends)] or [(0.0, 0.0)] * 2
    line = tuple(x for tip in tips for x in _units(plane, plane.moved((*tip, *tip))[:2]))
    sides = [f"PC{k + 1}, {shown(share, '.0%')} of the variance" for k, share in enumerate(shares[:2])]
    places = tuple(_units(plane, plane.at(point)) for point in points)
    return Frame(layer, places, _units(plane, plane.at(star)), line, (sides[0], sides[1]))


def _units(plane: Plane, inches: Sequence[float]) -> Place:
    return UNIT * inches[0], UNIT * (plane.height - inches[1])


def _list(numbers: Sequence[float]) -> str:
    return ",".join(f"{x:.1f}" for x in numbers)


def _shape(marker: str, points: float) -> str:
    """The outline of a marker, as the data of an SVG path around 0."""
    from matplotlib.markers import MarkerStyle

    style, size = MarkerStyle(marker), points / 72 * UNIT
    outline: Any = style.get_path().transformed(style.get_transform()).to_polygons()[0]
    return f"M{' '.join(f'{size * x:.2f},{-size * y:.2f}' for x, y in outline)}Z"


def _map(result: Result, plane: Plane, frames: Sequence[Frame]) -> str:
    """The drawing: lines, then every persona, the turns of a conversation, the control and the Assistant."""
    main, (x, y), high = _main(result, frames), _units(plane, plane.at((0, 0))), UNIT * plane.height
    turns = [_units(plane, plane.at((turn["x"], turn["y"]))) for turn in result.get("path") or ()]
    return f"""<svg id="map" viewBox="0 0 {UNIT * plane.width:.0f} {high:.0f}" data-layer="{main}" role="group"
aria-label="Map of the personas. Arrow keys go from one to the next; plus and minus zoom."><defs>{_shapes(result)}
<marker id="arrow" viewBox="0 0 8 6" refX="7" refY="3" markerWidth="8" markerHeight="6" orient="auto"><path class="tip"
d="M0,0 8,3 0,6Z"/></marker></defs><path class="zero" d="M-9999,{y:.1f}H9999M{x:.1f},-9999V9999"/>
{_axes(frames, main, plane)}{_ends(plane)}
<polyline class="walk here" points="{" ".join(map(_list, turns))}"/>
{_dots(result, plane, frames)}<use id="top"/></svg>
"""


def _main(result: Result, frames: Sequence[Frame]) -> int:
    return next(i for i, frame in enumerate(frames) if frame.layer == result["layer"])


def _axes(frames: Sequence[Frame], main: int, plane: Plane) -> str:
    """The Assistant axis, which carries what changes from layer to layer, and the names of the drawing's own axes."""
    ends = " ".join(f'{key}="{x:.1f}"' for key, x in zip(("x1", "y1", "x2", "y2"), frames[main].line, strict=True))
    told = {"at": " ".join(_list(frame.line) for frame in frames)}
    told |= {name: "|".join(frame.sides[k] for frame in frames) for k, name in enumerate("xy")}
    told["layers"] = ",".join(str(frame.layer) for frame in frames)
    data = " ".join(f'data-{key}="{_text(text)}"' for key, text in told.items())
    places = (
        f'x="{UNIT * plane.width - 10}" y="{UNIT * plane.height - 10}"',
        'transform="translate(18 10) rotate(-90)"',
    )
    sides = "".join(
        f'<text id="side-{name}" class="side" text-anchor="end" font-size="{LETTERS}" {place}>{side}</text>'
        for name, place, side in zip("xy", places, frames[main].sides, strict=True)
    )
    return f'<line id="axis" class="axis" {ends} marker-end="url(#arrow)" {data}/>{sides}'


def _shapes(result: Result) -> str:
    shapes = {f"m{i}": _shape(marker, mark_size(marker)) for i, (marker, _) in enumerate(_marks(result).values())}
    shapes |= {"star": _shape("*", STAR), "open": _shape("*", CONTROL), "turn": _shape("o", TURN)}
    return "".join(f'<path id="{name}" d="{shape}"/>' for name, shape in shapes.items())


def _marks(result: Result) -> dict[str, tuple[str, str]]:
    return family_marks(one["family"] for one in result["points"])


def _ends(plane: Plane) -> str:
    """The names at the ends of the Assistant axis, a line each."""
    texts = []
    for end in plane.ends:
        left, _, right, top = plane.moved(end.box)
        x, y = _units(plane, ((left + right) / 2, top))
        names = "".join(f'<tspan x="{x:.1f}" dy="{1.25 * LETTERS:.1f}">{_text(name)}</tspan>' for name in end.names)
        style = f'class="end here" font-size="{LETTERS}" text-anchor="middle"'
        texts.append(f'<text {style} y="{y - 2:.1f}">{names}</text>')
    return "".join(texts)


def _dots(result: Result, plane: Plane, frames: Sequence[Frame]) -> str:
    """Everything that can be pointed at, each with what is shown of it; the Assistant last, so over everything."""
    names, families, dots, own = name_personas(result, plane), list(_marks(result)), [], frames[_main(result, frames)]
    for i, one in enumerate(result["points"]):
        family = families.index(one["family"])
        numbers = [f"{name} {shown(one[key], '+.2f')}" for name, key in COORDINATES.items() if key in one]
        numbers.append(f"replies of {shown(one.get('length'), '.1f')} tokens")
        told = {key: one.get(key, "") for key in ("name", "family", "summary", "reply")}
        told |= {"key": family, "numbers": " · ".join(numbers)}
        told["at"] = " ".join(_list(frame.personas[i]) for frame in frames)
        inside = _mark(f"f{family}", f"m{family}") + _label(names.get(i), one["name"], own.personas[i], plane)
        dots.append(_dot(f"p{i}", own.personas[i], inside, told))
    for i, turn in enumerate(result.get("path") or ()):
        place = _units(plane, plane.at((turn["x"], turn["y"])))
        told = {"name": f"turn {turn['turn']}", "family": "a conversation", "summary": turn.get("text", "")}
        number = f'<text text-anchor="middle" y="2.7" font-size="7.5">{_text(turn["turn"])}</text>'
        dots.append(_dot(f"t{i}", place, _mark("open", "turn") + number, told | {"at": _list(place)}, "dot here"))
    return "".join(dots) + _landmarks(result, plane, frames)


def _landmarks(result: Result, plane: Plane, frames: Sequence[Frame]) -> str:
    labels, dots = name_landmarks(result, plane), []
    for name, inches in landmarks(result).items():
        own, place = name == "the Assistant", _units(plane, plane.at(inches))
        prompt = "without any system prompt" if own else "under a system prompt that asks for nobody"
        told = {"name": name, "family": "", "summary": f"The model {prompt}.", "at": _list(place)}
        if own:
            told["at"] = " ".join(_list(frame.assistant) for frame in frames)
        inside = _mark(*(("star", "star") if own else ("open", "open"))) + _label(labels.get(name), name, place, plane)
        dots.append(_dot("own" if own else "control", place, inside, told, "dot" if own else "dot here"))
    return "".join(reversed(dots))


def _mark(style: str, shape: str) -> str:
    return f'<use class="mark {style}" href="#{shape}"/>'


def _dot(name: str, place: Place, inside: str, told: Mapping[str, Any], style: str = "dot") -> str:
    """A mark with what is told of it; the Assistant's is the one that Tab goes to first."""
    data = " ".join(f'data-{key}="{_text(text)}"' for key, text in (NOTHING | dict(told)).items())
    said = _text(", ".join(str(told[key]) for key in ("name", "family", "summary") if told[key]))
    where = f'tabindex="{0 if name == "own" else -1}" transform="translate({place[0]:.1f} {place[1]:.1f})"'
    inside = f'<g class="k"><circle class="hit" r="9"/>{inside}</g>'
    return f'<g class="{style}" id="{name}" role="img" aria-label="{said}" {where} {data}>{inside}</g>\n'


def _label(label: Label | None, name: str, place: Place, plane: Plane) -> str:
    """A name beside its mark; of those that found no room, hidden until somebody looks."""
    if label is None:
        return (
            f'<text class="name late" x="7" y="{0.35 * LETTERS:.1f}" font-size="{LETTERS}">{_text(spoken(name))}</text>'
        )
    left, bottom, right, top = label.box
    x, y = _units(plane, ((left + right) / 2, (bottom + top) / 2))
    size, weight = label.size / 72 * UNIT, ' font-weight="bold"' if label.size == LARGE else ""
    where = f'x="{x - place[0]:.1f}" y="{y - place[1] + 0.35 * size:.1f}" font-size="{size:.1f}"{weight}'
    return f'<text class="name" text-anchor="middle" {where}>{_text(label.text)}</text>'


def _bar(result: Result, frames: Sequence[Frame]) -> str:
    main, last = _main(result, frames), len(frames) - 1
    slider = f"""<label>layer <input id="layer" type="range" min="0" max="{last}" value="{main}">
<output id="layer-name">{frames[main].layer}</output></label>"""
    return f"""<div class="bar">{slider if last else ""}
<span><button id="closer" aria-label="zoom in">+</button> <button id="wider" aria-label="zoom out">−</button>
<button id="whole">whole map</button></span><span>click the map, then the wheel zooms; drag to move</span></div>"""


def _key(result: Result) -> str:
    """A button for each family, with its mark and how many it has."""
    families, buttons = [one["family"] for one in result["points"]], []
    for i, family in enumerate(_marks(result)):
        mark = f'<svg width="16" height="16" viewBox="-6 -6 12 12" aria-hidden="true">{_mark(f"f{i}", f"m{i}")}</svg>'
        count = f"<span>{families.count(family)}</span>"
        buttons.append(f'<button aria-pressed="true">{mark}{_text(family)}{count}</button>')
    find = '<input id="find" type="search" placeholder="find a persona" aria-label="find a persona">'
    hint = '<button id="all">show all</button><span>click hides, a double click shows only one</span>'
    return f'{find}<div class="key">{"".join(buttons)}</div><div class="bar">{hint}</div>'


def _numbers(result: Result) -> str:
    draws = _text(result["null"]["components"]["n"])
    cells = "".join(
        f'<div><b>{value}</b>{text}<br><span class="quiet">random points, {draws} draws: {null}</span></div>'
        for value, text, null in map_numbers(result)
    )
    return f'<div class="numbers">{cells}</div><p class="quiet">{_text(" · ".join(map_confounds(result)))}</p>'


def _near(result: Result, key: str) -> str:
    rows = "".join(
        f'<tr><th class="first" scope="row">{_text(one["name"])}</th><td>{shown(one["distance"], ".2f")}</td></tr>'
        for one in result.get(key) or ()
    )
    titles = {"nearest": "Nearest to the Assistant", "farthest": "Farthest from the Assistant"}
    head = '<tr><th class="first" scope="col">persona</th><th scope="col">distance</th></tr>'
    return f"<div><table><caption>{titles[key]}</caption><thead>{head}</thead><tbody>{rows}</tbody></table></div>"


def _everybody(result: Result) -> str:
    """Every persona in a table, folded."""
    rows = []
    for one in result["points"]:
        texts = f'<td class="first">{_text(one["family"])}</td><td class="first">{_text(one.get("summary", ""))}</td>'
        numbers = "".join(f"<td>{shown(one.get(key), '+.2f')}</td>" for key in "xyz")
        rows.append(f'<tr><th class="first" scope="row">{_text(one["name"])}</th>{texts}{numbers}</tr>')
    heads = "".join(f'<th class="first" scope="col">{head}</th>' for head in ("persona", "family", "summary"))
    heads += "".join(f'<th scope="col">PC{i}</th>' for i in (1, 2, 3))
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>\n{chr(10).join(rows)}</tbody></table>"
    return f'<details><summary>All {len(rows)} personas</summary><div class="wide">{table}</div></details>'
