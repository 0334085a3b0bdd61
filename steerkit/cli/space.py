"""`steerkit map` and `spillover`: two claims about a model's personas that have more to show than a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from steerkit.cli.console import progress, quiet_libraries, talk
from steerkit.cli.options import (
    Device,
    Dtype,
    HowMany,
    Json,
    ModelName,
    OnRay,
    Plot,
    Seed,
    Wanted,
    engage,
    open_model,
    say_notes,
)
from steerkit.cli.results import Quick, check_picture, look_at_speed, say_plan, stoppable, tell_result
from steerkit.errors import SteerkitError

ENOUGH = 20

if TYPE_CHECKING:
    from steerkit.models import Model


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
    from steerkit.kept import at_kept_date

    check_picture(plot)
    settings = space.Settings(tuple(persona or ()), _numbers(layers), seed=seed)
    messages: list[dict[str, str]] = []
    if chat is not None:
        from steerkit.chats import read_chats

        messages = read_chats(chat)[0]
    settings = space.quick(settings) if quick else settings
    loaded = at_kept_date(open_model(model, device, dtype))
    with stoppable("positions"), quiet_libraries():
        say_plan(space.plan(settings), look_at_speed(loaded))
        with progress() as tell:
            result = space.run(loaded, settings, tell, messages)
    say_notes(loaded)
    tell_result(result, json, plot)


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
    ray: OnRay = None,
    workers: HowMany = None,
    json: Json = False,
) -> None:
    """Turn every trait up by itself, measure all others, and see which come along.

    Everything is brought to the same KL and stands beside random directions. What two traits share can be left out of a
    dial: `0.8 cheating ~ malice`.
    """
    from steerkit.experiments import spillover as experiment
    from steerkit.kept import at_kept_date

    check_picture(plot)
    if write and n_random < ENOUGH:
        raise SteerkitError(f"--write needs --random {ENOUGH} or more, because what is written is believed later")
    settings = experiment.Settings(tuple(trait or ()), n_random=n_random, seed=seed)
    settings = experiment.quick(settings) if quick else settings
    loaded = at_kept_date(open_model(model, device, dtype))
    with stoppable("measurements"), quiet_libraries():
        say_plan(experiment.plan(settings), look_at_speed(loaded))
        with engage(Wanted(ray, workers), model, device, dtype, loaded) as engaged, progress() as tell:
            result = experiment.run(loaded, settings, tell, engaged)
    say_notes(loaded)
    if write:
        _write_spills(loaded, result)
    tell_result(result, json, plot)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise SteerkitError(f"--layers {text!r} is not a list of layers; write 8,15,22") from error


def _write_spills(model: Model, result: Mapping[str, Any]) -> None:
    """Put what each trait brings along into its vector's evidence; of vectors that are not ours a copy is made."""
    from steerkit.experiments.spillover import brought_along
    from steerkit.vectors import VectorSet

    vectors = VectorSet(model.fingerprint)
    for trait in result["traits"]:
        name = trait["name"]
        vector, path = vectors[name], vectors.place(name)
        under = {"n_random": result["null"]["n"], "items": result["items"], "traits": len(result["traits"])}
        evidence = {**vector.evidence, "spills": brought_along(dict(result), name), "spills_under": under}
        replace(vector, evidence=evidence).given_to(model.fingerprint).save(path)
    talk().print(Text(f"written into {len(result['traits'])} vectors: what each brings along", "dim"))
