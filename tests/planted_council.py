"""Councils whose members share their opinions, or do not, by construction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from steerkit.experiments import council

FEW = council.Settings(n_resamples=100)
MEMBERS, WORDS, QUESTIONS, OPTIONS, RANDOM = 10, 3, 16, 5, 10


def make_council(
    seed: int,
    shared: float = 1.5,
    own: tuple[float, float, float] = (0.6, 0.4, 0.7),
    words: float = 0.3,
    wobble: float = 0.2,
    chance: float = 0.3,
    leftover: float = 0.0,
    warmth: float = 0.0,
    camps: int = 0,
    few: int = QUESTIONS,
    against: float = 0.0,
) -> council.Council:
    """Log scores with a part for everything that may make members alike or different; standard deviations in nats.

    Args:
        seed: of everything
        shared: opinions of all members, on the first `few` questions
        own: each member's own opinions when asked for, when steered, and at once
        words: what a wording does to all members alike
        wobble: what a wording does to one of them
        chance: what a random direction does
        leftover: how much of the options' likelihood was not taken off
        warmth: by what factor, as a logarithm, members differ in how sure they are
        camps: if any, members of one camp have the same opinions of their own
        few: questions on which opinions are shared
        against: opinions that every second member has the other way round
    """
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, QUESTIONS, OPTIONS, generator=draw)

    likely = 2 * normal()
    common = shared * normal() * (torch.arange(QUESTIONS) < few)[:, None] + leftover * likely
    opinions = normal(camps)[torch.arange(MEMBERS) % camps] if camps else normal(MEMBERS)
    sides = torch.tensor([1.0, -1.0] * (MEMBERS // 2))[:, None, None] * against * normal()
    sure = (warmth * torch.randn(MEMBERS, generator=draw)).exp()[:, None, None]
    minds = [(common + sides + size * opinions) * sure for size in own]
    said = words * normal(WORDS)
    return council.Council(
        members=tuple(f"member{i}" for i in range(MEMBERS)),
        asked=minds[0][:, None] + said + wobble * normal(MEMBERS, WORDS),
        steered=minds[1] + wobble * normal(MEMBERS),
        both=minds[2][:, None] + said + wobble * normal(MEMBERS, WORDS),
        bare=common,
        chance=common + chance * normal(RANDOM),
        likely=likely,
        costs=torch.tensor([2.0, 0.5, 2.5, 0.5]),
    )


def planted(**told: Any) -> Callable[[int], dict[str, Any]]:
    return lambda seed: council.examine(make_council(seed, **told), FEW)


APART = (1.5, 1.5, 1.5)
CASES: dict[str, tuple[Callable[[int], dict[str, Any]], str]] = {
    "members share most of their opinions": (planted(), "yes"),
    "members are one mind, whoever is asked": (planted(own=(0.0, 0.0, 0.0)), "yes"),
    "members differ in how sure they are and hardly in what they think": (
        planted(own=(0.2, 0.2, 0.2), warmth=0.3),
        "yes",
    ),
    "every member thinks for itself": (planted(shared=0.0, own=APART), "no"),
    "every member thinks for itself, and words move all of them alike": (
        planted(shared=0.0, own=APART, words=1.0),
        "no",
    ),
    "half of the members think the other way round": (planted(shared=0.0, own=(0.5, 0.5, 0.5), against=1.5), "no"),
    "members are alike when asked for and think for themselves when steered": (
        planted(shared=0.7, own=(0.3, 2.0, 0.3)),
        "no",
    ),
    "two minds in ten heads": (planted(shared=0.3, own=APART, camps=2), "cannot tell"),
    "every member thinks for itself, and some are surer than others": (
        planted(shared=0.0, own=APART, warmth=0.5),
        "no",
    ),
    "nobody has an opinion": (planted(shared=0.05, own=(0.05, 0.05, 0.05), words=0.05, wobble=0.05), "cannot tell"),
    "opinions come with the words and with nobody": (
        planted(shared=0.0, own=(0.0, 0.0, 0.0), words=0.0, wobble=1.5, chance=2.0),
        "cannot tell",
    ),
    "the half between one mind and independent minds": (planted(shared=1.25, own=(1.1, 1.1, 1.1)), "cannot tell"),
    "what all share is the likelihood that was not taken off": (
        planted(shared=0.0, own=(1.0, 1.0, 1.0), leftover=0.9),
        "cannot tell",
    ),
    "what all share is the likelihood that was taken off twice": (
        planted(shared=0.0, own=(1.0, 1.0, 1.0), leftover=-0.9),
        "cannot tell",
    ),
    "steering is no more than disturbance": (
        planted(own=(0.3, 3.0, 0.3), chance=3.5),
        "cannot tell",
    ),
    "all agree on a few questions and on nothing else": (planted(shared=2.5, own=APART, few=2), "no"),
}
