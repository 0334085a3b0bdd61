"""Pictures of claims as SVG in a page: it follows the page into the dark, and no two share an id; no model."""

from __future__ import annotations

import html
import math
import re
import tempfile
import textwrap
from collections.abc import Callable, Container, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerkit.plots.arms import save_inoculation
from steerkit.plots.claims import draw_inline
from steerkit.plots.figures import FAINT, INK, MUTED, PALE, PAPER, claimed, plain, render
from steerkit.plots.lines import save_humanlike
from steerkit.plots.maps import save_map
from steerkit.plots.matrices import save_spillover
from steerkit.plots.planes import GROUND
from steerkit.plots.words import question_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Result = Mapping[str, Any]
VARIABLES = {
    "#0072b2": "one",
    INK: "ink",
    MUTED: "muted",
    FAINT: "faint",
    PALE: "pale",
    PAPER: "paper",
    GROUND: "ground",
}
SAVED: dict[str, Callable[[Result, Path], None]] = {
    "map": save_map,
    "spillover": save_spillover,
    "humanlike": save_humanlike,
    "inoculation": save_inoculation,
}
ON_PAPER = ("spillover",)
"""Colours of a matrix are mixed with that of paper, so in the dark the faintest would shine; it stays on white."""
TITLE_LETTERS, TITLE_HEIGHT, MARGIN = 10.5, 0.2, 0.2
"""Of a line of a title, as `figures.sheet` has it: letters an inch, and inches; and what is free above and below."""
REM = 1.3 / 16
"""How large a point of a picture is at most, so that letters are as large as those around it."""


def picture_svg(name: str, result: Result) -> str:
    """The picture of an experiment for the middle of a page, the same text for the same result.

    Two drawings, of which the page shows one: `class="desk"`, and for what has rows also `class="phone"`. Both are as
    wide as what they stand in, up to the size at which their letters fit the page's.

    Args:
        name: of the experiment; ids begin with it.
        result: what its `run()` reports.
    """
    label = f"{question_of({'experiment': name, 'claim': result['claim']})} {_sentence(result)}"
    narrow = _rows_of_families(result) if name == "humanlike" else result if result.get("rows") else None
    if name in SAVED:
        desk = _without_words(_saved(name, result), result)
    else:
        desk = render(partial(draw_inline, result), "svg").decode()
    drawings = [inlined(desk, f"{_slug(name)}-desk", label, "desk", name in ON_PAPER)]
    if narrow is not None:
        # Curves without a line would be an empty plot.
        curves = narrow.get("curves") or {}
        told = {**narrow, "curves": curves if curves.get("lines") else {}}
        drawing: Callable[[], Figure] = partial(draw_inline, told, narrow=True)
        drawings.append(inlined(render(drawing, "svg").decode(), f"{_slug(name)}-phone", label, "phone"))
    return "\n".join(drawings)


def inlined(drawing: str, prefix: str, label: str, style: str, on_paper: bool = False) -> str:
    """An SVG of matplotlib's as part of a page.

    Args:
        drawing: the SVG.
        prefix: what its ids begin with; no two drawings of a page may have the same.
        label: what it shows, for who cannot see it.
        style: its class.
        on_paper: keep its colours in the dark.
    """
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", drawing, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', drawing))
    drawing = re.sub("<[^>]+>", lambda match: _tag(match[0], prefix, used, on_paper), drawing)
    drawing = re.sub(r"\n\s*", "\n", re.sub(r"<g>\s*</g>|<defs>\s*</defs>", "", drawing)).strip()
    size = re.search(r'width="([\d.]+)pt" height="[\d.]+pt"', drawing)
    assert size is not None
    shape = f'width="100%" style="max-width:{float(size[1]) * REM:.1f}rem;stroke-linejoin:round"'
    kind = f"{style} paper" if on_paper else style
    told = f'{shape} class="{kind}" role="img" aria-label="{html.escape(plain(label), quote=True)}"'
    return drawing.replace(size[0], told, 1)


def _tag(tag: str, prefix: str, used: Container[str], on_paper: bool) -> str:
    """A tag on one line, with two decimals, ids of its own, and the page's names for its font and its colours."""
    tag = re.sub(r"(\d\.\d\d)\d+", r"\1", re.sub(r"\s*\n\s*", " ", tag))
    tag = re.sub(r' transform="rotate\(-?0 [^)]*\)"', "", tag)
    tag = re.sub(r' id="([^"]*)"', lambda match: f' id="{prefix}-{match[1]}"' if match[1] in used else "", tag)
    tag = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", tag)
    for colour, name in VARIABLES.items():
        own = "#ffffff" if colour == PAPER else colour
        tag = tag.replace(colour, own if on_paper else f"var(--{name},{own})")
    return re.sub(r"'[A-Z][^;\"]*sans-serif", "var(--sans,sans-serif)", tag)


def _slug(name: str) -> str:
    """A name as the beginning of an id."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-") or "claim"


def _sentence(result: Result) -> str:
    return f"{str(result['verdict']).capitalize()}: {result['reason']}."


def _saved(name: str, result: Result) -> str:
    """What the drawer of an experiment writes, without the verdict, which a page has already."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.svg"
        SAVED[name]({**result, "verdict": "", "reason": ""}, path)
        return path.read_text(encoding="utf-8")


def _without_words(drawing: str, result: Result) -> str:
    """A drawing without its title, which `sheet` wrote, and without the room that the title took."""
    width, height = (float(x) for x in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawing)[0])
    lines = textwrap.wrap(plain(claimed(result)), int(width / 72 * TITLE_LETTERS))
    for line in lines:
        drawing = re.sub(rf"<text [^>]*>{re.escape(html.escape(line, quote=False))}</text>", "", drawing, count=1)
    above = 72 * (TITLE_HEIGHT * len(lines) + MARGIN)
    seen = f'viewBox="0 {above:g} {width:g} {height - above - 72 * MARGIN:g}"'
    return re.sub('viewBox="[^"]*"', seen, drawing, count=1)


def _rows_of_families(result: Result) -> Result:
    """Where families, the control and the Assistant fall, as rows."""
    families, own = result["families"], result["statistic"]
    rows = [{"name": name, "group": "control", "value": place} for name, place in families.items()]
    rows.sort(key=lambda row: -math.inf if row["value"] is None else row["value"])
    rows.append({"name": "a prompt that asks for nobody", "group": "null", "value": result["control"]})
    nothing = {"low": None, "high": None, "kl": None}
    told = [{"name": "the Assistant", "group": "claim", **own}, *({**nothing, **row} for row in rows)]
    return {**result, "rows": told, "curves": {}, "unit": "from things, 0, to human characters, 1"}
