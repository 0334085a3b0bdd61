"""What a report tells the researcher: a claim's numbers, nulls and parts, and how all was made; no model.

Every function gives HTML in which whatever came from outside is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from steerkit.plots.figures import number, plain
from steerkit.plots.words import NO, NOT_RUN, UNKNOWN, YES, statistics_of

Result = Mapping[str, Any]
Entry = Mapping[str, Any]
MOST_LISTED, ENDS = 8, ("value", "low", "high")
SHAPES = {
    YES: ("yes", "M2.5 6.5 5 9 9.5 3.5"),
    NO: ("no", "M3 3 9 9M9 3 3 9"),
    UNKNOWN: ("open", "M1.5 7.2C2.8 4.4 4.4 4.4 6 6S9.2 7.6 10.5 4.8"),
    NOT_RUN: ("none", "M3 6H3.6M5.7 6H6.3M8.4 6H9"),
}
"""A class and a drawn sign for each verdict, so that neither colour nor shape has to tell it alone."""
TOLD = {"experiment", "claim", "model", "verdict", "reason", "needed", "unit"}
"""What is told elsewhere, or is the same in every run."""


def text_of(text: Any) -> str:
    """Escaped, and without what a page cannot hold."""
    return html.escape(plain(text))


def pill(verdict: str) -> str:
    """A verdict as a word on a coloured ground with a sign."""
    style, sign = SHAPES.get(verdict, SHAPES[NOT_RUN])
    drawn = f'<svg viewBox="0 0 12 12" width="12" height="12" aria-hidden="true"><path d="{sign}"/></svg>'
    return f'<span class="pill {style}">{drawn}{text_of(verdict)}</span>'


def told_plainly(value: Any) -> str:
    """Numbers and tables of numbers as one line of text; long lists only as how long they are.

    >>> told_plainly({"random": {"n": 20, "most": -0.5}, "spectrum": [0.0] * 100, "left": None})
    'random: n 20, most −0.5; spectrum: 100 numbers; left: not known'
    """
    if _is_number(value):
        return "{} [{}, {}]".format(*(told_plainly(value[key]) for key in ENDS))
    if isinstance(value, Mapping):
        nested = any(isinstance(x, Mapping | list | tuple) for x in value.values())
        parts = [f"{key}{': ' if nested else ' '}{told_plainly(x)}" for key, x in value.items()]
        return ("; " if nested else ", ").join(parts)
    if isinstance(value, list | tuple):
        return ", ".join(map(told_plainly, value)) if len(value) <= MOST_LISTED else f"{len(value)} numbers"
    if isinstance(value, float):
        return number(value, ".6g")
    return "not known" if value is None else "yes" if value is True else "no" if value is False else str(value)


def settings_of(result: Result) -> dict[str, Any]:
    """How much was measured, from whatever plain settings a result has."""
    return {key: x for key, x in result.items() if key not in TOLD and isinstance(x, int | str)}


def researcher(entry: Entry) -> str:
    """The folded part of a claim: everything that its verdict rests on, and the command that measures it again."""
    result = entry.get("result") or {}
    told = {
        "claim": entry["claim"],
        "measured on": told_plainly(settings_of(result)),
        "statistic": "; ".join(_statistics(entry)),
        "other numbers": told_plainly({key: x for key, x in result.items() if _is_number(x) and key != "statistic"}),
        "null": told_plainly(result.get("null") or {}),
        "thresholds": told_plainly(result.get("thresholds") or {}),
        "reason": result.get("reason", ""),
        "to tell, it would take": result.get("needed", ""),
        "why it was not run": entry.get("error", ""),
    }
    lines = "".join(f"<dt>{name}</dt><dd>{text_of(text)}</dd>" for name, text in told.items() if text)
    inside = f"<dl>{lines}</dl>{_parts(result)}{_rows(result)}<p>Measure it again with:</p>{command(entry['command'])}"
    return f"<details><summary>For the researcher: numbers, nulls, thresholds, command</summary>{inside}</details>"


def command(line: str) -> str:
    """A command, which one click selects whole."""
    return f'<pre class="command"><code>{text_of(line)}</code></pre>'


def _statistics(entry: Entry) -> list[str]:
    return [
        f"{told_plainly({key: getattr(each, key) for key in ENDS})} {each.text}".strip()
        for each in statistics_of(entry["experiment"], entry.get("result"))
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == set(ENDS)


def _parts(result: Result) -> str:
    """What the verdict is made of."""
    rows = [(text_of(part), pill(verdict)) for part, verdict in (result.get("parts") or {}).items()]
    return table("The claim, part by part", ("part", "verdict"), rows, texts=2) if rows else ""


def _rows(result: Result) -> str:
    """What the picture shows, in numbers."""
    rows = [
        (
            text_of(row["name"]),
            text_of(row["group"]),
            *(_cell(row.get(key)) for key in ENDS),
            _cell(row.get("kl"), ".4f"),
        )
        for row in result.get("rows") or ()
    ]
    heads = ("", "group", "value", "low", "high", "KL p95")
    caption = f"The picture in numbers, in {text_of(result.get('unit', ''))}; KL in nats a token"
    return table(caption, heads, rows, texts=2) if rows else ""


def _cell(value: float | None, form: str = "+.4f") -> str:
    return "–" if value is None else number(value + 0.0, form)


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A table that scrolls by itself where it is too wide; its first `texts` columns are text, and all cells HTML."""
    styles = ['class="first"' if i < texts else "" for i in range(len(heads))]
    above = "".join(f'<th scope="col" {style}>{head}</th>' for head, style in zip(heads, styles, strict=True))
    body = "\n".join(
        f'<tr><th scope="row" class="first">{row[0]}</th>'
        + "".join(f"<td {style}>{cell}</td>" for cell, style in zip(row[1:], styles[1:], strict=True))
        + "</tr>"
        for row in rows
    )
    inside = f"<table><caption>{caption}</caption><thead><tr>{above}</tr></thead><tbody>\n{body}</tbody></table>"
    return f'<div class="wide" tabindex="0" role="group" aria-label="{caption}">{inside}</div>'


