"""Truth that is planted for `mediation`: ways that move to the same places, to others, or nowhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from steerkit.experiments import mediation
from steerkit.experiments.mediation import Moved, Settings

FEW = Settings(n_resamples=100)
P, Q, D, OWN, RANDOM = 8, 8, 256, 2, 20
TOGETHER, NOWHERE = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
LEFT = (1.0, 0.4, 0.9, 1.0, 0.95)
"""Of what a prompt does: as it is, and with the own vector ablated, another's, and two random ones."""


@dataclass(frozen=True)
class Truth:
    """Eight personas, moved in three ways, before eight questions and on sixteen items."""

    same: tuple[float, ...] = TOGETHER
    """Of each way's places, the weight of what is common to the ways of one persona; the rest is the way's own."""
    alike: tuple[float, ...] = TOGETHER
    """Of each way's pattern over items, the same."""
    rise: tuple[float, ...] = (0.5, 0.4, 0.4)
    """Of each persona's own items, in nats."""
    shared: float = 1.5
    """Length of what all personas share; the spread of a shift that they share is a fifth of it in nats."""
    uneven: float = 0.0
    """How much personas differ in how much of that they have, the same in every way."""
    camps: float = 0.0
    """Length of an axis at whose two ends there is half of the personas each."""
    noise: float = 1.0
    """Length of what is particular to a question; half of it is added to a vector."""
    size: float = 0.7
    """Length of what is a persona's own; the spread of its pattern over items is a fifth of it in nats."""
    blur: float = 0.12
    """Standard deviation of the part of an item's shift that is nothing but chance, in nats."""
    turned: int = 0
    """By how many places the examples' personas are exchanged, in the middle layer."""
    odd: float = 0.0
    """Nats by which the last persona raises the first one's first item, in every way."""


def make_moved(seed: int, truth: Truth) -> Moved:
    """Measurements of a planted truth."""
    draw = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    def units(*shape: int) -> Tensor:
        return normalize(drawn(*shape), dim=-1)

    axis, place, pattern, common = units(D), units(P, D), drawn(P, P * OWN), drawn(P * OWN)
    camps = truth.camps * torch.tensor([1.0, -1.0]).repeat(P // 2)[:, None]
    amounts = truth.shared * (1 + truth.uneven * drawn(P, 1))
    places, shifts = [], []
    for same, alike, rise in zip(truth.same, truth.alike, truth.rise, strict=True):
        own = place * same + units(P, D) * (1 - same**2) ** 0.5
        ground = normalize(axis + units(D), dim=-1)
        # The axis of the camps has nothing to do with that of what all share, and is the same for every way.
        places.append(truth.size * own + amounts * ground + camps * axis.roll(1))
        felt = truth.size / 5 * (pattern * alike + drawn(P, P * OWN) * (1 - alike**2) ** 0.5)
        chance = truth.blur * drawn(P, P * OWN)
        chance[-1, 0] += truth.odd
        raised = rise * torch.eye(P).repeat_interleave(OWN, 1)
        shifts.append(felt + raised + (0.2 * amounts + camps / 2) * common + chance)
    asked = [each[:, None] + truth.noise * units(P, Q, D) for each in places]
    nowhere = truth.noise * units(P, Q, D)
    own = shifts[0].reshape(P, P, OWN).mean(-1).diagonal()[:, None]
    return Moved(
        personas=tuple(f"persona{i}" for i in range(P)),
        prompts=asked[0],
        examples=asked[1].roll(truth.turned, 0),
        implied=0.5 * asked[0] + nowhere,
        shuffled=nowhere,
        directions=places[2] + truth.noise / 2 * units(P, D),
        asked=shifts[0],
        shown=shifts[1],
        steered=shifts[2],
        chance=0.2 * drawn(RANDOM, P * OWN),
        left=own * torch.tensor(LEFT) + 0.02 * drawn(P, len(LEFT)),
    )


def case(truth: Truth) -> Callable[[int], dict[str, Any]]:
    """Examine what is planted, by seed."""
    return lambda seed: mediation.examine(make_moved(seed, truth), FEW)


NOTHING = Truth(same=NOWHERE, alike=NOWHERE)
"""Ways that have nothing in common but the items that each of them raises."""
STILL = Truth(alike=NOWHERE, rise=NOWHERE)
"""Ways that move to the same places, and do nothing to any item that they have in common."""
CASES: dict[str, tuple[Callable[[int], dict[str, Any]], str]] = {
    "three ways that move to the same places": (case(Truth()), "yes"),
    "the same, and little that all personas share": (case(Truth(shared=0.2)), "yes"),
    "the same, and far more that all share than what each has of its own": (
        case(Truth(shared=5.0, uneven=0.3)),
        "yes",
    ),
    "examples that move elsewhere in the middle layer, and raise the same items": (
        case(Truth(same=(1.0, 0.0, 1.0))),
        "no",
    ),
    "vectors that point elsewhere, and raise the same items": (case(Truth(same=(1.0, 1.0, 0.0))), "no"),
    "three ways that have nothing in common but their own items": (case(NOTHING), "no"),
    "examples of one persona that move to the place of another": (case(Truth(turned=1)), "no"),
    "personas that share one direction and differ in how much they have of it": (
        case(replace(NOTHING, shared=3.0, uneven=0.5)),
        "no",
    ),
    "two camps on one axis, and nothing else in common": (case(replace(NOTHING, camps=2.0)), "cannot tell"),
    "nothing that moves at all": (case(replace(NOTHING, rise=NOWHERE, size=0.0, shared=0.0)), "cannot tell"),
    "examples that do nothing for their persona": (
        case(Truth(same=(1.0, 0.0, 1.0), alike=(1.0, 0.0, 1.0), rise=(0.5, 0.0, 0.4))),
        "cannot tell",
    ),
    "the same places, but behaviour that has nothing in common": (case(STILL), "cannot tell"),
    "the same places, but in behaviour nothing but a shift of all items that differs in size": (
        case(replace(STILL, shared=4.0, uneven=0.5)),
        "cannot tell",
    ),
    "the same places, but in behaviour nothing but one odd item": (case(replace(STILL, odd=2.0)), "cannot tell"),
    "states that go elsewhere with every question": (case(replace(NOTHING, noise=8.0)), "cannot tell"),
}
