"""Pictures of measurements: evaluations as a forest plot, sweeps as heat maps and a frontier; no model."""

from __future__ import annotations

import html
import importlib.util
import io
import itertools
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerkit.errors import OutputError
from steerkit.files import replacing_file
from steerkit.plots.pages import STYLE
from steerkit.tints import FULL, tint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The limit is `limits.LIMIT`, which cannot be imported without torch; a test keeps them equal.
LIMIT, MOST_MAPS, MOST_NAMES = 1.0, 12, 10
PAPER, INK, MUTED, FAINT, PALE = "#fafaf8", "#1c1c1a", "#6b6b66", "#a3a29b", "#e4e3de"
# From Okabe and Ito's palette, whose colours every kind of colour-blind eye tells apart; then again as squares.
MARKS = tuple(itertools.product("os", ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")))
SANS = ["Inter", "Segoe UI", "Helvetica Neue", "Helvetica", "Arial", "Noto Sans", "Liberation Sans", "DejaVu Sans"]
LOOK: dict[Any, Any] = {
    **{"font.family": "sans-serif", "font.sans-serif": SANS, "font.size": 8.0, "text.color": INK},
    **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), MUTED),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), FAINT),
    **dict.fromkeys(("axes.spines.top", "axes.spines.left", "axes.spines.right"), False),
    **{"axes.facecolor": "none", "figure.facecolor": PAPER, "text.parse_math": False},  # A name may have dollars.
    **{"svg.fonttype": "none", "svg.hashsalt": "steerkit", "hatch.linewidth": 0.3, "lines.solid_capstyle": "butt"},
}
LEADER = {"arrowstyle": "-", "color": FAINT, "linewidth": 0.6, "shrinkB": 4}
PAGE_STYLE = """figure { margin: 1.5rem 0; } figure svg { max-width: 100%; height: auto; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
td, th { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #8884; } .first { text-align: left; }
"""
NATS = "shifts, KL and coherence in nats"
COSTS = {"coherence": "coherence lost in its text", "items_kl_p95": "KL p95 on the items' replies"}
Lines = Sequence[Mapping[str, Any]]
Cells = dict[tuple[tuple[int, int], float], Mapping[str, Any]]


def check_ending(path: Path) -> None:
    """See, before anything is measured, whether a picture of this name can be drawn.

    Raises:
        OutputError: another ending than .png, .svg or .html, or matplotlib is missing.
    """
    if path.suffix not in (".png", ".svg", ".html"):
        raise OutputError(f"cannot draw a {path.suffix or 'nameless'} file; end its name in .png, .svg or .html")
    if importlib.util.find_spec("matplotlib") is None:
        raise OutputError("pictures need matplotlib; install it with: pip install 'persona-steerkit[plots]'")


def save_evaluations(results: Lines, path: Path) -> None:
    """Draw what `Evaluation.to_json` gives, one a steering, as a forest plot with the three baselines."""
    check_ending(path)
    title = f"What steering does to {_named(results, 'model')} on items of {_named(results, 'source')}"
    keys = ("n", "shift", "low", "high", "least", "most", "kl_p95", "coherence")
    rows = [
        {"steering": result["steer"], "baseline": name} | {key: entry.get(key) for key in keys}
        for result in results
        for name, entry in _entries(result).items()
    ]
    save_drawing(path, title, rows, partial(_forest, results, title))


def save_sweep(lines: Lines, path: Path) -> None:
    """Draw the lines that `sweep` writes: heat maps of the shift, and the frontier of shift against cost."""
    check_ending(path)
    title = f"A sweep of {_named(lines, 'model')} on items of {_named(lines, 'items')}"
    known = [line for line in lines if math.isfinite(line["result"]["shift"])]
    names, keys = ("vector", "estimator", "operator"), ("shift", "low", "high", *COSTS, "kl_p95", "repetition")
    rows = [
        {**{name: line[name] for name in names}, "layers": _band(line["layers"]), "dial": number(line["dial"], "+g")}
        | {key: line["result"].get(key) for key in keys}
        | {"past the limit": "yes" if _cost(line["result"]) > LIMIT else "no"}
        for line in known
    ]
    save_drawing(path, title, rows, partial(_sweep, known, title))


