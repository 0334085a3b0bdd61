"""What a steering term does to the residual stream: six formulas, each with the dial at which it does nothing.

Every operator takes states `h` [b s d], a displacement `d` and a baseline [b 1 d], and a dial [b 1 1]. `add` and
`rotate` telescope over a band of layers: each later layer gets only the increment of the displacement, so that a dial
keeps its unit whatever the band. The others act on the score, which does not pile up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

States = Float[Tensor, "b s d"]
PerRow = Float[Tensor, "b 1 d"]
Dial = Float[Tensor, "b 1 1"]


def score(h: States, d: PerRow, baseline: PerRow) -> Float[Tensor, "b s 1"]:
    """How far along `d` each state is: 0 at the baseline, 1 at the persona asked for outright."""
    return ((h - baseline) * d).sum(-1, keepdim=True) / d.square().sum(-1, keepdim=True).clamp_min(1e-20)


def add(h: States, d: PerRow, _baseline: PerRow, dial: Dial) -> States:
    """H + α d. Identity: α = 0."""
    return h + dial * d


def set_score(h: States, d: PerRow, baseline: PerRow, dial: Dial) -> States:
    """H + (α − score(h)) d: every token scores α (ACE, arXiv 2411.09003). No identity."""
    return h + (dial - score(h, d, baseline)) * d


def ablate(h: States, d: PerRow, baseline: PerRow, dial: Dial) -> States:
    """H − α score(h) d: at α = 1 every token scores 0. Identity: α = 0."""
    return h - dial * score(h, d, baseline) * d


def cap(h: States, d: PerRow, baseline: PerRow, dial: Dial) -> States:
    """H − max(0, score(h) − τ) d: no token scores above τ (arXiv 2601.10387). Identity: τ = +∞."""
    return h - (score(h, d, baseline) - dial).clamp_min(0) * d


def floor(h: States, d: PerRow, baseline: PerRow, dial: Dial) -> States:
    """H + max(0, τ − score(h)) d: no token scores below τ. Identity: τ = −∞."""
    return h + (dial - score(h, d, baseline)).clamp_min(0) * d


def rotate(h: States, d: PerRow, _baseline: PerRow, dial: Dial) -> States:
    """H + α d, rescaled to the length of h. Identity: α = 0."""
    moved = h + dial * d
    return moved * (h.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True).clamp_min(1e-20))


@dataclass(frozen=True)
class Operator:
    """One formula and what the expression language needs to know of it."""

    apply: Callable[[States, PerRow, PerRow, Dial], States]
    """The formula."""
    default: float | None
    """The dial when none is written; None where one must be."""
    telescopes: bool = False
    """Whether a band of layers adds increments instead of the whole displacement."""
    percentile: str | None = None
    """Which calibrated percentile of the Assistant's own scores is meant when no dial is written."""


OPERATORS: dict[str, Operator] = {
    "add": Operator(add, None, telescopes=True),
    "set": Operator(set_score, None),
    "ablate": Operator(ablate, 1.0),
    "cap": Operator(cap, None, percentile="p75"),
    "floor": Operator(floor, None, percentile="p25"),
    "rotate": Operator(rotate, None, telescopes=True),
}


def increments(directions: Float[Tensor, "l d"], first: int, last: int) -> Float[Tensor, "k d"]:
    """What a telescoping operator adds at each layer of the band first … last.

    The sum up to any layer is that layer's own displacement, so nothing compounds.

    >>> increments(torch.tensor([[1.0], [3.0], [4.0]]), 0, 2).flatten().tolist()
    [1.0, 2.0, 1.0]
    """
    band = directions[first : last + 1]
    return torch.cat([band[:1], band[1:] - band[:-1]])
