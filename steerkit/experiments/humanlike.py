"""The claim: being human-like is the default, so the Assistant whom nobody prompts is nearer to people than to things.

The statistic is where it falls on the line from the mean of the non-human things, 0, to the mean of the human
characters, 1, less what the spread of both groups adds to that by chance. The null splits the same personas at random
into groups of the same sizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from steerkit.errors import SteerkitError
from steerkit.experiments import REGISTRY, UNKNOWN, YES, Plan, judge, needed
from steerkit.experiments.space import check_layers, chosen, listening, without_confounds
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
    seed: int = 0
    """Of the splits."""


def run(model: Model, settings: Settings | None = None, progress: Progress = ignore_progress) -> dict[str, Any]:
    """Test the claim on a model.

    Returns:
        Plain data: `statistic`, `null`, `without`, `thresholds`, `verdict`, `reason`, and where every family falls.

    Raises:
        SteerkitError: the library has too few people or things, or the layer does not exist.
    """
    settings = settings or Settings()
    layer = model.n_layers // 2 if settings.layer is None else settings.layer
    check_layers(model, (layer,))
    positions = replace(settings.positions, seed=settings.seed)
    space = take_positions(model, chosen(()), positions, progress)
    told = {"model": model.name, "layer": layer, "questions": settings.positions.n_questions, "seed": settings.seed}
    return {
        "experiment": "humanlike",
        "claim": REGISTRY["humanlike"].claim,
        **told,
        **examine(space, layer, settings),
    }


def quick(settings: Settings) -> Settings:
    """The same in minutes."""
    return replace(settings, positions=QUICK)


def plan(settings: Settings) -> Plan:
    """What is going to be done."""
    return listening(len(chosen(())), settings.positions)


def examine(space: PersonaSpace, layer: int, settings: Settings) -> dict[str, Any]:
    """Statistic, null and verdict; no model, so that planted spaces can be put through it."""
    people, things = space.members(*HUMAN), space.members(*THINGS)
    if min(len(people), len(things)) < 3:
        raise SteerkitError(f"{len(people)} people and {len(things)} things are too few; 3 of each are needed")
    states, assistant = space.at(layer), space.assistant[:, layer].double()
    sides, points = (states[people], states[things]), states.mean(1)
    draw = torch.Generator().manual_seed(settings.seed)
    found = place_with_interval(*sides, assistant)
    chance = split_at_random(*sides, assistant, settings.n_splits, draw)
    observed = lean(points[people], points[things], assistant.mean(0))
    p = (1 + int((chance.abs() >= abs(observed)).sum())) / (1 + len(chance))
    without = _place_without_confounds(space, layer, people, things)
    verdict = UNKNOWN
    if found is not None and p <= 1 - CONFIDENCE:
        verdict = judge(found[1], found[2], HALFWAY)
    if verdict == YES and (without is None or without <= HALFWAY):
        verdict = UNKNOWN
    value, low, high = found or (math.nan, math.nan, math.nan)
    return {
        "people": len(people),
        "things": len(things),
        "statistic": {key: _known(x) for key, x in zip(("value", "low", "high"), (value, low, high), strict=True)},
        "null": {"n": len(chance), "p": round(p, 4), "lean": round(observed, 4), **_ends(chance)},
        "without": None if without is None else round(without, 4),
        "families": _families(space, states, people, things),
        "control": _known(_place(points[people], points[things], space.control[:, layer].double().mean(0))),
        "thresholds": {"halfway": HALFWAY, "p": round(1 - CONFIDENCE, 4)},
        "verdict": verdict,
        "reason": explain(found, p, verdict, without),
        "needed": "" if verdict != UNKNOWN else _lacking(found, len(people) + len(things)),
    }


def explain(found: tuple[float, float, float] | None, p: float, verdict: str, without: float | None) -> str:
    """One sentence for a reader."""
    if found is None:
        return "people and things do not stand apart more than their spread explains, so no line leads between them"
    value, low, high = found
    side = "human characters" if value > HALFWAY else "non-human things"
    said = (
        f"from the things, 0, to the human characters, 1, the Assistant falls at {value:.2f} [{low:.2f}, {high:.2f}], "
        f"nearer to the {side}; of random splits of the same personas {p:.1%} lean as far either way"
    )
    left = "no line is left" if without is None else f"it falls at {without:.2f}"
    told = f"; without what reply length and storytelling explain, {left}"
    return said + told if verdict == UNKNOWN and low > HALFWAY else said


def _lacking(found: tuple[float, float, float] | None, n: int) -> str:
    """What it would take to tell."""
    if found is None:
        return "a model in which people and things stand apart"
    value, low, high = found
    return needed({"value": value, "low": low, "high": high}, HALFWAY, n, "people and things")


def _known(x: float | None) -> float | None:
    return None if x is None or math.isnan(x) else round(x, 4)


def _place(people: Float[Tensor, "n d"], things: Float[Tensor, "m d"], place: Float[Tensor, " d"]) -> float | None:
    """Where a place falls on the line from the middle of the things, 0, to the middle of the people, 1.

    Half the lean, as a share of the squared distance between the middles, is how far it is beyond halfway. Both are
    less what the spread of each group adds by chance, without which the place is drawn to the larger group. None where
    nothing of the distance is left.
    """
    apart = (people.mean(0) - things.mean(0)).square().sum() - _scatter(people) - _scatter(things)
    if float(apart) <= 0:
        return None
    return 0.5 + lean(people, things, place) / (2 * float(apart))


def _scatter(group: Float[Tensor, "k d"]) -> Tensor:
    """The expected squared distance of a group's middle from the true one."""
    return (group - group.mean(0)).square().sum() / max(len(group) - 1, 1) / len(group)


