"""Two reports side by side: both verdicts of every claim, both numbers on one axis, and what was run differently.

`compare` gives it as plain data, `comparison_page` as a page in the look of reports. No model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from steerkit.plots.evidence import pill, settings_of, text_of, told_plainly
from steerkit.plots.reports import page_of, section_id
from steerkit.plots.words import NOT_RUN, Statistic, question_of, said_of, statistics_of

Report = Mapping[str, Any]
Entry = Mapping[str, Any]
APART, TOGETHER, MISSING = (
    "the difference is beyond both intervals",
    "cannot be told apart",
    "not measured in both",
)
MARGIN, NEAR = 4.0, 0.15
"""Of an axis, in hundredths of its width, on either side; and how much of it a number needs."""


def compare(one: Report, other: Report) -> dict[str, Any]:
    """What two reports say about the same claims.

    Args:
        one: what `steerkit psm` wrote as JSON.
        other: the same of another model, or of the same model in another run.

    Returns:
        Plain data: `models`, the names of both; `differently`, what was not the same in the two runs; `claims`, in the
        order of the first report, each with `experiment`, `question`, `verdicts` of both, `same`, its own
        `differently`, and `numbers`: `text`, `one` and `other` (`value`, `low`, `high`, or None) and `told`, whether
        the intervals are apart.
    """
    claims = []
    for mine, theirs in _pairs(one, other):
        verdicts = [entry["verdict"] if entry else NOT_RUN for entry in (mine, theirs)]
        known = mine or theirs or {}
        claims.append(
            {
                "experiment": known["experiment"],
                "question": question_of(known),
                "verdicts": verdicts,
                "same": verdicts[0] == verdicts[1] if NOT_RUN not in verdicts else None,
                "differently": _differently(*(settings_of(_result(entry) or {}) for entry in (mine, theirs))),
                "numbers": [_number(first, second) for first, second in _statistics(mine, theirs)],
            }
        )
    return {"models": _names(one, other), "differently": _run_differently(one, other), "claims": claims}


def comparison_page(one: Report, other: Report) -> str:
    """Two reports on one page.

    Args:
        one: as for `compare`.
        other: as for `compare`.
    """
    told = compare(one, other)
    names = [text_of(name) for name in told["models"]]
    warning = f'<p class="error">Not run alike: {text_of("; ".join(told["differently"]))}.</p>'
    head = f"""<header><p class="about">Two reports on the character of language models</p>
<h1>{_key(0)} {names[0]}<br>{_key(1)} {names[1]}</h1><p class="lede">{text_of(summary_of(told))}</p>
{warning if told["differently"] else ""}</header>"""
    sections = "\n".join(
        _section(claim, first, second, names)
        for claim, (first, second) in zip(told["claims"], _pairs(one, other), strict=True)
    )
    board = f"""<section aria-labelledby="board"><h2 id="board">The questions, and both answers</h2>
{_board(told["claims"], names)}</section>"""
    return page_of(f"{names[0]} and {names[1]}: two reports", f"{head}<main>{board}{sections}</main>")


def summary_of(told: Mapping[str, Any]) -> str:
    """How often the verdicts agree and how many numbers are apart, in one sentence or two."""
    both = [claim for claim in told["claims"] if claim["same"] is not None]
    alike = sum(claim["same"] for claim in both)
    apart = [any(number["told"] == APART for number in claim["numbers"]) for claim in both]
    missing = len(told["claims"]) - len(both)
    said = (
        f"Of {len(both)} claims that were tested in both, {alike} have the same verdict. In {sum(apart)} of them the "
    )
    said += "numbers differ by more than both intervals allow; elsewhere the two cannot be told apart."
    return said + (f" {missing} were not tested in both." if missing else "")


def _pairs(one: Report, other: Report) -> Iterator[tuple[Entry | None, Entry | None]]:
    """Both entries of every claim, in the order of the first report, then what only the second has."""
    mine, theirs = ({entry["experiment"]: entry for entry in report["claims"]} for report in (one, other))
    for name in dict.fromkeys([*mine, *theirs]):
        yield mine.get(name), theirs.get(name)


def _result(entry: Entry | None) -> Mapping[str, Any] | None:
    return entry.get("result") if entry else None


def _statistics(mine: Entry | None, theirs: Entry | None) -> Iterator[tuple[Statistic | None, Statistic | None]]:
    """Both statistics of the same meaning."""
    found = [
        {each.text: each for each in statistics_of(entry["experiment"], entry.get("result"))} if entry else {}
        for entry in (mine, theirs)
    ]
    for text in dict.fromkeys([*found[0], *found[1]]):
        yield found[0].get(text), found[1].get(text)


def _ends(number: Statistic | None) -> tuple[float, float, float] | None:
    """Low, value and high, where all of them are known."""
    if number is None or number.low is None or number.value is None or number.high is None:
        return None
    return number.low, number.value, number.high


def _number(first: Statistic | None, second: Statistic | None) -> dict[str, Any]:
    both = [number for number in (first, second) if number is not None]
    ends = [{"value": each.value, "low": each.low, "high": each.high} if each else None for each in (first, second)]
    told, known = MISSING, (_ends(first), _ends(second))
    if known[0] and known[1]:
        told = APART if max(known[0][0], known[1][0]) > min(known[0][2], known[1][2]) else TOGETHER
    return {"text": both[0].text, "one": ends[0], "other": ends[1], "told": told}


def _names(one: Report, other: Report) -> list[str]:
    """What the two are called; the same model in two runs by what tells them apart."""
    names = [str(report["model"]) for report in (one, other)]
    if names[0] == names[1]:
        names = [f"{report['model']}, seed {report['seed']}" for report in (one, other)]
    return (
        [f"{name} ({place})" for name, place in zip(names, ("first", "second"), strict=True)]
        if names[0] == names[1]
        else names
    )


def _run_differently(one: Report, other: Report) -> list[str]:
    run = [{"seed": report["seed"], "thoroughness": "quick" if report["quick"] else "full"} for report in (one, other)]
    return _differently(*({**told, **report["versions"]} for told, report in zip(run, (one, other), strict=True)))


def _differently(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What is not the same in two tables of settings; of one that is missing nothing is known."""
    if not one or not other:
        return []
    keys = dict.fromkeys([*one, *other])
    return [
        f"{key} {told_plainly(one.get(key))} and {told_plainly(other.get(key))}"
        for key in keys
        if one.get(key) != other.get(key)
    ]


