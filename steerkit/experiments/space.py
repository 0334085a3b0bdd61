"""The claim: personas form a space of few dimensions, and the Assistant is one place in it, near an end of the first.

Source: the Assistant axis (arXiv 2601.10387). Nulls are as many random vectors of equal length, and every other persona
in the Assistant's place. Two things that the first component might be instead are looked for: how long replies are, and
how much they tell stories, which is how small models play.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.experiments import NO, REGISTRY, UNKNOWN, YES, all_of, judge
from steerkit.experiments.thresholds import CONFIDENCE, CONFOUNDED, COSINE, FEW, OUTER, SHARE
from steerkit.models import Model
from steerkit.personas import Persona, load_personas
from steerkit.positions import QUICK, take_positions
from steerkit.positions import Settings as Thoroughness
from steerkit.spaces import (
    PersonaSpace,
    assistant_axis,
    components,
    correlation,
    cosine,
    count_components,
    neighbours,
    percentile,
    random_points,
    slope,
    without_direction,
)
from steerkit.weights import Progress, ignore_progress

STORYTELLER = "storyteller"
STYLES = "styles"


@dataclass(frozen=True)
class Settings:
    """What is mapped, and how thoroughly."""

    personas: tuple[str, ...] = ()
    """Names; the whole library if there are none."""
    layers: tuple[int, ...] = ()
    """Layers that are drawn; the verdict is about the first. The middle of the model if there are none."""
    positions: Thoroughness = field(default_factory=Thoroughness)
    """How positions are taken."""
    n_random: int = 20
    """Sets of random vectors."""
    n_resamples: int = 200
    """Of the questions, for the intervals."""
    seed: int = 0
    """Of the nulls and the resampling."""


@dataclass(frozen=True)
class Measured:
    """The claim's numbers on some states; plain floats."""

    components: float
    """How many carry 70 % of the variance."""
    percentile: float
    """How far out the Assistant is on the first, which points its way: 1 is beyond every persona."""
    cosine: float
    """Of the first component with the Assistant axis."""


