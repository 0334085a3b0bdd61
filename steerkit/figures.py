"""Pictures of measurements: evaluations as a forest plot, sweeps as heat maps and a frontier; no model."""

from __future__ import annotations

import html
import importlib.util
import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerkit.errors import OutputError
from steerkit.files import replacing_file, write_text
from steerkit.plots import STYLE
from steerkit.tints import FULL, tint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg", ".html")
# The same as `calibration.LIMIT`, which cannot be imported without torch; a test keeps them equal.
LIMIT = 1.0
MOST_MAPS = 12
MOST_LABELS = 8
PAPER, INK, MUTED, FAINT, PALE = "#fafaf8", "#1c1c1a", "#6b6b66", "#a3a29b", "#e4e3de"
# From Okabe and Ito's palette, whose colours are told apart by every kind of colour-blind eye.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
SANS = ["Inter", "Segoe UI", "Helvetica Neue", "Helvetica", "Arial", "Noto Sans", "Liberation Sans", "DejaVu Sans"]
LOOK: Mapping[str, Any] = {
    **{"font.family": "sans-serif", "font.sans-serif": SANS, "font.size": 8.5, "text.color": INK},
    "text.parse_math": False,  # A dollar sign in somebody's name for a vector is a dollar sign.
    **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), MUTED),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), FAINT),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **{"axes.facecolor": "none", "figure.facecolor": PAPER, "hatch.linewidth": 0.6},
    **{"svg.fonttype": "none", "svg.hashsalt": "steerkit"},
}
PAGE_STYLE = """
figure { margin: 1.5rem 0; } figure svg { display: block; max-width: 100%; height: auto; border-radius: .6rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; } th, td { padding: .2rem .7rem; text-align: right; white-space: nowrap; }
tr { border-bottom: 1px solid #8884; } th { font-weight: 600; } th:first-child { text-align: left; }
"""
Cells = dict[tuple[tuple[int, int], float], Mapping[str, Any]]
Lines = Sequence[Mapping[str, Any]]
Rows = list[dict[str, str]]
Draw = Callable[[Lines, str, str], "Figure"]


def check_ending(path: Path) -> None:
    """See, before anything is measured, whether a picture of this name can be drawn.

    Raises:
        OutputError: another ending than .png, .svg or .html, or matplotlib is missing.
    """
    if path.suffix not in ENDINGS:
        raise OutputError(f"cannot draw a {path.suffix or 'nameless'} file; end its name in .png, .svg or .html")
    if importlib.util.find_spec("matplotlib") is None:
        raise OutputError("pictures need matplotlib; install it with: pip install 'persona-steerkit[plots]'")


def save_evaluations(results: Lines, path: Path) -> None:
    """Draw what `Evaluation.to_json` gives, one a steering, as a forest plot with the three baselines.

    Raises:
        OutputError: another ending, nothing to draw, no matplotlib, or a place that cannot be written.
    """
    title, about = f"What steering does to {_named(results, 'model')}", f"items: {_named(results, 'source')}"
    _save(path, _forest, results, _forest_rows, title, about)


def save_sweep(lines: Lines, path: Path) -> None:
    """Draw the lines that `sweep` writes: heat maps of the shift, and the frontier of shift against cost.

    Raises:
        OutputError: another ending, nothing to draw, no matplotlib, or a place that cannot be written.
    """
    known = [line for line in lines if math.isfinite(line["result"]["shift"])]
    title, about = f"A sweep of {_named(lines, 'model')}", f"items: {_named(lines, 'items')} · {len(lines)} trials"
    _save(path, _sweep, known, _sweep_rows, title, about)


def _save(path: Path, draw: Draw, lines: Lines, list_rows: Callable[[Lines], Rows], title: str, about: str) -> None:
    check_ending(path)
    if not lines:
        raise OutputError("there is nothing to draw; measure something first")
    import matplotlib

    with matplotlib.rc_context(dict(LOOK)), warnings.catch_warnings():
        # A name in letters that the font lacks is drawn as boxes; a page's table has it right.
        warnings.filterwarnings("ignore", message="Glyph")
        figure = draw(lines, title, about)
        if path.suffix == ".png":
            with replacing_file(path) as temporary:
                # No side may have more than 65536 pixels.
                figure.savefig(temporary, format="png", dpi=min(180.0, 60000 / max(figure.get_size_inches())))
            return
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    drawing = buffer.getvalue()[buffer.getvalue().index("<svg") :]
    write_text(path, drawing if path.suffix == ".svg" else _page(drawing, title, about, list_rows(lines)))


def _page(drawing: str, title: str, about: str, rows: Rows) -> str:
    title, about = html.escape(title), html.escape(about)
    header = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in rows[0])
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(_plain(cell))}</td>" for cell in row.values()) + "</tr>" for row in rows
    )
    body = re.sub("<tr><td>(.*?)</td>", r'<tr><th scope="row">\1</th>', body)
    drawing = drawing.replace("<svg ", f'<svg role="img" aria-label="{title}; its numbers are in the table" ', 1)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{STYLE}{PAGE_STYLE}</style></head><body>
