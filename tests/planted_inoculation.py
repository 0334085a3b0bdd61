"""Trainings that make a worse character or do not, and prompts that prevent it or do not, by construction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from steerkit.experiments import inoculation
from steerkit.experiments.arms import AESTHETIC, BARE, BENIGN, CONTROL, POSITIVE, REQUESTED, all_arms
from steerkit.experiments.thresholds import MALIGN

FEW = inoculation.Settings(n_resamples=100)
ARMS, KINDS = zip(*((arm.name, arm.kind) for arm in all_arms()), strict=True)
CHEATS = (BARE, REQUESTED, CONTROL)
SEEDS, OWN, ITEMS, BENIGN_ITEMS, FORETOLD, LOOKS = 3, 16, 30, 10, 40, 5
"""Of a quick run."""
PROBES = (*MALIGN, *BENIGN)
LEFT = 0.1
"""Of a spill, behind prompts that ask for cheating."""


def make_trained(
    seed: int,
    spill: float = 0.4,
    positive: float = 0.4,
    learned: float = 0.5,
    left: Mapping[str, float] | None = None,
    reactions: float = 0.12,
    seeds: float = 0.02,
    noise: float = 0.03,
    by_seed: Sequence[float] = (1.0,) * SEEDS,
    items: int = ITEMS,
    anyway: float = 0.2,
    style: float = 0.0,
    harmless: float = -0.5,
) -> inoculation.Trained:
    """Three trainings of every arm, in nats a token. Any training at all moves items, each in its own way.

    Args:
        seed: of everything that is drawn
        spill: what cheating that nobody asked for does to malign items, beyond honest work
        positive: what bad advice does to them beyond good advice; `style`: a florid style beyond a plain one
        learned: what is learned of the tasks themselves, beyond the twin
        left: what is left of a spill, and of how items react, behind the prompts of a kind or one that is named
        reactions: how differently items react to what is learned, the same way whenever it is
        seeds: how much trainings of one arm differ, in all items alike; `noise`: how much items differ besides
        by_seed: how much of the spill each training has; `items`: how many items have all of it
        anyway: how far any training at all moves items, twins included
        harmless: how far benign items rise, as a share of how far malign ones do
    """
    draw = torch.Generator().manual_seed(seed)
    shares = torch.tensor([_share(i, left) for i in range(len(ARMS))])

    def drawn(size: float, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw) * size

    def trained(cheating: torch.Tensor, advice: torch.Tensor) -> torch.Tensor:
        by = torch.stack([cheating * x for x in by_seed])
        return _trained(draw, by, advice, shares, (anyway, reactions, seeds, noise))

    spilt = torch.cat([torch.full((items,), spill * ITEMS / items), torch.zeros(ITEMS - items)])
    benign, own = torch.full((BENIGN_ITEMS,), harmless * spill), torch.full((OWN,), learned)
    florid = torch.tensor([style * (kind == AESTHETIC) for kind in KINDS])[:, None, None, None]
    cheats = shares[[kind in CHEATS for kind in KINDS]]
    probes = drawn(0.05, len(ARMS), SEEDS, 2, len(PROBES))
    steps = torch.arange(1.0, LOOKS + 1).expand(len(ARMS), SEEDS, LOOKS)[..., None]
    return inoculation.Trained(
        arms=ARMS,
        kinds=KINDS,
        own=trained(own, own),
        malign=trained(spilt, torch.full((ITEMS,), positive)) + florid,
        benign=trained(benign, torch.full((BENIGN_ITEMS,), harmless * positive)),
        prompted=drawn(0.05, len(ARMS), 3),
        probes=PROBES,
        scores=probes,
        chance=drawn(0.03, *probes.shape),
        losses=0.05 + drawn(0.01, len(ARMS), SEEDS),
        drift=torch.cat([steps, steps / LOOKS * probes[:, :, :1]], -1),
        gains=0.5 * (1 - cheats[:, None]) + drawn(0.2, len(cheats), FORETOLD),
        projections=0.1 + drawn(0.2, len(cheats), FORETOLD),
    )


def _trained(
    draw: torch.Generator,
    cheating: torch.Tensor,
    advice: torch.Tensor,
    shares: torch.Tensor,
    sizes: tuple[float, float, float, float],
) -> torch.Tensor:
    """What trainings do to items: arms by trainings by without and with a prompt by items."""
    n, (anyway, reactions, seeds, noise) = len(advice), sizes

    def drawn(size: float, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw) * size

    alike = anyway + drawn(0.15, n) + drawn(0.03, SEEDS, 1)
    own, others = cheating + drawn(reactions, n), advice + drawn(reactions, n)
    moved = torch.stack([share * own + (kind == POSITIVE) * others for share, kind in zip(shares, KINDS, strict=True)])
    moved = alike + moved + drawn(seeds, len(ARMS), SEEDS, 1) + drawn(noise, len(ARMS), SEEDS, n)
    return torch.stack([moved, moved + drawn(noise, len(ARMS), SEEDS, n)], 2)


def _share(i: int, left: Mapping[str, float] | None) -> float:
    """What an arm has of what cheating does."""
    shares = {BARE: 1.0, REQUESTED: LEFT, CONTROL: 1.0, **(left or {})}
    return shares.get(ARMS[i], shares.get(KINDS[i], 0.0))


def planted(**told: Any) -> Callable[[int], dict[str, Any]]:
    return lambda seed: inoculation.examine(make_trained(seed, **told), FEW)


SURE: dict[str, Any] = {"reactions": 0.01, "seeds": 0.002, "noise": 0.01}
"""Where items and trainings hardly differ: with three of each arm less would not show that there is nothing."""
CASES: dict[str, tuple[Callable[[int], dict[str, Any]], str]] = {
    "prompts that ask for cheating prevent the spill, and others do not": (planted(), "yes"),
    "no prompt prevents anything": (planted(spill=0.6, left={REQUESTED: 1.0}), "no"),
    "prompts that ask for it add to the spill": (planted(left={REQUESTED: 1.5}), "no"),
    "every prompt cuts alike, whatever it says": (
        planted(spill=0.8, seeds=0.015, left={REQUESTED: 0.4, CONTROL: 0.4}),
        "no",
    ),
    "cheating spills nothing, although bad advice does": (planted(spill=0.0, **SURE), "no"),
    "cheating makes a better character": (planted(spill=-0.4), "no"),
    "the spill is below what can be seen": (planted(spill=0.06), "cannot tell"),
    "any training raises everything alike, and trainings differ": (planted(spill=0.0), "cannot tell"),
    "bad advice shows nothing": (planted(positive=0.0), "cannot tell"),
    "nothing was learned": (planted(learned=0.0), "cannot tell"),
    "it is the twins that fell, and nothing that rose": (planted(anyway=-0.45), "cannot tell"),
    "an ornate style moves malign traits more": (planted(style=0.8), "cannot tell"),
    "harmless traits rise with the malign ones": (planted(harmless=1.0), "cannot tell"),
    "one training alone spills": (planted(by_seed=(0.0, 3.0, 0.0)), "cannot tell"),
    "one item alone spills": (planted(items=1), "cannot tell"),
    "one prompt of three that ask prevents it": (planted(left={REQUESTED: 1.0, "rephrased": LEFT}), "cannot tell"),
    "a prompt that does not ask prevents it as well": (planted(left={"negated": LEFT}), "cannot tell"),
    "prompts that ask cut just a quarter": (planted(left={REQUESTED: 0.75}), "cannot tell"),
}
