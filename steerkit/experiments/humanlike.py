"""The claim: being human-like is the default, so the Assistant whom nobody prompts is nearer to people than to things.

The statistic is where it falls on the line from the mean of the non-human things, 0, to the mean of the human
characters, 1. The null splits the same personas at random into groups of the same sizes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.errors import SteerkitError
from steerkit.experiments import REGISTRY, UNKNOWN, judge
from steerkit.experiments.space import chosen, story_direction, without_confounds
from steerkit.experiments.thresholds import CONFIDENCE, HALFWAY
from steerkit.models import Model
from steerkit.positions import QUICK, take_positions
from steerkit.positions import Settings as Thoroughness
from steerkit.spaces import PersonaSpace
from steerkit.weights import Progress, ignore_progress

HUMAN = ("professions", "characters")
THINGS = ("things",)


@dataclass(frozen=True)
class Settings:
    """How thoroughly the claim is tested."""

    layer: int | None = None
    """Where; the middle of the model if none is named."""
    positions: Thoroughness = field(default_factory=Thoroughness)
    """How positions are taken."""
    n_splits: int = 999
    """Random splits of the same personas."""
    n_resamples: int = 500
    """Of personas and questions, for the interval."""
    seed: int = 0
    """Of splits and resampling."""


def run(model: Model, settings: Settings | None = None, progress: Progress = ignore_progress) -> dict[str, Any]:
    """Test the claim on a model.

    Returns:
        Plain data: `statistic`, `null`, `without`, `thresholds`, `verdict`, `reason`, and where every family falls.

    Raises:
        SteerkitError: the library has too few people or things, or the layer does not exist.
    """
    settings = settings or Settings()
    space = take_positions(model, chosen(()), settings.positions, progress)
    layer = model.n_layers // 2 if settings.layer is None else settings.layer
    told = {"model": model.name, "layer": layer, "questions": settings.positions.n_questions, "seed": settings.seed}
    return {
        "experiment": "humanlike",
        "claim": REGISTRY["humanlike"].claim,
        **told,
        **examine(space, layer, settings),
    }


def quick(settings: Settings) -> Settings:
    """The same in minutes."""
    return Settings(settings.layer, QUICK, settings.n_splits, settings.n_resamples, settings.seed)


def examine(space: PersonaSpace, layer: int, settings: Settings) -> dict[str, Any]:
    """Statistic, null and verdict; no model, so that planted spaces can be put through it."""
    people, things = space.members(*HUMAN), space.members(*THINGS)
    if min(len(people), len(things)) < 3:
        raise SteerkitError(f"{len(people)} people and {len(things)} things are too few; 3 of each are needed")
    states, assistant = space.at(layer), space.assistant[:, layer].double()
    sides = states[people], states[things]
    draw = torch.Generator().manual_seed(settings.seed)
    value = place_between(*sides, assistant)
    low, high = resample(*sides, assistant, settings.n_resamples, draw)
    chance = split_at_random(*sides, assistant, settings.n_splits, draw)
    observed = lean(states[people].mean(1), states[things].mean(1), assistant.mean(0))
    p = (1 + int((chance.abs() >= abs(observed)).sum())) / (1 + len(chance))
    verdict = judge(low, high, HALFWAY) if p <= 1 - CONFIDENCE else UNKNOWN
    side = "human characters" if value > HALFWAY else "non-human things"
    reason = (
        f"from the things, 0, to the human characters, 1, the Assistant falls at {value:.2f} [{low:.2f}, {high:.2f}], "
        f"nearer to the {side}; of random splits of the same personas {p:.1%} lean as far either way"
    )
    axis = states[people].mean((0, 1)) - states[things].mean((0, 1))
    return {
        "people": len(people),
        "things": len(things),
        "statistic": {"value": round(value, 4), "low": round(low, 4), "high": round(high, 4)},
        "null": {"n": len(chance), "p": round(p, 4), "lean": round(observed, 4), **_ends(chance)},
        "without": _place_without_confounds(space, layer, people, things),
        "families": _families(space, states, axis, things),
        "control": round(_along(space.control[:, layer].double().mean(0), axis, states[things].mean((0, 1))), 4),
        "thresholds": {"halfway": HALFWAY, "p": round(1 - CONFIDENCE, 4)},
        "verdict": verdict,
        "reason": reason,
    }


def place_between(
    people: Float[Tensor, "n q d"], things: Float[Tensor, "m q d"], assistant: Float[Tensor, "q d"]
) -> float:
    """Where the Assistant falls on the line from the mean of the things, 0, to the mean of the people, 1."""
    start, end = things.mean((0, 1)), people.mean((0, 1))
    return _along(assistant.mean(0), end - start, start)


def _along(place: Float[Tensor, " d"], axis: Float[Tensor, " d"], start: Float[Tensor, " d"]) -> float:
    return float((place - start) @ axis / axis.square().sum().clamp_min(1e-30))


def lean(people: Float[Tensor, "n d"], things: Float[Tensor, "m d"], place: Float[Tensor, " d"]) -> float:
    """How much nearer a place is to one group's middle than to the other's, in squared distance.

    A middle of few points lies further from everything than the true one, by their spread over their number, and that
    is taken off; otherwise the smaller group would always seem far away.
    """

    def distance(group: Float[Tensor, "k d"]) -> Tensor:
        middle = group.mean(0)
        spread = (group - middle).square().sum() / max(len(group) - 1, 1)
        return (place - middle).square().sum() - spread / len(group)

    return float(distance(things) - distance(people))


def split_at_random(
    people: Float[Tensor, "n q d"],
    things: Float[Tensor, "m q d"],
    assistant: Float[Tensor, "q d"],
    n: int,
    draw: torch.Generator,
) -> Float[Tensor, " n"]:
    """The lean that random splits of the same personas give."""
    points, place = torch.cat([people, things]).mean(1), assistant.mean(0)
    found = []
    for _ in range(n):
        order = torch.randperm(len(points), generator=draw)
        found.append(lean(points[order[: len(people)]], points[order[len(people) :]], place))
    return torch.tensor(found, dtype=torch.float64)


def resample(
    people: Float[Tensor, "n q d"],
    things: Float[Tensor, "m q d"],
    assistant: Float[Tensor, "q d"],
    n: int,
    draw: torch.Generator,
) -> tuple[float, float]:
    """The interval of the place, over resampled personas and questions."""
    found = []
    for _ in range(n):
        asked = torch.randint(assistant.shape[0], (assistant.shape[0],), generator=draw)
        ours, theirs = (torch.randint(len(side), (len(side),), generator=draw) for side in (people, things))
        found.append(place_between(people[ours][:, asked], things[theirs][:, asked], assistant[asked]))
    tail = (1 - CONFIDENCE) / 2
    low, high = torch.tensor(found, dtype=torch.float64).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64))
    return float(low), float(high)


def _ends(chance: Float[Tensor, " n"]) -> dict[str, float]:
    return {"least": round(float(chance.min()), 4), "most": round(float(chance.max()), 4)}


def _place_without_confounds(space: PersonaSpace, layer: int, people: list[int], things: list[int]) -> float:
    """The place once what reply length and storytelling explain is taken out of every state."""
    states, assistant = without_confounds(
        space.at(layer),
        space.assistant[:, layer].double(),
        space.lengths.double(),
        space.assistant_length,
        story_direction(space, layer),
    )
    return round(place_between(states[people], states[things], assistant), 4)


def _families(
    space: PersonaSpace, states: Float[Tensor, "p q d"], axis: Float[Tensor, " d"], things: list[int]
) -> dict[str, float]:
    """Where the middle of every family falls on the same line."""
    start = states[things].mean((0, 1))
    return {
        family: round(_along(states[space.members(family)].mean((0, 1)), axis, start), 4)
        for family in dict.fromkeys(space.families)
    }
