"""Shifts between two models of which it is known what they lie in: personas, ordinary text, both, or nothing at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steerkit.fingerprints import Fingerprint
from steerkit.selection import examine, persona_span
from steerkit.shifts import Settings
from steerkit.vectors import SteeringVector

WIDTH, LAYERS, QUESTIONS, PERSONAS = 128, 3, 24, 30
FEW = Settings(n_resamples=400)
MODEL = Fingerprint("planted", LAYERS, WIDTH, ((0.0,) * 24,) * 3)


@dataclass(frozen=True, eq=False)
class World:
    """A base model: personas that spread along a few directions, text along others, and noise that favours some."""

    base: Tensor
    vectors: list[SteeringVector]
    text: Tensor
    shaken: Tensor
    favour: Tensor
    draw: torch.Generator

    @property
    def span(self) -> Tensor:
        """Of the personas, at the middle layer."""
        return persona_span(torch.stack([v.directions[1] for v in self.vectors]), FEW.share)

    @property
    def busiest(self) -> Tensor:
        """The directions along which text varies most."""
        text = self.text[:, 1].double()
        return torch.linalg.svd(text - text.mean(0), full_matrices=False)[2][: len(self.span)]

    def noise(self, *shape: int) -> Tensor:
        """What random changes of the model bring about: more along directions that it passes on."""
        return torch.randn(*shape, WIDTH, generator=self.draw) @ self.favour

    def told(self, shift: Tensor, **more: Any) -> dict[str, Any]:
        """What a shift [q d], the same at every layer, is found to be."""
        tuned = self.base.double() + shift[:, None]
        told = {"shaken": self.shaken, "settings": FEW, "layer": 1, **more}
        return examine(self.base.double(), tuned, self.vectors, self.text, **told)


def make_world(seed: int) -> World:
    """One with 30 personas, and noise that has three times as much power along personas and text, as in real models."""
    draw = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=draw))[0]
    spread = torch.tensor([4.0, 2.0, 1.5, 1.0, *[0.2] * (WIDTH - 4)])
    people = (torch.randn(PERSONAS, WIDTH, generator=draw) * spread + 3 * torch.eye(WIDTH)[0]) @ axes
    plain = torch.zeros(LAYERS, WIDTH)
    vectors = [
        SteeringVector(f"persona{i}", MODEL, one.expand(LAYERS, -1).clone() * 2, plain) for i, one in enumerate(people)
    ]
    busy = torch.tensor([*[0.5] * 8, *[6.0] * 4, *[0.5] * (WIDTH - 12)])
    text = (torch.randn(200, 1, WIDTH, generator=draw) * busy) @ axes
    base = torch.randn(QUESTIONS, LAYERS, WIDTH, generator=draw) * 3
    favour = axes.T @ torch.diag(torch.tensor([*[1.7] * 4, *[1.0] * 4, *[1.7] * 4, *[1.0] * (WIDTH - 12)])) @ axes
    noise = torch.randn(20, 1, 1, WIDTH, generator=draw) + 0.5 * torch.randn(20, 6, 1, WIDTH, generator=draw)
    expanded = (noise @ favour).expand(-1, -1, LAYERS, -1)
    return World(base, vectors, text.expand(-1, LAYERS, -1), expanded, favour, draw)


def wobbly(world: World, direction: Tensor, noise: float) -> Tensor:
    """A shift of length 1 along a direction at every question, with noise of that length besides."""
    along = torch.nn.functional.normalize(direction.double(), dim=0)
    strength = 1 + 0.3 * torch.randn(QUESTIONS, 1, generator=world.draw)
    wobble = torch.nn.functional.normalize(world.noise(QUESTIONS), dim=-1)
    return strength * along + noise * wobble


def persona_like(world: World) -> Tensor:
    """One persona's displacement, with as much noise as signal."""
    return wobbly(world, world.vectors[5].directions[1], 1.0)


def text_like(world: World) -> Tensor:
    """A mixture of the directions along which text varies most."""
    return wobbly(world, torch.randn(len(world.span), generator=world.draw).double() @ world.busiest, 1.0)


def noise_like(world: World) -> Tensor:
    """One more random change of the model."""
    return wobbly(world, world.noise(1)[0], 0.5)


def elsewhere(world: World) -> Tensor:
    """A direction that no persona has anything of, with a little noise."""
    free = world.noise(1)[0].double()
    return wobbly(world, free - (free @ world.span.T) @ world.span, 0.3)


PLANTED: dict[str, Callable[[World], Tensor]] = {
    "persona": persona_like, "text": text_like, "noise": noise_like, "elsewhere": elsewhere,
}  # fmt: skip


def rates(seeds: range) -> dict[str, dict[str, float]]:
    """How often each verdict comes where each truth is planted."""
    found: dict[str, dict[str, float]] = {}
    for name, plant in PLANTED.items():
        verdicts = []
        for seed in seeds:
            world = make_world(seed)
            verdicts.append(world.told(plant(world))["verdict"])
        found[name] = {verdict: verdicts.count(verdict) / len(verdicts) for verdict in dict.fromkeys(verdicts)}
    return found
