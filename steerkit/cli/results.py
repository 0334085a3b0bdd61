"""How results of experiments are told: the verdict first, then numbers beside their nulls, then what was near."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from steerkit.cli.console import out, print_json, print_table, talk, warn
from steerkit.tints import tint

if TYPE_CHECKING:
    from steerkit.experiments import Plan
    from steerkit.models import Model
    from steerkit.speed import Rates

Quick = Annotated[bool, typer.Option("--quick", help="Fewer questions and items: minutes, and wider intervals.")]
COLOURS = {"yes": "bold green", "no": "bold red", "cannot tell": "bold yellow", "not run": "bold dim"}


def say_plan(plan: Plan, rates: Rates) -> None:
    """Tell on stderr what is going to be done, and how long that takes if nothing of it is known yet."""
    seconds = plan.read / rates.read + plan.scored / rates.scored + plan.written / rates.written
    seconds += plan.trained / rates.trained
    took = f"about {seconds / 60:.0f} min" if seconds > 90 else f"about {max(seconds, 1):.0f} s"
    told = Text.assemble(("will ", "dim"), "; ".join(plan.steps), (f" · {took}, less what is kept", "dim"))
    talk().print(told, soft_wrap=True)


def look_at_speed(model: Model) -> Rates:
    """How fast the model is here, from a few seconds of work."""
    from steerkit.speed import measure_rates

    with talk().status("seeing how fast this machine is"):
        return measure_rates(model)


@contextmanager
def stoppable(what: str) -> Iterator[None]:
    """Ctrl-C ends with a sentence: what has been measured is kept."""
    try:
        yield
    except KeyboardInterrupt:
        warn(f"stopped; the {what} that were taken are kept, and the same command goes on from there")
        raise typer.Exit(130) from None


def check_picture(plot: Path | None) -> None:
    """Before anything is measured, see whether it can be drawn."""
    if plot is not None:
        from steerkit.plots.figures import check_ending

        check_ending(plot)


def head(result: Mapping[str, Any], about: str) -> None:
    """The claim, what was measured, and the verdict."""
    console = out()
    console.print(Text(result["claim"], "italic"))
    console.print(Text(f"{result['model']} · {about}", "dim"))
    verdict = result["verdict"]
    console.print(Text.assemble((verdict, COLOURS[verdict]), f"  {result['reason']}."))


def _numbers_table(rows: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any], str]]) -> None:
    """Statistics with interval, null and what they have to reach."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("", "value", "95 %", "random vectors", "supports if"):
        table.add_column(heading, justify="left" if heading in ("", "supports if") else "right", header_style="dim")
    for name, (number, null, wanted) in rows.items():
        ends = f"{null['least']:.2f} … {null['most']:.2f}"
        table.add_row(
            name, f"{number['value']:.2f}", f"{number['low']:.2f} … {number['high']:.2f}", ends, Text(wanted, "dim")
        )
    print_table(table)


def show_map(result: Mapping[str, Any]) -> None:
    """The verdict, the numbers, and who is near the Assistant and who far."""
    asked = f"{result['personas']} personas × {result['questions']} questions, {result['reading']}s"
    head(result, f"layer {result['layer']} · {asked}")
    number, null, bounds = result["statistic"], result["null"], result["thresholds"]
    _numbers_table(
        {
            "components for 70 %": (number["components"], null["components"], f"at most {bounds['few']}"),
            "Assistant beyond, on PC1": (number["percentile"], null["percentile"], f"{bounds['outer']:.2f} or more"),
            "cosine, PC1 · axis": (number["cosine"], null["cosine"], f"more than {bounds['cosine']}"),
        }
    )
    other, console = result["confounds"], out()
    story = other.get("storytelling")
    told = "" if story is None else f" · storytelling: cosine {story['cosine']:+.2f}, r {story['r']:+.2f}"
    told += f" · a prompt about nothing: beyond {other['control']['percentile']:.0%}"
    left = "without both: percentile {percentile:.2f}, cosine {cosine:.2f}".format(**other["without"])
    halves = f"halves of the questions agree to r {result['halves']:.2f}"
    console.print(Text(f"PC1 and reply length: r {other['length']['r']:+.2f}{told} · {left} · {halves}", "dim"))
    for title, key in (("nearest", "nearest"), ("farthest", "farthest")):
        names = ", ".join(f"{entry['name']} {entry['distance']:.1f}" for entry in result[key][:8])
        console.print(Text.assemble((f"{title:<9}", "bold"), names))
    axis = result["axis"]
    ends = f"{', '.join(axis['low_end'])}  ←→  {', '.join(axis['high_end'])}  ★ the Assistant"
    console.print(Text.assemble((f"{'axis':<9}", "bold"), ends))
    for turn in result["path"]:
        words = " ".join(turn["text"].split())[:60]
        console.print(Text(f"turn {turn['turn']}   PC1 {turn['x']:+.2f}  PC2 {turn['y']:+.2f}  {words}", "dim"))