def _board(claims: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """A line a claim, with both verdicts."""
    lines = "".join(
        f'<li><a href="#{section_id(claim)}">{text_of(claim["question"])}</a>{_both(claim["verdicts"], names)}</li>'
        for claim in claims
    )
    return f'<ol class="board both">{lines}</ol>'


def _both(verdicts: Sequence[str], names: Sequence[str]) -> str:
    return "".join(
        f'<span class="side">{_key(i)}<span class="hidden">{name}: </span>{pill(verdict)}</span>'
        for i, (verdict, name) in enumerate(zip(verdicts, names, strict=True))
    )


def _key(i: int) -> str:
    """The mark of the first or the second, which have neither colour nor shape in common."""
    shape = '<circle cx="6" cy="6" r="5"/>' if i == 0 else '<rect x="1.5" y="1.5" width="9" height="9"/>'
    return f'<svg class="mark m{i}" viewBox="0 0 12 12" width="12" height="12" aria-hidden="true">{shape}</svg>'


def _section(claim: Mapping[str, Any], first: Entry | None, second: Entry | None, names: Sequence[str]) -> str:
    """A claim: both verdicts, every number of both on one axis, and what was run differently."""
    name, why = section_id(claim), said_of(claim, "why")
    numbers = "".join(_drawn(each, names) for each in _statistics(first, second))
    warning = f'<p class="about">Measured differently: {text_of("; ".join(claim["differently"]))}.</p>'
    heading = f'<h2 id="{name}-question">{text_of(claim["question"])}</h2>'
    inside = f'{heading}<p class="verdicts">{_both(claim["verdicts"], names)}</p><p>{text_of(why)}</p>{numbers}'
    inside += warning if claim["differently"] else ""
    return f'<section class="claim" id="{name}" aria-labelledby="{name}-question">{inside}</section>'


def _drawn(pair: tuple[Statistic | None, Statistic | None], names: Sequence[str]) -> str:
    """A number of both: in words, and as marks with their intervals on one axis."""
    told = _number(*pair)
    said = "".join(
        f"<li>{_key(i)} {name}: <b>{text_of(each.told_whole() if each else 'not measured')}</b></li>"
        for i, (each, name) in enumerate(zip(pair, names, strict=True))
    )
    text = told["text"] or "the statistic"
    head = f'<p class="numbers">… {text_of(text)}: <b class="apart">{told["told"]}</b>.</p>'
    return f'<div class="pair">{head}<ul>{said}</ul>{_axis(pair)}</div>'


def _axis(pair: Sequence[Statistic | None]) -> str:
    """One axis that holds zero and both intervals; marks stand at percentages, so it is as wide as the page."""
    known = {i: ends for i, each in enumerate(pair) if (ends := _ends(each))}
    if not known:
        return ""
    every = [0.0, *(x for ends in known.values() for x in ends)]
    low, high = min(every), max(every)

    def at(x: float) -> str:
        return f"{MARGIN + (100 - 2 * MARGIN) * ((x - low) / (high - low) if high > low else 0.5):.2f}%"

    marks = "".join(_mark(i, *map(at, ends)) for i, ends in known.items())
    zero = f'<line class="zero" x1="{at(0)}" x2="{at(0)}" y1="0" y2="46"/><text x="{at(0)}" y="60">0</text>'
    form = next(each for each in pair if each is not None)
    # An end that is next to zero has no number of its own, because both would stand on each other.
    far = (x for x in (low, high) if abs(x) > NEAR * (high - low))
    texts = "".join(f'<text x="{at(x)}" y="60">{text_of(replace(form, value=x).told())}</text>' for x in far)
    return f'<svg class="axis" width="100%" height="64" aria-hidden="true">{zero}{texts}{marks}</svg>'


def _mark(i: int, low: str, value: str, high: str) -> str:
    y = 12 + 22 * i
    line = f'<line class="m{i}" x1="{low}" x2="{high}" y1="{y}" y2="{y}"/>'
    if i == 0:
        return f'{line}<circle class="m0" cx="{value}" cy="{y}" r="6"/>'
    square = '<rect class="m1" x="-5.5" y="-5.5" width="11" height="11"/>'
    return f'{line}<svg x="{value}" y="{y}" overflow="visible">{square}</svg>'