RULE = """Every threshold is a number in one file, <code>steerkit/experiments/thresholds.py</code>, with its reason
beside it. They were fixed before any model was measured against them; the one exception, how far two halves of the
questions must agree, was added later, and can only turn a “no” into a “cannot tell”."""
RATES = """Before a verdict is believed, the same code is given measurements in which the truth was planted: an effect
that is there, one that is not, and confounds that look like one. This is how often it then said what is right; of a
confound it is right not to call the claim true."""


def how_made(report: Mapping[str, Any]) -> str:
    """The model's fingerprint, versions, seed, vectors with their evidence, thresholds, and rates on planted truths."""
    mark = {key: told_plainly(x) for key, x in report["fingerprint"].items() if key != "behaviour"}
    behaviour = report["fingerprint"].get("behaviour") or ()
    if behaviour:
        mark["behaviour"] = " / ".join(f"{told_plainly(row[:3])} …" for row in behaviour)
    run = {"seed": told_plainly(report["seed"]), "thoroughness": "quick" if report["quick"] else "full"}
    rows = {**mark, **{str(key): str(x) for key, x in report["versions"].items()}, **run}
    facts = table("Model, versions, seed", ("", ""), [(text_of(k), text_of(x)) for k, x in rows.items()], texts=2)
    return f"""{facts}
<h3>Vectors and their evidence</h3>{_vectors(report.get("vectors") or ())}
<h3>How the thresholds were fixed</h3><p>{RULE}</p>
{_rates(report.get("rates") or ())}"""


def _vectors(vectors: Sequence[Mapping[str, Any]]) -> str:
    if not vectors:
        return "<p>No vectors lie here for this model; experiments that steer could not be run.</p>"
    good, other = ([str(each["name"]) for each in vectors if bool(each["reliable"]) == side] for side in (True, False))
    told = (
        f"<p>{len(vectors)} directions of characters and traits lie here for this model. The evidence that each of them"
    )
    told += f" carries calls {len(good)} reliable and {len(other)} not, or not known to be.</p>"
    lists = "".join(
        f"<dt>{name}</dt><dd>{text_of(', '.join(each))}</dd>"
        for name, each in (("reliable", good), ("others", other))
        if each
    )
    return f"{told}<details><summary>All {len(vectors)} by name</summary><dl>{lists}</dl></details>"


def _rates(rates: Sequence[Mapping[str, Any]]) -> str:
    if not rates:
        return ""
    rows = [
        (text_of(each["experiment"]), text_of(each["case"]), text_of(f"{each['right']} of {each['n']}"))
        for each in rates
    ]
    known = table("Planted truths", ("claim", "what was planted", "right"), rows, texts=2)
    return f"<h3>How often the verdicts are right</h3><p>{RATES}</p>{known}"
