"""The report of `steerkit psm` as one page that needs nothing else: plain answers first, then everything behind them.

`report_page` writes it from plain data, `picture_svg` draws what stands in it. No model. Whatever comes from outside is
escaped; only the pictures, which this package draws, go in as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from steerkit.plots.evidence import command, how_made, pill, researcher, text_of
from steerkit.plots.figures import SANS
from steerkit.plots.inlined import picture_svg
from steerkit.plots.pages import STYLE
from steerkit.plots.words import NO, NOT_RUN, UNKNOWN, YES, answer_of, question_of, said_of, statistics_of

__all__ = ["page_of", "picture_svg", "report_page"]
Entry = Mapping[str, Any]
RULES = """A “yes” or a “no” is given only where the number, with its whole 95 % interval, lies on one side of a
threshold that was fixed before anything was measured, and a “yes” only where chance does not give as much. Everything
else is “cannot tell”, which is an answer too."""
QUICK = "This was a quick run: fewer questions and examples, so wider intervals and more “cannot tell”."
SWIPE = '<p class="about swipe">Wider than this screen: swipe the picture sideways.</p>'
COUNTED = {YES: "yes", NO: "no", UNKNOWN: "cannot tell", NOT_RUN: "not run"}


def report_page(report: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """The page of a report.

    Args:
        report: what `steerkit psm` found: `model`, `fingerprint`, `versions`, `seed`, `quick`, `summary`, `claims` and
            `vectors`, and `rates` where they are known. Each claim has `experiment`, `claim`, `command`, `verdict`,
            `result` (what its `run()` reports, or None) and `error` (why it was not run).
        pictures: for each experiment that has one what `picture_svg` draws.
    """
    claims: Sequence[Entry] = report["claims"]
    model = text_of(report["model"])
    head = f"""<header><p class="about">A report on the character of a language model</p><h1>{model}</h1>
<p class="lede">{text_of(report["summary"])}</p>{f'<p class="about">{QUICK}</p>' if report["quick"] else ""}</header>"""
    sections = "\n".join(_section(entry, pictures.get(entry["experiment"], "")) for entry in claims)
    body = f"""{head}<main>
<section aria-labelledby="board"><h2 id="board">The questions, and what came out</h2>
{_board(claims)}<p class="about">{_tally(claims)} {RULES}</p></section>
{sections}
{_open(claims)}
<section aria-labelledby="made"><h2 id="made">How this was made</h2>{how_made(report)}</section>
</main>"""
    return page_of(f"{model}: a report on its character", body)


def page_of(title: str, body: str) -> str:
    """A whole page in the look of reports, from a title and a body in HTML."""
    style = (resources.files("steerkit") / "data" / "report.css").read_text(encoding="utf-8")
    fonts = ", ".join(f'"{name}"' for name in SANS)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{STYLE}:root {{ --sans: {fonts}, sans-serif; }}
{style}</style></head><body>
{body}
<footer><p>Made with steerkit.</p></footer></body></html>
"""


def section_id(entry: Entry) -> str:
    """What a claim's section is called within the page."""
    return "claim-" + re.sub("[^a-z0-9]+", "-", str(entry["experiment"]).lower()).strip("-")


def _board(claims: Sequence[Entry]) -> str:
    """A line a claim: its question, its verdict, its number."""
    lines = []
    for entry in claims:
        numbers = statistics_of(entry["experiment"], entry.get("result"))[:1]
        told = "".join(f"<b>{text_of(each.told())}</b> {text_of(each.text)}" for each in numbers)
        told = told or ("what to do is told below" if entry["verdict"] == NOT_RUN else "")
        question = f'<a href="#{section_id(entry)}">{text_of(question_of(entry))}</a>'
        lines.append(f'<li>{question}{pill(entry["verdict"])}<span class="number">{told}</span></li>')
    return f'<ol class="board">{"".join(lines)}</ol>'


def _tally(claims: Sequence[Entry]) -> str:
    counts = {name: sum(entry["verdict"] == verdict for entry in claims) for verdict, name in COUNTED.items()}
    return (text_of(" · ".join(f"{count} {name}" for name, count in counts.items() if count)) or "nothing yet") + "."


def _section(entry: Entry, picture: str) -> str:
    """A claim: question, answer, why it matters, picture, how to read it, and everything behind it."""
    name, why = section_id(entry), said_of(entry, "why")
    numbers = [f"<b>{text_of(each.told_whole())}</b> {text_of(each.text)}" for each in _numbers(entry)]
    said = [f'<p class="answer">{pill(entry["verdict"])} {text_of(answer_of(entry))}</p>']
    said += [f'<p class="numbers">{"; ".join(numbers)}.</p>'] if numbers else []
    said += [_missing(entry)] if entry["verdict"] == NOT_RUN else []
    said += [f"<p>{text_of(why)}</p>"] if why else []
    said += [_figure(entry, picture)] if picture else []
    heading = f'<h2 id="{name}-question">{text_of(question_of(entry))}</h2>'
    inside = "\n".join([heading, *said, researcher(entry)])
    return f'<section class="claim" id="{name}" aria-labelledby="{name}-question">{inside}</section>'


def _numbers(entry: Entry) -> list[Any]:
    return [each for each in statistics_of(entry["experiment"], entry.get("result")) if each.value is not None]


def _missing(entry: Entry) -> str:
    """Why a claim was not run, and what to type."""
    why = f'<p class="error">Why not: {text_of(_why_not(entry))}.</p>'
    return f"{why}<p>Once that is settled:</p>{command(entry['command'])}"


def _why_not(entry: Entry) -> str:
    return str(entry.get("error") or "nobody has run it yet").rstrip(".")


def _figure(entry: Entry, picture: str) -> str:
    read = said_of(entry, "read")
    caption = f"<figcaption><b>How to read it.</b> {text_of(read)}</figcaption>" if read else ""
    if 'class="phone"' in picture:
        return f'<figure><div class="card">{picture}</div>{caption}</figure>'
    scrolls = f'tabindex="0" role="group" aria-label="{text_of(f"Picture: {question_of(entry)}")}"'
    return f'<figure><div class="card scrolls" {scrolls}>{picture}</div>{SWIPE}{caption}</figure>'


def _open(claims: Sequence[Entry]) -> str:
    """What could not be told, and what it would take."""
    lines = []
    for entry in claims:
        if entry["verdict"] in (UNKNOWN, NOT_RUN):
            needed = (entry.get("result") or {}).get(
                "needed"
            ) or "more than these tests, which do not say how much more"
            told = (
                f"To tell, it would take {needed}." if entry["verdict"] == UNKNOWN else f"Not run: {_why_not(entry)}."
            )
            link = f'<a href="#{section_id(entry)}">{text_of(question_of(entry))}</a>'
            lines.append(f"<li>{link}<br>{text_of(told)}</li>")
    nothing = "Every question got an answer." if claims else "Nothing has been tested yet."
    inside = f'<ul class="open">{"".join(lines)}</ul>' if lines else f"<p>{nothing}</p>"
    return f'<section aria-labelledby="open"><h2 id="open">What could not be told</h2>{inside}</section>'
