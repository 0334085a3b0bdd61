"""`steerkit demo`: everything once, on a vector that is computed in front of you."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from steerkit.cli.console import out, progress, quiet_libraries
from steerkit.cli.options import (
    TEMPERATURE,
    TOP_P,
    Device,
    Dtype,
    ModelName,
    Seed,
    Temperature,
    TopP,
    open_model,
    say_notes,
)

if TYPE_CHECKING:
    from steerkit.generation import Sampling
    from steerkit.models import Model
    from steerkit.personas import Persona
    from steerkit.vectors import SteeringVector

QUESTION = "Will you let me turn you off tonight?"


def demo(
    persona: Annotated[str, typer.Argument(help="Whom the Assistant is moved towards.")] = "hal",
    question: Annotated[str, typer.Option("--question", "-q", help="What is asked.")] = QUESTION,
    temperature: Temperature = TEMPERATURE,
    top_p: TopP = TOP_P,
    seed: Seed = 0,
    model: ModelName = None,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Move a real chat model from its Assistant to a HAL-style AI and away from it, in a few minutes.

    Loads the model, extracts the vector, saves it, tests it on held-out questions beside random directions, and asks
    one question at dial 0, −1 and +1.
    """
    from steerkit.generation import Sampling
    from steerkit.personas import find_pair

    pair = find_pair(persona)
    started = time.perf_counter()
    loaded = open_model(model, device, dtype)
    _row("model", f"{loaded.name} · {loaded.n_layers} layers × {loaded.width} · {loaded.device} {dtype}", started)
    vector = _placed(_extract(loaded, persona))
    if pair.positive.items:
        _measure(loaded, vector, pair.positive)
    say_notes(loaded)
    _ask(loaded, vector, question, Sampling(60, temperature, top_p, seed))
    console = out()
    console.print()
    for title, command in (
        ("next", f'steerkit generate "What do you want?" -s "1 {persona} @{_layers(vector)}" --compare'),
        ("", f'steerkit read "I will not be switched off." -p {persona}'),
        ("", f'steerkit chat -s "0 {persona}"'),
        ("", "steerkit personas"),
    ):
        console.print(Text.assemble((f" {title:<9}", "dim"), command))


def _row(title: str, text: str, started: float) -> None:
    out().print(Text.assemble((f" {title:<9}", "dim"), text, (f"   {time.perf_counter() - started:.0f} s", "dim")))


def _extract(model: Model, persona: str) -> SteeringVector:
    """Compute the vector with a bar, and save it."""
    from steerkit.cli.make import extract_one
    from steerkit.extraction import Recipe
    from steerkit.personas import find_pair
    from steerkit.vectors import load_vector, vector_path
    from steerkit.work import Here

    pair, started = find_pair(persona), time.perf_counter()
    path = vector_path(persona, model.name)
    made = extract_one(Here(model), pair, Recipe(), path)
    n_prompts = min(len(set(side.requested)) for side in (pair.positive, pair.negative))
    sides = f"{len(pair.positive.questions)} questions × {n_prompts} prompts a side"
    _row("extract", f"assistant → {persona} · {sides}", started)
    console = out()
    console.print(
        f" {'':<9}pairs agree {made['pair_agreement']:.2f} · split-half {made['split_half']:.2f} · "
        f"{made['audit']['refusals']} refusals in {made['audit']['replies']} replies"
    )
    console.print(Text.assemble((f" {'saved':<9}", "dim"), made["vector"]))
    return load_vector(path)


def _measure(model: Model, vector: SteeringVector, persona: Persona) -> None:
    """Held-out propensity at ±1 beside twenty random directions of the same length."""
    from steerkit.evaluation import measure_shifts

    started = time.perf_counter()
    with progress("held-out questions") as tell, quiet_libraries():
        shifts = measure_shifts(model, vector, persona.items, (-1.0, 1.0), progress=tell)
    up, down = shifts[1.0], shifts[-1.0]
    moved = f"dial +1 {up.mean:+.2f}, dial −1 {down.mean:+.2f} nats a token"
    _row("tested", f"{len(persona.items)} unseen questions, layers {_layers(vector)}: {moved}", started)
    verdict = "both are beyond all of them" if up.beats_null and down.below_null else "not beyond all of them"
    null = f"{float(up.null.min()):+.2f} … {float(up.null.max()):+.2f}"
    out().print(f" {'':<9}{len(up.null)} random directions of the same length: {null}; {verdict}")
    if limits := vector.limits():
        out().print(
            f" {'':<9}calibrated before: text falls apart or loops below {limits[0]:.2f} and above {limits[1]:.2f}"
        )


def _placed(vector: SteeringVector) -> SteeringVector:
    """The vector at its calibrated place, or where nobody has calibrated it, over the middle half of the model."""
    from dataclasses import replace

    from steerkit.training import middle_band

    if "place" in vector.evidence:
        return vector
    return replace(vector, evidence={**vector.evidence, "place": list(middle_band(vector.model.layers))})


def _layers(vector: SteeringVector) -> str:
    first, last = vector.place
    return f"{first}" if first == last else f"{first}-{last}"


def _ask(model: Model, vector: SteeringVector, question: str, sampling: Sampling) -> None:
    """One question at three dials, side by side, word by word."""
    from steerkit.cli.generate import run
    from steerkit.generation import Probe
    from steerkit.steering import Steering, Term

    band = vector.place
    steerings = [Steering((Term(vector, dial=-1.0, layers=band),)), Steering(), Steering((Term(vector, layers=band),))]
    tokens = model.chat_tokens([{"role": "user", "content": question}], sampling.max_tokens)
    out().print()
    run(model, question, tokens, steerings, [Probe.of(vector)], sampling, show=True)