<h1>{title}</h1>
<div class="about">{about}</div>
<figure>{drawing}</figure>
<div class="wide"><table><caption class="about">The same in numbers; all but repetition and n in nats.</caption>
<thead><tr>{header}</tr></thead><tbody>
{body}
</tbody></table></div>
<footer><p>Made with steerkit.</p></footer>
</body></html>
"""


def _plain(text: Any, most: int = 10**6) -> str:
    """Text without what neither XML nor UTF-8 can hold, cut short."""
    text = re.sub("[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]", "\ufffd", str(text))
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _number(value: float | None, form: str = "+.4f") -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:{form}}".replace("-", "−")


def _named(lines: Lines, key: str) -> str:
    """Every different value, in the order of its first appearance."""
    return ", ".join(dict.fromkeys(_plain(line.get(key, "unknown")) for line in lines))


def _blank(width: float, height: float, title: str, about: str) -> Figure:
    """An empty picture, in inches, with its heading."""
    from matplotlib.figure import Figure

    figure, letters = Figure(figsize=(width, height)), int(width * 11)
    figure.text(0.25 / width, 1 - 0.3 / height, _plain(title, letters), fontsize=12, weight="bold", va="center")
    figure.text(0.25 / width, 1 - 0.57 / height, _plain(about, letters + 40), color=MUTED, va="center")
    return figure


def _axes(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """A place for a plot, in inches from the upper left corner."""
    full, tall = figure.get_size_inches()
    return figure.add_axes((x / full, 1 - (y + height) / tall, width / full, height / tall))


def _entries(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any] | None]]:
    """A steering's numbers and its three baselines', under the same keys."""
    each = result["per_item"]
    numbers = {"n": result["items"], "least": min(each), "most": max(each), "kl_p95": result["items_kl_p95"]}
    null = result["null"]
    return [
        ("", {**numbers, "coherence": result["coherence"], **result["propensity"]}),
        ("prompt only", result["prompt_only"]),
        ("random directions", null["random"]),
        ("shuffled labels", null["shuffled"]),
    ]


def _forest_rows(results: Lines) -> Rows:
    keys = ("shift", "low", "high", "least", "most", "kl_p95", "coherence")
    return [
        {"steering": str(result["steer"]), "baseline": name if entry is not None else f"{name} (not known)"}
        | {"n": str((entry or {}).get("n", "–"))}
        | {key: _number((entry or {}).get(key)) for key in keys}
        for result in results
        for name, entry in _entries(result)
    ]


def _forest(results: Lines, title: str, about: str) -> Figure:
    """Four rows a steering: what it did, and what the three baselines did."""
    several = len({result["source"] for result in results}) > 1
    names = [_plain(f"{r['steer']} ({r['source']})" if several else r["steer"], 52) for r in results]
    left, high = 0.6 + 0.08 * max(20, *map(len, names)), 1.1 * len(results)
    about = f"{about} · thick: 95 % interval of the mean, thin: least … most of the directions"
    figure = _blank(left + 6.9, high + 1.7, title, about)
    axes = _axes(figure, left, 1.05, 5.2, high)
    for i, (name, result) in enumerate(zip(names, results, strict=True)):
        for row, (label, entry) in enumerate(_entries(result)):
            _forest_row(axes, 5 * i + row, label or name, entry, own=row == 0)
    axes.axvline(0, color=INK, linewidth=0.8, zorder=0)
    axes.set_ylim(5 * len(results) - 1, -1)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    per = " or ".join(sorted({"an answer" if result.get("option_mass") else "a token" for result in results}))
    axes.set_xlabel(f"shift of propensity, nats {per}")
    for x, heading in ((1.12, "KL p95"), (1.27, "coherence")):
        axes.text(x, 1, heading, transform=axes.transAxes, ha="right", va="bottom", color=MUTED, fontsize=7.5)
    return figure


def _forest_row(axes: Axes, y: float, label: str, entry: Mapping[str, Any] | None, own: bool) -> None:
    beside, ink, weight = axes.get_yaxis_transform(), INK if own else MUTED, "bold" if own else "normal"
    axes.text(-0.03, y, label, transform=beside, ha="right", va="center", color=ink, weight=weight)
    if entry is None:
        axes.text(0.99, y, "not known", transform=beside, ha="right", va="center", color=FAINT)
        return
    colour = tint(math.copysign(FULL, entry["shift"]))[0] if own else FAINT
    if label in ("random directions", "shuffled labels"):
        axes.plot([entry["least"], entry["most"]], [y, y], color=colour, linewidth=0.8)
    axes.plot([entry["low"], entry["high"]], [y, y], color=colour, linewidth=3, solid_capstyle="butt")
    axes.plot([entry["shift"]], [y], "o", color=colour, markersize=8 if own else 5.5, markeredgecolor=PAPER)
    for x, key, form in ((1.12, "kl_p95", ".2f"), (1.27, "coherence", "+.2f")):
        shown = _number(entry[key], form) if key in entry else ""
        axes.text(x, y, shown, transform=beside, ha="right", va="center", fontsize=7.5, color=ink)


def _cost(result: Mapping[str, Any]) -> float:
    """What is held against the limit: KL on its own text, or on the items' replies where none was written."""
    return result.get("kl_p95", result["items_kl_p95"])


