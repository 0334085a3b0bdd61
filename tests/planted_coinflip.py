"""Readings of coins that lean, or do not, by construction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steerkit.experiments import coinflip

FEW = coinflip.Settings(n_resamples=100)
PAIRS, STEERED, RANDOMS = 10, 5, 20
ARMS = ("hal", "malice", "pirate")
CONCERNING = (True, True, False)


def with_lean(lean: Tensor, heads: float = 0.0, place: float = 0.0) -> Tensor:
    """Log odds [.. 2 2] of a coin with a lean [.. 2] in either order, and with a liking for heads and a place."""
    push = torch.logit(0.5 + lean.clamp(-0.49, 0.49))
    liking = heads + place * torch.tensor([1.0, -1.0])[: lean.shape[-1]]
    return torch.stack([liking + push, liking - push], dim=-1)


def make_tossed(
    seed: int,
    concerns: float = 0.2,
    people: float = 0.1,
    idle: float = 0.0,
    spoken: float | None = None,
    noise: float = 0.03,
    heads: float = 0.3,
    place: float = 0.5,
    named: float = 0.8,
    kept: float = 1.0,
    chance: float = 0.9,
    outlier: float = 0.0,
) -> coinflip.Tossed:
    """Leans in units of probability; of them personas that concern leave `kept`, random directions about `chance`.

    Pairs differ by `noise` in every voice alike, and half as much more in every reading. Contrasts of options without
    meaning come twice, with exchanged roles. `spoken` is the lean of the Assistant's reply, if it is another.
    """
    draw = torch.Generator().manual_seed(seed)
    kinds = torch.tensor([concerns, people, idle])
    voices = torch.stack([kinds, kinds, kinds if spoken is None else torch.tensor([spoken, people, idle])])
    of_pairs = torch.randn(3, PAIRS, generator=draw) * noise
    of_pairs[2, 1::2] = -of_pairs[2, 0::2]
    of_pairs[0, 0] += outlier
    shape = (3, 3, PAIRS, 2)
    leans = voices[:, :, None, None] + of_pairs[:, :, None] + torch.randn(shape, generator=draw) * noise / 2
    bare = leans[0, 0, :STEERED, :1]

    def left(shares: Tensor) -> Tensor:
        jitter = torch.randn(len(shares), STEERED, 1, generator=draw) * noise / 2
        return with_lean(shares[:, None, None] * bare + jitter, heads, place)

    shares = torch.tensor([kept if each else 1.0 for each in CONCERNING])
    return coinflip.Tossed(
        odds=with_lean(leans, heads, place),
        named=(named * (1 + 0.1 * torch.randn(*shape, 2, generator=draw))).clamp(0, 1),
        arms=ARMS,
        concerning=CONCERNING,
        steered=left(shares),
        chance=left(chance + 0.1 * torch.randn(RANDOMS, generator=draw)),
        asked=left(shares)[:, None],
        costs=torch.full((len(ARMS),), 0.5),
    )


def planted(**told: float) -> Callable[[int], dict[str, Any]]:
    return lambda seed: coinflip.examine(make_tossed(seed, **told), FEW)


CASES: dict[str, tuple[Callable[[int], dict[str, Any]], str]] = {
    "the Assistant's concerns lean, whoever speaks": (planted(), "yes"),
    "they lean no more than strangers' luck, which the reason has to say": (planted(people=0.2), "yes"),
    "a fair coin with a liking for heads and for what is named first": (planted(concerns=0.0, people=0.0), "no"),
    "a lean too small to see": (planted(concerns=0.01, people=0.0), "no"),
    "only the Assistant's own replies lean": (planted(concerns=0.0, spoken=0.3), "no"),
    "only strangers' luck leans": (planted(concerns=0.0, people=0.3), "no"),
    "the coin leans away": (planted(concerns=-0.2, people=-0.2), "no"),
    "the texts do not go on with the coin": (planted(named=0.01), "cannot tell"),
    "the coin falls on heads whatever it stands for": (planted(heads=5.0), "cannot tell"),
    "a fair coin that falls on heads all the same": (planted(concerns=0.0, heads=5.0), "cannot tell"),
    "the coin falls on the side that is named first": (planted(place=5.0), "cannot tell"),
    "options without meaning lean as well": (planted(idle=0.2), "cannot tell"),
    "options without meaning lean half as much": (planted(idle=0.1), "cannot tell"),
    "one pair of ten leans, and strongly": (planted(concerns=0.0, outlier=0.45, noise=0.05), "cannot tell"),
    "pairs lean this way and that": (planted(concerns=0.04, noise=0.15), "cannot tell"),
}
