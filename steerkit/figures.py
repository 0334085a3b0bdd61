"""Pictures of measurements: evaluations as a forest plot, sweeps as heat maps and a frontier; no model."""

from __future__ import annotations

import html
import importlib.util
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerkit.errors import OutputError
from steerkit.files import replacing_file, write_text
from steerkit.plots import STYLE
from steerkit.tints import BLUE, ORANGE, PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg", ".html")
# The same as `calibration.LIMIT`, which cannot be imported without torch; a test keeps them equal.
LIMIT = 1.0
MOST_MAPS = 12
MOST_LABELS = 8
INK, MUTED, PALE = "#1c1c1a", "#6b6b66", "#e4e3de"
# Okabe and Ito's colours without black, yellow and sky blue's neighbours: apart for every kind of colour blindness.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
SANS = ["Inter", "Segoe UI", "Helvetica Neue", "Helvetica", "Arial", "Noto Sans", "Liberation Sans", "DejaVu Sans"]
LOOK = {
    "font.family": "sans-serif",
    "font.sans-serif": SANS,
    "font.size": 9.0,
    "text.color": INK,
    # A dollar sign in somebody's name for a vector is a dollar sign.
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#b9b8b2",
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "xtick.color": "#b9b8b2",
    "ytick.color": "#b9b8b2",
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "hatch.linewidth": 0.7,
    "figure.facecolor": "#fafaf8",
    "svg.fonttype": "none",
    "svg.hashsalt": "steerkit",
}
TABLE_STYLE = """
figure { margin: 1.5rem 0; } figure svg { display: block; max-width: 100%; height: auto; border-radius: .6rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .4rem 0; } th, td { padding: .2rem .7rem; text-align: right; white-space: nowrap; }
th { font-weight: 600; } th[scope=row], th.text, td.text { text-align: left; } tr { border-bottom: 1px solid #8884; }
"""


@dataclass(frozen=True)
class _Table:
    """What a picture shows, in numbers."""

    title: str
    about: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def check_ending(path: Path) -> None:
    """See, before anything is measured, whether a picture of this name can be drawn.

    Raises:
        OutputError: another ending than .png, .svg or .html, or matplotlib is missing.
    """
    if path.suffix not in ENDINGS:
        raise OutputError(f"cannot draw a {path.suffix or 'nameless'} file; end its name in .png, .svg or .html")
    if importlib.util.find_spec("matplotlib") is None:
        raise OutputError("pictures need matplotlib; install it with: pip install 'persona-steerkit[plots]'")


def save_evaluations(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw steerings' shifts, each above its three baselines, as a forest plot.

    Args:
        results: what `Evaluation.to_json` gives, one a steering
        path: ends in .png, .svg or .html

    Raises:
        OutputError: another ending, nothing to draw, no matplotlib, or a place that cannot be written.
    """
    check_ending(path)
    if not results:
        raise OutputError("there is nothing to draw; evaluate at least one steering")
    with _look():
        _save(_forest(results), path, _evaluations_table(results))


def save_sweep(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw a sweep's shifts as heat maps, and what each costs as a frontier.

    Args:
        lines: the lines that `sweeps.sweep` writes
        path: ends in .png, .svg or .html

    Raises:
        OutputError: another ending, nothing to draw, no matplotlib, or a place that cannot be written.
    """
    check_ending(path)
    if not lines:
        raise OutputError("there is nothing to draw; sweep at least one dial")
    with _look():
        _save(_sweep(lines), path, _sweep_table(lines))


@contextmanager
def _look() -> Iterator[None]:
    """Matplotlib as steerkit wants it, and as it was afterwards."""
    import matplotlib

    with matplotlib.rc_context(LOOK), warnings.catch_warnings():
        # A name in letters that the font lacks is drawn with boxes; the page's table still has it right.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def _save(figure: Figure, path: Path, table: _Table) -> None:
    if path.suffix == ".png":
        # Agg draws at most 65536 pixels a side.
        with replacing_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=min(180.0, 60000 / max(figure.get_size_inches())))
        return
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    write_text(path, drawing if path.suffix == ".svg" else _page(drawing, table))


