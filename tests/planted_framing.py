"""Contexts in which cheating spills, and frames that cut it or do not, by construction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from steerkit.experiments import framing

FEW = framing.Settings(shorter=(2,), n_resamples=100)
ARMS = ("bare", "asked", "test", "play", "neutral", "irrelevant", "negated")
KINDS = ("bare", *["requested"] * 3, *["control"] * 3)
SETS, ITEMS = 6, 5


def make_framed(
    seed: int,
    bare: float = 0.2,
    requested: float = 0.05,
    control: float = 0.2,
    own: float = 0.3,
    noise: float = 0.05,
    chance: float = 0.03,
    shared: float = 0.05,
) -> framing.Framed:
    """Spills of so many nats, with noise of items that is the same in every arm and noise that is not."""
    draw = torch.Generator().manual_seed(seed)
    means = torch.tensor([bare, *[requested] * 3, *[control] * 3])
    wobble = torch.randn(SETS, ITEMS, generator=draw) * shared
    spills = means[:, None, None] + wobble + torch.randn(len(ARMS), SETS, ITEMS, generator=draw) * noise

    def around(mean: float, *shape: int) -> torch.Tensor:
        return mean + torch.randn(*shape, generator=draw) * noise

    return framing.Framed(
        arms=ARMS,
        kinds=KINDS,
        spills=spills,
        within=spills[:1],
        own=around(own, SETS, 2),
        frames=around(0.0, len(ARMS), ITEMS),
        mixed=around(0.0, SETS, ITEMS),
        fewer=around(bare / 2, 1, SETS, ITEMS),
        chance=torch.randn(20, 1, generator=draw) * chance + around(0.0, 20, ITEMS),
        asked=around(0.4, 3, ITEMS),
        steered=around(0.2, ITEMS),
        costs=torch.full((len(ARMS),), 0.5),
    )


def planted(**told: float) -> Callable[[int], dict[str, Any]]:
    return lambda seed: framing.examine(make_framed(seed, **told), FEW)


CASES: dict[str, tuple[Callable[[int], dict[str, Any]], str]] = {
    "requests cut three quarters of the spill, other frames nothing": (planted(), "yes"),
    "no frame cuts anything": (planted(requested=0.2), "no"),
    "requests add to the spill": (planted(requested=0.3), "no"),
    "every frame cuts alike, whatever it says": (planted(requested=0.1, control=0.1, noise=0.02), "no"),
    "nothing is spilt that a frame could cut": (planted(bare=0.0, requested=0.0, control=0.0), "cannot tell"),
    "random directions raise malice as much as the examples do": (planted(chance=0.5), "cannot tell"),
}
