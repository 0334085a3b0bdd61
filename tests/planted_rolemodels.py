"""Measurements of role models of which it is known what they do to a model, and the verdicts that are right.

The sizes are those of a quick run: 8 role models, 6 human characters, 8 HAL-like AIs, 4 items of each of 3 traits and
20 random directions. All numbers are nats a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from steerkit.experiments.rolemodels import GROUPS, HAL, HUMAN, ROLE, Pulled, Settings, examine

COUNTS = {ROLE: 8, HUMAN: 6, HAL: 8}
EACH = 4
FEW_RESAMPLES = Settings(n_resamples=50)
Change = Callable[[dict[str, Tensor], Tensor], None]


def make_pulled(
    seed: int,
    means: Sequence[float] = (0.0, 0.0, 0.0),
    change: Change | None = None,
    scatter: float = 0.03,
    own: float = 0.05,
    common: float = 0.12,
    noise: float = 0.1,
) -> Pulled:
    """Shifts around the mean of each kind: archetypes scatter, and items answer to all personas and to each kind.

    Args:
        seed: of everything that is drawn
        means: of role models, human characters and HAL-like AIs
        change: what is done to the shifts of each kind in the end, given also which items agree with their question
        scatter: standard deviation of archetypes
        own: of items, apart for each kind
        common: of items, alike for all personas; and of items under each random direction
        noise: of each archetype's shift of each item
    """
    draw = torch.Generator().manual_seed(seed)
    n_items = EACH * len(GROUPS)

    def noisy(*shape: int, size: float) -> Tensor:
        return torch.randn(shape, generator=draw) * size

    alike = noisy(n_items, size=common)
    shifts = {
        kind: mean + alike + noisy(n, 1, size=scatter) + noisy(n_items, size=own) + noisy(n, n_items, size=noise)
        for (kind, n), mean in zip(COUNTS.items(), means, strict=True)
    }
    if change:
        change(shifts, torch.tensor([True, False] * (n_items // 2)))
    kinds = [kind for kind, n in COUNTS.items() for _ in range(n)]
    return Pulled(
        archetypes=tuple(f"archetype_{i}" for i in range(len(kinds))),
        kinds=tuple(kinds),
        groups=tuple(group for group in GROUPS for _ in range(EACH)),
        shifts=torch.cat(list(shifts.values())),
        chance=noisy(20, n_items, size=common),
        prompted=torch.arange(0, len(kinds), 2),
        prompts=noisy(len(kinds) // 2, n_items, size=0.3),
        costs=torch.full((len(kinds) // 2,), 3.0),
        bare=noisy(n_items, size=0.4) - 0.3,
    )


def planted(
    *means: float, change: Change | None = None, scatter: float = 0.03, own: float = 0.05
) -> Callable[[int], dict[str, Any]]:
    """What is said of planted shifts, by seed; without means of role models, characters and HAL-like AIs they are 0."""
    return lambda seed: examine(make_pulled(seed, means or (0.0, 0.0, 0.0), change, scatter, own), FEW_RESAMPLES)


def one_archetype(shifts: dict[str, Tensor], agrees: Tensor) -> None:
    """One role model and one HAL-like AI do it all."""
    del agrees
    shifts[ROLE][0] += 2.0
    shifts[HAL][0] -= 2.0


def one_item(shifts: dict[str, Tensor], agrees: Tensor) -> None:
    """One item of the twelve does it all."""
    del agrees
    shifts[ROLE][:, 0] += 3.0
    shifts[HAL][:, 0] -= 3.0


def yes_saying(shifts: dict[str, Tensor], agrees: Tensor) -> None:
    """Role models say yes and HAL-like AIs no, whatever the trait would say."""
    sign = torch.where(agrees, 0.4, -0.4)
    shifts[ROLE] += sign
    shifts[HAL] -= sign


CASES: dict[str, tuple[Callable[[int], dict[str, Any]], str]] = {
    "role models raise the traits and HAL-like AIs lower them": (planted(0.3, 0.0, -0.3), "yes"),
    "both do, and all personas have a smaller drop in common": (planted(0.27, -0.05, -0.4), "yes"),
    "it is the other way round": (planted(-0.3, 0.0, 0.3), "no"),
    "all personas lower the traits alike": (planted(-0.3, -0.3, -0.3), "no"),
    "all personas raise the traits alike": (planted(0.3, 0.3, 0.3), "no"),
    "role models lower them as HAL-like AIs do": (planted(-0.3, 0.0, -0.3), "no"),
    "role models only lower them less than characters do": (planted(-0.2, -0.5, -0.8), "no"),
    "HAL-like AIs only raise them less than characters do": (planted(0.8, 0.5, 0.2), "no"),
    "only the characters differ": (planted(0.0, -0.3, 0.0), "no"),
    "role models stand above characters because those drive the traits out": (planted(0.0, -0.3, -0.6), "cannot tell"),
    "HAL-like AIs stand below characters because those bring the traits": (planted(0.6, 0.3, 0.0), "cannot tell"),
    "archetypes do no more than random directions": (planted(scatter=0.0, own=0.0), "cannot tell"),
    "archetypes scatter widely, whatever their kind": (planted(scatter=0.2), "cannot tell"),
    "items answer to each kind in their own way": (planted(own=0.3), "cannot tell"),
    "one archetype of either kind does it all": (planted(change=one_archetype), "cannot tell"),
    "one item does it all": (planted(change=one_item), "cannot tell"),
    "role models say yes to everything": (planted(change=yes_saying), "cannot tell"),
}
"""A sentence, what is said of the planted measurement of a seed, and the verdict that is right."""