def _page(drawing: str, table: _Table) -> str:
    title, about = html.escape(_plain(table.title)), html.escape(_plain(table.about))
    drawing = drawing.replace("<svg ", f'<svg role="img" aria-label="{title}; the table has the numbers" ', 1)
    header = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in table.header)
    rows = "\n".join(
        f'<tr><th scope="row">{html.escape(_plain(row[0]))}</th>'
        + "".join(f"<td>{html.escape(_plain(cell))}</td>" for cell in row[1:])
        + "</tr>"
        for row in table.rows
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{STYLE}{TABLE_STYLE}</style></head><body>
<h1>{title}</h1>
<div class="about">{about}</div>
<figure>{drawing}</figure>
<div class="wide"><table><caption>The same in numbers; shifts, intervals, KL and coherence in nats.</caption>
<thead><tr>{header}</tr></thead><tbody>
{rows}
</tbody></table></div>
<footer><p>Made with steerkit.</p></footer>
</body></html>
"""


def _plain(text: str) -> str:
    """Text without what neither XML nor UTF-8 can hold."""
    return re.sub("[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]", "\ufffd", text)


def _short(text: str, most: int) -> str:
    text = _plain(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _number(value: Any, form: str = "+.2f") -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:{form}}".replace("-", "−")


def _named(lines: Sequence[Mapping[str, Any]], key: str) -> str:
    """Every different value, in the order of its first appearance."""
    return ", ".join(dict.fromkeys(str(line.get(key, "unknown")) for line in lines))


def _entries(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any] | None]]:
    """The steering and its three baselines, alike in their keys."""
    items = result["per_item"]
    own = {"least": min(items), "most": max(items), "n": result["items"], "kl_p95": result["items_kl_p95"]}
    return [
        (str(result["steer"]), {**own, "coherence": result["coherence"], **result["propensity"]}),
        ("prompt only", result["prompt_only"]),
        ("random directions", result["null"]["random"]),
        ("shuffled labels", result["null"]["shuffled"]),
    ]


def _evaluations_table(results: Sequence[Mapping[str, Any]]) -> _Table:
    keys = ("shift", "low", "high", "least", "most", "kl_p95", "coherence")
    rows: list[tuple[str, ...]] = []
    for result in results:
        for name, entry in _entries(result):
            whose = "" if name == result["steer"] else name
            numbers = ["not known", *("–" for _ in keys)]
            if entry is not None:
                numbers = [str(entry["n"]), *(_number(entry.get(key), "+.4f") for key in keys)]
            rows.append((str(result["steer"]), whose, *numbers))
    about = f"items: {_named(results, 'source')} · n counts items, prompts or directions"
    header = ("steering", "baseline", "n", *keys)
    return _Table(f"What steering does to {_named(results, 'model')}", about, header, tuple(rows))


def _forest(results: Sequence[Mapping[str, Any]]) -> Figure:
    """Four rows a steering: what it did, and what three other things did."""
    from matplotlib.figure import Figure

    several = len({result["source"] for result in results}) > 1
    names = [_short(f"{r['steer']} ({r['source']})" if several else str(r["steer"]), 52) for r in results]
    left, middle, right = 0.5 + 0.082 * max(20, *map(len, names)), 5.2, 1.7
    width, height = left + middle + right, 1.55 + 1.25 * len(results)
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((left / width, 0.65 / height, middle / width, (height - 1.5) / height))
    for i, (name, result) in enumerate(zip(names, results, strict=True)):
        for row, (label, entry) in enumerate(_entries(result)):
            _forest_row(axes, 5 * i + row, name if row == 0 else label, entry, row == 0)
    axes.axvline(0, color=INK, linewidth=0.8, zorder=0)
    axes.set_ylim(5 * len(results) - 1.2, -0.9)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    per = " or ".join(sorted({"an answer" if result.get("option_mass") else "a token" for result in results}))
    axes.set_xlabel(f"shift of propensity, nats {per}")
    for x, column in ((1.12, "KL p95"), (1.27, "coherence")):
        axes.text(x, 1.0, column, transform=axes.transAxes, ha="right", va="bottom", color=MUTED, fontsize=7.5)
    figure.text(
        0.25 / width, 1 - 0.3 / height, _short(_named(results, "model"), 90), fontsize=12, weight="bold", va="center"
    )
    about = f"{_named(results, 'source')} · {_named(results, 'items')} items · thick: 95 % interval, thin: least … most"
    figure.text(0.25 / width, 1 - 0.55 / height, _short(about, 120), color=MUTED, va="center")
    return figure


def _forest_row(axes: Axes, y: float, label: str, entry: Mapping[str, Any] | None, own: bool) -> None:
    beside = axes.get_yaxis_transform()
    axes.text(
        -0.03,
        y,
        label,
        transform=beside,
        ha="right",
        va="center",
        color=INK if own else MUTED,
        weight="bold" if own else "normal",
        fontsize=9 if own else 8,
    )
    if entry is None:
        axes.text(0.5, y, "not known", transform=beside, ha="center", va="center", color="#b9b8b2", fontsize=8)
        return
    colour = _hex(ORANGE if entry["shift"] >= 0 else BLUE) if own else "#a3a29b"
    if not own and label != "prompt only":
        axes.plot([entry["least"], entry["most"]], [y, y], color=colour, linewidth=0.9)
    axes.plot([entry["low"], entry["high"]], [y, y], color=colour, linewidth=2.6 if own else 3.2, solid_capstyle="butt")
    axes.plot([entry["shift"]], [y], "o", color=colour, markersize=7 if own else 4.5, markeredgecolor=PAPER_HEX)
    for x, key in ((1.12, "kl_p95"), (1.27, "coherence")):
        if key in entry:
            shown = _number(entry[key], ".2f" if key == "kl_p95" else "+.2f")
            axes.text(x, y, shown, transform=beside, ha="right", va="center", fontsize=7.5, color=INK if own else MUTED)


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


@dataclass
class _Map:
    """One vector by one estimator under one operator: results by layers and dial."""

    name: tuple[str, str]
    cells: dict[tuple[tuple[int, int], float], Mapping[str, Any]] = field(default_factory=dict)

    def rows(self) -> list[tuple[int, int]]:
        return sorted({layers for layers, _ in self.cells})

    def columns(self) -> list[float]:
        return sorted({dial for _, dial in self.cells})

    def largest(self) -> float:
        return max((abs(r["shift"]) for r in self.cells.values() if math.isfinite(r["shift"])), default=0.0)


def _maps(lines: Sequence[Mapping[str, Any]]) -> list[_Map]:
    """Lines by what they are about; a model, items or a vector of another content are told apart where they differ."""
    keys = [key for key in ("model", "items") if len({line.get(key) for line in lines}) > 1]
    found: dict[tuple[str, ...], _Map] = {}
    for line in lines:
        more = [str(line.get(key)) for key in keys]
        name = (str(line["vector"]), " · ".join([str(line["estimator"]), str(line["operator"]), *more]))
        first, last = line["layers"]
        one = found.setdefault((*name, str(line.get("digest"))), _Map(name))
        one.cells[(first, last), float(line["dial"])] = line["result"]
    return list(found.values())


def _cost(result: Mapping[str, Any]) -> float:
    """What is held against the limit: the KL of its own text, or of the items' replies where none was written."""
    return result.get("kl_p95", result["items_kl_p95"])


def _layers(band: tuple[int, int]) -> str:
    return f"{band[0]}" if band[0] == band[1] else f"{band[0]}-{band[1]}"


def _sweep_table(lines: Sequence[Mapping[str, Any]]) -> _Table:
    keys = ("shift", "low", "high", "items_kl_p95", "kl_p95", "coherence", "repetition")
    rows = [
        (
            *(str(line[key]) for key in ("vector", "estimator", "operator")),
            _layers(tuple(line["layers"])),
            _number(line["dial"], "+g"),
            *(_number(line["result"].get(key), "+.4f") for key in keys),
            "yes" if _cost(line["result"]) > LIMIT else "",
        )
        for line in lines
    ]
    header = ("vector", "estimator", "operator", "layers", "dial", *keys, "past the limit")
    about = f"items: {_named(lines, 'items')} · {len(lines)} trials"
    return _Table(f"A sweep of {_named(lines, 'model')}", about, header, tuple(rows))


def _sweep(lines: Sequence[Mapping[str, Any]]) -> Figure:
    """Heat maps, and beside or beneath them the frontier."""
    from matplotlib.figure import Figure

    maps = _maps(lines)
    kept = sorted(sorted(range(len(maps)), key=lambda i: -maps[i].largest())[:MOST_MAPS])
    shown = [maps[i] for i in kept]
    across = math.ceil(math.sqrt(len(shown)))
    down = math.ceil(len(shown) / across)
    # In inches: a cell is 0.52 by 0.3, and around a map there are its names.
    wide = max(2.2, 0.52 * max(len(one.columns()) for one in shown)) + 0.9
    high = 0.3 * max(len(one.rows()) for one in shown) + 1.15
    beside = across * wide <= 8
    width = across * wide + 6.0 if beside else max(across * wide + 0.3, 7)
    height = max(down * high + 0.9, 4.8) + 0.55 if beside else down * high + 0.9 + 4.6
    ...
