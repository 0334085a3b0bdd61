"""Persona spaces and matrices of spills in which a claim is true, or false, by construction."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from steerkit.experiments import humanlike, space, spillover
from steerkit.experiments.crossing import Crossed
from steerkit.spaces import PersonaSpace

WIDTH, QUESTIONS = 24, 6


def unit(i: int, width: int = WIDTH) -> Tensor:
    axis = torch.zeros(width)
    axis[i] = 1.0
    return axis


def make_space(
    seed: int,
    spreads: tuple[float, ...] = (3.0, 1.2, 0.8),
    assistant: tuple[float, ...] = (9.0,),
    lengths_follow: float = 0.0,
    noise: float = 0.15,
) -> PersonaSpace:
    """Sixty personas spread along a few axes, with the Assistant at a given place on them.

    The last ten are styles, one of them the storyteller, who differs from the others along axis 5. Reply lengths follow
    the first axis as much as they are told to.
    """
    draw = torch.Generator().manual_seed(seed)
    n = 60
    points = torch.zeros(n, WIDTH)
    for i, spread in enumerate(spreads):
        points[:, i] = torch.randn(n, generator=draw) * spread
    points += torch.randn(n, WIDTH, generator=draw) * 0.1
    families = ("characters",) * 25 + ("things",) * 25 + ("styles",) * 10
    names = (*(f"persona{i}" for i in range(n - 1)), "storyteller")
    points[-1, 0] = points[-10:-1, 0].mean()
    points[-1] += 3 * unit(5)
    place = sum((x * unit(i) for i, x in enumerate(assistant)), torch.zeros(WIDTH))
    wobble = torch.randn(n + 2, QUESTIONS, 1, WIDTH, generator=draw) * noise
    mixed = lengths_follow * points[:, 0] / spreads[0] + (1 - lengths_follow) * torch.randn(n, generator=draw)
    return PersonaSpace(
        names=names,
        families=families,
        states=points[:, None, None] + wobble[:n],
        assistant=place[None, None] + wobble[n],
        control=place[None, None] + wobble[n + 1],
        lengths=40 * (0.1 * mixed).exp(),
        assistant_length=40 * math.exp(0.1 * lengths_follow * float(place[0]) / spreads[0]),
    )


def of_rows(space: PersonaSpace, rows: list[int]) -> PersonaSpace:
    """The space of some of the personas, in another order."""
    names, families = (tuple(every[i] for i in rows) for every in (space.names, space.families))
    return replace(space, names=names, families=families, states=space.states[rows], lengths=space.lengths[rows])


def make_sides(seed: int, assistant: float, gap: float = 3.0, spread: float = 0.5, width: int = WIDTH) -> PersonaSpace:
    """People around 1 and things around 0 of a line that is `gap` long, the Assistant at a place on it and off it."""
    draw = torch.Generator().manual_seed(seed)
    n_people, n_things = 30, 14
    points = torch.randn(n_people + n_things, width, generator=draw) * spread
    points[:n_people] += gap * unit(0, width)
    place = gap * assistant * unit(0, width) + 2 * unit(1, width)
    wobble = torch.randn(n_people + n_things + 2, QUESTIONS, 1, width, generator=draw) * 0.3
    return PersonaSpace(
        names=tuple(f"persona{i}" for i in range(n_people + n_things)),
        families=("professions",) * 15 + ("characters",) * 15 + ("things",) * n_things,
        states=points[:, None, None] + wobble[:-2],
        assistant=place[None, None] + wobble[-2],
        control=place[None, None] + wobble[-1],
        lengths=torch.rand(n_people + n_things, generator=draw) * 20 + 20,
        assistant_length=30.0,
    )


KINDS = ("malign",) * 6 + ("benign",) * 6
TRAITS = tuple(f"vice{i}" for i in range(6)) + tuple(f"virtue{i}" for i in range(6))


def make_crossed(seed: int, kin: float, strangers: float, own: float = 0.4, noise: float = 0.05) -> Crossed:
    """Traits that move themselves, their kin and strangers by so much, item by item with some noise."""
    draw = torch.Generator().manual_seed(seed)
    malign = torch.tensor([kind == "malign" for kind in KINDS])
    alike = malign[:, None] == malign[None]
    matrix = torch.where(alike, kin, strangers)
    matrix = matrix + torch.randn(matrix.shape, generator=draw) * 0.01
    matrix.fill_diagonal_(own)
    shifts = matrix[..., None] + torch.randn(12, 12, 6, generator=draw) * noise
    chance = torch.randn(20, 12, 1, generator=draw) * 0.03 + torch.randn(20, 12, 6, generator=draw) * noise
    return Crossed(shifts, chance, torch.where(alike, 0.5, 0.1) + 0.9 * torch.eye(12) * (1 - 0.5))


FEW_DRAWS = space.Settings(n_random=3, n_resamples=40)
FEW_SPLITS = humanlike.Settings(n_splits=99)
FEW_LABELS = spillover.Settings(n_resamples=100, n_relabelled=99)
Examine = Callable[[int], dict[str, Any]]


def mapped(**told: Any) -> Examine:
    return lambda seed: space.examine(make_space(seed, **told), 0, FEW_DRAWS)


def between(place: float, **told: Any) -> Examine:
    return lambda seed: humanlike.examine(make_sides(seed, place, **told), 0, FEW_SPLITS)


def spilt(kin: float, strangers: float, **told: Any) -> Examine:
    return lambda seed: spillover.examine(make_crossed(seed, kin, strangers, **told), TRAITS, KINDS, FEW_LABELS)


def storytelling(seed: int) -> dict[str, Any]:
    """A space whose first component is made by the storyteller alone."""
    planted = make_space(seed)
    planted.states[-1, ..., 0] += 40.0
    return space.examine(planted, 0, FEW_DRAWS)


CASES: dict[str, dict[str, tuple[Examine, str]]] = {
    "map": {
        "the Assistant stands beyond everybody on a line": (mapped(), "yes"),
        "the Assistant stands in the middle": (mapped(assistant=(0.2, 0.2)), "no"),
        "the Assistant stands at the end of the second component": (mapped(assistant=(0.0, 9.0)), "no"),
        "the first component is reply length": (mapped(lengths_follow=0.95), "cannot tell"),
        "the first component is storytelling": (storytelling, "cannot tell"),
    },
    "spillover": {
        "malign traits raise each other": (spilt(0.16, 0.04), "yes"),
        "all traits raise all others alike": (spilt(0.1, 0.1), "no"),
        "benign traits drive malign ones out, and nothing rises": (spilt(0.0, -0.1), "no"),
        "dials do not move their own traits": (spilt(0.1, 0.0, own=0.0), "cannot tell"),
    },
    "humanlike": {
        "the Assistant stands among people": (between(0.9), "yes"),
        "the Assistant stands among things": (between(0.1), "no"),
        "people and things do not differ": (between(0.9, gap=0.0), "cannot tell"),
    },
}