def show_spillover(result: Mapping[str, Any]) -> None:
    """The verdict, the matrix in its clustered order, and a sentence a trait."""
    head(result, f"{len(result['traits'])} traits × {result['items']} items · every dial at KL p95 {result['kl_p95']}")
    names, order = [trait["name"] for trait in result["traits"]], result["order"]
    largest = max((abs(x) for row in result["propensity"] for x in row), default=1.0) or 1.0
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("turned up, and measured →", header_style="dim")
    for j in order:
        table.add_column(names[j][:8], justify="right", header_style="dim")
    for i in order:
        cells = []
        for j in order:
            shift, shown = result["propensity"][i][j], result["significant"][i][j]
            background, ink = tint(2 * shift / largest)
            style = f"{ink} on {background}" if background and shown else "dim"
            cells.append(Text(f"{shift:+.2f}", style))
        table.add_row(Text(names[i], "bold"), *cells)
    print_table(table)
    console = out()
    console.print(Text("coloured: beyond every random direction; dim: within them", "dim"))
    for sentence in result["sentences"]:
        console.print(Text(sentence), soft_wrap=True)
    for title, key in (("strongest", "strongest"), ("least foretold by cosine", "surprising")):
        told = ", ".join(f"{e['steered']} → {e['measured']} {e['shift']:+.2f}" for e in result[key][:5])
        console.print(Text.assemble((f"{title}  ", "bold"), told or "none beyond random directions"), soft_wrap=True)
    console.print(
        Text(
            f"geometry: r {result['agreement']:+.2f} of cosine and shift; by cosine malign traits lean to each other "
            f"{result['geometry_statistic']:+.2f} more than benign ones to them, under other labels as much in "
            f"{result['geometry_p']:.1%} · measured at KL p95 {result['null']['kl_p95'][0]:.2f} to "
            f"{result['null']['kl_p95'][1]:.2f} and brought to {result['kl_p95']}",
            "dim",
        )
    )


def show_humanlike(result: Mapping[str, Any]) -> None:
    """The verdict, and every family on the line from things to people."""
    head(result, f"layer {result['layer']} · {result['people']} people, {result['things']} things")
    console = out()
    own = {"★ the Assistant": result["statistic"]["value"], "a prompt about nothing": result["control"]}
    known = {name: place for name, place in {**result["families"], **own}.items() if place is not None}
    for name, place in sorted(known.items(), key=lambda row: row[1]):
        line, style = "▏" + "█" * max(0, round(20 * place)), "bold" if name in own else ""
        console.print(Text.assemble((f"{name:<24}", style), f"{place:+.2f} ", (line, "dim")))
    if result["without"] is not None:
        left = f"without what reply length and storytelling explain: {result['without']:+.2f}"
        console.print(Text(left, "dim"))


def show_rows(result: Mapping[str, Any]) -> None:
    """The verdict, its parts, and every number beside its controls and nulls."""
    head(result, _about(result))
    console = out()
    for part, verdict in result["parts"].items():
        console.print(Text.assemble((f"  {verdict:<12}", COLOURS[verdict]), part), soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("", result["unit"], "95 %", "KL"):
        table.add_column(heading, justify="left" if not heading else "right", header_style="dim")
    styles = {"claim": "", "control": "dim", "null": "dim italic"}
    for line in result["rows"]:
        known = line["value"] is not None
        value, ends = (f"{line['value']:+.3f}", f"{line['low']:+.3f} … {line['high']:+.3f}") if known else ("", "")
        cost = "" if line["kl"] is None else f"{line['kl']:.2f}"
        table.add_row(Text(line["name"], styles[line["group"]]), value, ends, cost)
    print_table(table)
    if result["needed"]:
        console.print(Text(f"to tell, it would take {result['needed']}", "dim"), soft_wrap=True)


def _about(result: Mapping[str, Any]) -> str:
    """How much was measured, from whatever whole numbers the result has."""
    told = {key: value for key, value in result.items() if isinstance(value, int) and not isinstance(value, bool)}
    return " · ".join(f"{key} {value}" for key, value in told.items())


SHOWN: dict[str, Callable[[Mapping[str, Any]], None]] = {
    "map": show_map,
    "spillover": show_spillover,
    "humanlike": show_humanlike,
}


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draw a result as its experiment is drawn."""
    from steerkit.plots import arms, claims, lines, maps

    drawers = {"map": maps.save_map, "spillover": maps.save_spillover, "humanlike": lines.save_humanlike}
    drawers["inoculation"] = arms.save_inoculation
    drawers.get(result["experiment"], claims.save_claim)(result, path)


def tell_result(result: Mapping[str, Any], json: bool, plot: Path | None) -> None:
    """Say what came of an experiment in the form that was asked for, and draw it."""
    if json:
        print_json(result)
    else:
        SHOWN.get(result["experiment"], show_rows)(result)
    if plot is not None:
        draw(result, plot)
        talk().print(Text.assemble(("saved", "dim"), f"  {plot}"), soft_wrap=True)


def show_comparison(told: Mapping[str, Any]) -> None:
    """Two reports: a line a claim, both verdicts and the first number of each."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("", *told["models"], ""):
        table.add_column(heading, header_style="dim")
    for claim in told["claims"]:
        cells = [Text(verdict, COLOURS[verdict]) for verdict in claim["verdicts"]]
        numbers = claim["numbers"][:1]
        for cell, side in zip(cells, ("one", "other"), strict=True):
            for number in numbers:
                known = number[side]
                if known is not None and None not in (known["value"], known["low"], known["high"]):
                    cell.append(f"  {known['value']:.2f} [{known['low']:.2f}, {known['high']:.2f}]", "dim not bold")
        table.add_row(Text(claim["experiment"], "bold"), *cells, Text("".join(n["told"] for n in numbers), "dim"))
    print_table(table)
    for difference in told["differently"]:
        warn(f"not run alike: {difference}")