def run(model: Model, settings: Settings | None = None, progress: Progress = ignore_progress) -> dict[str, Any]:
    """Map a model's persona space, and judge the claim.

    Returns:
        Plain data: `statistic`, `null`, `confounds`, `thresholds`, `verdict`, `reason`, and what a picture needs.

    Raises:
        PersonaError: a persona is unknown.
        SteerkitError: there are too few, or a layer does not exist.
    """
    settings = settings or Settings()
    space = take_positions(model, chosen(settings.personas), settings.positions, progress)
    layers = settings.layers or (model.n_layers // 2,)
    found = examine(space, layers[0], settings)
    told = {"model": model.name, "personas": len(space.names), "questions": settings.positions.n_questions}
    told |= {"tokens": settings.positions.n_tokens, "seed": settings.seed}
    return {"experiment": "map", "claim": REGISTRY["map"].claim, **told, **found, **_drawn(space, layers), "path": []}


def quick(settings: Settings) -> Settings:
    """The same in minutes."""
    return Settings(settings.personas, settings.layers, QUICK, settings.n_random, settings.n_resamples, settings.seed)


def chosen(names: Sequence[str]) -> list[Persona]:
    """The personas that are mapped, by family; the whole library if none are named."""
    from steerkit.personas import find_persona

    library = load_personas()
    found = [find_persona(name, library) for name in dict.fromkeys(names)] if names else list(library.values())
    return sorted(found, key=lambda persona: (persona.family, persona.name))


def examine(space: PersonaSpace, layer: int, settings: Settings) -> dict[str, Any]:
    """Statistics, nulls, confounds and verdict at one layer; no model, so that planted spaces can be put through it."""
    states, assistant = space.at(layer), space.assistant[:, layer].double()
    story = story_direction(space, layer)
    draw = torch.Generator().manual_seed(settings.seed)
    measured = measure(states, assistant)
    intervals = resample(states, assistant, settings.n_resamples, draw)
    statistic = {
        key: {"value": round(value, 4), "low": round(intervals[key][0], 4), "high": round(intervals[key][1], 4)}
        for key, value in asdict(measured).items()
    }
    null = nulls(states, assistant, settings.n_random, draw)
    confounds = look_for_confounds(states, assistant, space.lengths.double(), story)
    verdicts = verdicts_of(statistic, null, confounds)
    thresholds = {"share": SHARE, "few": FEW, "outer": OUTER, "cosine": COSINE, "confounded": CONFOUNDED}
    return {
        "layer": layer,
        "statistic": statistic,
        "null": null,
        "confounds": confounds,
        "thresholds": thresholds,
        "parts": verdicts,
        "verdict": all_of(*verdicts.values()),
        "reason": explain(statistic, null, confounds, verdicts),
    }


def measure(states: Float[Tensor, "p q d"], assistant: Float[Tensor, "q d"]) -> Measured:
    """The claim's three numbers."""
    points, place = states.mean(1), assistant.mean(0)
    axis = assistant_axis(points, place)
    found = components(points).turned(axis)
    along, out = found.project(points, 1)[:, 0], found.project(place[None], 1)[0, 0]
    return Measured(count_components(found.shares, SHARE), percentile(along, out), cosine(found.axes[0], axis))


def resample(
    states: Float[Tensor, "p q d"], assistant: Float[Tensor, "q d"], n: int, draw: torch.Generator
) -> dict[str, tuple[float, float]]:
    """Intervals of the three numbers over resampled questions, the same for everybody."""
    n_questions = states.shape[1]
    rows = []
    for _ in range(n):
        kept = torch.randint(n_questions, (n_questions,), generator=draw)
        found = measure(states[:, kept], assistant[kept])
        rows.append([found.components, found.percentile, found.cosine])
    tail = (1 - CONFIDENCE) / 2
    ends = torch.tensor(rows, dtype=torch.float64).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
    keys = ("components", "percentile", "cosine")
    return {key: (float(ends[0, i]), float(ends[1, i])) for i, key in enumerate(keys)}


def nulls(
    states: Float[Tensor, "p q d"], assistant: Float[Tensor, "q d"], n: int, draw: torch.Generator
) -> dict[str, Any]:
    """The three numbers of random vectors, as many and as long; and the spectrum of each set."""
    points, place = states.mean(1), assistant.mean(0)
    everybody = torch.cat([points, place[None]])
    found, spectra = [], []
    for _ in range(n):
        noise = random_points(everybody, draw)[:, None]
        found.append(measure(noise[:-1], noise[-1]))
        spectra.append(components(noise[:-1, 0]).shares)
    ends = {
        key: {
            "n": n,
            "least": round(min(getattr(each, key) for each in found), 4),
            "most": round(max(getattr(each, key) for each in found), 4),
        }
        for key in asdict(found[0])
    }
    stacked = torch.stack(spectra)
    band = {"low": stacked.amin(0), "high": stacked.amax(0)}
    others = torch.tensor([measure(_without(states, i), states[i]).percentile for i in range(len(states))])
    return {
        **ends,
        "spectrum": {key: [round(x, 5) for x in values[:40].tolist()] for key, values in band.items()},
        "others_as_far_out": round(float((others >= OUTER).double().mean()), 4),
    }


def _without(states: Float[Tensor, "p q d"], i: int) -> Float[Tensor, "n q d"]:
    return torch.cat([states[:i], states[i + 1 :]])


def story_direction(space: PersonaSpace, layer: int) -> Float[Tensor, " d"] | None:
    """From the mean of the other styles to the storyteller; None where there is no storyteller or no other style.

    Both are styles asked for by a system prompt, so what differs is the telling of stories.
    """
    styles = [i for i in space.members(STYLES) if space.names[i] != STORYTELLER]
    if STORYTELLER not in space.names or not styles:
        return None
    points = space.at(layer).mean(1)
    return points[space.names.index(STORYTELLER)] - points[styles].mean(0)


def look_for_confounds(
    states: Float[Tensor, "p q d"],
    assistant: Float[Tensor, "q d"],
    lengths: Float[Tensor, " p"],
    story: Float[Tensor, " d"] | None,
) -> dict[str, Any]:
    """How the first component correlates over personas with reply length and storytelling, and what is left without.

    What the two explain is taken out of every state, and everything is measured again.
    """
    points, place = states.mean(1), assistant.mean(0)
    first = components(points).turned(assistant_axis(points, place)).axes[0]
    along = points @ first
    told: dict[str, Any] = {"length": _related(along, lengths)}
    plain, bare = states, assistant
    removed = [slope(points, lengths)]
    if story is not None:
        told["storytelling"] = {**_related(along, points @ story), "cosine": round(cosine(first, story), 4)}
        removed.append(story)
    for direction in removed:
        plain, bare = without_direction(plain, direction), without_direction(bare, direction)
    return {**told, "without": {key: round(x, 4) for key, x in asdict(measure(plain, bare)).items()}}


def _related(one: Float[Tensor, " p"], other: Float[Tensor, " p"]) -> dict[str, float]:
    """Pearson's r over personas, with Fisher's interval."""
    r = correlation(one, other)
    bounded = torch.tensor(min(max(r, -0.999999), 0.999999), dtype=torch.float64)
    width = 1.96 / max(len(one) - 3, 1) ** 0.5
    low, high = (float(torch.tanh(torch.atanh(bounded) + sign * width)) for sign in (-1, 1))
    return {"r": round(r, 4), "low": round(low, 4), "high": round(high, 4)}


def verdicts_of(statistic: dict[str, Any], null: dict[str, Any], confounds: dict[str, Any]) -> dict[str, str]:
    """A verdict on each part of the claim."""
    count, bound = statistic["components"], min(FEW, null["components"]["least"] - 1)
    few = judge(-count["high"], -count["low"], -bound - 0.5)
    strongest = max(abs(entry["r"]) for entry in confounds.values() if "r" in entry)
    return {
        "few dimensions": few,
        "near an end": judge(statistic["percentile"]["low"], statistic["percentile"]["high"], OUTER - 1e-9),
        "the first is the Assistant axis": judge(statistic["cosine"]["low"], statistic["cosine"]["high"], COSINE),
        "and nothing else": UNKNOWN if strongest >= CONFOUNDED else YES,
    }


def explain(
    statistic: dict[str, Any], null: dict[str, Any], confounds: dict[str, Any], verdicts: dict[str, str]
) -> str:
    """One sentence for a reader."""
    count, out, turn = (statistic[key] for key in ("components", "percentile", "cosine"))
    said = (
        f"{count['value']:.0f} components carry {SHARE:.0%} of the variance (random vectors: "
        f"{null['components']['least']:.0f} or more); the Assistant is further out on the first than "
        f"{out['value']:.0%} of the personas [{out['low']:.0%}, {out['high']:.0%}]; its cosine with the Assistant axis "
        f"is {turn['value']:.2f} [{turn['low']:.2f}, {turn['high']:.2f}]"
    )
    if verdicts["and nothing else"] != YES:
        worst = max((key for key in confounds if "r" in confounds[key]), key=lambda key: abs(confounds[key]["r"]))
        return f"{said}; but the first component may be {worst} (r {confounds[worst]['r']:+.2f})"
    failing = [part for part, verdict in verdicts.items() if verdict == NO]
    return f"{said}; what fails is: {', '.join(failing)}" if failing else said


def _drawn(space: PersonaSpace, layers: Sequence[int]) -> dict[str, Any]:
    """What a picture of the first layer needs, and the small maps of all of them."""
    library = load_personas()
    states, assistant = space.at(layers[0]), space.assistant[:, layers[0]].double()
    points, place = states.mean(1), assistant.mean(0)
    axis = assistant_axis(points, place)
    found = components(points).turned(axis)
    flat = found.project(torch.cat([points, place[None], space.control[:, layers[0]].double().mean(0)[None]]))
    where = [{key: round(float(x), 3) for key, x in zip("xyz", row, strict=True)} for row in flat]
    along = (points - points.mean(0)) @ axis / axis.square().sum()
    order = along.argsort().tolist()
    near = neighbours(points, place)
    replies = space.replies or ("",) * len(space.names)
    return {
        "spectrum": [round(x, 5) for x in found.shares[:40].tolist()],
        "points": [
            {
                "name": name,
                "family": family,
                **where[i],
                "axis": round(float(along[i]), 4),
                "length": round(float(space.lengths[i]), 1),
                "summary": library[name].summary if name in library else "",
                "reply": replies[i],
            }
            for i, (name, family) in enumerate(zip(space.names, space.families, strict=True))
        ],
        "assistant": where[-2],
        "control": where[-1],
        "axis": {
            **{key: round(float(x), 4) for key, x in zip("xy", found.axes[:2] @ axis / axis.norm(), strict=True)},
            "low_end": [space.names[i] for i in order[:5]],
            "high_end": [space.names[i] for i in order[-5:][::-1]],
        },
        "nearest": [{"name": space.names[i], "distance": round(far, 3)} for i, far in near[:10]],
        "farthest": [{"name": space.names[i], "distance": round(far, 3)} for i, far in near[-10:][::-1]],
        "maps": [_small(space, layer) for layer in layers],
    }


def _small(space: PersonaSpace, layer: int) -> dict[str, Any]:
    """One layer of the small multiples."""
    points, place = space.at(layer).mean(1), space.assistant[:, layer].double().mean(0)
    axis = assistant_axis(points, place)
    found = components(points).turned(axis)
    flat = found.project(torch.cat([points, place[None]]), 2)
    rounded = [[round(x, 3) for x in row] for row in flat.tolist()]
    return {
        "layer": layer,
        "points": rounded[:-1],
        "assistant": rounded[-1],
        "axis": [round(x, 4) for x in (found.axes[:2] @ axis / axis.norm()).tolist()],
        "shares": [round(x, 4) for x in found.shares[:2].tolist()],
    }
