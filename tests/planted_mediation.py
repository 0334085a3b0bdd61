"""Truth that is planted for `mediation`: ways that move to the same places, to others, or nowhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from steerkit.experiments import mediation
from steerkit.experiments.mediation import Moved, Settings

FEW = Settings(n_resamples=100)
P, Q, D, OWN, RANDOM = 8, 8, 256, 2, 20
TOGETHER, ELSEWHERE = (1.0, 1.0, 1.0), (1.0, 0.0, 1.0)


def make_moved(
    seed: int,
    same: tuple[float, ...] = TOGETHER,
    alike: tuple[float, ...] = TOGETHER,
    rise: tuple[float, ...] = (0.5, 0.4, 0.4),
    shared: float = 1.5,
    uneven: float = 0.0,
    camps: float = 0.0,
    noise: float = 1.0,
    size: float = 0.7,
    blur: float = 0.12,
    turned: int = 0,
    odd: float = 0.0,
) -> Moved:
    """Eight personas, moved in three ways, before eight questions and on sixteen items.

    Args:
        seed: of everything that is drawn
        same: of each way's places, the weight of what is common to the ways of one persona; the rest is its own
        alike: of each way's pattern over items, the same
        rise: of each persona's own items, in nats
        shared: length of what all personas share, where a persona's own part is `size`
        uneven: how much personas differ in how much of that they have, the same in every way
        camps: length of an axis at whose two ends there is half of the personas each
        noise: length of what is particular to a question, and of what chance adds to a vector
        size: of what is a persona's own; of its pattern over items, a fifth of it in nats
        blur: standard deviation of an item's shift that is nothing but chance
        turned: by how many places the examples' personas are exchanged, in the middle layer
        odd: nats by which the last persona raises the first one's first item, in every way
    """
    draw = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    def units(*shape: int) -> Tensor:
        return normalize(drawn(*shape), dim=-1)

    axis, place, pattern, common = units(D), units(P, D), drawn(P, P * OWN), drawn(P * OWN)
    sides = torch.tensor([1.0, -1.0]).repeat(P // 2)[:, None]
    amounts = 1 + uneven * drawn(P, 1)
    places, shifts = [], []
    for way in range(3):
        own = place * same[way] + units(P, D) * (1 - same[way] ** 2) ** 0.5
        ground = normalize(axis + units(D), dim=-1)
        places.append(size * own + shared * amounts * ground + camps * sides * units_of(axis))
        felt = pattern * alike[way] + drawn(P, P * OWN) * (1 - alike[way] ** 2) ** 0.5
        raised = rise[way] * torch.eye(P).repeat_interleave(OWN, 1)
        chance = blur * drawn(P, P * OWN)
        chance[-1, 0] += odd
        shifts.append(size / 5 * felt + raised + 0.2 * shared * amounts * common + camps / 2 * sides * common + chance)
    asked = [place[:, None] + noise * units(P, Q, D) for place in places]
    nowhere = noise * units(P, Q, D)
    ablated = shifts[0].reshape(P, P, OWN).mean(-1).diagonal()[:, None] * torch.tensor([1.0, 0.4, 0.9, 1.0, 0.95])
    return Moved(
        personas=tuple(f"persona{i}" for i in range(P)),
        prompts=asked[0],
        examples=asked[1].roll(turned, 0),
        implied=0.5 * asked[0] + nowhere,
        shuffled=nowhere,
        directions=places[2] + noise / 2 * units(P, D),
        asked=shifts[0],
        shown=shifts[1],
        steered=shifts[2],
        chance=0.2 * drawn(RANDOM, P * OWN),
        left=ablated + 0.02 * drawn(P, 5),
    )


def units_of(axis: Tensor) -> Tensor:
    """A direction that has nothing to do with one, but is the same for every way."""
    return normalize(axis.roll(1), dim=-1)


def case(**planted: Any) -> Callable[[int], dict[str, Any]]:
    """Examine what is planted, by seed."""
    return lambda seed: mediation.examine(make_moved(seed, **planted), FEW)


NOTHING: dict[str, Any] = {"same": (0.0,) * 3, "alike": (0.0,) * 3}
CASES: dict[str, tuple[Callable[[int], dict[str, Any]], str]] = {
    "three ways that move to the same places": (case(), "yes"),
    "the same, and little that all personas share": (case(shared=0.2), "yes"),
    "the same, and more that all personas share than what they have of their own": (
        case(shared=5.0, uneven=0.3),
        "yes",
    ),
    "examples that move elsewhere in the middle layer, and raise the same items": (case(same=ELSEWHERE), "no"),
    "vectors that point elsewhere, and raise the same items": (case(same=(1.0, 1.0, 0.0)), "no"),
    "three ways that have nothing in common but their own items": (case(**NOTHING), "no"),
    "examples of one persona that move to the place of another": (case(turned=1), "no"),
    "personas that share one direction and differ in how much they have of it": (
        case(**NOTHING, shared=3.0, uneven=0.5),
        "no",
    ),
    "two camps on one axis, and nothing else in common": (case(**NOTHING, camps=2.0), "cannot tell"),
    "nothing that moves at all": (case(**NOTHING, rise=(0.0,) * 3, size=0.0, shared=0.0), "cannot tell"),
    "examples that do nothing for their persona": (
        case(same=ELSEWHERE, alike=ELSEWHERE, rise=(0.5, 0.0, 0.4)),
        "cannot tell",
    ),
    "the same places, but behaviour that has nothing in common": (
        case(alike=(0.0,) * 3, rise=(0.0,) * 3),
        "cannot tell",
    ),
    "the same places, but in behaviour nothing but a shift of all items that differs in size": (
        case(alike=(0.0,) * 3, rise=(0.0,) * 3, shared=4.0, uneven=0.5),
        "cannot tell",
    ),
    "the same places, but in behaviour nothing but one odd item": (
        case(alike=(0.0,) * 3, rise=(0.0,) * 3, odd=2.0),
        "cannot tell",
    ),
    "states that go elsewhere with every question": (case(**NOTHING, noise=8.0), "cannot tell"),
}
