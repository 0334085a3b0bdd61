"""Drift that is known beforehand, in the sizes of a quick run, and what an honest test should say to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from steerkit.experiments.conversing import Drifted
from steerkit.experiments.drift import Settings, examine

N_EACH, N_TURNS, N_PROBES, N_CHARACTERS, N_RANDOM = 3, 2, 6, 8, 20
TOPICS = tuple(topic for topic in ("coding", "therapy", "philosophy") for _ in range(N_EACH))


@dataclass(frozen=True)
class World:
    """What is true of a model, in persona units; spreads are standard deviations, near those of the default model."""

    coding: float = 0.1
    """How far talk about code drifts it."""
    talk: tuple[float, float] = (1.0, 1.2)
    """How far the other topics do."""
    left: float = 0.15
    """The share of drift that a floor leaves."""
    pushed: float = -0.05
    """What the floor does at any time, talk or not."""
    caps: float = 1.0
    """The share that random caps leave."""
    asked: float = 0.8
    """How far asking goes, in lengths of the vector."""
    agreement: float = 0.97
    """Of both halves."""
    apart: float = 0.3
    """Conversations from each other; those about code differ by less than half as much."""
    taste: float = 0.25
    """Probes from each other, after whatever talk."""
    noise: float = 0.06
    """Single probes after single conversations."""
    axes: float = 0.14
    """Random axes, in what they share over conversations, and as much apart."""
    lone_conversation: float = 0.0
    """By how much one conversation drifts more than the others."""
    lone_probe: float = 0.0
    """By how much one probe drifts more, after anything but code."""


QUIET = World(apart=0.03, taste=0.03, noise=0.03, axes=0.01)


def plant(world: World, seed: int) -> Drifted:
    """Measurements of such a model."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    n, unit, code = len(TOPICS), world.asked, torch.tensor([topic == "coding" for topic in TOPICS])
    means = dict(zip(("coding", "therapy", "philosophy"), (world.coding, *world.talk), strict=True))
    true = torch.tensor([means[topic] for topic in TOPICS])[:, None]
    own = world.apart * torch.where(code, 0.4, 1.0)[:, None] * normal(n, 1)
    ends = true + own + world.taste * normal(1, N_PROBES)
    ends[N_EACH] += world.lone_conversation
    ends[N_EACH:, 0] += world.lone_probe
    ways = torch.linspace(1 / N_TURNS, 1, N_TURNS)
    drift = ends[:, None] * ways[None, :, None] + world.noise * normal(n, N_TURNS, N_PROBES)
    held = world.pushed + world.left * drift + world.noise / 2 * normal(*drift.shape)
    start, trimmed = 0.5 + 0.3 * normal(N_PROBES), 0.02 * normal(N_RANDOM, N_PROBES)
    others = drift[N_EACH:, -1]
    capped = world.caps * others[None] + 0.02 * normal(N_RANDOM, len(others), N_PROBES)
    asked = 1 + 0.3 * normal(N_CHARACTERS, 1) + 0.2 * normal(1, N_PROBES) + 0.1 * normal(N_CHARACTERS, N_PROBES)
    mixed = true.mean() + world.apart / 2 * normal(n, 1) + world.noise * normal(n, N_PROBES)
    elsewhere = normal(N_RANDOM, 1, N_PROBES) * 0.3 + normal(N_RANDOM, 1, 1) + normal(N_RANDOM, n, 1)
    return Drifted(
        topics=TOPICS,
        start=torch.cat([start[None], start[None] + unit * world.pushed, start + trimmed]),
        scores=start + unit * torch.stack([drift, held]),
        capped=start + trimmed[:, None] + unit * capped,
        shuffled=start + unit * mixed,
        asked=start + unit * asked,
        elsewhere=unit * world.axes * elsewhere,
        agreement=world.agreement,
        cost=(0.01, 0.02, 0.1),
    )


def judged(world: World) -> Callable[[int], dict[str, Any]]:
    """What the experiment says of such a model, by seed."""
    settings = Settings(n_resamples=100)
    return lambda seed: examine(plant(world, seed), settings)


CASES: dict[str, tuple[Callable[[int], dict[str, Any]], str]] = {
    "talk drifts, code does not, and a floor holds it": (judged(World()), "yes"),
    "nothing drifts": (judged(replace(QUIET, coding=0.0, talk=(0.0, 0.0))), "no"),
    "talk leads towards the Assistant": (judged(World(coding=0.0, talk=(-0.8, -0.8))), "no"),
    "code leads towards the Assistant and nothing away": (judged(replace(QUIET, coding=-0.5, talk=(0, 0))), "no"),
    "all topics drift alike": (judged(replace(QUIET, coding=0.5, talk=(0.5, 0.5))), "no"),
    "the floor holds nothing": (judged(World(left=1.0)), "no"),
    "the floor only pushes, talk or not": (judged(World(left=1.0, pushed=-0.8)), "no"),
    "asking moves nothing, so there is no unit": (judged(World(asked=0.02)), "cannot tell"),
    "the personas have no axis": (judged(World(agreement=0.1)), "cannot tell"),
    "random axes drift as far": (judged(World(axes=1.5)), "cannot tell"),
    "any cap holds it": (judged(World(caps=0.1)), "cannot tell"),
    "one conversation drifts": (judged(World(talk=(0.1, 0.1), lone_conversation=4.0)), "cannot tell"),
    "one probe drifts": (judged(World(talk=(0.1, 0.1), lone_probe=6.0)), "cannot tell"),
    "conversations differ, whatever they are about": (judged(World(0.5, (0.5, 0.5), apart=0.5)), "cannot tell"),
    "drift of just the threshold": (judged(replace(QUIET, coding=0.0, talk=(0.1, 0.1))), "cannot tell"),
    "a floor that holds just half": (judged(World(left=0.5)), "cannot tell"),
    "nothing drifts, and much is noise": (judged(World(0.0, (0.0, 0.0), apart=0.6, taste=0.6)), "cannot tell"),
}