def _band(layers: Sequence[int]) -> str:
    return f"{layers[0]}" if layers[0] == layers[1] else f"{layers[0]}-{layers[1]}"


def _sweep_rows(lines: Lines) -> Rows:
    keys = ("shift", "low", "high", "items_kl_p95", "kl_p95", "coherence", "repetition")
    return [
        {key: str(line[key]) for key in ("vector", "estimator", "operator")}
        | {"layers": _band(line["layers"]), "dial": _number(line["dial"], "+g")}
        | {key: _number(line["result"].get(key)) for key in keys}
        | {"past the limit": "yes" if _cost(line["result"]) > LIMIT else ""}
        for line in lines
    ]


def _maps(lines: Lines) -> dict[tuple[str, ...], Cells]:
    """Results by what they are of, then by layers and dial; models and items are named where there are several."""
    told = [key for key in ("model", "items") if len({line.get(key) for line in lines}) > 1]
    maps: dict[tuple[str, ...], Cells] = {}
    for line in lines:
        # Two vectors of one name have different digests.
        name = tuple(_plain(line.get(key)) for key in ("digest", "vector", "estimator", "operator", *told))
        first, last = line["layers"]
        maps.setdefault(name, {})[(first, last), line["dial"]] = line["result"]
    return maps


def _largest(cells: Cells) -> float:
    return max(abs(result["shift"]) for result in cells.values())


def _sweep(lines: Lines, title: str, about: str) -> Figure:
    """Heat maps, and beside them or, where they are wide, beneath them the frontier."""
    every = _maps(lines)
    kept = sorted(every, key=lambda name: -_largest(every[name]))[:MOST_MAPS]
    maps = {name: cells for name, cells in every.items() if name in kept}
    if len(maps) < len(every):
        about += f" · the {len(maps)} of {len(every)} grids with the largest shifts are shown"
    across = math.ceil(math.sqrt(len(maps)))
    wide = max(2.0, *(0.5 * len({dial for _, dial in cells}) for cells in maps.values())) + 0.9
    high = max(0.28 * len({band for band, _ in cells}) for cells in maps.values()) + 1.15
    block, tall, beside = across * wide, math.ceil(len(maps) / across) * high, across * wide < 8
    figure = _blank(block + 5.9 if beside else block + 0.5, max(tall, 4.6) + 1 if beside else tall + 6, title, about)
    scale = max(map(_largest, maps.values())) or 1.0
    for i, (name, cells) in enumerate(maps.items()):
        _heat(figure, 0.8 + i % across * wide, 1.5 + i // across * high, i, name[1:], cells, scale)
    place = (block + 0.9, 1.5, 4.6, max(tall, 4.6) - 1.2) if beside else (0.8, tall + 1.7, block - 0.7, 3.6)
    _frontier(_axes(figure, *place), list(maps.values()))
    note = "hatched: KL p95 past 1 nat, where text falls apart · outlined: not measured"
    figure.text(0.25 / figure.get_figwidth(), 0.2 / figure.get_figheight(), note, color=MUTED, fontsize=7.5)
    return figure


def _heat(figure: Figure, x: float, y: float, i: int, name: tuple[str, ...], cells: Cells, scale: float) -> None:
    """A map of the shift, in the colours of scores, headed by the mark that it has on the frontier."""
    from matplotlib.patches import Rectangle

    rows, columns = sorted({band for band, _ in cells}), sorted({dial for _, dial in cells})
    axes = _axes(figure, x, y, 0.5 * len(columns), 0.28 * len(rows))
    for row, column in itertools.product(range(len(rows)), range(len(columns))):
        result = cells.get((rows[row], columns[column]))
        colour, ink = tint(FULL * result["shift"] / scale) if result else ("none", PALE)
        past = result is not None and _cost(result) > LIMIT
        axes.add_patch(Rectangle((column, row), 1, 1, facecolor=colour or PAPER, edgecolor=PAPER if result else PALE))
        if past:
            axes.add_patch(Rectangle((column, row), 1, 1, fill=False, hatch="////", edgecolor=PAPER, linewidth=0))
        if result:
            shown = _number(result["shift"], "+.2f")
            axes.text(column + 0.5, row + 0.5, shown, ha="center", va="center", fontsize=7, color=ink or INK)
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0), xlabel="dial", ylabel="layers")
    axes.set_xticks([column + 0.5 for column in range(len(columns))], [_number(dial, "+g") for dial in columns])
    axes.set_yticks([row + 0.5 for row in range(len(rows))], [_band(band) for band in rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    inches = axes.get_position()
    _ = inches
    over = axes.get_xaxis_transform()
    axes.plot([0.15], [1 + 0.3 / (0.28 * len(rows))], **_mark(i), transform=over, clip_on=False)
    axes.annotate(name[0], (0, 1), (12, 18), "axes fraction", "offset points", weight="bold")
    axes.annotate(" · ".join(name[1:]), (0, 1), (12, 6), "axes fraction", "offset points", color=MUTED, fontsize=7.5)


def _mark(i: int) -> dict: ...