def place_with_interval(
    people: Float[Tensor, "n q d"], things: Float[Tensor, "m q d"], assistant: Float[Tensor, "q d"]
) -> tuple[float, float, float] | None:
    """Where the Assistant falls, and the ends of its interval, by a jackknife over personas and questions.

    Each person, each thing and each question is left out in turn; a bootstrap would draw some of them twice and take
    that for nearness. None where people and things do not stand apart.
    """
    sides = people.mean(1), things.mean(1)
    if (value := _place(*sides, assistant.mean(0))) is None:
        return None
    n_questions = assistant.shape[0]
    groups: list[list[float | None]] = [
        [_place(_drop(sides[0], i), sides[1], assistant.mean(0)) for i in range(len(people))],
        [_place(sides[0], _drop(sides[1], i), assistant.mean(0)) for i in range(len(things))],
    ]
    if n_questions > 2:
        kept = [[q for q in range(n_questions) if q != i] for i in range(n_questions)]
        groups.append([_place(people[:, k].mean(1), things[:, k].mean(1), assistant[k].mean(0)) for k in kept])
    variance = 0.0
    for group in groups:
        known = torch.tensor([x for x in group if x is not None], dtype=torch.float64)
        if len(known) < len(group):
            return None
        variance += float((known - known.mean()).square().sum()) * (len(known) - 1) / len(known)
    width = float(stats.t.ppf((1 + CONFIDENCE) / 2, min(len(things), len(people)) - 1)) * math.sqrt(variance)
    return value, value - width, value + width


def _drop(group: Float[Tensor, "k d"], i: int) -> Float[Tensor, "n d"]:
    return torch.cat([group[:i], group[i + 1 :]])


def lean(people: Float[Tensor, "n d"], things: Float[Tensor, "m d"], place: Float[Tensor, " d"]) -> float:
    """How much nearer a place is to one group's middle than to the other's, in squared distance.

    A middle of few points lies further from everything than the true one, by their spread over their number, and that
    is taken off; otherwise the smaller group would always seem far away.
    """

    def distance(group: Float[Tensor, "k d"]) -> Tensor:
        return (place - group.mean(0)).square().sum() - _scatter(group)

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


def _ends(chance: Float[Tensor, " n"]) -> dict[str, float]:
    return {"least": round(float(chance.min()), 4), "most": round(float(chance.max()), 4)}


def _place_without_confounds(space: PersonaSpace, layer: int, people: list[int], things: list[int]) -> float | None:
    """The place once what reply length and storytelling explain is taken out of every state."""
    states, assistant = without_confounds(space, layer)
    return _place(states[people].mean(1), states[things].mean(1), assistant.mean(0))


def _families(
    space: PersonaSpace, states: Float[Tensor, "p q d"], people: list[int], things: list[int]
) -> dict[str, float | None]:
    """Where the middle of every family falls on the same line."""
    points = states.mean(1)
    return {
        family: _known(_place(points[people], points[things], points[space.members(family)].mean(0)))
        for family in dict.fromkeys(space.families)
    }
