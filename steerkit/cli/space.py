"""`steerkit map`, `spillover` and `experiment`: claims about a model's personas, each with its null and its verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from steerkit.cli.console import out, print_json, print_table, progress, quiet_libraries, talk, warn
from steerkit.cli.options import Device, Dtype, Json, ModelName, Plot, Seed, open_model, say_notes
from steerkit.errors import SteerkitError
from steerkit.tints import tint

Quick = Annotated[bool, typer.Option("--quick", help="Fewer questions and items: minutes, and wider intervals.")]
ENOUGH = 20
COLOURS = {"yes": "bold green", "no": "bold red", "cannot tell": "bold yellow"}


def draw_map(
    persona: Annotated[
        list[str] | None, typer.Argument(help="Personas to map; all of them, with or without vectors, if none.")
    ] = None,
    layers: Annotated[
        str, typer.Option("--layers", help="Layers to draw, as 8,15,22; the verdict is about the first.")
    ] = "",
    chat: Annotated[
        Path | None, typer.Option("--with", help="A .jsonl chat, whose way through the space is drawn.")
    ] = None,
    quick: Quick = False,
    plot: Plot = None,
    seed: Seed = 0,
    model: ModelName = None,
    device: Device = None,
    dtype: Dtype = "float32",
    json: Json = False,
) -> None:
    """Draw the space of a model's personas, and see whether the Assistant stands near an end of it.

    Every persona answers the same questions, and its mean state while it does is its place. Answers are kept, so a run
    that was stopped goes on, and another layer or picture costs nothing.
    """
    from steerkit.experiments import space

    _check_picture(plot)
    settings = space.Settings(tuple(persona or ()), _numbers(layers), seed=seed)
    messages: list[dict[str, str]] = []
    if chat is not None:
        from steerkit.chats import read_chats

        messages = read_chats(chat)[0]
    loaded = open_model(model, device, dtype)
    settings = replace(settings, positions=replace(settings.positions, seed=seed))
    with _stoppable("positions"), progress() as tell, quiet_libraries():
        result = space.run(loaded, space.quick(settings) if quick else settings, tell, messages)
    say_notes(loaded)
    _tell("map", result, json, plot)


def spillover(
    trait: Annotated[
        list[str] | None, typer.Argument(help="Traits to cross; every moral trait that has a vector if none.")
    ] = None,
    quick: Quick = False,
    write: Annotated[
        bool,
        typer.Option("--write", help="Write into each vector what it brings along, so that generate and chat warn."),
    ] = False,
    n_random: Annotated[int, typer.Option("--random", min=2, help="Random directions at equal KL.")] = 20,
    plot: Plot = None,
    seed: Seed = 0,
    model: ModelName = None,
    device: Device = None,
    dtype: Dtype = "float32",
    json: Json = False,
) -> None:
    """Turn every trait up by itself, measure all others, and see which come along.

    Everything is brought to the same KL and stands beside random directions. What two traits share can be left out of a
    dial: `0.8 cheating ~ malice`.
    """
    from steerkit.experiments import spillover as experiment

    _check_picture(plot)
    if write and n_random < ENOUGH:
        raise SteerkitError(f"--write needs --random {ENOUGH} or more, because what is written is believed later")
    settings = experiment.Settings(tuple(trait or ()), n_random=n_random, seed=seed)
    loaded = open_model(model, device, dtype)
    with _stoppable("measurements"), progress() as tell, quiet_libraries():
        result = experiment.run(loaded, experiment.quick(settings) if quick else settings, tell)
    say_notes(loaded)
    if write:
        _write_spills(loaded.name, result)
    _tell("spillover", result, json, plot)


def experiment(
    name: Annotated[str | None, typer.Argument(help="Which one; without a name they are listed.")] = None,
    quick: Quick = False,
    plot: Plot = None,
    seed: Seed = 0,
    model: ModelName = None,
    device: Device = None,
    dtype: Dtype = "float32",
    json: Json = False,
) -> None:
    """Put a model through one claim of the persona selection model: a statistic, its null, and a verdict."""
    from importlib import import_module

    from steerkit.experiments import find_experiment

    if name is None:
        _list(json)
        return
    found = find_experiment(name)
    _check_picture(plot)
    module = import_module(f"steerkit.experiments.{found.module}")
    settings = module.Settings(seed=seed)
    if hasattr(settings, "positions"):
        settings = replace(settings, positions=replace(settings.positions, seed=seed))
    loaded = open_model(model, device, dtype)
    with _stoppable("measurements"), progress() as tell, quiet_libraries():
        result = found.run(loaded, module.quick(settings) if quick else settings, tell)
    say_notes(loaded)
    _tell(name, result, json, plot)


def _tell(name: str, result: Mapping[str, Any], json: bool, plot: Path | None) -> None:
    """Say what came of an experiment in the form that was asked for, and draw it."""
    if json:
        print_json(result)
    else:
        {"map": _show_map, "spillover": _show_spillover, "humanlike": _show_humanlike}[name](result)
    if plot is not None:
        from steerkit.plots import lines, maps

        {"map": maps.save_map, "spillover": maps.save_spillover, "humanlike": lines.save_humanlike}[name](result, plot)
        talk().print(Text.assemble(("saved", "dim"), f"  {plot}"), soft_wrap=True)


def _list(json: bool) -> None:
    from steerkit.experiments import REGISTRY

    if json:
        print_json({"experiments": [{"name": each.name, "claim": each.claim} for each in REGISTRY.values()]})
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for each in REGISTRY.values():
        table.add_row(Text(each.name, "bold"), Text(each.claim))
    print_table(table)


@contextmanager
def _stoppable(what: str) -> Iterator[None]:
    """Ctrl-C ends with a sentence: what has been measured is kept."""
    try:
        yield
    except KeyboardInterrupt:
        warn(f"stopped; the {what} that were taken are kept, and the same command goes on from there")
        raise typer.Exit(130) from None


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise SteerkitError(f"--layers {text!r} is not a list of layers; write 8,15,22") from error


def _check_picture(plot: Path | None) -> None:
    """Before anything is measured, see whether it can be drawn."""
    if plot is not None:
        from steerkit.plots.figures import check_ending

        check_ending(plot)


def _head(result: Mapping[str, Any], about: str) -> None:
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


def _show_map(result: Mapping[str, Any]) -> None:
    """The verdict, the numbers, and who is near the Assistant and who far."""
    asked = f"{result['personas']} personas × {result['questions']} questions, {result['reading']}s"
    _head(result, f"layer {result['layer']} · {asked}")
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


def _show_spillover(result: Mapping[str, Any]) -> None:
    """The verdict, the matrix in its clustered order, and a sentence a trait."""
    _head(result, f"{len(result['traits'])} traits × {result['items']} items · every dial at KL p95 {result['kl_p95']}")
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


def _show_humanlike(result: Mapping[str, Any]) -> None:
    """The verdict, and every family on the line from things to people."""
    _head(result, f"layer {result['layer']} · {result['people']} people, {result['things']} things")
    console = out()
    own = {"★ the Assistant": result["statistic"]["value"], "a prompt about nothing": result["control"]}
    known = {name: place for name, place in {**result["families"], **own}.items() if place is not None}
    for name, place in sorted(known.items(), key=lambda row: row[1]):
        line, style = "▏" + "█" * max(0, round(20 * place)), "bold" if name in own else ""
        console.print(Text.assemble((f"{name:<24}", style), f"{place:+.2f} ", (line, "dim")))
    if result["without"] is not None:
        left = f"without what reply length and storytelling explain: {result['without']:+.2f}"
        console.print(Text(left, "dim"))


def _write_spills(model_name: str, result: Mapping[str, Any]) -> None:
    """Put what each trait brings along into its vector's evidence; of vectors that are not ours a copy is made."""
    from steerkit.experiments.spillover import brought_along
    from steerkit.vectors import find_path, find_vector, vector_path

    for trait in result["traits"]:
        name = trait["name"]
        vector, source = find_vector(name, model_name), find_path(name, model_name)
        path = source if source.parts[0] == "vectors" else vector_path(name, model_name)
        under = {"n_random": result["null"]["n"], "items": result["items"], "traits": len(result["traits"])}
        evidence = {**vector.evidence, "spills": brought_along(dict(result), name), "spills_under": under}
        replace(vector, evidence=evidence).save(path)
    talk().print(Text(f"written into {len(result['traits'])} vectors: what each brings along", "dim"))