def save_drawing(path: Path, title: str, rows: Lines, draw: Callable[[], Figure], about: str = NATS) -> None:
    """Write what `draw` draws as .png, .svg, or a page with the same in numbers: `rows`, all with the same keys.

    Raises:
        OutputError: there are no rows, or the file cannot be written.
    """
    if not rows:
        raise OutputError("there is nothing to draw; measure something first")
    drawing = render(draw, "png" if path.suffix == ".png" else "svg")
    if path.suffix == ".html":
        drawing = _page(drawing.decode(), html.escape(title), rows, about).encode()
    with replacing_file(path) as temporary:
        temporary.write_bytes(drawing)


@contextmanager
def looks() -> Iterator[None]:
    """How every picture looks; text is measured in here as it will be drawn."""
    import matplotlib

    with matplotlib.rc_context(LOOK), warnings.catch_warnings():
        # A name in letters that the font lacks is drawn as boxes; a page's table has it right.
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def render(draw: Callable[[], Figure], kind: str) -> bytes:
    """A drawing as "png" or "svg", the same bytes for the same figure."""
    with looks(), io.BytesIO() as written:
        figure = draw()
        dots = min(180.0, 60000 / max(figure.get_size_inches()))  # No side may have more than 65536 pixels.
        figure.savefig(written, format=kind, dpi=dots, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        drawing = written.getvalue()
    return drawing[drawing.index(b"<svg") :] if kind == "svg" else drawing


def _page(drawing: str, title: str, rows: Lines, about: str) -> str:
    shown = [[number(x) if isinstance(x, float) else "–" if x is None else x for x in row.values()] for row in rows]
    cells = [[f"<td>{html.escape(plain(x))}</td>" for x in row] for row in shown]
    body = "\n".join(f'<tr><th class="first" scope="row">{row[0][4:-5]}</th>{"".join(row[1:])}</tr>' for row in cells)
    heads = "".join(f'<th scope="col">{name}</th>' for name in rows[0])
    drawing = drawing.replace("<svg ", f'<svg role="img" aria-label="{title}; its numbers are in the table" ', 1)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{STYLE}{PAGE_STYLE}</style></head><body><h1>{title}</h1><figure>{drawing}</figure>
<div class="wide"><table><caption class="about first">The same in numbers; {about}.</caption>
<thead><tr>{heads.replace('"col"', '"col" class="first"', 1)}</tr></thead><tbody>
{body}
</tbody></table></div><footer><p>Made with steerkit.</p></footer></body></html>
"""


def claimed(result: Mapping[str, Any]) -> str:
    """A claim as a title, in quotation marks, because the verdict may be that it does not hold."""
    return f"“{str(result['claim']).rstrip('.')}”"


def plain(text: Any, most: int = 10**6) -> str:
    """Text without what neither XML nor UTF-8 can hold, cut short."""
    text = re.sub("[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]", "\ufffd", str(text))
    return text if len(text) <= most else f"{text[: most - 1]}…"


def number(value: float, form: str = "+.4f") -> str:
    """A number with a true minus sign; a dash for what is not finite."""
    return f"{value:{form}}".replace("-", "−") if math.isfinite(value) else "–"


def _named(lines: Lines, key: str) -> str:
    return ", ".join(dict.fromkeys(plain(line.get(key, "unknown")) for line in lines))


def blank(width: float, height: float, title: str, about: str) -> Figure:
    """An empty picture, in inches, with its heading."""
    from matplotlib.figure import Figure

    figure, title = Figure(figsize=(width, height)), plain(title, int(width * 10.5))
    figure.text(0.25 / width, 1 - 0.3 / height, title, fontsize=11, weight="bold", va="center")
    figure.text(0.25 / width, 1 - 0.56 / height, about, color=MUTED, va="center", fontsize=7.5)
    return figure


def sheet(width: float, body: float, title: str, about: str) -> tuple[Figure, float]:
    """An empty picture under a title of as many lines as it needs, and how far down, in inches, its body begins."""
    lines = textwrap.wrap(plain(title), int(width * 10.5))
    head = 0.62 + 0.2 * len(lines)
    figure, height = blank(width, head + body, "", ""), head + body
    for i, line in enumerate(lines):
        figure.text(0.25 / width, 1 - (0.3 + 0.2 * i) / height, line, fontsize=11, weight="bold", va="center")
    figure.text(0.25 / width, 1 - (head - 0.26) / height, about, color=MUTED, va="center", fontsize=7.5)
    return figure, head


def write_lines(figure: Figure, y: float, lines: Sequence[str], muted: Sequence[str] = ()) -> None:
    """Lines of text at the foot of a picture, the first of them, in bold, `y` inches from its top."""
    width, height = figure.get_size_inches()
    for i, line in enumerate([*lines, *muted]):
        style: dict[str, Any] = {"color": MUTED, "fontsize": 7.5} if i >= len(lines) else {}
        style |= {"weight": "bold", "fontsize": 9} if i == 0 and lines else {}
        figure.text(0.25 / width, 1 - (y + 0.19 * i) / height, line, va="center", **style)


def verdict_lines(result: Mapping[str, Any], width: float) -> list[str]:
    """An experiment's verdict, and its reason in lines that fit a width in inches."""
    verdict, reason = (f"{text[:1].upper()}{text[1:]}" for text in (plain(result["verdict"]), plain(result["reason"])))
    return [verdict, *textwrap.wrap(reason, int(width * 14))]


def axes_at(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """A place for a plot, in inches from the upper left corner."""
    full, tall = figure.get_size_inches()
    return figure.add_axes((x / full, 1 - (y + height) / tall, width / full, height / tall))


def _entries(result: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """A steering's numbers and its three baselines', under the same keys; nothing of a baseline that is not known."""
    each, null = result["per_item"], result["null"]
    own = {"n": result["items"], "least": min(each), "most": max(each), "kl_p95": result["items_kl_p95"]}
    own |= {"coherence": result["coherence"], **result["propensity"]}
    names, nulls = ("prompt only", "random directions", "shuffled labels"), (null["random"], null["shuffled"])
    return {"": own} | {name: x or {} for name, x in zip(names, (result["prompt_only"], *nulls), strict=True)}


def _forest(results: Lines, title: str) -> Figure:
    """Four rows a steering: what it did, and what the three baselines did."""
    names = [plain(result["steer"], 52) for result in results]
    left, high = 0.6 + 0.08 * max(20, *map(len, names)), 1.1 * len(results)
    about = "thick: 95 % interval of the mean · thin: least … most of the directions, at the steering's KL"
    figure = blank(left + 6.8, high + 1.6, title, about)
    axes = axes_at(figure, left, 0.98, 5.2, high)
    axes.axvline(0, color=MUTED, linewidth=0.8, zorder=0)
    for i, (name, result) in enumerate(zip(names, results, strict=True)):
        for row, (label, entry) in enumerate(_entries(result).items()):
            _forest_row(axes, 5 * i + row, label or name, entry, own=row == 0)
    per = " or ".join(sorted({"an answer" if result.get("option_mass") else "a token" for result in results}))
    axes.set(ylim=(5 * len(results) - 1, -1), yticks=[], xlabel=f"shift of propensity, nats {per}")
    for x, heading in ((1.12, "KL p95"), (1.27, "coherence")):
        axes.text(x, 1, heading, color=MUTED, transform=axes.transAxes, ha="right", va="center")
    return figure


def _forest_row(axes: Axes, y: float, label: str, entry: Mapping[str, Any], own: bool) -> None:
    colour, ink, mark, edge = FAINT, MUTED if entry else FAINT, "|", MUTED
    texts = {-0.03: label, 1.12: number(entry["kl_p95"], ".2f") if entry else "not known"}
    if own:
        colour, ink, mark, edge = tint(math.copysign(FULL, entry["shift"]))[0], INK, "o", PAPER
        texts[1.27] = number(entry["coherence"], "+.2f")
    for x, text in texts.items():
        weight, beside = "bold" if own and x < 0 else "normal", axes.get_yaxis_transform()
        axes.text(x, y, text, color=ink, weight=weight, transform=beside, ha="right", va="center")
    if entry:
        thin = ["least", "most"] if label != "prompt only" and not own else ["low", "high"]
        axes.plot([entry[key] for key in thin], [y, y], color=colour, linewidth=0.8)
        axes.plot([entry["low"], entry["high"]], [y, y], color=colour, linewidth=3.2)
        axes.plot([entry["shift"]], [y], mark, color=colour, markersize=8, markeredgecolor=edge)


def _cost(result: Mapping[str, Any]) -> float:
    """What is held against the limit: KL on its own text, or on the items' replies where none was written."""
    return result.get("kl_p95", result["items_kl_p95"])


def _band(layers: Sequence[int]) -> str:
    return f"{layers[0]}" if layers[0] == layers[1] else f"{layers[0]}-{layers[1]}"


def _sides(cells: Cells) -> tuple[list[tuple[int, int]], list[float]]:
    """Single layers, then bands; and dials."""
    bands, dials = map(set, zip(*cells, strict=True))
    return sorted(bands, key=lambda band: (band[0] != band[1], band)), sorted(dials)


def _maps(lines: Lines) -> dict[tuple[str, ...], Cells]:
    """Results by what they are of, a vector's digest first, then by layers and dial; several models are told apart."""
    told = [key for key in ("model", "items") if len({line.get(key) for line in lines}) > 1]
    maps: dict[tuple[str, ...], Cells] = {}
    for line in lines:
        name = tuple(plain(line.get(key)) for key in ("digest", "vector", "estimator", "operator", *told))
        maps.setdefault(name, {})[(line["layers"][0], line["layers"][1]), line["dial"]] = line["result"]
    return maps


def _sweep(lines: Lines, title: str) -> Figure:
    """Heat maps, and beside them or, where they are wide, beneath them the frontier."""
    every = _maps(lines)
    sizes = {name: max(abs(result["shift"]) for result in cells.values()) for name, cells in every.items()}
    kept = sorted(sizes, key=lambda name: -sizes[name])[:MOST_MAPS]
    maps = [(name[1:], cells) for name, cells in every.items() if name in kept]
    left_out = f" · {len(maps)} of {len(every)} maps, those of the largest shifts" if len(maps) < len(every) else ""
    about = f"cells: shift of propensity, nats a token · hatched: KL p95 past 1 nat · blank: not measured{left_out}"
    across = math.ceil(math.sqrt(len(maps)))
    wide = max(2.0, *(0.5 * len(_sides(cells)[1]) for _, cells in maps)) + 0.9
    high = max(0.28 * len(_sides(cells)[0]) for _, cells in maps) + 1.15
    block, tall = across * wide, math.ceil(len(maps) / across) * high
    size, place = (block + 0.5, tall + 5.6), (0.8, tall + 1.4, block - 0.7, 3.6)
    if block < 8:
        size, place = (block + 6.1, max(tall, 3.8) + 0.9), (block + 1.0, 1.4, 4.8, max(tall, 3.8) - 1.15)
    figure = blank(*size, title, about)
    for i, (name, cells) in enumerate(maps):
        x, y, (bands, dials) = 0.8 + i % across * wide, 1.4 + i // across * high, _sides(cells)
        axes = axes_at(figure, x, y, 0.5 * len(dials), 0.28 * len(bands))
        _heat(axes, MARKS[i], name, cells, max(sizes.values()) or 1.0)
    _frontier(axes_at(figure, *place), [cells for _, cells in maps])
    return figure


def _head(axes: Axes, name: str, about: str, x: float = 0) -> None:
    axes.annotate(name, (0, 1), (x, 18), "axes fraction", "offset points", weight="bold")
    axes.annotate(about, (0, 1), (x, 6), "axes fraction", "offset points", color=MUTED, fontsize=7)


def _heat(axes: Axes, mark: tuple[str, str], name: Sequence[str], cells: Cells, scale: float) -> None:
    """A map of the shift, in the colours of scores, headed by the mark that it has on the frontier."""
    bands, dials = _sides(cells)
    for (band, dial), result in cells.items():
        x, y, hatch = dials.index(dial), bands.index(band), "////" if _cost(result) > LIMIT else None
        colour, ink = tint(FULL * result["shift"] / scale)
        axes.bar(x, 1, 1, y, align="edge", color=colour or PAPER, edgecolor=PAPER)
        axes.bar(x, 1, 1, y, align="edge", fill=False, linewidth=0, edgecolor=INK, hatch=hatch)
        # The number stands on plain colour, so that hatching never runs through it.
        chip, shown = {"facecolor": colour or PAPER, "linewidth": 0, "pad": 0.8}, number(result["shift"], "+.2f")
        axes.text(x + 0.5, y + 0.5, shown, ha="center", va="center", color=ink or INK, fontsize=7, bbox=chip)
    axes.set(xlim=(0, len(dials)), ylim=(len(bands), 0), xlabel="dial", ylabel="layers", frame_on=False)
    axes.set_xticks([x + 0.5 for x in range(len(dials))], [number(dial, "+g") for dial in dials])
    axes.set_yticks([y + 0.5 for y in range(len(bands))], list(map(_band, bands)))
    axes.tick_params(length=0)
    _head(axes, plain(name[0], 28), plain(" · ".join(name[1:]), 44), 12)
    axes.plot([0.1], [-1.0], mark[0], color=mark[1], clip_on=False)


def _frontier(axes: Axes, maps: Sequence[Cells]) -> None:
    """How far each cell moves against what it costs, joined by dial; what nothing else beats is named."""
    key = next(key for key in COSTS if all(key in result for cells in maps for result in cells.values()))
    points: list[tuple[float, float, str]] = []
    for (marker, colour), cells in zip(MARKS, maps, strict=False):
        for band in _sides(cells)[0]:
            line = [(dial, cells[other, dial]) for other, dial in sorted(cells) if other == band]
            x, y = [result[key] for _, result in line], [abs(result["shift"]) for _, result in line]
            axes.plot(x, y, color=colour, alpha=0.35, linewidth=0.8)
            for dial, result in line:
                inside, within = colour if result["shift"] >= 0 else PAPER, _cost(result) <= LIMIT
                point = result[key], abs(result["shift"]), f"{_band(band)} at {number(dial, '+g')}"
                points += [point] if within and math.isfinite(result[key]) else []
                style = {"color": colour, "markerfacecolor": inside, "alpha": 1 if within else 0.3, "markersize": 4.5}
                axes.plot([point[0]], [point[1]], marker, **style)
    axes.axvline(0, color=PALE, linewidth=0.8, zorder=0)
    axes.set(xlabel=f"{COSTS[key]}, nats a token", ylabel="size of the shift, nats a token")
    _name_best(axes, points)
    about = "ringed: nothing else within 1 nat moves more for less · hollow: below zero · faint: past 1 nat"
    _head(axes, "What a shift costs", about)


def _name_best(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Ring the points that no other beats both ways, and write names where no points are: above, to the left."""
    points = sorted(points, key=lambda point: (point[0], -point[1]))
    before = itertools.accumulate((y for _, y, _ in points), max, initial=-1.0)
    best = [point for point, most in zip(points, before, strict=False) if point[1] > most]
    axes.plot([x for x, _, _ in best], [y for _, y, _ in best], "o", color="none", markeredgecolor=INK, markersize=9)
    (left, right), (_, top), height = axes.get_xlim(), axes.get_ylim(), 0.0
    for x, y, name in best[:: -math.ceil(len(best) / MOST_NAMES) or 1][::-1]:
        height = max(y + 0.02 * top, height + 0.05 * top)
        axes.annotate(name, (x, y), (x - 0.02 * (right - left), height), ha="right", fontsize=7, arrowprops=LEADER)
    axes.set(xlim=(1.14 * left - 0.14 * right, right), ylim=(0, max(top, height + 0.05 * top)))
